"""Distil a flow-matching teacher into a few-step student: DSFlow (arXiv 2602.09041).

    python distill.py --steps 1        one-step student of checkpoints/teacher.pt, minutes on two CPU cores
    python distill.py --out out/any    one student for 1, 2 and 4 steps

The method is dsflow_loss(). All else here feeds it: the teacher's trajectories and the loop. Other methods
are files of their own that call main() with their losses: those in methods/, and yours. Clock and shapes: see
model.py. n: the student's steps; K: the teacher's steps on a trajectory, a multiple of all n.
"""
import copy
import math
import statistics
import time as clock
from dataclasses import asdict, replace
from functools import partial
from typing import Callable, NamedTuple

import torch

from common.cli import BadInput, Parser, cli, in_turn, pick_device, processor, synchronise
from common.files import digest
from common.flags import distill_flags
from common.run import (Run, adamw, claim, draw, ema_update, first_process_first, is_main_process,
                        join, learning_rate, optimise, parts, pooled, seed_update)
from data import batch_indices, collate
from model import count_parameters, fold, pair
from networks.checkpoint import load_student, load_teacher, refit, save_checkpoint, student_contract
from networks.e2 import prepend
from sample import condition, cosine_grid, rollout
from speech.judges import present
from speech.prepare import prepare
from teacher import distance, frame_mean, held_out, infill

# ------------------------------------------------------------------------------------------------- the method


def interval(batch, n):
    """Per item one of n intervals [s, e] of its teacher trajectory, drawn by u["interval"].

    -> X_s, X_e (B, T, M) the states at its ends, s, e (B,) their times, k (B,) its number.
    """
    X, grid = batch["states"], batch["grid"]                                      # (I + 1, B, T, M), (I + 1,)
    stride, rest = divmod(len(grid) - 1, n)
    if rest:
        raise ValueError(f"a trajectory of {len(grid) - 1} intervals does not divide into {n}")
    k, items = (n * batch["u"]["interval"]).long(), torch.arange(X.shape[1], device=X.device)
    start, end = k * stride, (k + 1) * stride
    return X[start, items], X[end, items], grid[start], grid[end], k


def dsflow_loss(student, batch, n, nets=None, a=0.7, t_mf="mid", weak_cfg=True, cfg_weight=0.01,
                p_uncond=0.02):
    """DSFlow's objective for n steps -> (loss, its terms by name). batch: see teacher_states() and draw().

    As the paper has it, each item asks the student twice on an interval [s, e] of its teacher's trajectory:

        v_bar = (X_e - X_s) / (e - s)                              Eq. 4
        x_mf = (1 - tau) X_s + tau X_e                             Eq. 5
        L_endpoint = || X_s + (e - s) v(X_s) - X_e ||^2            Eq. 6
        L_velocity = || v(x_mf) - v_bar ||^2                       Eq. 6
        L_dual = a L_endpoint + (1 - a) L_velocity                 Eq. 7

    The endpoint's squared error is delta^2 = (e - s)^2 times the velocity's, asked at X_s instead of x_mf.
    So the terms differ in where on the chord the student is asked, and [ours] each item asks only once: at
    X_s for the endpoint with probability a, else at x_mf. In expectation that is Eq. 7, at half the calls.
    [ours] Errors are means over the frames to generate; tau is 1/2 ("mid") or drawn per item ("uniform");
    intervals start from the teacher's state; weak CFG is drawn per update, with probability p_uncond.
    """
    todo, mask, u = batch["todo"], batch["mask"], batch["u"]                      # (B, T), (B, T), (B,) each
    X_s, X_e, s, e, k = interval(batch, n)                                        # (B, T, M), (B,)
    at_end = u["term"] < a                      # These items supply the endpoint's term, others the other.
    on_chord = torch.full_like(s, 0.5) if t_mf == "mid" else u["chord"]
    on_chord = on_chord.masked_fill(at_end, 0)  # The endpoint's term asks at the chord's start.
    delta, tau = (e - s)[:, None, None], on_chord[:, None, None]                  # (B, 1, 1)
    uncond = weak_cfg and batch["coin"] < p_uncond
    cond, null = condition(student, batch, uncond)
    # A step token stands for n alone, while a student with adaLN is given the time of its point.
    step_cond = student.step_condition(n, s + on_chord * (e - s), e)

    v_bar = (X_e - X_s) / delta                                                   # Eq. 4  mean velocity
    x_mf = (1 - tau) * X_s + tau * X_e                                            # Eq. 5  point on the chord
    v = student(x_mf, step_cond, *cond, mask)                                     # (B, T, M)
    endpoint = ((X_s + delta * v - X_e) ** 2).mean(-1)                            # Eq. 6  (B, T)
    velocity = ((v - v_bar) ** 2).mean(-1)                                        # Eq. 6  (B, T)
    loss = frame_mean(torch.where(at_end[:, None], endpoint, velocity), todo)     # Eq. 7, in expectation
    terms = by_interval(n, k, endpoint=(endpoint, todo & at_end[:, None]),
                        velocity=(velocity, todo & ~at_end[:, None]))
    if uncond:
        # Weak CFG keeps v_u near v, so that a little guidance still works.
        v_u = student(x_mf, step_cond, *null, mask)
        L_CFG = frame_mean(((v_u - v.detach()) ** 2).mean(-1), todo)
        loss, terms["cfg"] = loss + cfg_weight * L_CFG, L_CFG
    return loss, terms


def by_interval(n, k, **errors):
    """For the log: means of each error (B, T) over the frames (B, T) that supply it, and over those of each
    interval k (B,), like {"endpoint": (), "endpoint 1/2": (), "endpoint 2/2": ()}; nan where there are none.
    """
    terms = {}
    for name, (error, frames) in errors.items():
        terms[name] = frame_mean(error.detach(), frames)
        terms |= {f"{name} {i + 1}/{n}": frame_mean(error.detach(), frames & (k == i)[:, None])
                  for i in range(n)}
    return terms


class Method(NamedTuple):
    """One way to distil: a loss, and what it needs. A variant is one of these, see README."""
    loss: Callable                              # (student, batch, n, nets, **options) -> loss (), {term: ()}
    options: tuple = ()                         # the flags that it takes, of a, t_mf, weak_cfg
    fixed: dict = {}                            # options that are not up to the user
    time: str = "step"                          # how its network is conditioned on time, model.py's switch
    dense: bool = False                         # whether it wants all K + 1 states, not only interval ends
    draws: tuple = ("interval",)                # names of the random numbers that it finds in batch["u"]
    auxiliary: Callable = lambda teacher, steps: torch.nn.ModuleDict()      # networks trained along, see dmd
    source: Callable = None                     # trajectories that are not the teacher's, see own_steps
    noise: float = 1.0                          # its standard deviation in the reports


DRAWS = ("interval", "term", "chord")           # what dsflow_loss finds in batch["u"]
METHODS = {
    "dsflow": Method(dsflow_loss, ("a", "t_mf", "weak_cfg"), draws=DRAWS),
    "endpoint": Method(dsflow_loss, ("weak_cfg",), dict(a=1.0), draws=DRAWS),     # usual distillation
}

# --------------------------------------------------------------------------------- the teacher's trajectories


def teacher_grid(steps, at_least=10):
    """Step counts -> (K, I): teacher steps K, a multiple of every n and at_least so many; intervals I."""
    I = math.lcm(*steps)
    return I * math.ceil(at_least / I), I


def teacher_states(teacher, batch, steps, w, at_least=10, dense=False):
    """Add the teacher's states X (I + 1, B, T, M) from x0, the interval ends grid (I + 1,), its guidance w.

    dense: all K + 1 states and times.
    """
    K, I = teacher_grid(steps, at_least)
    stride = 1 if dense else K // I
    grid = cosine_grid(K).to(batch["x0"].device)
    states = rollout(teacher, batch, grid, w)                                     # (K + 1, B, T, M)
    return dict(batch, states=states[::stride].clone(), grid=grid[::stride], w=w)


def trajectories(teacher, corpus, flags, dense, device, first=0):
    """Yield for each update, from `first` on, a batch with teacher states, in parts: see common/run.py.

    A rollout costs 2 K network calls (K at --cfg 0), an update one and its backward pass, so each trajectory
    is used --reuse times: at ten uses, 100 updates take 17 s instead of 70.
    """
    def make(number, items):
        g = seed_update(flags.seed + 1, number)
        batch = infill(collate(corpus, [corpus.train[i] for i in items]), g, flags.p_noref, 0.0)
        batch = {name: value.to(device) for name, value in batch.items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=flags.bf16):
            made = [teacher_states(teacher, part, flags.steps, flags.cfg, flags.teacher_steps, dense)
                    for part in parts(batch, flags.accumulate)]
        synchronise(device)                     # so that the loop's clock counts it as the teacher's
        return made
    batches = batch_indices(corpus.frames[corpus.train], flags.batch_frames, flags.seed)
    return pooled(make, batches, flags.pool, flags.reuse, first)


# --------------------------------------------------------------------------------------------- the last table


def flow_rtf(systems, batch, settings, rounds=7):
    """Flow RTF: seconds of text branch and network per second of speech, without prompt, durations, vocoder.

    systems {name: (model, steps, w)} take turns on one batch: text, align, x0, mask -> {name: [RTF, ...]}.
    """
    x0, mask = batch["x0"], batch["mask"]
    bare = dict(batch, ref=torch.zeros_like(x0), known=None)
    frames = x0[..., 0].numel() if mask is None else int(mask.sum())
    speech = frames * settings.hop / settings.rate
    jobs = {name: partial(rollout, model, bare, cosine_grid(n), w) for name, (model, n, w) in systems.items()}
    times = in_turn(jobs, rounds, x0.device)
    return {name: [seconds / speech for seconds in taken] for name, taken in times.items()}


def final_table(teacher, students, batch, target, w, settings, out):
    """Print and write table.md, mel pictures and audio: the teacher in 10 steps, whose mels are the target
    (B, T, M), and in one, then students {name: (model, steps, w)}. batch: see teacher.held_out().
    """
    teachers = {f"teacher@{n}, w = {v:g}": (teacher, n, v) for n, v in ((10, w), (1, w), (1, 0.0))}
    systems = teachers | students
    T, L = int(batch["mask"][0].sum()), int((batch["text"][0] > 0).sum())
    first = dict(text=batch["text"][:1, :L], align=batch["align"][:1, :T], x0=batch["x0"][:1, :T], mask=None)
    rtf, mels, rows = flow_rtf(systems, first, settings, 5), {"recording": batch["mel"]}, {}
    for name, (model, n, v) in systems.items():
        mels[name] = rollout(model, batch, cosine_grid(n), v)[-1]
        total, for_time = (f"{size:,}" for size in count_parameters(model))
        rows[name] = {"network calls": n * (2 if v else 1), "parameters": total, "for time": for_time,
                      "mel MSE to teacher@10": f"{distance(mels[name], target, batch['todo']):.4f}",
                      "flow RTF": f"{statistics.median(rtf[name]):.4f}"}
    note = (f"Mel MSE: normalised units, {len(target)} held-out utterances, same noise. Flow RTF: text "
            f"branch and network, no vocoder, one sentence, median of 5 turns. {processor(target.device)}.")
    present(rows, note, mels, batch["mask"].sum(1).tolist(), settings, out)


# ---------------------------------------------------------------------------------------------------- command


def arguments(methods=METHODS, words=None):
    """Command-line flags with their reasons. methods: what --method offers; words: in place of the user's."""
    p = Parser(__doc__ if methods is METHODS else "distill.py with other losses. See there.",
               idle=[("--token", "--no-tokens"), ("--token", "--init"), ("--overwrite", "--resume")])
    distill_flags(p.add_argument, methods)
    flags = p.parse_args(words)
    if len(set(flags.steps)) < len(flags.steps) or math.lcm(*flags.steps) > 64:
        raise BadInput(f"--steps {' '.join(map(str, flags.steps))}: expected different numbers, like 1 2 4, "
                       "whose least common multiple is at most 64")
    method = methods[flags.method]
    tokens = ("--token", "--no-tokens") if method.time != "step" else ()
    goals = ("--teacher_steps",) if method.source else ("--sentences", "--goal")
    options = {"--a": "a", "--t_mf": "t_mf", "--no-weak_cfg": "weak_cfg"}
    others = (name for name, option in options.items() if option not in method.options)
    for name in (*tokens, *goals, *others):
        if name in p.given:
            raise BadInput(f"{name}: --method {flags.method} does not take it")
    return flags


def options_of(method, flags):
    """The keyword arguments of a method's loss: what is fixed, and what the flags set."""
    return method.fixed | {name: getattr(flags, name) for name in method.options
                           if getattr(flags, name) is not None}


def time_of_student(flags, method, teacher):
    """The student's switch, see model.py: the method's, but "t" where its network takes no step tokens."""
    return "t" if method.time == "step" and not (flags.tokens and teacher.tokens) else method.time


def make_student(flags, method, teacher, init=None):
    """-> the student, nets ("ema": its average, "start": --init, "teacher", "auxiliary"), the optimiser."""
    torch.manual_seed(flags.seed)
    time = time_of_student(flags, method, teacher)
    if init is not None:
        student = refit(init, flags.steps)
    elif time == "step":
        student = (prepend if flags.token == "prepend" else fold)(teacher, sorted(flags.steps))
    else:
        student = pair(teacher) if time == "pair" else copy.deepcopy(teacher)
    student.requires_grad_(True).train()
    nets = {"ema": copy.deepcopy(student).requires_grad_(False).eval(), "start": init, "teacher": teacher,
            "auxiliary": method.auxiliary(teacher, flags.steps)}
    if flags.recompute and not hasattr(student, "recompute"):
        raise BadInput(f"--recompute: {type(student).__name__} has no way to, see DiT.recompute in model.py")
    student.recompute = flags.recompute
    auxiliary = dict(params=nets["auxiliary"].parameters(), lr=4 * flags.lr)      # it has to keep up
    return student, nets, adamw([dict(params=student.parameters()), auxiliary], flags.lr, 0.0)


class Setup(NamedTuple):
    """What a run has: see make_student(); and the Bundle around the student's average, which is saved."""
    student: torch.nn.Module
    nets: dict
    optimiser: torch.optim.Optimizer
    corpus: object
    bundle: object


def build(flags, method, device):
    """The teacher, the corpus, and the Bundle that will be saved, around what make_student() makes of it."""
    bundle = load_teacher(flags.teacher, "--teacher", device)
    teacher = bundle.model.requires_grad_(False)
    time = time_of_student(flags, method, teacher)
    init = load_student(flags.init, "--init", bundle, time, device).model if flags.init else None
    corpus = first_process_first(lambda: prepare(flags.data, bundle.settings, bundle.lang, bundle.vocab,
                                                 flags.cache, flags.keep_outliers, flags.keep_unknown))
    student, nets, optimiser = make_student(flags, method, teacher, init)
    allowed = sorted(flags.steps) if method.time == "step" else []              # []: any grid, any step count
    contract = student_contract(bundle, allowed, min(flags.steps), flags.cfg)
    config = vars(flags) | dict(out=str(flags.out))
    bundle = replace(bundle, model=nets["ema"], contract=contract, config=config)
    (total, conditioning), (kept, tokens) = count_parameters(teacher), count_parameters(student)
    print(f"teacher {total:,} parameters ({conditioning:,} for time), student {kept:,} ({tokens:,}); target: "
          + ("the goal's steps" if method.source else
             f"{teacher_grid(flags.steps, flags.teacher_steps)[0]} teacher steps at w = {flags.cfg:g}"))
    return Setup(student, nets, optimiser, corpus, bundle)


def update(flags, method, student, nets, optimiser, batch, step):
    """One update of the student and its average nets["ema"], on the parts of a batch -> the terms of each."""
    g, terms = seed_update(flags.seed, step), []
    n = flags.steps[int(torch.randint(len(flags.steps), (), generator=g))]
    for part in draw(batch, method.draws, g):
        with torch.autocast(part["x0"].device.type, torch.bfloat16, enabled=flags.bf16):
            loss, by_name = method.loss(student, part, n, nets, **options_of(method, flags))
        (part["frame_share"] * loss).backward()
        terms.append(dict(loss=loss, **by_name))
    rate = learning_rate(step, flags.lr, flags.warmup, flags.max_iters)
    terms.append(dict(grad_norm=optimise(optimiser, [rate], step)))
    ema_update(nets["ema"], student, step, flags.ema)
    return terms


def main(methods=METHODS):
    """The command. methods: name -> Method, what --method offers; the first is the default."""
    flags = arguments(methods)
    method = methods[flags.method]
    join()
    device = pick_device(flags.device)
    lock = claim(flags)                                                           # until this process ends
    setup = build(flags, method, device)
    teacher, ema, corpus = setup.nets["teacher"], setup.nets["ema"], setup.corpus
    nets = dict(net=setup.student, ema=ema, auxiliary=setup.nets["auxiliary"])
    recipe = dict(vars(flags), model=asdict(setup.student.config), corpus=corpus.key,
                  teacher=digest(flags.teacher),
                  **{name: path and digest(path, f"--{name}") for name, path in vars(flags).items()
                     if name in ("init", "goal", "sentences")})
    run = Run(flags, device, nets, setup.optimiser, recipe)
    fixed = held_out(corpus, flags.count, device)
    fixed["x0"] *= method.noise
    target = rollout(teacher, fixed, cosine_grid(10), flags.cfg)[-1]              # teacher@10

    def mse(model, n, w):
        return distance(rollout(model, fixed, cosine_grid(n), w)[-1], target, fixed["todo"])
    for w in dict.fromkeys((0.0, flags.cfg)):
        print(f"held out, mel MSE to teacher@10: its own single step at w = {w:g} {mse(teacher, 1, w):.4f}")
    batches = (method.source(setup, flags, device, run.first) if method.source else
               trajectories(teacher, corpus, flags, method.dense, device, run.first))
    for step in run.steps("distill"):
        start = clock.perf_counter()
        batch = next(batches)
        waited = dict(teacher_seconds=torch.tensor(clock.perf_counter() - start))
        terms = update(flags, method, setup.student, setup.nets, setup.optimiser, batch, step)
        run.finish(step, [*terms, waited],
                   report=lambda: {f"mse@{n}": mse(ema, n, 0.0) for n in sorted(flags.steps)},
                   save=lambda: save_checkpoint(flags.out / "student.pt", setup.bundle))
    if is_main_process():
        students = {f"student@{n}": (ema, n, 0.0) for n in sorted(flags.steps)}
        final_table(teacher, students, fixed, target, flags.cfg, setup.bundle.settings, flags.out)
    path = flags.out / "student.pt"
    print(f"wrote {path}; hear it: python sample.py --ckpt {path} --text \"...\"")


if __name__ == "__main__":
    cli(main)
