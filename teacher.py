"""Train the teacher: conditional flow matching with random-span infilling, and a duration predictor.

    python teacher.py --data corpus --out out/teacher
    python teacher.py --data DIR --init checkpoints/teacher.pt       fine-tune on your own recordings

Clock and shapes: see model.py.
"""
import copy
import itertools
import math
from dataclasses import asdict
from typing import NamedTuple

import torch

from common.cli import BadInput, Parser, cli, pick_device
from common.files import digest, write_audio
from common.flags import teacher_flags
from common.plots import plot_mels
from common.run import (Run, adamw, claim, ema_update, first_process_first, join, learning_rate,
                        optimise, parts, seed_update)
from data import MelSettings, batch_indices, collate
from model import SIZES, count_parameters
from networks.checkpoint import BACKBONES, Bundle, load_teacher, save_checkpoint
from networks.durations import DurationPredictor
from sample import cosine_grid, noise, rollout
from speech.corpora import counted
from speech.prepare import pick_voices, prepare
from speech.vocoder import load_vocoder

# ---------------------------------------------------------------------------------------------- the objective


def random_spans(mask, g, shortest=0.7):
    """Per item, a random run of 70 to 100 % of its frames to fill in -> (B, T) bool."""
    T = mask.sum(1, keepdim=True)                                                 # (B, 1)
    length = T * (shortest + (1 - shortest) * torch.rand(T.shape, generator=g))
    start = (T - length) * torch.rand(T.shape, generator=g)
    frames = torch.arange(mask.shape[1])[None]
    return (frames >= start.round()) & (frames < (start + length).round()) & mask


def infill(batch, g, p_noref, p_nothing):
    """Draw what an update trains on: known frames, which are the reference, frames to generate, and noise. A
    share p_nothing has neither reference nor text, as guidance asks; of the rest, p_noref has no reference.
    """
    B, mask = len(batch["mel"]), batch["mask"]
    drop = torch.rand(B, generator=g) < p_nothing
    noref = (torch.rand(B, generator=g) < p_noref) | drop
    todo = torch.where(noref[:, None], mask, random_spans(mask, g))
    known = mask & ~todo
    x0 = torch.randn(batch["mel"].shape, generator=g)
    return dict(batch, known=known, ref=batch["mel"] * known[..., None], todo=todo, x0=x0, drop=drop)


def frame_mean(error, todo):
    """Mean of an error (B, T) over the frames to generate, todo (B, T) -> ()."""
    return (error * todo).sum() / todo.sum()


def distance(x1, target, todo):
    """Mean squared error per mel value (normalised units, variance about 1) over the frames to generate."""
    return float(((x1 - target) ** 2)[todo].mean())


def cfm_loss(model, batch, t):
    """Conditional flow matching (Lipman et al. 2023): || v(x_t, t) - (x1 - x0) ||^2 on frames to fill in.

    t (B,) -> loss (), and its means by quarters of time, {"loss t<1/4": (), ...}, nan where no item is.
    """
    x0, x1 = batch["x0"], batch["mel"]
    x_t = (1 - t[:, None, None]) * x0 + t[:, None, None] * x1                     # (B, T, M)
    h = model.embed_text(batch["text"], batch["align"], batch["mask"], batch["drop"])            # (B, T, E)
    v = model(x_t, t, batch["ref"], h, batch["mask"])
    error, todo = ((v - (x1 - x0)) ** 2).mean(-1), batch["todo"]                  # (B, T)
    quarter = (4 * t).long().clamp(max=3)[:, None]                                # (B, 1)
    by_time = {f"loss t<{k + 1}/4": frame_mean(error.detach(), todo & (quarter == k)) for k in range(4)}
    return frame_mean(error, todo), by_time


# ------------------------------------------------------------------------------------------------- evaluation


def held_out(corpus, count, device):
    """A fixed batch like infill()'s: `count` held-out utterances, the first quarter of each as reference."""
    items = corpus.held[:: max(1, len(corpus.held) // count)][:count]
    batch = collate(corpus, items)
    batch["known"] = torch.arange(batch["mel"].shape[1])[None] < (corpus.frames[items] // 4)[:, None]
    batch["ref"] = batch["mel"] * batch["known"][..., None]
    batch["todo"] = batch["mask"] & ~batch["known"]
    batch["x0"] = noise(1234, corpus.frames[items], corpus.settings.n_mels)
    batch["drop"] = torch.zeros(len(items), dtype=torch.bool)
    return {k: v.to(device) for k, v in batch.items()}


@torch.no_grad()
def report_held_out(bundle, batch, flags, name):
    """Held-out losses at fixed noise and times, by name; picture of teacher@10 and recording, its audio."""
    t = torch.linspace(0.05, 0.95, len(batch["mel"]), device=batch["mel"].device)
    flow, _ = cfm_loss(bundle.model, batch, t)
    duration = bundle.duration.loss(batch["text"], batch["durations"])
    few, rows = {k: v[:2] for k, v in batch.items()}, []
    vocoder = load_vocoder(None, bundle.settings, batch["mel"].device)
    x1 = rollout(bundle.model, few, cosine_grid(10), flags.cfg)[-1]
    for i, T in enumerate(few["mask"].sum(1).tolist()):
        rows += [(f"recording {i}", few["mel"][i, :T]),
                 (f"teacher, 10 steps, w = {flags.cfg}: the first quarter is given", x1[i, :T])]
        write_audio(flags.out / f"{name}_{i}.wav", vocoder(x1[i, :T], bundle.settings), bundle.settings.rate)
    plot_mels(rows, flags.out / f"{name}.png")
    return dict(held_loss=float(flow), held_duration_loss=float(duration))


# ---------------------------------------------------------------------------------------------------- command


def arguments():
    """Command-line flags with their reasons."""
    p = Parser(__doc__, idle=[*((name, "--init") for name in ("--size", "--backbone", "--lang")),
                              ("--overwrite", "--resume")])
    teacher_flags(p.add_argument, SIZES, BACKBONES)
    return p.parse_args()


class Setup(NamedTuple):
    """What a run has: a network and a duration predictor to train, their average, which its Bundle saves."""
    net: torch.nn.ModuleDict
    ema: torch.nn.ModuleDict
    corpus: object
    bundle: Bundle


def build(flags, device):
    """What the flags say -> Setup."""
    init = load_teacher(flags.init, "--init") if flags.init else None
    if init and not init.duration:
        raise BadInput(f"--init {flags.init}: F5-TTS has no duration predictor; only distill.py takes it")
    settings, lang = (init.settings, init.lang) if init else (MelSettings(), flags.lang)
    vocab = init.vocab if init else None
    corpus = first_process_first(lambda: prepare(flags.data, settings, lang, vocab, flags.cache,
                                                 flags.keep_outliers, flags.keep_unknown))
    V = len(corpus.vocab)
    torch.manual_seed(flags.seed)
    network, config, sizes = BACKBONES[flags.backbone]
    model = init.model if init else network(config(vocab=V, mels=settings.n_mels, **sizes[flags.size]))
    net = torch.nn.ModuleDict(dict(model=model, duration=init.duration if init else DurationPredictor(V)))
    ema = copy.deepcopy(net.to(device).train()).requires_grad_(False).eval()
    voices = pick_voices(corpus)
    contract = dict(kind="teacher", steps=[], grid="cosine", cfg=flags.cfg, voice=next(iter(voices), None))
    bundle = Bundle(ema["model"], ema["duration"], settings, corpus.vocab, lang, corpus.gauss,
                    voices, contract, vars(flags) | dict(out=str(flags.out)))
    total, conditioning = count_parameters(model)
    print(f"{flags.data}: {corpus.hours():.2f} h, {len(corpus.train)} to train on, {len(corpus.held)} held "
          f"out, skipped: {counted(corpus.skipped) or 'nothing'}")
    print(f"{total:,} parameters, {conditioning:,} of them for time")
    return Setup(net, ema, corpus, bundle)


def update(flags, setup, optimiser, items, step, device):
    """One update by the recordings numbered `items` among those to train on -> the terms of each part."""
    net, ema, corpus, _ = setup
    g, terms = seed_update(flags.seed, step), []
    batch = infill(collate(corpus, [corpus.train[i] for i in items]), g, flags.p_noref, flags.p_nothing)
    batch["t"] = torch.rand(len(batch["mel"]), generator=g)                       # (B,)
    with_durations = step < flags.duration_iters                                  # later they would overfit
    for part in parts({k: v.to(device) for k, v in batch.items()}, flags.accumulate):
        flow, by_time = cfm_loss(net["model"], part, part["t"])
        loss, duration = part["frame_share"] * flow, flow.new_tensor(math.nan)
        if with_durations:
            duration = net["duration"].loss(part["text"], part["durations"])
            loss = loss + part["symbol_share"] * duration
        loss.backward()
        terms.append(dict(loss=flow, **by_time, duration_loss=duration))
    rates = [learning_rate(step, flags.lr, flags.warmup, flags.max_iters),
             with_durations * learning_rate(step, flags.lr, flags.warmup, flags.duration_iters)]
    terms.append(dict(grad_norm=optimise(optimiser, rates, step)))
    ema_update(ema, net, step, flags.ema)
    return terms


def main():
    flags = arguments()
    join()
    device = pick_device(flags.device)
    lock = claim(flags)                                                           # until this process ends
    net, ema, corpus, bundle = setup = build(flags, device)
    optimiser = adamw([dict(params=net[name].parameters()) for name in ("model", "duration")], flags.lr, 0.01)
    run = Run(flags, device, dict(net=net, ema=ema), optimiser,
              dict(vars(flags), model=asdict(net["model"].config), corpus=corpus.key,
                   init=flags.init and digest(flags.init)))
    fixed = held_out(corpus, 8, device)
    order = itertools.islice(batch_indices(corpus.frames[corpus.train], flags.batch_frames, flags.seed),
                             run.first, None)
    for step in run.steps("teacher"):
        terms = update(flags, setup, optimiser, next(order), step, device)
        run.finish(step, terms, lambda: report_held_out(bundle, fixed, flags, f"step{step + 1:06d}"),
                   lambda: save_checkpoint(flags.out / "teacher.pt", bundle))
    path = flags.out / "teacher.pt"
    print(f"wrote {path}; hear it: python sample.py --ckpt {path} --text \"...\"")


if __name__ == "__main__":
    cli(main)
