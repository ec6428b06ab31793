"""Distil a flow-matching teacher into a few-step student: DSFlow (arXiv 2602.09041).

    python distill.py --steps 1        one-step student of checkpoints/teacher.pt, minutes on two CPU cores
    python distill.py                  one student for 1, 2 and 4 steps

The method is dsflow_loss(). Everything else here feeds it: the teacher's trajectories, the loop. Other
methods are files of their own that call main() with their losses: intmeanflow.py, baselines.py, yours. Clock
and shapes: see model.py. n: the student's steps; K: the teacher's steps on a trajectory, a multiple of all n.
"""
from common.cli import (BadInput, Parser, cli, count, in_turn, number, pick_device, processor,
                        synchronise)
from common.files import digest, markdown, write_audio, write_text
from common.plots import plot_mels

import copy
import itertools
import math
import statistics
import time as clock
from dataclasses import asdict, replace
from functools import partial
from typing import Callable, NamedTuple

import torch

from networks.checkpoint import load_student, load_teacher, save_checkpoint
from data import batch_indices, collate
from model import count_parameters, fold, pair, refit
from speech.prepare import prepare
from sample import condition, cosine_grid, rollout
from speech.ears import at_16_khz, load_judges
from speech.vocoder import load_vocoder
from teacher import distance, frame_mean, held_out, infill
from common.run import (Run, adamw, add_flags, claim, draw, ema_update, first_process_first, join,
                        learning_rate, optimise, parts, seed_update)

# ------------------------------------------------------------------------------------------------- the method


def interval(batch, n):
    """Per item one of n intervals [s, e] of its teacher trajectory, by its first random number.

    -> X_s, X_e (B, T, M) the states at its ends, s, e (B,) its times, k (B,) its number.
    """
    X, grid = batch["states"], batch["grid"]                                      # (I + 1, B, T, M), (I + 1,)
    stride, rest = divmod(len(grid) - 1, n)
    if rest:
        raise ValueError(f"a trajectory of {len(grid) - 1} intervals does not divide into {n}")
    k, items = (n * batch["u"][:, 0]).long(), torch.arange(X.shape[1], device=X.device)
    start, end = k * stride, (k + 1) * stride
    return X[start, items], X[end, items], grid[start], grid[end], k


def dsflow_loss(student, batch, n, nets=None, a=0.7, t_mf="mid", weak_cfg=True, cfg_weight=0.01,
                p_uncond=0.02):
    """DSFlow's objective for n steps -> (loss, its terms by name). batch: see teacher_states(), train.draw().

    Each item trains on one interval [s, e] of its teacher trajectory X and supplies one term of Eq. 7, the
    endpoint with probability a: in expectation the weighted sum, at one network call instead of two. Errors
    are means over the frames to generate.
    a, t_mf, cfg_weight, p_uncond: the paper's symbols. [ours] one term per item; t_mf is 1/2 ("mid") or
    U(0, 1) per item ("uniform"); intervals start from the teacher's state; p_uncond is drawn per update.
    """
    todo, mask = batch["todo"], batch["mask"]                                     # (B, T)
    X_s, X_e, s, e, k = interval(batch, n)                                        # (B, T, M), (B,)
    _, u_term, u_chord, *_ = batch["u"].T                                         # (B,) each
    at_end = u_term < a                                    # these items supply the endpoint term,
    on_chord = torch.full_like(s, 0.5) if t_mf == "mid" else u_chord
    on_chord = on_chord.masked_fill(at_end, 0)             # which asks at the chord's start, X_s
    delta, tau = (e - s)[:, None, None], on_chord[:, None, None]
    uncond = weak_cfg and batch["coin"] < p_uncond
    cond, null = condition(student, batch, uncond)
    when = student.when(n, s + on_chord * (e - s), e)      # the step token names n alone; adaLN is told t

    v_bar = (X_e - X_s) / delta                                                   # Eq. 4  mean velocity
    x_mf = (1 - tau) * X_s + tau * X_e                                            # Eq. 5  point on the chord
    v = student(x_mf, when, *cond, mask)                                          # (B, T, M)
    endpoint = ((X_s + delta * v - X_e) ** 2).mean(-1)                            # Eq. 6  (B, T)
    velocity = ((v - v_bar) ** 2).mean(-1)                                        # Eq. 6  (B, T)
    loss = frame_mean(torch.where(at_end[:, None], endpoint, velocity), todo)     # Eq. 7, in expectation
    terms = by_interval(n, k, endpoint=(endpoint, todo & at_end[:, None]),
                        velocity=(velocity, todo & ~at_end[:, None]))
    if uncond:  # weak CFG: keeps v_u near v_c, so that a little guidance still works
        v_u = student(x_mf, when, *null, mask)
        L_CFG = frame_mean(((v_u - v.detach()) ** 2).mean(-1), todo)
        loss, terms["cfg"] = loss + cfg_weight * L_CFG, L_CFG
    return loss, terms


def by_interval(n, k, **errors):
    """For the log: each error (B, T), with the frames (B, T) that supply it, as means over all and over the
    items of each interval k (B,), like {"endpoint": (), "endpoint 1/2": (), "endpoint 2/2": ()}; nan: none.
    """
    terms = {}
    for name, (error, frames) in errors.items():
        terms[name] = frame_mean(error.detach(), frames)
        terms |= {f"{name} {i + 1}/{n}": frame_mean(error.detach(), frames & (k == i)[:, None])
                  for i in range(n)}
    return terms


class Method(NamedTuple):
    """One way to distil: a loss, and what it needs. A variant is one of these, see README."""
    loss: Callable             # (student, batch, n, nets, **options) -> (loss (), its terms by name, () each)
    options: tuple = ()         # the flags that it takes, of a, t_mf, weak_cfg
    fixed: dict = {}            # options that are not up to the user
    time: str = "step"          # what its network is told, model.py's switch
    dense: bool = False         # it wants every state of the teacher, not just the ends of intervals
    beside: Callable = lambda teacher, steps: torch.nn.ModuleDict()     # what it trains beside, see dmd.py


METHODS = {
    "dsflow": Method(dsflow_loss, ("a", "t_mf", "weak_cfg")),
    "endpoint": Method(dsflow_loss, ("weak_cfg",), dict(a=1.0)),           # the usual trajectory distillation
}

# ----------------------------------------------------------------------------------------- the teacher's part


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


class Trajectories:
    """Batches with teacher states for the loop: `pool` at a time, each used `reuse` times, then the next.

    A rollout costs 2 K network calls (K at --cfg 0), an update one and its backward pass: reuse makes the
    teacher cheap: at ten uses, 100 updates take 17 s instead of 70. Which trajectory an update gets, and its
    noise, follow from the update's number alone, so a resumed run makes again only those that it needs.
    """

    def __init__(self, teacher, corpus, flags, dense, device, first):
        self.teacher, self.corpus, self.flags, self.dense, self.device = teacher, corpus, flags, dense, device
        self.made, self.plan, self.seconds = {}, [], 0.0
        batches = batch_indices(corpus.frames[corpus.train], flags.batch_frames, flags.seed)
        self.batches = itertools.islice(batches, first // (flags.pool * flags.reuse) * flags.pool, None)

    def __getitem__(self, step):
        """(parts of one update's batch, how many items J it has); seconds adds up the teacher's time."""
        flags, start = self.flags, clock.perf_counter()
        block, place = divmod(step, flags.pool * flags.reuse)
        which = place % flags.pool
        if place == 0 or not self.plan:
            self.made, self.plan = {}, list(itertools.islice(self.batches, flags.pool))
        if which not in self.made:
            g = seed_update(flags.seed + 1, block * flags.pool + which)
            batch = collate(self.corpus, [self.corpus.train[i] for i in self.plan[which]])
            batch = {k: v.to(self.device) for k, v in infill(batch, g, flags.p_noref, 0.0).items()}
            with torch.autocast(self.device.type, torch.bfloat16, enabled=flags.bf16):
                self.made[which] = [teacher_states(self.teacher, part, flags.steps, flags.cfg,
                                                   flags.teacher_steps, self.dense)
                                    for part in parts(batch, flags.accumulate)]
            synchronise(self.device)
            self.seconds += clock.perf_counter() - start
        return self.made[which], len(self.plan[which])


# --------------------------------------------------------------------------------------------- the last table


def flow_rtf(systems, batch, settings, rounds=7):
    """Flow RTF, the real-time factor of text branch and network: their seconds per second of speech, without
    voice prompt, duration predictor and vocoder.

    systems {name: (model, steps, w)} take turns on one batch: text, align, x0 and mask -> {name: [RTF of each
    round]}.
    """
    x0, mask = batch["x0"], batch["mask"]
    bare = dict(batch, ref=torch.zeros_like(x0), known=None)
    frames = x0[..., 0].numel() if mask is None else int(mask.sum())
    speech = frames * settings.hop / settings.rate
    jobs = {name: partial(rollout, model, bare, cosine_grid(n), w) for name, (model, n, w) in systems.items()}
    times = in_turn(jobs, rounds, x0.device)
    return {name: [seconds / speech for seconds in taken] for name, taken in times.items()}


def final_table(teacher, systems, batch, goal, w, settings, out, most=16):
    """Print and write table.md, mels_0.png, mels_1.png and audio of item 0: the teacher in 10 steps (goal)
    and in one, then systems {name: (model, steps, w)}, from the same noise; batch: see teacher.held_out().

    Distill-MOS, where installed, is of `most` whole sentences: the first quarter of each is recorded.
    """
    rows = {f"teacher@{n}, w = {v:g}": (teacher, n, v) for n, v in ((10, w), (1, w), (1, 0.0))} | systems
    mels = {"recording": batch["mel"], f"teacher@10, w = {w:g}": goal}
    mels |= {name: rollout(model, batch, cosine_grid(n), v)[-1] for name, (model, n, v) in rows.items()
             if name not in mels}
    lengths, L = batch["mask"].sum(1).tolist(), int((batch["text"][0] > 0).sum())
    one = dict(text=batch["text"][:1, :L], mask=None)
    one |= {k: batch[k][:1, :lengths[0]] for k in ("align", "x0")}
    rtf, vocoder = flow_rtf(rows, one, settings, 5), load_vocoder(None, settings, goal.device)
    mos, lines = load_judges(["mos"]).get("mos"), []
    columns = ["model", "network calls", "parameters", "for time", "mel MSE to teacher@10", "flow RTF"]
    for name, mel in mels.items():
        wavs = [vocoder(x[:T], settings) for x, T in zip(mel[:most if mos else 1], lengths)]
        file = name.replace(", w = ", "_w").replace("@", "_at_") + ".wav"
        write_audio(out / file, wavs[0], settings.rate)
        cells = ["recording -> mel -> vocoder", "", "", "", "", ""]
        if name in rows:
            model, n, v = rows[name]
            total, for_time = count_parameters(model)
            cells = [name, n * (2 if v else 1), f"{total:,}", f"{for_time:,}",
                     f"{distance(mel, goal, batch['todo']):.4f}", f"{statistics.median(rtf[name]):.4f}"]
        if mos:
            cells.append(f"{statistics.mean(mos(at_16_khz(wav, settings.rate)) for wav in wavs):.2f}")
        lines += [cells] if name in rows or mos else []
    for i in range(min(2, len(lengths))):
        plot_mels([(name, mel[i, :lengths[i]]) for name, mel in mels.items()], out / f"mels_{i}.png")
    protocol = (f"Mel MSE: normalised units, {len(lengths)} held-out utterances, same noise. Flow RTF: text "
                f"branch and network, no vocoder, one sentence, median of 5 turns. {processor(goal.device)}.")
    if mos:
        columns.append("Distill-MOS")
        protocol += " Distill-MOS: predicted quality, 1 to 5; the first quarter of each sentence is recorded."
    print(f"\n{markdown(columns, lines)}\n\n{protocol}")
    write_text(out / "table.md", f"{markdown(columns, lines)}\n\n{protocol}\n")


# ---------------------------------------------------------------------------------------------------- command


def arguments(methods=METHODS, words=None):
    """Command-line flags with their reasons. methods: what --method offers; words: in place of the user's."""
    p = Parser(__doc__ if methods is METHODS else "distill.py with other losses. See there.",
               idle=[("--token", "--no-tokens"), ("--token", "--init"), ("--overwrite", "--resume")])
    add, first = p.add_argument, next(iter(methods))
    add("--steps", type=count(), nargs="+", default=[1, 2, 4],
        help="network steps the student is made for (default 1 2 4)")
    add("--teacher", default="checkpoints/teacher.pt",
        help="checkpoint of teacher.py or f5.py (default %(default)s)")
    add("--init", help="start from this student of the same teacher instead of from the teacher's weights")
    add("--method", choices=methods, default=first, help=f"the loss (default {first})")
    add("--a", type=number(0, 1), help="dsflow: weight of the endpoint (default 0.7)")
    add("--t_mf", choices=["mid", "uniform"], help="dsflow: where on the chord (default mid)")
    add("--no-weak_cfg", dest="weak_cfg", action="store_false", default=None, help="leave L_CFG out")
    add("--no-tokens", dest="tokens", action="store_false",
        help="the student keeps the teacher's timestep network and is told t")
    add("--token", choices=["add", "prepend"], default="add",
        help="how a step token enters in place of adaLN (default add)")
    add("--teacher_steps", type=count(1, 1000), default=10,
        help="steps of the target's rollout, at least (default %(default)s)")
    add_flags(add, "out/distill", max_iters=1300, batch_frames=800, lr=3e-4, warmup=20, ema=0.99, p_noref=0.1,
              cfg=0.7, cfg_help="guidance w inside the target (default %(default)s, the paper's)",
              eval_every=200, save_every=200)
    add("--reuse", type=count(), default=6, help="updates from each teacher trajectory (default %(default)s)")
    add("--pool", type=count(), default=217, help="trajectories kept at a time (default %(default)s)")
    add("--bf16", action="store_true", help="train in bfloat16 (autocast); weights and reports stay float32")
    add("--recompute", action="store_true",
        help="keep no activations inside blocks, compute them again for the gradient: less memory, slower")
    add("--count", type=count(), default=16, help="held-out recordings in the reports (default %(default)s)")
    flags = p.parse_args(words)
    if len(set(flags.steps)) < len(flags.steps) or math.lcm(*flags.steps) > 64:
        raise BadInput(f"--steps {' '.join(map(str, flags.steps))}: expected different numbers, like 1 2 4, "
                       "whose least common multiple is at most 64")
    method = methods[flags.method]
    tokens = ("--token", "--no-tokens") if method.time != "step" else ()
    options = {"--a": "a", "--t_mf": "t_mf", "--no-weak_cfg": "weak_cfg"}
    for name in (*tokens, *(name for name, option in options.items() if option not in method.options)):
        if name in p.given:
            raise BadInput(f"{name}: --method {flags.method} does not take it")
    return flags


def options_of(method, flags):
    """The keyword arguments of a method's loss: what is fixed, and what the flags set."""
    return method.fixed | {name: getattr(flags, name) for name in method.options
                           if getattr(flags, name) is not None}


def told(flags, method, teacher):
    """What the student is told of a step: what the method wants, but t where tokens can or shall not be."""
    return "t" if method.time == "step" and not (flags.tokens and teacher.tokens) else method.time


def begin(flags, method, teacher, init=None):
    """What trains -> student, nets ("ema": its average, "start": --init, "teacher", "beside"), optimiser."""
    torch.manual_seed(flags.seed)
    time = told(flags, method, teacher)
    if init is not None:
        student = refit(init, flags.steps)
    elif time == "step":
        student = fold(teacher, sorted(flags.steps), enters=flags.token)
    else:
        student = pair(teacher) if time == "pair" else copy.deepcopy(teacher)
    student.requires_grad_(True).train()
    nets = {"ema": copy.deepcopy(student).requires_grad_(False).eval(), "start": init, "teacher": teacher,
            "beside": method.beside(teacher, flags.steps)}
    if flags.recompute and not hasattr(student, "recompute"):
        raise BadInput(f"--recompute: {type(student).__name__} has no way to, see DiT.recompute in model.py")
    student.recompute = flags.recompute
    beside = dict(params=nets["beside"].parameters(), lr=4 * flags.lr)            # it has to keep up
    return student, nets, adamw([dict(params=student.parameters()), beside], flags.lr, 0.0)


def build(flags, method, device):
    """The teacher, what begin() makes of it, the corpus, and the Bundle that will be saved."""
    b = load_teacher(flags.teacher, "--teacher", device)
    init = flags.init and load_student(flags.init, "--init", b, told(flags, method, b.model), device).model
    corpus = first_process_first(lambda: prepare(flags.data, b.settings, b.lang, b.vocab, flags.cache,
                                                 flags.keep_outliers, flags.keep_unknown))
    teacher = b.model.requires_grad_(False)
    student, nets, optimiser = begin(flags, method, teacher, init)
    allowed = sorted(flags.steps) if method.time == "step" else []              # []: any grid, any step count
    contract = dict(kind="student", steps=allowed, default=min(flags.steps), grid="cosine", cfg=flags.cfg)
    bundle = replace(b, model=nets["ema"], contract=contract, config=vars(flags) | dict(out=str(flags.out)))
    (total, conditioning), (kept, tokens) = count_parameters(teacher), count_parameters(student)
    print(f"teacher {total:,} parameters ({conditioning:,} for time), student {kept:,} ({tokens:,}); "
          f"target: {teacher_grid(flags.steps, flags.teacher_steps)[0]} teacher steps at w = {flags.cfg:g}")
    return teacher, student, nets, optimiser, corpus, bundle


def update(flags, method, student, nets, optimiser, trajectory, step):
    """One update of the student and its average nets["ema"] -> per part its terms, and the gradient norm."""
    g, (batch, J) = seed_update(flags.seed, step), trajectory
    n = flags.steps[int(torch.randint(len(flags.steps), (), generator=g))]
    options, recorded = options_of(method, flags), []
    for part in draw(batch, J, g):
        with torch.autocast(part["x0"].device.type, torch.bfloat16, enabled=flags.bf16):
            loss, terms = method.loss(student, part, n, nets, **options)
        (part["frame_share"] * loss).backward()
        recorded.append(dict(loss=loss, **terms))
    norm = optimise(optimiser, [learning_rate(step, flags.lr, flags.warmup, flags.max_iters)], step)
    ema_update(nets["ema"], student, step, flags.ema)
    return recorded, norm


def main(methods=METHODS):
    """The command. methods: name -> Method, what --method offers; the first is the default."""
    flags = arguments(methods)
    method = methods[flags.method]
    join()
    device = pick_device(flags.device)
    lock = claim(flags)                                                           # until this process ends
    teacher, student, nets, optimiser, corpus, bundle = build(flags, method, device)
    run = Run(flags, device, dict(net=student, ema=nets["ema"], beside=nets["beside"]), optimiser,
              dict(vars(flags), model=asdict(student.config), corpus=corpus.key,
                    teacher=digest(flags.teacher), init=flags.init and digest(flags.init)))
    if run.speaks:
        fixed = held_out(corpus, flags.count, device)
        goal = rollout(teacher, fixed, cosine_grid(10), flags.cfg)[-1]        # teacher@10 from the same noise
        for w in dict.fromkeys((0.0, flags.cfg)):
            own = distance(rollout(teacher, fixed, cosine_grid(1), w)[-1], goal, fixed["todo"])
            print(f"held out, mel MSE to teacher@10: teacher's own single step at w = {w:g} {own:.4f}")
    trajectories = Trajectories(teacher, corpus, flags, method.dense, device, run.first)
    for step in run.steps("distill"):
        recorded, norm = update(flags, method, student, nets, optimiser, trajectories[step], step)
        for terms in recorded:
            run.record(**terms)
        run.record(grad_norm=norm)
        run.count_update(step)
        if run.report_due:
            x1 = {n: rollout(nets["ema"], fixed, cosine_grid(n), 0.0)[-1] for n in sorted(flags.steps)}
            run.report(**{f"mse@{n}": distance(x1[n], goal, fixed["todo"]) for n in x1},
                       teacher_share=trajectories.seconds / run.seconds())
            trajectories.seconds = 0.0
        if run.save_due:
            save_checkpoint(flags.out / "student.pt", bundle)
            run.save()
        run.end_update()
    if run.speaks:
        systems = {f"student@{n}": (nets["ema"], n, 0.0) for n in sorted(flags.steps)}
        final_table(teacher, systems, fixed, goal, flags.cfg, bundle.settings, flags.out)
    path = flags.out / "student.pt"
    print(f"wrote {path}; hear it: python sample.py --ckpt {path} --text \"...\"")


if __name__ == "__main__":
    cli(main)
