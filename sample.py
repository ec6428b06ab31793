"""Text to speech: grid, guidance, the one Euler sampler, and text -> durations -> mel -> wav.

    python sample.py --text "The old clock in the hall struck seven, and nobody moved."
    python sample.py --ckpt checkpoints/teacher.pt --steps 10 --text "..." --prompt me.wav --prompt_text "..."
    python sample.py --text_file book.txt --out book.flac

--steps N is exactly N network calls; guidance (--cfg above 0) makes it 2 N. Clock and shapes: see model.py.
"""
import time as clock
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from common.cli import BadInput, Calls, Parser, cli, pick_device, synchronise
from common.files import audio_file, full_scale, read_text
from common.flags import sample_flags
from common.plots import plot_mels
from networks.checkpoint import load_checkpoint
from speech import f5_text, voices
from speech.audio import crossfade, joined
from speech.vocoder import load_vocoder

# ---------------------------------------------------------------------------------------------------- sampler


def cosine_grid(n):
    """n Euler steps, small ones first: t_k = 1 - cos(pi k / 2n), (n + 1,). The grid of 2 n contains it."""
    t = 1 - torch.cos(torch.pi * torch.arange(n + 1, dtype=torch.float64) / (2 * n))
    t[-1] = 1.0
    return t.float()


def uniform_grid(n):
    """n equal steps, (n + 1,)."""
    return torch.linspace(0, 1, n + 1)


GRIDS = {"cosine": cosine_grid, "uniform": uniform_grid}


def checkpoint_grid(bundle, n):
    """The grid (n + 1,) of a checkpoint's n steps: the one that O3S found for it, else the usual one."""
    found = bundle.contract.get("grids", {}).get(str(n))
    return GRIDS[bundle.contract["grid"]](n) if found is None else torch.tensor(found)


def noise(seed, lengths, mels, first=0):
    """x0 (B, T, M), item i drawn from (seed, first + i) on the CPU: the same in any batch, on any device."""
    items = [torch.randn(int(T), mels, generator=torch.Generator().manual_seed(seed * 1_000_003 + first + i))
             for i, T in enumerate(lengths)]
    return torch.nn.utils.rnn.pad_sequence(items, batch_first=True)


def condition(model, batch, guided=False):
    """The condition (ref, h) of a batch; guided, also what guidance contrasts it with: (0, h of no text)."""
    text, align, ref, mask = (batch[name] for name in ("text", "align", "ref", "mask"))
    cond = ref, model.embed_text(text, align, mask)
    if not guided:
        return cond, None
    drop = torch.ones(len(text), dtype=torch.bool, device=text.device)            # all lose their text
    return cond, (torch.zeros_like(ref), model.embed_text(text, align, mask, drop))


def guided_velocity(model, x, step_cond, cond, null, w, mask=None):
    """v = v_c + w (v_c - v_u): one network call at w = 0, two above. Guidance is computed only here."""
    v_c = model(x, step_cond, *cond, mask)                                        # (B, T, M)
    return v_c if w == 0 else v_c + w * (v_c - model(x, step_cond, *null, mask))


@torch.no_grad()
def rollout(model, batch, grid, w):
    """The one sampler: Euler from noise x0 along grid (N + 1,) -> all states (N + 1, B, T, M), the last x1.

    batch: text (B, L), align (B, T), ref and x0 (B, T, M), mask (B, T) bool or None, and known (B, T) bool or
    None: frames where the reference is given. Their path needs no network, it is the straight line
    (1 - t) x0 + t ref that the teacher saw there in training [ours; F5-TTS lets them drift].
    """
    x0, known, n = batch["x0"], batch["known"], len(grid) - 1
    cond, null = condition(model, batch, w != 0)
    states, times = [x0], grid.to(x0.device)    # tensors: a float would be compiled anew each step
    for t, r in zip(times[:-1], times[1:]):
        v = guided_velocity(model, states[-1], model.step_condition(n, t, r), cond, null, w, batch["mask"])
        x = states[-1] + (r - t) * v
        if known is not None:
            x = torch.where(known[..., None], (1 - r) * x0 + r * batch["ref"], x)
        states.append(x)
    return torch.stack(states)


# ----------------------------------------------------------------------------------------------------- speech

BATCH = 8                       # sentences at a time
PICTURE = 60                    # seconds of mel in the picture, at most


def front_end(bundle):
    """What makes symbols and durations of texts and prompts, for a checkpoint (a Bundle, see networks/)."""
    return f5_text.FrontEnd(bundle) if bundle.lang == "f5" else voices.FrontEnd(bundle)


def speak(bundle, texts, voice=None, steps=1, w=0.0, seed=0, speed=1.0, grid=None, at_once=BATCH, start=0,
          temperature=1.0):
    """Texts -> their mels [(T, M)], durations predicted.

    texts: what the front end's chunks() gives. voice: a prompt (its pick_voice()) that gives voice and
    speaking rate, None for whatever the noise suggests. steps: network steps N; w: guidance; grid: (N + 1,),
    None: checkpoint_grid(). Item i's noise is from (seed, start + i); temperature: its standard deviation.
    """
    device, M = next(bundle.model.parameters()).device, bundle.settings.n_mels
    grid = checkpoint_grid(bundle, steps) if grid is None else grid
    pad, mels = torch.nn.utils.rnn.pad_sequence, []
    prompt = torch.zeros(0, M) if voice is None else voice["mel"].float()         # (P, M)
    P, drift = len(prompt), bundle.contract.get("prompt") == "drift"              # see rollout()'s known
    cut = voice["frames"] if drift else P       # where the prompt ends and the text begins
    for first in range(0, len(texts), at_once):
        ids, aligns = zip(*front_end(bundle).plan(texts[first:first + at_once], voice, speed))
        lengths = torch.tensor([len(a) for a in aligns])
        frames = torch.arange(int(lengths.max()))[None]                           # (1, T)
        ref = torch.zeros(len(ids), frames.shape[1], M)
        ref[:, :P] = prompt
        batch = dict(text=pad(ids, batch_first=True), align=pad(aligns, batch_first=True), ref=ref,
                     x0=temperature * noise(seed, lengths, M, start + first),
                     mask=frames < lengths[:, None] if len(ids) > 1 else None,    # (B, T)
                     known=None if drift else (frames < P).expand(len(ids), -1))
        batch = {name: v if v is None else v.to(device) for name, v in batch.items()}
        x1 = rollout(bundle.model, batch, grid, w)[-1].cpu()                       # (B, T, M)
        x1[:, :P] = prompt
        mels += [x[cut:T] for x, T in zip(x1, lengths)]
    return mels


def say(bundle, words, voice, vocoder, steps=None, w=None, seed=None, speed=1.0):
    """A whole text -> its audio (samples,), at most full scale, as the command below speaks it."""
    front = front_end(bundle)
    texts, (steps, w) = front.chunks(words, voice, speed), check_steps(bundle, steps, w)
    temperature = front.temperature if seed is None else front.varied
    mels = speak(bundle, texts, voice, steps, w, seed or 0, speed, temperature=temperature)
    audio = joined((vocoder(mel, bundle.settings) for mel in mels), int(front.fade * bundle.settings.rate))
    audio *= (voice or {}).get("gain", 1.0)
    return audio * full_scale(np.abs(audio).max())


# ---------------------------------------------------------------------------------------------------- command


def check_steps(bundle, steps, w):
    """--steps as the checkpoint allows them and --cfg, defaults filled in -> (steps, w)."""
    allowed, kind = bundle.contract["steps"], bundle.contract["kind"]
    steps = (min(allowed) if allowed else bundle.contract.get("default", 10)) if steps is None else steps
    if not 1 <= steps <= 1000 or (allowed and steps not in allowed):
        takes = f"one of {', '.join(map(str, allowed))}" if allowed else "any number from 1 to 1000"
        raise BadInput(f"--steps {steps}: this {kind} takes {takes}")
    return steps, (bundle.contract["cfg"] if kind == "teacher" else 0.0) if w is None else w


def pick_grid(bundle, steps, words, asked=None):
    """--grid: a kind's name, or times 0,...,1 -> (N, grid (N + 1,)). asked: --steps, None if not given."""
    if words is None or (bundle.contract["steps"] and words == bundle.contract["grid"]):
        return steps, checkpoint_grid(bundle, steps)
    if bundle.contract["steps"]:
        raise BadInput(f"--grid {words}: this student was made for the {bundle.contract['grid']} grid")
    if words in GRIDS:
        return steps, GRIDS[words](steps)
    try:
        grid = torch.tensor([float(t) for t in words.split(",")])
    except ValueError:
        grid = torch.zeros(0)
    if len(grid) < 2 or grid[0] != 0 or grid[-1] != 1 or not (grid.diff() > 0).all():
        raise BadInput(f"--grid {words}: expected {', '.join(GRIDS)}, or times from 0 up to 1, like 0,0.3,1")
    if asked not in (None, len(grid) - 1):
        raise BadInput(f"--steps {asked}: --grid {words} has {len(grid) - 1} steps; leave one of them out")
    return len(grid) - 1, grid


def arguments():
    """Command-line flags with their reasons."""
    p = Parser(__doc__, idle=[("--voice", "--prompt"), ("--text", "--text_file")])
    sample_flags(p.add_argument)
    flags = p.parse_args()
    if flags.text is None and flags.text_file is None:
        raise BadInput("--text or --text_file is missing: give the words to say")
    if flags.out.suffix.lower() not in (".wav", ".flac") or flags.out.is_dir():
        raise BadInput(f"--out {flags.out}: expected the name of a .wav or .flac file")
    given = flags.prompt, flags.prompt_text
    if given != (None, None) and not all(words and words.strip() for words in given):
        raise BadInput("--prompt and --prompt_text go together: a recording and the words spoken in it")
    if flags.seed is not None and flags.temperature == 0:
        raise BadInput(f"--seed {flags.seed}: nothing is random at --temperature 0; leave one of them out")
    if flags.prompt and flags.out.resolve() == Path(flags.prompt).resolve():
        raise BadInput(f"--out {flags.out}: is the recording of --prompt; choose another name")
    return flags


def main():
    flags = arguments()
    out, device = flags.out, pick_device(flags.device)
    words, flag = (flags.text, "--text") if flags.text_file is None else (
        read_text(flags.text_file, "--text_file"), f"--text_file {flags.text_file}")
    bundle = load_checkpoint(flags.ckpt, device)
    steps, w = check_steps(bundle, flags.steps, flags.cfg)
    steps, grid = pick_grid(bundle, steps, flags.grid, flags.steps)
    front, rate, hop = front_end(bundle), bundle.settings.rate, bundle.settings.hop
    voice = front.pick_voice(flags.voice, flags.prompt, flags.prompt_text)
    texts = front.chunks(words, voice, flags.speed, flag)
    vocoder = load_vocoder(flags.vocoder, bundle.settings, device)
    out.parent.mkdir(parents=True, exist_ok=True)
    if flags.compile:
        bundle.model.compile(dynamic=True)      # one program for every length
    usual = front.temperature if flags.seed is None else front.varied
    temperature = usual if flags.temperature is None else flags.temperature
    calls, starts = Calls(bundle.model), range(0, len(texts), BATCH)
    fade, tail, gain = int(front.fade * rate), np.zeros(0, np.float32), (voice or {}).get("gain", 1.0)
    shown, length, to_mel, to_sound = [], 0, 0.0, 0.0    # mels of the picture, samples, seconds of work
    with audio_file(out, rate) as append:       # BATCH chunks at a time: memory stays flat
        for first in tqdm(starts, "speak", disable=None if len(starts) > 1 else True):
            started = clock.perf_counter()
            with torch.autocast(device.type, torch.bfloat16, enabled=flags.bf16):
                mels = speak(bundle, texts[first:first + BATCH], voice, steps, w, flags.seed or 0,
                             flags.speed, grid, start=first, temperature=temperature)
            synchronise(device)
            mels_done = clock.perf_counter()
            for mel in mels:
                ready, tail = crossfade(tail, vocoder(mel, bundle.settings) * gain, fade)
                append(ready)
                length += len(ready)
            to_mel, to_sound = to_mel + mels_done - started, to_sound + clock.perf_counter() - mels_done
            shown += mels if sum(map(len, shown)) < PICTURE * rate / hop else []
        append(tail)
    seconds = (length + len(tail)) / rate
    title = words[:100].encode(errors="replace").decode()                         # a terminal's broken bytes
    taken = f"{bundle.contract['kind']} at {steps} step{'s' * (steps > 1)}, w = {w}"
    plot_mels([(f"{title}   ({taken})", torch.cat(shown)[:PICTURE * rate // hop])], out.with_suffix(".png"))
    print(f"{taken}: {calls.number} network call{'s' * (calls.number > 1)}"
          f"{f' ({len(starts)} batches of sentences)' * (len(starts) > 1)}, {seconds:.2f} s of speech")
    print(f"seconds: text to mel {to_mel:.3f}, mel to sound {to_sound:.3f} (first calls included); real-"
          f"time factor of both {(to_mel + to_sound) / seconds:.4f}")
    print(f"wrote {out} and {out.with_suffix('.png')}")


if __name__ == "__main__":
    cli(main)
