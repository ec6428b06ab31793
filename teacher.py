"""Train the teacher: conditional flow matching with random-span infilling, and a duration predictor beside
it.

    python teacher.py --data corpus --out out/teacher
    python teacher.py --data DIR --init checkpoints/teacher.pt       fine-tune on your own recordings

The parts of a training run that distillation needs too (schedule, EMA, noise, log, resume) are at the top.
"""
import argparse
import copy
import csv
import itertools
import math
import os
import signal
import time as clock
from dataclasses import asdict
from pathlib import Path

import soundfile
import torch
from tqdm import tqdm

from data import BadInput, MelSettings, batch_indices, check_numbers, cli, collate, griffin_lim, prepare
from model import SIZES, DiT, DiTConfig, DurationPredictor, count_parameters
from parallel import anywhere, first_alone, join, parts, sum_gradients, world
from sample import (Bundle, conditions, cosine_grid, euler, load_file, load_teacher, noise, pick_device,
                    plot_mels, save_atomic, save_checkpoint)

# --------------------------------------------------------------------------------------- shared by both loops


def learning_rate(step, peak, warmup, total):
    """Linear warm-up, then cosine decay to 2 % of the peak at `total` updates."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


@torch.no_grad()
def ema_update(ema, net, step, decay):
    """ema <- decay * ema + (1 - decay) * net; the first updates average over a tenth of their number."""
    decay = min(decay, (1 + step) / (10 + step))
    for mean, now in zip(ema.parameters(), net.parameters()):
        mean.lerp_(now, 1 - decay)


def seed_update(seed, step):
    """Seed torch (for dropout) from (seed, step) -> generator of the update: a resumed run draws the same."""
    torch.manual_seed(seed * 1_000_003 + step)
    return torch.Generator().manual_seed(seed * 1_000_003 + step + 1)


def optimise(net, optimiser, rates, step, clip=1.0):
    """Clip the gradients, update, clear them -> gradient norm. rates: learning rate of each parameter group.

    A gradient that is not finite, as of a loss that is not, stops the run before it reaches the weights.
    """
    for group, rate in zip(optimiser.param_groups, rates):
        group["lr"] = rate
    sum_gradients(net)
    norm = torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
    if not torch.isfinite(norm):
        raise BadInput(f"gradient norm {norm.item():g} at update {step}: run again with a lower --lr (now "
                       f"{rates[0]:.1e}); the last checkpoint is intact")
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return norm


class Log:
    """A CSV with one row per report, and the same on the screen. Resuming drops rows that come again."""

    def __init__(self, path, step):
        self.path, self.rows = Path(path), []
        if step and self.path.is_file():
            with open(self.path, newline="") as file:
                self.rows = [r for r in csv.DictReader(file) if int(r["step"]) <= step]

    def report(self, **row):
        """Add one row; values are numbers."""
        self.rows.append({k: v if isinstance(v, int) else f"{v:.6g}" for k, v in row.items()})
        fields = list(dict.fromkeys(k for r in self.rows for k in r))
        partial = Path(f"{self.path}.partial")
        with open(partial, "w", newline="") as file:
            writer = csv.DictWriter(file, fields)
            writer.writeheader()
            writer.writerows(self.rows)
        os.replace(partial, self.path)
        tqdm.write("  ".join(f"{k} {v}" for k, v in self.rows[-1].items()))


class Interrupt:
    """Ctrl-C and SIGTERM set a flag: the loop finishes its update, saves and stops. Twice: it stops at once.
    """

    def __init__(self):
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self)

    def __call__(self, *_):
        self.asked = True
        self.restore()

    def restore(self):
        """Give both signals back to Python."""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


FREE = {"out", "cache", "device", "resume", "eval_every", "save_every", "max_iters", "count",
        "recompute", "accumulate"}              # may differ on --resume


def save_state(path, step, net, ema, optimiser, settings):
    """Everything --resume needs, atomically. settings: plain values, see load_state."""
    save_atomic(path, dict(format="dsflow-state-1", step=step, net=net.state_dict(), ema=ema.state_dict(),
                           optimiser=optimiser.state_dict(), settings=settings))


def load_state(path, net, ema, optimiser, settings):
    """Restore save_state's file -> updates done. settings (name -> value) must match, except those in FREE.
    """
    state = load_file(path, "dsflow-state-1")
    for name in sorted(settings.keys() - FREE):
        old, new = state.get("settings", {}).get(name), settings[name]
        if old != new:
            raise BadInput(f"--resume: {path} was made with another {name}: {old}, now {new}")
    net.load_state_dict(state["net"])
    ema.load_state_dict(state["ema"])
    optimiser.load_state_dict(state["optimiser"])
    return state["step"]


def pick_voices(corpus, seconds=3.0, most=16):
    """One training recording of each speaker, nearest to `seconds` long -> ready voice prompts by name.

    Of at most so many speakers: they travel in every checkpoint.
    """
    best = {}                                   # speaker -> (distance to that length, utterance)
    for i in corpus.train:
        off = abs(int(corpus.frames[i]) * corpus.s.hop / corpus.s.rate - seconds)
        best[corpus.speakers[i]] = min(best.get(corpus.speakers[i], (math.inf, i)), (off, i))
    return {speaker or "voice": dict(mel=corpus.mel(i).half(), text=corpus.ids[i].clone(),
                                     durations=corpus.durations[i].clone())
            for speaker, (_, i) in sorted(best.items())[:most]}


def held_out(corpus, count, device):
    """A fixed evaluation batch: up to `count` held-out utterances, the first quarter of each as reference.

    -> batch as collate() makes it, with ref (B, T, M), known, todo (B, T): frames given, to generate; x0.
    """
    items = corpus.held[:: max(1, len(corpus.held) // count)][:count]
    batch = collate(corpus, items)
    batch["known"] = torch.arange(batch["mel"].shape[1])[None] < (corpus.frames[items] // 4)[:, None]
    batch["ref"] = batch["mel"] * batch["known"][..., None]
    batch["todo"] = batch["mask"] & ~batch["known"]
    batch["x0"] = noise(1234, corpus.frames[items], corpus.s.n_mels)
    return {k: v.to(device) for k, v in batch.items()}


@torch.no_grad()
def rollout(model, batch, grid, w):
    """The sampler on a batch that has ref, known and x0 -> states (N + 1, B, T, M)."""
    cond, null = conditions(model, batch["text"], batch["align"], batch["ref"], batch["mask"], w)
    return euler(model, batch["x0"], grid, cond, null, w, batch["mask"], batch["known"])


# ---------------------------------------------------------------------------------------------- the objective


def random_spans(mask, g, shortest=0.7):
    """Per item, a random run of 70 to 100 % of its frames to fill in -> (B, T) bool."""
    T = mask.sum(1, keepdim=True)                                                 # (B, 1)
    length = T * (shortest + (1 - shortest) * torch.rand(T.shape, generator=g))
    start = (T - length) * torch.rand(T.shape, generator=g)
    frames = torch.arange(mask.shape[1])[None]
    return (frames >= start.round()) & (frames < (start + length).round()) & mask


def infill(batch, g, p_noref, p_nothing):
    """Draw what an update trains on: known frames, reference, items that lose the reference or everything.

    Adds known, ref, todo (see held_out), x0, and drop (B,) bool: no text either, which is guidance's
    unconditional. Items without a reference have the whole utterance to generate.
    """
    B, mask = len(batch["mel"]), batch["mask"]
    drop = torch.rand(B, generator=g) < p_nothing
    noref = (torch.rand(B, generator=g) < p_noref) | drop
    todo = torch.where(noref[:, None], mask, random_spans(mask, g))
    known = mask & ~todo
    x0 = torch.randn(batch["mel"].shape, generator=g)
    return dict(batch, known=known, ref=batch["mel"] * known[..., None], todo=todo, x0=x0, drop=drop)


def cfm_loss(model, batch, t):
    """Conditional flow matching (Lipman et al. 2023): || v(x_t, t) - (x1 - x0) ||^2 on frames to fill in."""
    x0, x1 = batch["x0"], batch["mel"]
    x_t = (1 - t[:, None, None]) * x0 + t[:, None, None] * x1                     # (B, T, M)
    h = model.embed_text(batch["text"], batch["align"], batch["mask"], batch["drop"])            # (B, T, E)
    v = model(x_t, t, batch["ref"], h, batch["mask"])
    return ((v - (x1 - x0)) ** 2)[batch["todo"]].mean()


# ---------------------------------------------------------------------------------------------------- command


def report_held_out(bundle, batch, w, out, name):
    """Held-out losses at fixed noise and times; mel picture and audio of teacher@10 beside the recording."""
    t = torch.linspace(0.05, 0.95, len(batch["mel"]), device=batch["mel"].device)
    with torch.no_grad():
        flow = cfm_loss(bundle.model,
                        dict(batch, drop=torch.zeros(len(t), dtype=torch.bool, device=t.device)), t)
        duration = bundle.duration.loss(batch["text"], batch["durations"])
    few = {k: v[:2] for k, v in batch.items()}
    x1 = rollout(bundle.model, few, cosine_grid(10), w)[-1]
    rows = []
    for i in range(len(x1)):
        T = int(few["mask"][i].sum())
        rows += [(f"recording {i}", few["mel"][i, :T]),
                 (f"teacher, 10 steps, w = {w}: the first quarter is given", x1[i, :T])]
        soundfile.write(out / f"{name}_{i}.wav", griffin_lim(x1[i, :T], bundle.s, 32).clip(-1, 1),
                        bundle.s.rate)
    plot_mels(rows, out / f"{name}.png")
    return float(flow), float(duration)


def arguments():
    """Command-line flags with their reasons."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = p.add_argument
    add("--data", default="corpus", help="folder of recordings, see data.py (default corpus)")
    add("--out", default="out/teacher",
        help="checkpoints, log, pictures and audio go here (default %(default)s)")
    add("--cache", default="cache", help="where mels and alignments are kept (default %(default)s)")
    add("--size", choices=SIZES, default="tiny", help="tiny 3M (CPU), small 19M, base 82M (default tiny)")
    add("--init", help="start from this teacher and keep its size and characters: fine-tuning")
    add("--max_iters", type=int, default=6500, help="updates (default %(default)s)")
    add("--batch_frames", type=int, default=2000,
        help="mel frames per update, padding included (default %(default)s)")
    add("--accumulate", type=int, default=1,
        help="parts of a batch, one after the other: less memory, the same update (default %(default)s)")
    add("--lr", type=float, default=1.5e-3, help="peak learning rate of AdamW (default %(default)s)")
    add("--duration_iters", type=int, default=1500,
        help="updates of the duration predictor, which overfits soon after (default %(default)s)")
    add("--warmup", type=int, default=200, help="updates of linear warm-up (default %(default)s)")
    add("--ema", type=float, default=0.999,
        help="decay of the weight average that is saved (default %(default)s)")
    add("--p_noref", type=float, default=0.3,
        help="share of items trained without a reference (default %(default)s)")
    add("--p_nothing", type=float, default=0.15,
        help="share trained without reference and text (default %(default)s)")
    add("--cfg", type=float, default=1.5,
        help="guidance of the samples, and sample.py's default for this teacher (default %(default)s)")
    add("--eval_every", type=int, default=1000,
        help="updates between reports with samples (default %(default)s)")
    add("--save_every", type=int, default=500, help="updates between checkpoints (default %(default)s)")
    add("--resume", action="store_true",
        help="continue the run in --out with the same flags; --max_iters may change, the schedule follows it")
    add("--seed", type=int, default=0, help="everything random follows from it (default 0)")
    add("--device", default="auto", help="auto, cuda, mps or cpu (default auto)")
    a = p.parse_args()
    check_numbers(a)
    return a


def build(a, device):
    """The corpus, the network to train, its average, and the Bundle around the average that will be saved."""
    if str(a.init).endswith(".safetensors"):
        raise BadInput(f"--init {a.init}: F5-TTS's file; only distill.py takes it, as --teacher")
    init = load_teacher(a.init, "--init") if a.init else None
    s = init.s if init else MelSettings()
    corpus = first_alone(lambda: prepare(a.data, s, init.vocab if init else None, a.cache))
    V = len(corpus.vocab)
    torch.manual_seed(a.seed)
    dit = init.model if init else DiT(DiTConfig(vocab=V, mels=s.n_mels, **SIZES[a.size]))
    net = torch.nn.ModuleDict(dict(dit=dit, duration=init.duration if init else DurationPredictor(V)))
    ema = copy.deepcopy(net.to(device).train()).requires_grad_(False).eval()
    contract = dict(kind="teacher", steps=[], grid="cosine", cfg=a.cfg, iters=a.max_iters)
    bundle = Bundle(ema["dit"], ema["duration"], s, corpus.vocab, corpus.gauss, pick_voices(corpus), contract,
                    vars(a))
    total, conditioning = count_parameters(dit)
    print(f"{a.data}: {corpus.hours():.2f} h, {len(corpus.train)} to train on, {len(corpus.held)} held out, "
          f"{len(corpus.skipped)} skipped; {total:,} parameters, {conditioning:,} of them condition on time")
    return corpus, net, ema, bundle


def main():
    a = arguments()
    join()
    device, out, first_process = pick_device(a.device), Path(a.out), world()[0] == 0
    out.mkdir(parents=True, exist_ok=True)
    corpus, net, ema, bundle = build(a, device)
    groups = [dict(params=net[name].parameters()) for name in ("dit", "duration")]
    # fused, here and in distill.py: a step of AdamW takes 2 ms instead of 9, of 110 to 180 an update there
    optimiser = torch.optim.AdamW(groups, a.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    settings = dict(vars(a), dit=asdict(net["dit"].config), vocab=corpus.vocab)
    first = load_state(out / "last.pt", net, ema, optimiser, settings) if a.resume else 0
    log, interrupt, fixed = Log(out / "log.csv", first), Interrupt(), held_out(corpus, 8, device)
    order = itertools.islice(batch_indices(corpus.frames[corpus.train], a.batch_frames, a.seed), first, None)
    since, running = clock.perf_counter(), []
    for step in tqdm(range(first, a.max_iters), "teacher", initial=first, total=a.max_iters,
                     disable=None if first_process else True):
        g = seed_update(a.seed, step)
        batch = infill(collate(corpus, [corpus.train[i] for i in next(order)]), g, a.p_noref, a.p_nothing)
        batch["t"] = torch.rand(len(batch["mel"]), generator=g)                   # (B,)
        timing = step < a.duration_iters                                          # durations are done early
        told = []
        for part in parts({k: v.to(device) for k, v in batch.items()}, a.accumulate):
            flow = cfm_loss(net["dit"], part, part["t"])
            loss, duration = part["weight"] * flow, flow.new_tensor(math.nan)
            if timing:
                duration = net["duration"].loss(part["text"], part["durations"])
                loss = loss + part["letters"] * duration
            loss.backward()
            told.append((flow.detach(), duration.detach()))
        rates = [learning_rate(step, a.lr, a.warmup, a.max_iters),
                 learning_rate(step, a.lr, a.warmup, a.duration_iters) * timing]
        norm = optimise(net, optimiser, rates, step)
        ema_update(ema, net, step, a.ema)
        running += [(*terms, norm) for terms in told]

        done, stop = step + 1, anywhere(interrupt.asked, device)
        if done % a.eval_every == 0 or done == a.max_iters:
            if first_process:
                means = torch.tensor(running).mean(0).tolist()
                seconds = (clock.perf_counter() - since) / len(running) * a.accumulate
                flow, duration = report_held_out(bundle, fixed, a.cfg, out, f"step{done:06d}")
                log.report(step=done, loss=means[0], duration_loss=means[1], grad_norm=means[2],
                           held_loss=flow, held_duration_loss=duration, seconds_per_update=seconds)
            since, running = clock.perf_counter(), []
        if first_process and (done % a.save_every == 0 or done == a.max_iters or stop):
            save_checkpoint(out / "teacher.pt", bundle)                           # first: never older
            save_state(out / "last.pt", done, net, ema, optimiser, settings)
        if stop:
            print(f"interrupted: saved after update {done}; continue with --resume")
            raise KeyboardInterrupt
    interrupt.restore()
    print(f"wrote {out / 'teacher.pt'}; hear it: python sample.py --ckpt {out / 'teacher.pt'} --text \"...\"")


if __name__ == "__main__":
    cli(main)
