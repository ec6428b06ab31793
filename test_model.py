"""The mathematics, on a CPU in seconds: python -m pytest -q test_model.py"""
import math
import types
from dataclasses import replace

import pytest
import torch
import torch.fx.experimental._config

from methods import baselines
import common.cli
import common.run
import distill
from methods import dmd
from methods import intmeanflow
from networks import checkpoint, durations, e2, f5_net, unet
import model
import sample
import teacher
from common.cli import BadInput
from conftest import BACKBONES, F5, SMALL, STEP, UNET, make_batch, randomised, tiny_bundle, uniforms

METHODS = distill.METHODS | intmeanflow.METHODS | baselines.METHODS | dmd.METHODS


class Straight(torch.nn.Module):
    """A stand-in network whose velocity is constant: x0 flows straight to the batch's mel."""

    def __init__(self, batch, **config):
        super().__init__()
        self.batch, self.config = batch, types.SimpleNamespace(**dict(time="t") | config)

    step_condition = model.DiT.step_condition

    def embed_text(self, text, align, mask=None, drop=None):
        return torch.zeros(*align.shape, 1)

    def forward(self, x, step_cond, ref, h, mask=None):
        return self.batch["mel"] - self.batch["x0"]




# ------------------------------------------------------------------------------------------------- method


@pytest.mark.parametrize("n", [1, 2, 4])
def test_constant_velocity_gives_zero_loss_and_exact_endpoints(n):
    batch = make_batch()
    flow = Straight(batch)
    states = distill.teacher_states(flow, batch, [1, 2, 4], w=1.5)
    assert torch.allclose(states["states"][-1], batch["mel"], atol=1e-5)
    for name in ("dsflow", "endpoint", "velocity"):
        assert METHODS[name].loss(flow, states, n, {}, **METHODS[name].fixed)[0] < 1e-9
    x1 = sample.rollout(flow, batch, sample.cosine_grid(n), 0.0)[-1]
    assert torch.allclose(x1, batch["mel"], atol=1e-5)


def test_endpoint_is_velocity_at_the_chords_start_times_interval_squared():
    """|| X_s + delta v - X_e ||^2 = delta^2 || v - v_bar ||^2, through the loss itself, at delta = 1 and 1/4."""
    student, batch = randomised(model.DiT(STEP)), make_batch()
    X = torch.randn(2, *batch["mel"].shape)
    for grid in ([0.0, 1.0], [0.0, 0.25]):
        b = dict(batch, states=X, grid=torch.tensor(grid))
        _, terms = distill.dsflow_loss(student, b, 1, a=1.0)
        cond, _ = sample.condition(student, b)
        v_bar = (X[1] - X[0]) / grid[1]
        velocity = ((student(X[0], 1, *cond, b["mask"]) - v_bar) ** 2)[b["todo"]].mean()
        assert torch.allclose(terms["endpoint"], grid[1] ** 2 * velocity, rtol=1e-4)


@pytest.mark.parametrize("seed, t_mf", [(1, "mid"), (2, "mid"), (3, "uniform"), (4, "uniform")])
def test_loss_equals_the_formula_written_naively(seed, t_mf):
    student, batch = randomised(model.DiT(STEP)), make_batch()
    u = uniforms(2, torch.Generator().manual_seed(seed))
    b = dict(batch, states=torch.randn(5, *batch["mel"].shape), grid=sample.cosine_grid(4), u=u, coin=0.0)
    loss, terms = distill.dsflow_loss(student, b, 2, t_mf=t_mf)
    cond, null = sample.condition(student, b, guided=True)
    sums, frames = torch.zeros(3), torch.zeros(3)                                 # endpoint, velocity, cfg
    by_half = {}                                # (term, number of the interval) -> its squares
    for item in range(2):
        k, end = int(2 * u["interval"][item]), bool(u["term"][item] < 0.7)
        tau = u["chord"][item] if t_mf == "uniform" else 0.5
        X_s, X_e = b["states"][2 * k], b["states"][2 * k + 2]
        delta = b["grid"][2 * k + 2] - b["grid"][2 * k]
        x = X_s if end else (1 - tau) * X_s + tau * X_e
        v, v_u = student(x, 2, *cond, b["mask"]), student(x, 2, *null, b["mask"])
        for T in range(14):
            if b["todo"][item, T]:
                error = X_s + delta * v - X_e if end else v - (X_e - X_s) / delta
                square = (error[item, T] ** 2).mean()
                sums += torch.stack([square * end, square * (not end), ((v_u - v)[item, T] ** 2).mean()])
                frames += torch.tensor([end, not end, True])
                by_half.setdefault(f"{'endpoint' if end else 'velocity'} {k + 1}/2", []).append(square)
    want = (sums[0] + sums[1]) / frames[2] + 0.01 * sums[2] / frames[2]
    got = torch.stack([terms["endpoint"], terms["velocity"], terms["cfg"]])
    assert torch.allclose(loss, want, rtol=1e-4)
    assert torch.allclose(got, sums / frames, rtol=1e-4, equal_nan=True)
    assert {name for name, value in terms.items() if "/" in name and not value.isnan()} == set(by_half)
    for name, squares in by_half.items():
        assert torch.allclose(terms[name], torch.stack(squares).mean(), rtol=1e-4)


def test_one_term_per_item_is_the_dual_loss_in_expectation():
    """Over the four ways in which two items can supply the terms, weighted by how likely each is: Eq. 7."""
    student, batch = randomised(model.DiT(STEP)), make_batch()
    b = dict(batch, states=torch.randn(2, *batch["mel"].shape), grid=torch.tensor([0.0, 0.5]))
    a, losses = 0.7, {}
    for u in ((0.1, 0.1), (0.1, 0.71), (0.71, 0.69), (0.9, 0.9)):                 # under a: the endpoint
        b["u"]["term"] = torch.tensor(u)
        losses[u[0] < a, u[1] < a] = distill.dsflow_loss(student, b, 1, a=a, p_uncond=0.0)[0]
    assert len(losses) == 4
    chance = {pattern: a ** sum(pattern) * (1 - a) ** (2 - sum(pattern)) for pattern in losses}
    expected = sum(chance[pattern] * loss for pattern, loss in losses.items())
    want = a * losses[True, True] + (1 - a) * losses[False, False]                # Eq. 7
    assert torch.allclose(expected, want, rtol=1e-5)
    assert not torch.allclose(losses[True, True], losses[False, False], rtol=1e-2)


def test_loss_scale_an_error_of_one_everywhere_is_one():
    batch = make_batch()
    flow = Straight(batch)
    states = distill.teacher_states(flow, batch, [1], w=0.0)
    shifted = dict(states, states=torch.stack([states["states"][0], states["states"][-1] + 1]))
    for a in (0.0, 1.0):
        loss, terms = distill.dsflow_loss(flow, shifted, 1, a=a)
        assert abs(loss - 1) < 1e-5 and "cfg" not in terms                         # not drawn, not 0
    assert abs(teacher.cfm_loss(flow, batch, torch.rand(2))[0]) < 1e-9


@pytest.mark.parametrize("coin, weak_cfg, drawn", [(0.019, True, True), (0.02, True, False), (0.0, False, False)])
def test_weak_cfg_is_drawn_by_the_coin(coin, weak_cfg, drawn):
    """One batch in fifty gets a second network call and a little more loss."""
    net, batch, calls = randomised(model.DiT(STEP)), make_batch(), []
    b = dict(batch, states=torch.randn(2, *batch["mel"].shape), grid=torch.tensor([0.0, 1.0]))
    plain, _ = distill.dsflow_loss(net, dict(b, coin=1.0), 1)
    net.register_forward_hook(lambda *_: calls.append(1))
    loss, terms = distill.dsflow_loss(net, dict(b, coin=coin), 1, weak_cfg=weak_cfg)
    assert ("cfg" in terms, len(calls)) == (drawn, 1 + drawn)
    assert torch.allclose(loss, plain + 0.01 * terms.get("cfg", torch.zeros(())), rtol=1e-6)


def test_weak_cfg_trains_only_the_unconditional_branch():
    """With a = 1 and the endpoint error made zero, the text reaches the loss through L_CFG only, and must get
    no gradient.
    """
    net, batch = randomised(model.DiT(STEP)), make_batch()
    cond, _ = sample.condition(net, batch)
    end = (batch["x0"] + net(batch["x0"], 1, *cond, batch["mask"])).detach()
    b = dict(batch, states=torch.stack([batch["x0"], end]), grid=torch.tensor([0.0, 1.0]), coin=0.0)
    distill.dsflow_loss(net, b, 1, a=1.0)[0].backward()
    used = net.text.embed.weight.grad
    assert used[0].abs().max() > 1e-6 and used[1:].abs().max() < 1e-7             # row 0 is "no text"


def test_an_interval_needs_a_grid_that_its_count_divides():
    """Of a trajectory of 10 intervals: 2 steps take half each, 4 would never reach t = 1 and are refused."""
    batch = make_batch((14, 9, 8))
    b = dict(batch, states=torch.randn(11, *batch["mel"].shape), grid=sample.cosine_grid(10))
    b["u"]["interval"] = torch.tensor([0.0, 0.499, 0.9999])
    X_s, X_e, s, e, k = distill.interval(b, 2)
    assert k.tolist() == [0, 0, 1] and torch.equal(s, b["grid"][[0, 0, 5]]) and torch.equal(e, b["grid"][[5, 5, 10]])
    items = [0, 1, 2]
    assert torch.equal(X_s, b["states"][[0, 0, 5], items]) and torch.equal(X_e, b["states"][[5, 5, 10], items])
    for n in (3, 4, 11):
        with pytest.raises(ValueError, match=f"10 intervals does not divide into {n}"):
            distill.interval(b, n)


@pytest.mark.parametrize("t", [0.0, 0.4])
@pytest.mark.parametrize("token", ["add", "prepend"])
def test_fold_equals_the_teacher_at_that_time(t, token):
    net, batch = randomised(model.DiT(SMALL), 1), make_batch()
    kind = e2.FRAMED[model.DiT] if token == "prepend" else None
    student = model.fold(net, [1, 2, 4], t, kind)
    cond, _ = sample.condition(net, batch)
    want, got = net(batch["x0"], t, *cond, batch["mask"]), student(batch["x0"], 2, *cond, batch["mask"])
    if token == "prepend":                      # one more frame to attend to: near, not equal
        assert got.shape == want.shape and 1e-5 < (want - got)[batch["mask"]].abs().mean() < want.std()
    else:
        assert (want - got)[batch["mask"]].abs().max() < 1e-5


def test_fold_of_a_frame_of_time_equals_the_teacher_exactly():
    """Where t is a frame (E2-TTS), that frame at t becomes every step's vector; nothing else changes."""
    net, batch = randomised(e2.E2(SMALL)), make_batch()
    student = model.fold(net, [1, 4], 0.4)
    cond, _ = sample.condition(net, batch)
    for n in (1, 4):
        assert torch.equal(student(batch["x0"], n, *cond, batch["mask"]), net(batch["x0"], 0.4, *cond, batch["mask"]))
    (total, conditioning), (kept, tokens) = model.count_parameters(net), model.count_parameters(student)
    assert kept == total - conditioning + tokens and tokens == 2 * 32 and type(student) is e2.E2


def test_refit_starts_each_new_count_from_the_nearest():
    student, batch = randomised(model.DiT(STEP)), make_batch()
    other, (cond, _) = checkpoint.refit(student, [8, 1, 3]), sample.condition(student, batch)
    assert other.config.steps == (1, 3, 8)
    for n, old in ((1, 1), (3, 4), (8, 4)):
        assert torch.equal(other(batch["x0"], n, *cond, batch["mask"]), student(batch["x0"], old, *cond, batch["mask"]))
    timed = randomised(model.DiT(SMALL))
    same = checkpoint.refit(timed, [7])
    assert same is not timed and all(map(torch.equal, same.parameters(), timed.parameters()))


def test_parameters_leave_with_the_timestep_network():
    net = model.DiT(model.DiTConfig(vocab=30))                                   # size tiny
    student = model.fold(net, [1, 2, 4])
    (total, conditioning), (kept, tokens) = model.count_parameters(net), model.count_parameters(student)
    D, depth = net.config.dim, net.config.depth
    assert tokens == 3 * D and kept == total - conditioning + tokens + 2 * D * (2 * depth + 1)
    assert kept < 0.8 * total
    assert 3 * model.SIZES["base"]["dim"] == 1536                                 # the paper's 1.5K
    D, stages = UNET.dim, UNET.depth + 4        # a U-Net: the MLP, and a layer in every residual block
    assert model.count_parameters(unet.UNet(UNET))[1] == 256 * D + D + D * D + D + stages * (D * D + D)


def test_guidance_formula_and_network_calls():
    net, batch = randomised(model.DiT(SMALL)), make_batch()
    cond, null = sample.condition(net, batch, guided=True)
    v_c, v_u = net(batch["x0"], 0.3, *cond, batch["mask"]), net(batch["x0"], 0.3, *null, batch["mask"])
    got = sample.guided_velocity(net, batch["x0"], 0.3, cond, null, 0.7, batch["mask"])
    assert torch.allclose(got, v_c + 0.7 * (v_c - v_u), atol=1e-5) and not torch.allclose(v_c, v_u, atol=1e-2)
    calls = []
    net.register_forward_hook(lambda *_: calls.append(1))
    for steps, w, expected in ((1, 0.0, 1), (4, 0.0, 4), (1, 0.5, 2), (10, 0.7, 20)):
        calls.clear()
        sample.rollout(net, batch, sample.cosine_grid(steps), w)
        assert len(calls) == expected


def test_known_frames_take_the_straight_line_to_the_reference():
    net, batch, grid = randomised(model.DiT(SMALL)), make_batch(), sample.cosine_grid(4)
    states, known = sample.rollout(net, batch, grid, 0.7), batch["known"]
    for x, t in zip(states, grid):
        line = (1 - t) * batch["x0"] + t * batch["ref"]
        assert torch.allclose(x[known], line[known], atol=1e-6)
    free = sample.rollout(net, dict(batch, known=None), grid, 0.7)
    assert not torch.allclose(free[-1][known], batch["ref"][known], atol=1e-2)
    naive = batch["x0"]                         # and the sampler is Euler
    cond, null = sample.condition(net, batch, guided=True)
    for t, r in zip(grid[:-1], grid[1:]):
        with torch.no_grad():
            naive = naive + (r - t) * sample.guided_velocity(net, naive, t, cond, null, 0.7, batch["mask"])
    assert torch.allclose(free[-1][batch["mask"]], naive[batch["mask"]], atol=1e-5)


def test_grids():
    for make in sample.GRIDS.values():
        for n in (1, 2, 7, 12):
            grid = make(n)
            assert len(grid) == n + 1 and grid[0] == 0 and grid[-1] == 1 and (grid.diff() > 0).all()
    # a student's grid is part of its teacher's
    assert torch.allclose(sample.cosine_grid(12)[::3], sample.cosine_grid(4))
    assert distill.teacher_grid([1]) == (10, 1) and distill.teacher_grid([1, 2, 4]) == (12, 4)


def test_losses_by_quarter_of_time_are_of_their_items():
    """A velocity off by one for the first item, by two for the second: each quarter has its own, others nothing."""
    batch = make_batch()
    flow = Straight(dict(batch, mel=batch["mel"] + torch.tensor([1.0, 2.0])[:, None, None]))
    loss, by_time = teacher.cfm_loss(flow, batch, torch.tensor([0.1, 0.99]))
    assert list(by_time) == [f"loss t<{k}/4" for k in (1, 2, 3, 4)]
    assert [round(float(v), 4) for v in by_time.values() if not v.isnan()] == [1.0, 4.0]
    assert not by_time["loss t<1/4"].isnan() and not by_time["loss t<4/4"].isnan()
    todo = batch["todo"].sum(1)
    assert abs(loss - (todo * torch.tensor([1.0, 4.0])).sum() / todo.sum()) < 1e-4


# ------------------------------------------------------------------------------------------ the other methods


def teacher_batch(K=4, seed=0, w=0.7):
    """make_batch() with every state of a random teacher's guided rollout, and that teacher."""
    net, batch = randomised(model.DiT(SMALL), seed), make_batch()
    return net, distill.teacher_states(net, batch, [1, 2, 4], w, at_least=K, dense=True)


class Analytic(torch.nn.Module):
    """The average velocity of dz/dt = a z: u(z, t, r) = z (e^(a (r - t)) - 1) / (r - t), a z at r = t."""
    config, recompute = types.SimpleNamespace(time="pair"), False
    embed_text = Straight.embed_text

    def forward(self, z, step_cond, ref, h, mask=None):
        gap = (step_cond[1] - step_cond[0])[:, None, None]
        return z * torch.where(gap == 0, 0.5, torch.expm1(0.5 * gap) / torch.where(gap == 0, 1, gap))


def test_intmeanflow_with_one_substep_regresses_the_teachers_velocity():
    net, batch = teacher_batch()
    student = randomised(model.DiT(replace(SMALL, time="pair")), 3)
    one = dict(batch, states=batch["states"][1:3], grid=batch["grid"][1:3])
    loss, _ = intmeanflow.intmeanflow_loss(student, one, 1)
    both = sample.condition(net, batch, guided=True)
    v = sample.guided_velocity(net, one["states"][0], one["grid"][0], *both, 0.7, batch["mask"])
    cond, _ = sample.condition(student, batch)
    u = student(one["states"][0], tuple(one["grid"].expand(2, 2).T), *cond, batch["mask"])
    assert torch.allclose(loss, ((u - v) ** 2)[batch["todo"]].mean(), rtol=1e-3)


def test_two_times_are_of_the_grid_and_of_all_pairs():
    """Half of the items take an interval of the n-step grid; of the others, every pair is as likely, and a share
    `same` has r = t.
    """
    u = uniforms(20000, torch.Generator().manual_seed(0))
    i, j = intmeanflow.two_times(dict(grid=sample.cosine_grid(8), u=u), 2)
    few = u["few"] < 0.5
    assert {(a, b) for a, b in zip(i[few].tolist(), j[few].tolist())} == {(0, 4), (4, 8)}
    pairs, counts = torch.stack([i[~few], j[~few]]).unique(dim=1, return_counts=True)
    assert len(counts) == 8 * 9 // 2 and (pairs[0] < pairs[1]).all() and pairs.min() == 0 and pairs.max() == 8
    assert (counts / counts.sum() * len(counts) - 1).abs().max() < 0.3
    i, j = intmeanflow.two_times(dict(grid=sample.cosine_grid(8), u=u), 2, same=0.25)
    assert float((i == j)[~few].float().mean()) == pytest.approx(0.25, abs=0.02) and not (i == j)[few].any()


@pytest.mark.parametrize("network, config", BACKBONES.values())
def test_pair_starts_as_the_teacher_for_every_r(network, config):
    net, batch = randomised(network(config)), make_batch()
    student, (cond, _) = model.pair(net), sample.condition(net, batch)
    for t, r in ((0.0, 1.0), (0.3, 0.3), (0.5, 0.9)):
        v, u = net(batch["x0"], t, *cond, batch["mask"]), student(batch["x0"], (t, r), *cond, batch["mask"])
        assert (u - v)[batch["mask"]].abs().max() < 1e-5


def test_interval_identity_of_average_velocities():
    """(r - t) u(z_t, t, r) = (s - t) u(z_t, t, s) + (r - s) u(z_s, s, r), for an analytic flow."""
    u, z, (t, s, r) = Analytic(), torch.randn(2, 5, 8), torch.tensor([[0.1], [0.4], [0.8]]).expand(3, 2)
    z_s = z * torch.exp(0.5 * (s - t))[:, None, None]

    def moved(z, t, r):
        return (r - t)[:, None, None] * u(z, (t, r), None, None)
    assert torch.allclose(moved(z, t, r), moved(z, t, s) + moved(z_s, s, r), atol=1e-6)


def test_meanflow_is_zero_for_the_analytic_average_and_its_jvp_is_a_finite_difference():
    batch = make_batch()
    grid, states = sample.cosine_grid(4).double(), [batch["x0"].double()]
    for s, e in zip(grid[:-1], grid[1:]):
        states.append(states[-1] * (1 + 0.5 * (e - s)))                           # Euler: v is 0.5 z there
    double = {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in batch.items()}
    double |= dict(states=torch.stack(states), grid=grid)
    for seed in range(4):
        u = uniforms(2, torch.Generator().manual_seed(seed))
        _, terms = baselines.meanflow_loss(Analytic(), dict(double, u=u), 2)
        assert terms["velocity"] < 1e-15
    net = randomised(model.DiT(replace(SMALL, time="pair"))).double()
    z, v, t, r = double["x0"], torch.randn(double["x0"].shape).double(), grid[[1, 2]], grid[[3, 4]]
    cond, _ = sample.condition(net, double)

    def u(z, t):
        return net(z, (t, r), *cond, batch["mask"])
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), torch.no_grad():
        _, du = torch.func.jvp(u, (z, t), (v, torch.ones_like(t)))
        h = 1e-6
        near = (u(z + h * v, t + h) - u(z - h * v, t - h)) / (2 * h)
    assert (du - near)[batch["mask"]].abs().max() < 1e-4 * du[batch["mask"]].abs().max()
    net.recompute = True                        # a network that keeps no activations is told so, in one line
    with pytest.raises(BadInput, match="--recompute: --method meanflow cannot"):
        baselines.meanflow_loss(net, double, 2)


def test_consistency_is_zero_on_a_straight_teacher():
    batch = make_batch()
    flow = Straight(batch)
    states = distill.teacher_states(flow, batch, [1], w=0.0, dense=True)
    assert states["states"].shape[0] == 11
    assert baselines.consistency_loss(flow, states, 1, dict(ema=flow))[0] < 1e-9
    bent = dict(states, states=states["states"] + torch.linspace(0, 1, 11)[:, None, None, None] ** 2)
    assert baselines.consistency_loss(flow, bent, 1, dict(ema=flow))[0] > 1e-4


@pytest.mark.parametrize("n", [1, 2, 4])
def test_progressive_is_exact_for_a_constant_velocity(n):
    batch = make_batch()
    flow = Straight(batch, time="step", steps=(2 * n,))
    states = distill.teacher_states(flow, batch, [1, 2, 4], w=0.0)
    wrong = dict(states, states=states["states"] + torch.tensor([0.0, 1, 2, 3, 4])[:, None, None, None])
    for start in (flow, None):
        assert baselines.progressive_loss(flow, states, n, dict(start=start))[0] < 1e-9
    assert baselines.progressive_loss(flow, wrong, n, dict(start=flow))[0] < 1e-9
    assert baselines.progressive_loss(flow, wrong, n, dict(start=None))[0] > 1    # only the first run asks these


def test_progressive_asks_for_what_two_steps_of_the_previous_student_do():
    student, previous = (randomised(model.DiT(replace(SMALL, time="step", steps=(n,))), n) for n in (2, 4))
    _, b = teacher_batch()
    b["u"]["interval"] = torch.tensor([0.2, 0.8])                                       # one interval each
    loss, _ = baselines.progressive_loss(student, b, 2, dict(start=previous))
    error = []
    for item, k in enumerate((0, 1)):
        one = {name: b[name][item:item + 1] for name in ("text", "align", "ref", "mask", "todo")}
        x = x_s = b["states"][2 * k, item:item + 1]
        grid = sample.cosine_grid(4)[2 * k:2 * k + 3]
        with torch.no_grad():
            for t, r in zip(grid[:-1], grid[1:]):
                x = x + (r - t) * previous(x, 4, *sample.condition(previous, one)[0], one["mask"])
        v = student(x_s, 2, *sample.condition(student, one)[0], one["mask"])
        error.append(((v - (x - x_s) / (grid[2] - grid[0])) ** 2).mean(-1)[one["todo"]])
    assert torch.allclose(loss, torch.cat(error).mean(), rtol=1e-4)
    with pytest.raises(BadInput, match=r"--init: takes \(4,\) steps; expected a student of 2 for --steps 1"):
        baselines.progressive_loss(student, b, 1, dict(start=previous))


def test_velocity_sees_the_whole_chord():
    """Uniform on (0, 1): also near X_s, where one-step sampling asks; at 1/2 alone it never would."""
    assert baselines.METHODS["velocity"].fixed == dict(a=0.0, t_mf="uniform")
    seen, batch = [], make_batch()

    class Ear(Straight):
        def forward(self, x, step_cond, ref, h, mask=None):
            seen.append(x)
            return x
    b = dict(batch, states=torch.stack([torch.zeros_like(batch["mel"]), torch.ones_like(batch["mel"])]),
             grid=torch.tensor([0.0, 1.0]))
    b["u"]["chord"] = torch.tensor([0.01, 0.75])
    entry = baselines.METHODS["velocity"]
    entry.loss(Ear(batch), b, 1, {}, **entry.fixed)
    assert torch.allclose(seen[0][:, 0, 0], b["u"]["chord"])


class Normal(Straight):
    """The exact velocity where each value of x1 is N(mu, 1); told nothing of time: x1 = x0 + mu."""

    def __init__(self, batch, mu):
        super().__init__(batch)
        self.mu = torch.nn.Parameter(torch.tensor(mu))

    def forward(self, x, step_cond, ref, h, mask=None):
        if isinstance(step_cond, int):
            return self.mu.expand_as(x)
        t = step_cond[:, None, None]
        return (self.mu + t / (t ** 2 + (1 - t) ** 2) * (x - t * self.mu) - x) / (1 - t)


@pytest.mark.parametrize("mu, lies", [(0.0, 1.0), (0.0, -2.0), (1.5, 1.5)])
def test_distribution_matching_pulls_samples_to_where_the_teachers_lie(mu, lies):
    """The gradient of the student's mean has the sign of its error, whatever the noise, and is 0 where it is right;
    what trains the fake does not depend on where the teacher's lie.
    """
    batch = make_batch()
    student, fake, teacher = Normal(batch, mu), Normal(batch, mu), Normal(batch, lies).requires_grad_(False)
    student.step_condition = lambda n, t, r: n
    states = batch["x0"][None].expand(2, -1, -1, -1)
    b = dict(batch, states=states, grid=torch.tensor([0.0, 1.0]), w=0.0, known=batch["known"] & False)
    torch.manual_seed(3)
    loss, terms = dmd.dmd_loss(student, b, 1, dict(teacher=teacher, auxiliary={"1": fake}), anchor=0.0)
    loss.backward()
    assert float(student.mu.grad.sign()) == float(torch.tensor(mu - lies).sign()) and terms["fake"] > 0
    assert (terms["matching"] < 1e-9) == (mu == lies)
    first, fake.mu.grad = fake.mu.grad.clone(), None
    torch.manual_seed(3)
    dmd.dmd_loss(student, b, 1, dict(teacher=Normal(batch, lies + 3), auxiliary={"1": fake}), anchor=0.0)[0].backward()
    assert torch.equal(fake.mu.grad, first)


def test_distribution_matching_starts_from_no_difference():
    """Fresh fakes are the teacher: without guidance only the anchor is left, the endpoint's gradient."""
    lead, batch = randomised(model.DiT(SMALL)), make_batch()
    b = distill.teacher_states(lead, batch, [1, 2], w=0.0, at_least=4)
    student = randomised(model.fold(lead, [1, 2]))
    nets = dict(teacher=lead, auxiliary=dmd.fakes(lead, [1, 2]))
    for n in (1, 2):
        loss, terms = dmd.dmd_loss(student, b, n, nets, anchor=1.0)
        x1 = sample.rollout(student, b, sample.cosine_grid(n), 0.0)[-1]
        assert terms["matching"] < 1e-9 and torch.allclose(
            terms["endpoint"], teacher.frame_mean(((x1 - b["states"][-1]) ** 2).mean(-1), b["todo"]))
        loss.backward()
        assert all(p.grad.isfinite().all() for p in student.parameters() if p.grad is not None)
        assert all(p.grad is None for k, fake in nets["auxiliary"].items() if int(k) > n for p in fake.parameters())


# ------------------------------------------------------------------------------------------------- network


@pytest.mark.parametrize("network, config", [
    (model.DiT, STEP), (e2.E2, STEP), (e2.F5E2, F5), (e2.F5E2, replace(F5, time="step", steps=(1, 4))),
    *BACKBONES.values(), *((network, replace(config, time="pair")) for network, config in BACKBONES.values())])
def test_padding_never_leaks(network, config):
    net, batch = randomised(network(config)), make_batch()
    step_cond = net.step_condition(4, 0.3, 0.9)

    def run(b, mask):
        cond, _ = sample.condition(net, dict(b, mask=mask))
        return net(b["x0"], step_cond, *cond, mask)
    full = run(batch, batch["mask"])
    batch["x0"][~batch["mask"]] = 1e3                                             # garbage in the padding
    assert torch.allclose(run(batch, batch["mask"])[batch["mask"]], full[batch["mask"]], atol=1e-5)
    names = ("text", "align", "ref", "x0")
    alone = run({k: batch[k][1:2, :9] for k in names}, None)
    assert torch.allclose(alone[0], full[1, :9], atol=1e-5)


def test_text_padding_never_leaks():
    net = randomised(durations.DurationPredictor(9, dim=16, blocks=2))
    text = torch.tensor([[1, 5, 2, 0, 0]])
    assert torch.allclose(net(text)[:, :3], net(text[:, :3]), atol=1e-5)
    assert (net.predict(text)[0, :3] >= 1).all() and (net.predict(text)[0, 3:] == 0).all()


@pytest.mark.parametrize("network, config", BACKBONES.values())
def test_batch_of_one_and_of_four_speak_the_same(network, config):
    bundle = tiny_bundle(config, network)
    ids = [torch.tensor([1, 4, 3, 2, 1]), torch.tensor([1, 2, 1]), torch.tensor([1, 9, 8, 7, 6, 5, 1]),
           torch.tensor([1, 3, 1])]
    four = sample.speak(bundle, ids, bundle.voices["a"], steps=2, at_once=4)
    single = sample.speak(bundle, ids, bundle.voices["a"], steps=2, at_once=1)
    assert all(torch.allclose(x, y, atol=1e-5) for x, y in zip(four, single))
    again = sample.speak(bundle, ids, bundle.voices["a"], steps=2, at_once=4)
    assert all(torch.equal(x, y) for x, y in zip(four, again))
    other = sample.speak(bundle, ids, bundle.voices["a"], steps=2, at_once=4, seed=1)
    assert not torch.allclose(four[0], other[0], atol=1e-2)
    still, same = (sample.speak(bundle, ids[:1], bundle.voices["a"], seed=seed, temperature=0.0)[0] for seed in (0, 1))
    assert torch.equal(still, same) and not torch.allclose(four[0], still, atol=1e-2)


@pytest.mark.parametrize("network, config", BACKBONES.values())
def test_overfits_one_batch(network, config):
    torch.manual_seed(0)
    net, batch = network(config), make_batch()
    optimiser, losses = torch.optim.AdamW(net.parameters()), []
    for _ in range(60):
        loss, _ = teacher.cfm_loss(net, batch, torch.tensor([0.2, 0.7]))
        loss.backward()
        common.run.optimise(optimiser, [1e-2], 0)
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]


# ------------------------------------------------------------------------------------------- the meta device
# Its tensors have shapes and no numbers, and refuse to mix with those of a CPU: what a GPU would refuse is found
# here without one.

LEAST = replace(SMALL, depth=1, text_blocks=1)
PAIR, ADD = replace(LEAST, time="pair"), replace(LEAST, time="step", steps=(1, 4))
FRAMES = f5_net.F5Config(**vars(LEAST), rotary_heads=1)
SWITCHES = dict(adaln=(model.DiT, LEAST), pair=(model.DiT, PAIR), add=(model.DiT, ADD), e2=(e2.E2, LEAST),
                prepend=(e2.E2, ADD), f5=(f5_net.F5, FRAMES), f5_e2=(e2.F5E2, FRAMES), unet=(unet.UNet, UNET),
                unet_pair=(unet.UNet, replace(UNET, time="pair")))


def on_meta(batch):
    return {k: on_meta(v) if isinstance(v, dict) else v.to("meta") if torch.is_tensor(v) else v
            for k, v in batch.items()}


def test_the_meta_device_finds_a_tensor_of_another_device():
    net, batch = model.DiT(LEAST).to("meta"), on_meta(make_batch())
    cond, _ = sample.condition(net, batch)
    with pytest.raises(RuntimeError, match="device|meta"):
        net(make_batch()["x0"], 0.5, *cond, batch["mask"])


@pytest.mark.parametrize("kind", SWITCHES)
@pytest.mark.parametrize("known", [True, False])
def test_network_and_sampler_on_another_device(kind, known):
    network, config = SWITCHES[kind]
    net, batch = network(config).to("meta"), on_meta(make_batch())
    batch = dict(batch, known=batch["known"] if known else None, mask=batch["mask"] if known else None)
    for n, w in ((1, 0.0), (4, 0.7)):
        states = sample.rollout(net, batch, sample.cosine_grid(n), w)
        assert states.is_meta and states.shape == (n + 1, 2, 14, 8)
    net.recompute = True
    for t in (0.5, torch.full((2,), 0.5, device="meta")):
        cond, _ = sample.condition(net, batch)
        v = net(batch["x0"], net.step_condition(4, t, t), *cond, batch["mask"])
        v.sum().backward()
    assert v.is_meta and net.proj_out.weight.grad.is_meta


def test_durations_on_another_device(monkeypatch):
    monkeypatch.setattr(torch.fx.experimental._config, "meta_nonzero_assume_all_nonzero", True)   # for [text > 0]
    net, batch = durations.DurationPredictor(SMALL.vocab).to("meta"), on_meta(make_batch())
    assert net.predict(batch["text"]).is_meta
    net.loss(batch["text"], batch["durations"]).backward()
    assert net.out.weight.grad.is_meta


def test_the_teachers_loss_on_another_device():
    net, batch = model.DiT(LEAST).to("meta"), on_meta(make_batch())
    loss, by_time = teacher.cfm_loss(net, batch, torch.rand(2, device="meta"))
    assert all(v.is_meta for v in by_time.values())
    update_on_meta(net, loss)


def update_on_meta(net, loss):
    """What common.run.optimise() does with a loss, but for asking whether the norm is finite, since meta has no numbers,
    and for the step, since it has no fused one.
    """
    loss.backward()
    assert torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0).is_meta
    common.run.ema_update(net, net, 0, 0.99)
    assert all(p.grad is None or p.grad.is_meta for p in net.parameters())


@pytest.fixture(scope="module")
def lead():
    """A teacher on meta, and the trajectory that it made there."""
    net = model.DiT(LEAST).to("meta")
    b = distill.teacher_states(net, on_meta(make_batch()), [1, 2, 4], 0.7, at_least=4)
    assert b["states"].is_meta and b["grid"].is_meta and b["states"].shape == (5, 2, 14, 8)
    return net, b


@pytest.mark.parametrize("name, changed, coin", [
    *((name, {}, 0.5) for name in METHODS), ("dsflow", dict(t_mf="uniform"), 0.0), ("dsflow", dict(weak_cfg=False), 0.0),
    ("endpoint", {}, 0.0), ("velocity", {}, 0.0)])
def test_every_loss_on_another_device(lead, name, changed, coin):
    """From the teacher's trajectory to a student's update, as distill.update() goes, with and without weak CFG."""
    entry, (net, b) = METHODS[name], lead
    flags = distill.arguments(METHODS, ["--method", name])
    start = model.fold(net, [4]) if name == "progressive" else None
    student, nets, _ = distill.make_student(flags, entry, net, start)
    assert all(p.is_meta for p in student.parameters())
    options = distill.options_of(entry, flags) | changed
    loss, terms = entry.loss(student, dict(b, coin=coin), 2, nets, **options)
    uncond = coin == 0 and options.get("weak_cfg", True)
    assert loss.is_meta and all(v.is_meta for v in terms.values()) and ("cfg" in terms) == uncond
    update_on_meta(student, loss)


def test_drawn_numbers_go_to_the_batchs_device():
    batch = on_meta(make_batch())
    (part,) = common.run.draw([dict(batch, rows=torch.arange(2), joint=2)], ("term",), torch.Generator())
    assert part["u"]["term"].is_meta and isinstance(part["coin"], float)


# ------------------------------------------------------------------------------------------------ step search


@pytest.mark.parametrize("n, best", [(2, [0.3]), (3, [0.15, 0.7]), (4, [0.1, 0.2, 0.9])])
def test_o3s_finds_a_known_optimum(n, best):
    def score(grid):
        return -float(((grid[1:-1] - torch.tensor(best)) ** 2).sum())
    grid, top = intmeanflow.search_grid(score, n, 20, 0.001)
    assert (grid[1:-1] - torch.tensor(best)).abs().max() < 5e-3 and top > -1e-4


def test_o3s_finds_the_best_two_euler_steps_of_an_ode():
    """dx/dt = 2 t x from x = 1: two Euler steps end at 1 + 2 s (1 - s), nearest to e at s = 1/2."""
    def score(grid):
        x = 1.0
        for s, e in zip(grid[:-1].tolist(), grid[1:].tolist()):
            x += (e - s) * 2 * s * x
        return -abs(x - math.e)
    assert abs(float(intmeanflow.search_grid(score, 2, tolerance=1e-3)[0][1]) - 0.5) < 2e-3


def test_o3s_is_never_worse_than_its_start_and_stays_increasing():
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        seen = {}

        def score(grid):                        # noise: a different number for every grid, the same each time
            return seen.setdefault(tuple(grid.tolist()), float(torch.randn((), generator=g)))
        grid, top = intmeanflow.search_grid(score, 3)
        assert top == score(grid) >= score(sample.uniform_grid(3))
        assert grid[0] == 0 and grid[-1] == 1 and (grid.diff() > 0).all()
    with pytest.raises(BadInput, match="nothing to search"):
        intmeanflow.search_grid(lambda g: 0.0, 1)
