"""Distil a flow-matching teacher into a few-step student: DSFlow (arXiv 2602.09041).

    python distill.py --steps 1        one-step student of checkpoints/teacher.pt, minutes on two CPU cores
    python distill.py                  one student for 1, 2 and 4 steps

The method is dsflow_loss(). Everything else here feeds it: the teacher's trajectories, the loop, the final
table. Clock and shapes: see model.py. n: the student's steps; K: the teacher's steps on a trajectory, a
multiple of every n.
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

import soundfile
import torch
from tqdm import tqdm

from data import BadInput, batch_indices, check_numbers, cli, collate, griffin_lim, prepare
from model import count_parameters, fold
from sample import (add_f5_flags, conditions, cosine_grid, load_checkpoint, pick_device, plot_mels,
                    save_checkpoint)
from teacher import (Interrupt, Log, ema_update, held_out, infill, learning_rate, load_state, optimise,
                     rollout, save_state, seed_update)

# ------------------------------------------------------------------------------------------------- the method


def dsflow_loss(student, batch, n, g, a=0.7, t_mf="mid", cfg_weight=0.01, p_uncond=0.02):
    """DSFlow's objective for n steps -> (loss, its parts by name). Batch fields: see teacher_states().

    Each item trains on one interval [s, e] of its teacher trajectory X, D = e - s, and supplies one term of
    Eq. 7, the endpoint with probability a: in expectation the weighted sum, at one network call instead of
    two. Errors are means over the frames to generate. A part that nothing supplied is nan.
    a, t_mf, cfg_weight, p_uncond: the paper's symbols. [ours] one term per item; t_mf is 1/2 ("mid") or
    U(0, 1) per item ("uniform"); intervals start from the teacher's state; p_uncond is drawn per update.
    """
    X, grid, todo = batch["states"], batch["grid"], batch["todo"]  # (I + 1, B, T, M), (I + 1,), (B, T)
    B, stride, items = X.shape[1], (len(grid) - 1) // n, torch.arange(X.shape[1])
    i = torch.randint(n, (B,), generator=g) * stride                              # which interval, per item
    X_s, X_e = X[i, items], X[i + stride, items]                                  # (B, T, M) each
    s, D = grid[i], grid[i + stride] - grid[i]                                    # (B,) each
    end = (torch.rand(B, generator=g) < a).to(X.device)                          # items for the endpoint
    r = torch.rand(B, generator=g).to(X.device) if t_mf == "uniform" else torch.full_like(D, 0.5)
    r = r.masked_fill(end, 0)                              # the endpoint term asks at the chord's start, X_s
    uncond = float(torch.rand((), generator=g)) < p_uncond and cfg_weight > 0
    mask = batch["mask"]
    cond, null = conditions(student, batch["text"], batch["align"], batch["ref"], mask, float(uncond))
    D_, r_ = D[:, None, None], r[:, None, None]

    def network(x, t, condition):  # the step token names n alone; without tokens the network is told t
        return student(x, n if student.config.time == "step" else t, *condition, mask)

    v_bar = (X_e - X_s) / D_                                                      # Eq. 4  mean velocity
    x_mf = (1 - r_) * X_s + r_ * X_e                                              # Eq. 5  point on the chord
    v = network(x_mf, s + r * D, cond)                                            # (B, T, M)
    endpoint = ((X_s + D_ * v - X_e) ** 2).mean(-1)                               # Eq. 6  (B, T)
    velocity = ((v - v_bar) ** 2).mean(-1)                                        # Eq. 6  (B, T)
    L_dual = torch.where(end[:, None], endpoint, velocity)[todo].mean()           # Eq. 7, in expectation
    L_CFG = X.new_tensor(math.nan)
    if uncond:  # weak CFG: keeps v_u near v_c, so that a little guidance still works
        L_CFG = ((network(x_mf, s + r * D, null) - v.detach()) ** 2)[todo].mean()
    parts = dict(endpoint=endpoint[end[:, None] & todo].mean(), cfg=L_CFG,
                 velocity=velocity[~end[:, None] & todo].mean())
    return L_dual + cfg_weight * L_CFG if uncond else L_dual, parts


METHODS = {
    "dsflow": dsflow_loss,
    "endpoint": partial(dsflow_loss, a=1.0),    # the usual trajectory distillation
    "velocity": partial(dsflow_loss, a=0.0),    # a reflow loss on teacher pairs
}

# ----------------------------------------------------------------------------------------- the teacher's part


def teacher_grid(steps, at_least=10):
    """Step counts -> (K, I): teacher steps K, the fewest from 10 up that every n divides; intervals I."""
    I = math.lcm(*steps)
    return I * math.ceil(at_least / I), I


@torch.no_grad()
def teacher_states(teacher, batch, steps, w):
    """Add the guided teacher's states X (I + 1, B, T, M) from x0, and the interval ends grid (I + 1,)."""
    K, I = teacher_grid(steps)
    grid = cosine_grid(K).to(batch["x0"].device)
    states = rollout(teacher, batch, grid, w)                                     # (K + 1, B, T, M)
    return dict(batch, states=states[:: K // I].clone(), grid=grid[:: K // I])


class Trajectories:
    """Batches with teacher states for the loop: `pool` at a time, each used `reuse` times, then the next.

    A rollout costs 2 K network calls (K at --cfg 0), an update one and its backward pass: reuse makes the
    teacher cheap. Which trajectory an update gets, and its noise, follow from the update's number alone, so a
    resumed run makes again only those of its block that it still needs.
    """

    def __init__(self, teacher, corpus, a, device, first):
        self.teacher, self.corpus, self.a, self.device = teacher, corpus, a, device
        self.made, self.plan, self.seconds = {}, [], 0.0
        batches = batch_indices(corpus.frames[corpus.train], a.batch_frames, a.seed)
        self.batches = itertools.islice(batches, first // (a.pool * a.reuse) * a.pool, None)

    def __getitem__(self, step):
        """The batch of one update; seconds adds up the time spent in the teacher."""
        a, start = self.a, clock.perf_counter()
        block, inside = divmod(step, a.pool * a.reuse)
        which = inside % a.pool
        if inside == 0 or not self.plan:
            self.made, self.plan = {}, list(itertools.islice(self.batches, a.pool))
        if which not in self.made:
            g = seed_update(a.seed + 1, block * a.pool + which)
            batch = collate(self.corpus, [self.corpus.train[i] for i in self.plan[which]])
            batch = {k: v.to(self.device) for k, v in infill(batch, g, a.p_noref, 0.0).items()}
            self.made[which] = teacher_states(self.teacher, batch, a.steps, a.cfg)
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


def arguments():
    """Command-line flags with their reasons."""
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
    add("--method", choices=METHODS, default="dsflow", help="dsflow a = 0.7, endpoint a = 1, velocity a = 0")
    add("--dual", action=switch, default=True, help="--no-dual: endpoint only, the same as --method endpoint")
    add("--tokens", action=switch, default=True,
        help="--no-tokens: the student keeps the teacher's adaLN and is told t")
    add("--token", choices=["add", "prepend"], default="add", help="how a step token enters (default add)")
    add("--weak_cfg", action=switch, default=True, help="--no-weak_cfg: leave L_CFG out")
    add("--t_mf", choices=["mid", "uniform"], default="mid", help="where on the chord (default mid)")
    add("--cfg", type=float, default=0.7,
        help="guidance w inside the target (default %(default)s, the paper's)")
    add("--max_iters", type=int, default=2000, help="updates (default %(default)s)")
    add("--batch_frames", type=int, default=800,
        help="mel frames per update, padding included (default %(default)s)")
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
    a = p.parse_args()
    if min(a.steps) < 1 or len(set(a.steps)) < len(a.steps) or math.lcm(*a.steps) > 64:
        raise BadInput(f"--steps {' '.join(map(str, a.steps))}: expected different numbers, like 1 2 4, "
                       f"whose least common multiple is at most 64")
    if a.method == "velocity" and not a.dual:
        raise BadInput("--no-dual --method velocity: --no-dual means --method endpoint; use one of them")
    check_numbers(a)
    return a


def build(a, device):
    """Teacher, student, its average, the corpus, and the Bundle around the average that will be saved."""
    b = load_checkpoint(a.teacher, device, a.flavour, a.vocab, a.mel)
    if b.contract["kind"] != "teacher":
        raise BadInput(f"--teacher {a.teacher}: holds a student; expected a checkpoint of teacher.py")
    corpus = prepare(a.data, b.s, b.vocab, a.cache)
    torch.manual_seed(a.seed)
    teacher = b.model.requires_grad_(False)
    student = fold(teacher, sorted(a.steps), token=a.token) if a.tokens else copy.deepcopy(teacher)
    student.requires_grad_(True).train()
    ema = copy.deepcopy(student).requires_grad_(False).eval()
    student.recompute = a.recompute
    contract = dict(kind="student", steps=sorted(a.steps), grid="cosine", cfg=a.cfg, iters=a.max_iters)
    bundle = replace(b, model=ema, contract=contract, config=vars(a))
    (total, conditioning), (kept, tokens) = count_parameters(teacher), count_parameters(student)
    print(f"teacher {total:,} parameters ({conditioning:,} for time), student {kept:,} ({tokens:,}); "
          f"target: {teacher_grid(a.steps)[0]} teacher steps at w = {a.cfg:g}")
    return teacher, student, ema, corpus, bundle


def main():
    a = arguments()
    device = pick_device(a.device)
    out = Path(a.out)
    out.mkdir(parents=True, exist_ok=True)
    teacher, student, ema, corpus, bundle = build(a, device)
    optimiser = torch.optim.AdamW(student.parameters(), a.lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    settings = dict(vars(a), dit=asdict(student.config))
    first = load_state(out / "last.pt", student, ema, optimiser, settings) if a.resume else 0
    method = partial(METHODS["endpoint" if not a.dual else a.method], t_mf=a.t_mf,
                     cfg_weight=0.01 if a.weak_cfg else 0.0)
    fixed = held_out(corpus, a.count, device)
    goal = rollout(teacher, fixed, cosine_grid(10), a.cfg)[-1]
    for guide in dict.fromkeys((0.0, a.cfg)):
        own = distance(rollout(teacher, fixed, cosine_grid(1), guide)[-1], goal, fixed["todo"])
        print(f"held out, mel MSE to teacher@10: the teacher's own single step at w = {guide:g} {own:.4f}")

    log, interrupt = Log(out / "log.csv", first), Interrupt()
    trajectories = Trajectories(teacher, corpus, a, device, first)
    parts, since = [], clock.perf_counter()
    for step in tqdm(range(first, a.max_iters), "distill", initial=first, total=a.max_iters, disable=None):
        g = seed_update(a.seed, step)
        n = a.steps[int(torch.randint(len(a.steps), (), generator=g))]
        with torch.autocast(device.type, torch.bfloat16, enabled=a.bf16):
            loss, part = method(student, trajectories[step], n, g)
        rate = learning_rate(step, a.lr, a.warmup, a.max_iters)
        norm = optimise(loss, student, optimiser, [rate], step)
        ema_update(ema, student, step, a.ema)
        parts.append(dict(loss=loss.detach(), **part, grad_norm=norm))

        done = step + 1
        if done % a.eval_every == 0 or done == a.max_iters:
            seconds = clock.perf_counter() - since
            report = {k: float(torch.stack([p[k].detach() for p in parts]).nanmean()) for k in parts[0]}
            for n in sorted(a.steps):
                x1 = rollout(ema, fixed, cosine_grid(n), 0.0)[-1]
                report[f"mse@{n}"] = distance(x1, goal, fixed["todo"])
            log.report(step=done, **report, seconds_per_update=seconds / len(parts),
                       teacher_share=trajectories.seconds / seconds)
            parts, since, trajectories.seconds = [], clock.perf_counter(), 0.0
        if done % a.save_every == 0 or done == a.max_iters or interrupt.asked:
            save_checkpoint(out / "student.pt", bundle)                           # first: never older
            save_state(out / "last.pt", done, student, ema, optimiser, settings)
        if interrupt.asked:
            print(f"interrupted: saved after update {done}; continue with --resume")
            raise KeyboardInterrupt
    interrupt.restore()
    final_table(teacher, ema, fixed, goal, sorted(a.steps), a.cfg, corpus.s, device, out)
    print(f"wrote {out / 'student.pt'}; hear it: python sample.py --ckpt {out / 'student.pt'} --text \"...\"")


if __name__ == "__main__":
    cli(main)
