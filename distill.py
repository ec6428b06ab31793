"""Distil a flow-matching teacher into a few-step student: DSFlow (arXiv 2602.09041).

    python distill.py --steps 1        one-step student of checkpoints/teacher.pt, minutes on two CPU cores
    python distill.py                  one student for 1, 2 and 4 steps

The method is dsflow_loss(); what both papers compare it to stands beside it, in METHODS. Everything else here
feeds it: the teacher's trajectories, the loop, the final table. Clock and shapes: see model.py. n: the
student's steps; K: the teacher's steps on a trajectory, a multiple of every n.
"""
import argparse
import copy
import itertools
import math
import statistics
import time as clock
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Callable, NamedTuple

import soundfile
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from data import BadInput, batch_indices, check_numbers, cli, collate, griffin_lim, prepare
from model import count_parameters, fold, pair
from parallel import anywhere, draw, first_alone, join, parts, world
from sample import (add_f5_flags, conditions, cosine_grid, load_teacher, pick_device, plot_mels,
                    save_checkpoint)
from teacher import (Interrupt, Log, ema_update, held_out, infill, learning_rate, load_state, optimise,
                     rollout, save_state, seed_update)

# ------------------------------------------------------------------------------------------------- the method


def interval(batch, n, g):
    """Per item one of n intervals [s, e] of its teacher trajectory -> X_s, X_e (B, T, M), s, D = e - s (B,).

    batch["starts"] (n + 1, B, T, M), where given, are the states to start from instead of the teacher's.
    """
    X, grid, items = batch["states"], batch["grid"], torch.arange(batch["states"].shape[1])
    stride, k = (len(grid) - 1) // n, draw(batch, g, n)
    X_s = batch["starts"][k, items] if "starts" in batch else X[k * stride, items]
    return X_s, X[(k + 1) * stride, items], grid[k * stride], grid[(k + 1) * stride] - grid[k * stride]


def condition(net, batch, uncond=False):
    """(ref, h) of net's own text branch; with uncond also the unconditional one."""
    return conditions(net, batch["text"], batch["align"], batch["ref"], batch["mask"], float(uncond))


def dsflow_loss(student, batch, n, g, nets=None, a=0.7, t_mf="mid", cfg_weight=0.01, p_uncond=0.02):
    """DSFlow's objective for n steps -> (loss, its terms by name). Batch fields: see teacher_states().

    Each item trains on one interval [s, e] of its teacher trajectory X, D = e - s, and supplies one term of
    Eq. 7, the endpoint with probability a: in expectation the weighted sum, at one network call instead of
    two. Errors are means over the frames to generate. A term that nothing supplied is nan.
    a, t_mf, cfg_weight, p_uncond: the paper's symbols. [ours] one term per item; t_mf is 1/2 ("mid") or
    U(0, 1) per item ("uniform"); intervals start from the teacher's state; p_uncond is drawn per update.
    """
    todo, mask = batch["todo"], batch["mask"]                                     # (B, T)
    X_s, X_e, s, D = interval(batch, n, g)                                        # (B, T, M), (B,)
    end = (draw(batch, g) < a).to(X_s.device)                                     # items for the endpoint
    r = draw(batch, g).to(X_s.device) if t_mf == "uniform" else torch.full_like(D, 0.5)
    r = r.masked_fill(end, 0)                              # the endpoint term asks at the chord's start, X_s
    uncond = float(torch.rand((), generator=g)) < p_uncond and cfg_weight > 0
    cond, null = condition(student, batch, uncond)
    D_, r_ = D[:, None, None], r[:, None, None]

    def network(x, t, c):  # the step token names n alone; without tokens the network is told t
        return student(x, n if student.config.time == "step" else t, *c, mask)

    v_bar = (X_e - X_s) / D_                                                      # Eq. 4  mean velocity
    x_mf = (1 - r_) * X_s + r_ * X_e                                              # Eq. 5  point on the chord
    v = network(x_mf, s + r * D, cond)                                            # (B, T, M)
    endpoint = ((X_s + D_ * v - X_e) ** 2).mean(-1)                               # Eq. 6  (B, T)
    velocity = ((v - v_bar) ** 2).mean(-1)                                        # Eq. 6  (B, T)
    L_dual = torch.where(end[:, None], endpoint, velocity)[todo].mean()           # Eq. 7, in expectation
    L_CFG = X_s.new_tensor(math.nan)
    if uncond:  # weak CFG: keeps v_u near v_c, so that a little guidance still works
        L_CFG = ((network(x_mf, s + r * D, null) - v.detach()) ** 2)[todo].mean()
    terms = dict(endpoint=endpoint[end[:, None] & todo].mean(), cfg=L_CFG,
                 velocity=velocity[~end[:, None] & todo].mean())
    return L_dual + cfg_weight * L_CFG if uncond else L_dual, terms


# ----------------------------------------------------------------------------------------- methods to compare


def rollout_loss(student, batch, n, g, nets=None, **options):
    """Dual supervision from where the student really is: intervals start from its own states.

    [ours] Equal to dsflow at n = 1; at n > 1 the student learns to mend its own errors, for n more calls.
    """
    with torch.no_grad():
        own = rollout(student, batch, batch["grid"][:: (len(batch["grid"]) - 1) // n], 0.0)
    return dsflow_loss(student, dict(batch, starts=own), n, g, **options)


def progressive_loss(student, batch, n, g, nets):
    """Progressive distillation (Salimans and Ho 2022): one step does what two of the previous student do.

    nets["previous"]: the student of the stage before, which takes 2 n steps. The first n has none, its target
    is the teacher's own trajectory. [ours] starts are the teacher's states, the loss is in velocity.
    """
    X_s, X_e, s, D = interval(batch, n, g)
    if 2 * n in student.config.steps:
        grid, x = cosine_grid(2 * n).to(s.device), X_s
        k = torch.searchsorted(grid, s - 1e-4)                                    # (B,) the interval's place
        with torch.no_grad():
            cond, _ = condition(nets["previous"], batch)
            for j in (k, k + 1):                                                  # two steps of half the size
                v = nets["previous"](x, 2 * n, *cond, batch["mask"])
                x = x + (grid[j + 1] - grid[j])[:, None, None] * v
        X_e = x
    v = student(X_s, n, *condition(student, batch)[0], batch["mask"])
    loss = ((v - (X_e - X_s) / D[:, None, None]) ** 2)[batch["todo"]].mean()
    return loss, dict(velocity=loss.detach())


def consistency_loss(student, batch, n, g, nets):
    """Consistency distillation (Song et al. 2023): f(x, t), the trajectory's end, is the same all along it.

    f(x, t) = x + (1 - t) v(x, t) holds f(x, 1) = x by itself. Of two neighbouring states of the teacher, the
    later one asks the average of the student, nets["ema"]. [ours] the weight is 1 at every t.
    """
    X, grid, items = batch["states"], batch["grid"], torch.arange(batch["states"].shape[1])
    i = draw(batch, g, len(grid) - 1)
    x, y, t, r = X[i, items], X[i + 1, items], grid[i], grid[i + 1]               # (B, T, M), (B,)
    with torch.no_grad():
        f_y = y + (1 - r)[:, None, None] * nets["ema"](y, r, *condition(nets["ema"], batch)[0], batch["mask"])
    f_x = x + (1 - t)[:, None, None] * student(x, t, *condition(student, batch)[0], batch["mask"])
    loss = ((f_x - f_y) ** 2)[batch["todo"]].mean()
    return loss, dict(consistency=loss.detach())


def two_times(batch, n, g, same=0.0):
    """Per item two states t <= r of its teacher trajectory -> their numbers i, j (B,), i < K.

    [ours; the papers do not say] half of the items take an interval of the n-step grid, a share `same` of the
    others has r = t, the rest is uniform over all pairs.
    """
    K = len(batch["grid"]) - 1
    pairs = torch.combinations(torch.arange(K + 1))                               # (K (K + 1) / 2, 2)
    i, j = pairs[draw(batch, g, len(pairs))].T
    j = torch.where(draw(batch, g) < same, i, j)
    k, few = draw(batch, g, n), draw(batch, g) < 0.5
    return torch.where(few, k * (K // n), i), torch.where(few, (k + 1) * (K // n), j)


def intmeanflow_loss(student, batch, n, g, nets=None):
    """IntMeanFlow (arXiv 2510.07979): u(z_t, t, r) regresses the teacher's average velocity from t to r.

    [ours] z_t and z_r are states of one guided rollout, j - i substeps apart; the student runs unguided.
    """
    X, grid, items = batch["states"], batch["grid"], torch.arange(batch["states"].shape[1])
    i, j = two_times(batch, n, g)
    z_t, z_r, t, r = X[i, items], X[j, items], grid[i], grid[j]                   # (B, T, M), (B,)
    u = student(z_t, (t, r), *condition(student, batch)[0], batch["mask"])
    loss = ((u - (z_r - z_t) / (r - t)[:, None, None]) ** 2)[batch["todo"]].mean()
    return loss, dict(velocity=loss.detach())


def meanflow_loss(student, batch, n, g, nets=None):
    """MeanFlow (Geng et al. 2025): u = v + (r - t) du/dt along the trajectory, from the teacher's velocity v.

    By this clock (r - t) u(z_t, t, r) is the integral of v from t to r; its derivative in t at fixed r gives
    the identity. du/dt is one forward-mode product with the tangents (v, 1), which the other methods avoid.
    As in the paper, each item's squared error e is weighted by 1 / (e + 0.001), without gradient.
    """
    X, grid, items = batch["states"], batch["grid"], torch.arange(batch["states"].shape[1])
    i, j = two_times(batch, n, g, same=0.25)
    z, t, r = X[i, items], grid[i], grid[j]                                       # (B, T, M), (B,)
    v = (X[i + 1, items] - z) / (grid[i + 1] - t)[:, None, None]                  # the guided teacher at z, t
    cond, _ = condition(student, batch)
    with sdpa_kernel(SDPBackend.MATH):          # the fused kernels have no forward-mode derivative
        u, du_dt = torch.func.jvp(lambda z, t: student(z, (t, r), *cond, batch["mask"]), (z, t),
                                  (v, torch.ones_like(t)))
    target = (v + (r - t)[:, None, None] * du_dt).detach()
    error = ((u - target) ** 2).mean(-1) * batch["todo"]                          # (B, T)
    error = error.sum(1) / batch["todo"].sum(1)                                   # (B,)
    return (error / (error.detach() + 1e-3)).mean(), dict(velocity=error.detach().mean())


class Method(NamedTuple):
    """One way to distil."""
    loss: Callable              # (student, batch, n, g, nets) -> (loss, its terms by name)
    time: str = "step"          # what its network is told, DiTConfig.time
    dense: bool = False         # it wants every state of the teacher, not just the ends of intervals


METHODS = {
    "dsflow": Method(dsflow_loss),
    "endpoint": Method(partial(dsflow_loss, a=1.0)),        # the usual trajectory distillation
    "velocity": Method(partial(dsflow_loss, a=0.0)),        # a reflow loss on teacher pairs
    "rollout": Method(rollout_loss),
    "progressive": Method(progressive_loss),
    "consistency": Method(consistency_loss, "adaln", dense=True),
    "intmeanflow": Method(intmeanflow_loss, "pair", dense=True),
    "meanflow": Method(meanflow_loss, "pair", dense=True),
}
DUAL = ("dsflow", "endpoint", "velocity", "rollout")        # made of dsflow_loss, and take its options

# ----------------------------------------------------------------------------------------- the teacher's part


def teacher_grid(steps, at_least=10):
    """Step counts -> (K, I): teacher steps K, a multiple of every n and at_least so many; intervals I."""
    I = math.lcm(*steps)
    return I * math.ceil(at_least / I), I


@torch.no_grad()
def teacher_states(teacher, batch, steps, w, at_least=10, dense=False):
    """Add the guided teacher's states X (I + 1, B, T, M) from x0, and the interval ends grid (I + 1,).

    dense: all K + 1 states and times.
    """
    K, I = teacher_grid(steps, at_least)
    I = K if dense else I
    grid = cosine_grid(K).to(batch["x0"].device)
    states = rollout(teacher, batch, grid, w)                                     # (K + 1, B, T, M)
    return dict(batch, states=states[:: K // I].clone(), grid=grid[:: K // I])


def rungs(a):
    """The step counts n that training visits, downward: --steps; progressive distillation begins at 4."""
    return sorted({4, 2, *a.steps} if a.method == "progressive" else a.steps, reverse=True)


class Trajectories:
    """Batches with teacher states for the loop: `pool` at a time, each used `reuse` times, then the next.

    A rollout costs 2 K network calls (K at --cfg 0), an update one and its backward pass: reuse makes the
    teacher cheap, at ten uses 100 updates take 17 s instead of 70. Which trajectory an update gets, and its
    noise, follow from the update's number alone, so a resumed run makes again only those that it needs.
    """

    def __init__(self, teacher, corpus, a, device, first):
        self.teacher, self.corpus, self.a, self.device = teacher, corpus, a, device
        self.made, self.plan, self.seconds = {}, [], 0.0
        batches = batch_indices(corpus.frames[corpus.train], a.batch_frames, a.seed)
        self.batches = itertools.islice(batches, first // (a.pool * a.reuse) * a.pool, None)

    def __getitem__(self, step):
        """The parts of one update's batch; seconds adds up the time spent in the teacher."""
        a, start = self.a, clock.perf_counter()
        block, inside = divmod(step, a.pool * a.reuse)
        which = inside % a.pool
        if inside == 0 or not self.plan:
            self.made, self.plan = {}, list(itertools.islice(self.batches, a.pool))
        if which not in self.made:
            g = seed_update(a.seed + 1, block * a.pool + which)
            batch = collate(self.corpus, [self.corpus.train[i] for i in self.plan[which]])
            batch = {k: v.to(self.device) for k, v in infill(batch, g, a.p_noref, 0.0).items()}
            with torch.autocast(self.device.type, torch.bfloat16, enabled=a.bf16):
                self.made[which] = [teacher_states(self.teacher, part, rungs(a), a.cfg, a.teacher_steps,
                                                   METHODS[a.method].dense)
                                    for part in parts(batch, a.accumulate)]
            self.seconds += clock.perf_counter() - start
        return self.made[which]


# ---------------------------------------------------------------------------------------------------- figures


def distance(x1, target, todo):
    """Mean squared error per mel value (normalised units, variance about 1) over the frames to generate."""
    return float(((x1 - target) ** 2)[todo].mean())


def flow_rtf(model, batch, grid, w, s, repeats=7):
    """Seconds of one utterance's flow (text branch and network, batch 1, no vocoder) per second of speech."""
    T, L = int(batch["mask"][0].sum()), int((batch["text"][0] > 0).sum())
    one = {k: v[:1, :L if k in ("text", "durations") else T] for k, v in batch.items()}
    speech = int(one["todo"].sum()) * s.hop / s.rate
    times = []
    for _ in range(repeats + 1):
        start = clock.perf_counter()
        rollout(model, one, grid, w)
        if grid.is_cuda:
            torch.cuda.synchronize()
        times.append(clock.perf_counter() - start)
    return statistics.median(times[1:]) / speech                                  # the first one warms up


def final_table(teacher, student, batch, target, steps, w, s, device, out):
    """Print and write table.md, mels and audio: teacher@10 (target), teacher@1, student@n, same noise."""
    rows, sounds = [], {}
    systems = [("teacher@10", teacher, 10, w), ("teacher@1", teacher, 1, w), ("teacher@1", teacher, 1, 0.0)]
    systems += [(f"student@{n}", student, n, 0.0) for n in steps]
    for name, model, n, guide in dict.fromkeys(systems):                          # once each, also at w = 0
        x1 = target if n == 10 and model is teacher else rollout(model, batch, cosine_grid(n), guide)[-1]
        total, conditioning = count_parameters(model)
        name = f"{name}, w = {guide:g}" if model is teacher else name
        mse = distance(x1, target, batch["todo"])
        rtf = flow_rtf(model, batch, cosine_grid(n).to(device), guide, s)
        calls = n * (2 if guide else 1)
        rows.append(f"| {name} | {calls} | {total:,} | {conditioning:,} | {mse:.4f} | {rtf:.4f} |")
        sounds[name] = x1
    protocol = (f"Mel MSE: normalised units, {len(target)} held-out utterances, same noise. Flow RTF: text "
                f"branch and network, no vocoder, batch 1, median of 7 after a warm-up, {device.type}, "
                f"{torch.get_num_threads()} threads, torch {torch.__version__}.")
    table = "\n".join(["| model | network calls | parameters | for time | mel MSE to teacher@10 | flow RTF |",
                       "|---|---|---|---|---|---|", *rows, "", protocol])
    print("\n" + table)
    (out / "table.md").write_text(table + "\n")
    for i in range(min(2, len(target))):
        T = int(batch["mask"][i].sum())
        plot_mels([("recording", batch["mel"][i, :T])] + [(k, x1[i, :T]) for k, x1 in sounds.items()],
                  out / f"mels_{i}.png")
    T = int(batch["mask"][0].sum())
    for name, x1 in [("recording", batch["mel"]), *sounds.items()]:
        file = name.replace(", w = ", "_w").replace("@", "_at_") + ".wav"
        soundfile.write(out / file, griffin_lim(x1[0, :T], s, 32).clip(-1, 1), s.rate)


# ---------------------------------------------------------------------------------------------------- command


def arguments(words=None):
    """Command-line flags with their reasons. words: given in place of the command line's."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, switch = p.add_argument, argparse.BooleanOptionalAction
    add("--steps", type=int, nargs="+", default=[1, 2, 4],
        help="network steps the student is made for (default 1 2 4)")
    add("--teacher", default="checkpoints/teacher.pt",
        help="checkpoint of teacher.py, or F5-TTS's own (default %(default)s)")
    add_f5_flags(p)
    add("--data", default="corpus", help="folder of recordings, see data.py (default corpus)")
    add("--out", default="out/distill",
        help="checkpoints, log, table, pictures and audio (default %(default)s)")
    add("--cache", default="cache", help="where mels and alignments are kept (default %(default)s)")
    add("--method", choices=METHODS, default="dsflow", help="one entry of METHODS (default dsflow)")
    add("--a", type=float, default=0.7, help="dsflow, rollout: weight of the endpoint (default 0.7)")
    add("--dual", action=switch, default=True, help="--no-dual: endpoint only, the same as --method endpoint")
    add("--tokens", action=switch,
        help="--no-tokens: the student keeps the teacher's adaLN and is told t")
    add("--token", choices=["add", "prepend"], default="add", help="how a step token enters (default add)")
    add("--weak_cfg", action=switch, default=True, help="--no-weak_cfg: leave L_CFG out")
    add("--t_mf", choices=["mid", "uniform"], default="mid", help="where on the chord (default mid)")
    add("--cfg", type=float, default=0.7,
        help="guidance w inside the target (default %(default)s, the paper's)")
    add("--teacher_steps", type=int, default=10,
        help="steps of the target's rollout, at least (default %(default)s)")
    add("--max_iters", type=int, default=2000, help="updates (default %(default)s)")
    add("--batch_frames", type=int, default=800,
        help="mel frames per update, padding included (default %(default)s)")
    add("--accumulate", type=int, default=1,
        help="parts of a batch, one after the other: less memory, the same update (default %(default)s)")
    add("--lr", type=float, default=3e-4, help="peak learning rate of AdamW (default %(default)s)")
    add("--warmup", type=int, default=20, help="updates of linear warm-up (default %(default)s)")
    add("--ema", type=float, default=0.99,
        help="decay of the weight average that is saved (default %(default)s)")
    add("--reuse", type=int, default=11,
        help="updates made from each teacher trajectory (default %(default)s)")
    add("--pool", type=int, default=195, help="trajectories kept at a time (default %(default)s)")
    add("--p_noref", type=float, default=0.1, help="share of items without a reference (default %(default)s)")
    add("--bf16", action="store_true", help="train in bfloat16 (autocast); weights and reports stay float32")
    add("--recompute", action="store_true",
        help="keep no activations inside blocks, compute them again for the gradient: less memory, slower")
    add("--count", type=int, default=16, help="held-out recordings that reports use (default %(default)s)")
    add("--eval_every", type=int, default=200, help="updates between reports (default %(default)s)")
    add("--save_every", type=int, default=200, help="updates between checkpoints (default %(default)s)")
    add("--resume", action="store_true",
        help="continue the run in --out with the same flags; --max_iters may change, the schedule follows it")
    add("--seed", type=int, default=0, help="everything random follows from it (default 0)")
    add("--device", default="auto", help="auto, cuda, mps or cpu (default auto)")
    a = p.parse_args(words)
    if min(a.steps) < 1 or len(set(a.steps)) < len(a.steps) or math.lcm(*a.steps) > 64:
        raise BadInput(f"--steps {' '.join(map(str, a.steps))}: expected different numbers, like 1 2 4, "
                       f"whose least common multiple is at most 64")
    if a.method not in ("dsflow", "endpoint") and not a.dual:
        raise BadInput(f"--no-dual --method {a.method}: --no-dual means --method endpoint; use one of them")
    a.method = a.method if a.dual else "endpoint"
    time = METHODS[a.method].time
    if (a.tokens and time != "step") or (a.tokens is False and a.method == "progressive"):
        raise BadInput(f"--{'' if a.tokens else 'no-'}tokens: --method {a.method} needs the network {time!r} "
                       "of model.py; leave the flag out")
    a.tokens = time == "step" if a.tokens is None else a.tokens
    if a.method == "progressive" and set(a.steps) - {1, 2, 4}:
        raise BadInput(f"--steps {' '.join(map(str, a.steps))}: progressive distillation halves 4, 2, 1")
    check_numbers(a)
    return a


def begin(a, teacher):
    """What trains -> student, nets {"ema": its average, "previous": progressive's}, optimiser."""
    torch.manual_seed(a.seed)
    start = dict(step=lambda t: fold(t, sorted(rungs(a)), token=a.token), adaln=copy.deepcopy, pair=pair)
    time = METHODS[a.method].time
    student = start[time if a.tokens or time != "step" else "adaln"](teacher).requires_grad_(True).train()
    names = ["ema"] + ["previous"] * (a.method == "progressive")
    nets = {name: copy.deepcopy(student).requires_grad_(False).eval() for name in names}
    student.recompute = a.recompute
    optimiser = torch.optim.AdamW(student.parameters(), a.lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    return student, torch.nn.ModuleDict(nets), optimiser


def build(a, device):
    """The teacher, what begin() makes of it, the corpus, and the Bundle that will be saved."""
    b = load_teacher(a.teacher, "--teacher", device, flavour=a.flavour, vocab=a.vocab, mel=a.mel)
    corpus = first_alone(lambda: prepare(a.data, b.s, b.vocab, a.cache))
    teacher = b.model.requires_grad_(False)
    student, nets, optimiser = begin(a, teacher)
    free = METHODS[a.method].time != "step"                                       # any grid, any step count
    contract = dict(kind="student", steps=[] if free else sorted(a.steps), default=min(a.steps),
                    grid="cosine", cfg=a.cfg, iters=a.max_iters)
    bundle = replace(b, model=nets["ema"], contract=contract, config=vars(a))
    (total, conditioning), (kept, tokens) = count_parameters(teacher), count_parameters(student)
    print(f"teacher {total:,} parameters ({conditioning:,} for time), student {kept:,} ({tokens:,}); "
          f"target: {teacher_grid(rungs(a), a.teacher_steps)[0]} teacher steps at w = {a.cfg:g}")
    return teacher, student, nets, optimiser, corpus, bundle


def objective(a):
    """The loss function of --method with the options that it takes."""
    options = dict(t_mf=a.t_mf, cfg_weight=0.01 if a.weak_cfg else 0.0) if a.method in DUAL else {}
    options |= dict(a=a.a) if a.method in ("dsflow", "rollout") else {}
    return partial(METHODS[a.method].loss, **options)


def update(a, method, student, nets, optimiser, batch, step):
    """One update of the student and its average nets["ema"] -> per part: loss, its terms, gradient norm.

    batch: its parts, see parallel.py.
    """
    g, steps = seed_update(a.seed, step), rungs(a)
    if a.method == "progressive":               # its rungs 4, 2, 1 open one after the other
        stage, before = (i * len(steps) // a.max_iters for i in (step, step - 1))
        steps = steps[:stage + 1]
        if stage > before >= 0:
            nets["previous"].load_state_dict(nets["ema"].state_dict())
    n = steps[int(torch.randint(len(steps), (), generator=g))]
    start, told = g.get_state(), []
    for part in batch:
        g.set_state(start)                      # every part draws what the whole batch would
        with torch.autocast(part["x0"].device.type, torch.bfloat16, enabled=a.bf16):
            loss, terms = method(student, part, n, g, nets)
        (part["weight"] * loss).backward()
        told.append(dict(loss=loss.detach(), **{k: v.detach() for k, v in terms.items()}))
    norm = optimise(student, optimiser, [learning_rate(step, a.lr, a.warmup, a.max_iters)], step)
    ema_update(nets["ema"], student, step, a.ema)
    return [dict(terms, grad_norm=norm) for terms in told]


def main():
    a = arguments()
    join()
    device, out, first_process = pick_device(a.device), Path(a.out), world()[0] == 0
    out.mkdir(parents=True, exist_ok=True)
    teacher, student, nets, optimiser, corpus, bundle = build(a, device)
    ema, settings = nets["ema"], dict(vars(a), dit=asdict(student.config))
    settings |= {"max_iters, which set its stages": a.max_iters} if a.method == "progressive" else {}
    first = load_state(out / "last.pt", student, nets, optimiser, settings) if a.resume else 0
    method = objective(a)
    if first_process:                           # it alone measures and writes
        fixed = held_out(corpus, a.count, device)
        goal = rollout(teacher, fixed, cosine_grid(10), a.cfg)[-1]
        for guide in dict.fromkeys((0.0, a.cfg)):
            own = distance(rollout(teacher, fixed, cosine_grid(1), guide)[-1], goal, fixed["todo"])
            print(f"held out, mel MSE to teacher@10: teacher's own single step at w = {guide:g} {own:.4f}")

    log, interrupt = Log(out / "log.csv", first), Interrupt()
    trajectories = Trajectories(teacher, corpus, a, device, first)
    told, since = [], clock.perf_counter()
    for step in tqdm(range(first, a.max_iters), "distill", initial=first, total=a.max_iters,
                     disable=None if first_process else True):
        told += update(a, method, student, nets, optimiser, trajectories[step], step)

        done, stop = step + 1, anywhere(interrupt.asked, device)
        if done % a.eval_every == 0 or done == a.max_iters:
            if first_process:
                seconds = clock.perf_counter() - since
                report = {k: float(torch.stack([terms[k] for terms in told]).nanmean()) for k in told[0]}
                for n in sorted(a.steps):
                    x1 = rollout(ema, fixed, cosine_grid(n), 0.0)[-1]
                    report[f"mse@{n}"] = distance(x1, goal, fixed["todo"])
                log.report(step=done, **report, seconds_per_update=seconds / len(told) * a.accumulate,
                           teacher_share=trajectories.seconds / seconds)
            told, since, trajectories.seconds = [], clock.perf_counter(), 0.0
        if first_process and (done % a.save_every == 0 or done == a.max_iters or stop):
            save_checkpoint(out / "student.pt", bundle)                           # first: never older
            save_state(out / "last.pt", done, student, nets, optimiser, settings)
        if stop:
            print(f"interrupted: saved after update {done}; continue with --resume")
            raise KeyboardInterrupt
    interrupt.restore()
    if first_process:
        final_table(teacher, ema, fixed, goal, sorted(a.steps), a.cfg, corpus.s, device, out)
    print(f"wrote {out / 'student.pt'}; hear it: python sample.py --ckpt {out / 'student.pt'} --text \"...\"")


if __name__ == "__main__":
    cli(main)
