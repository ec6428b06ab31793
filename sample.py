"""Text to speech: grid, guidance, the one Euler sampler, and text -> durations -> mel -> wav.

    python sample.py --text "The old clock in the hall struck seven, and nobody moved."
    python sample.py --ckpt checkpoints/teacher.pt --steps 10 --text "..." --prompt me.wav --prompt_text "..."
    python sample.py --text_file book.txt --out book.flac

--steps N is exactly N network calls; guidance (--cfg above 0) makes it 2 N. Clock and shapes: see model.py.
"""
from common.cli import BadInput, Parser, cli, number, pick_device, synchronise
from common.files import audio_file
from common.plots import plot_mels

import math
import sys
import time as clock
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from speech import f5_text
from speech import text as reader
from speech.align import align, cepstra
from networks.checkpoint import load_checkpoint
from data import frame_to_symbol, mel_spectrogram
from speech.audio import load_audio
from speech.prepare import letters, outliers, speech_seconds
from speech.vocoder import load_vocoder

# ---------------------------------------------------------------------------------------------------- sampler


def cosine_grid(n):
    """n Euler steps, small ones first: t_k = 1 - cos(pi k / 2n), (n + 1,). That of n m contains it."""
    t = 1 - torch.cos(torch.pi * torch.arange(n + 1, dtype=torch.float64) / (2 * n))
    t[-1] = 1.0
    return t.float()


def uniform_grid(n):
    """n equal steps, (n + 1,)."""
    return torch.linspace(0, 1, n + 1)


GRIDS = {"cosine": cosine_grid, "uniform": uniform_grid}


def own_grid(b, n):
    """The grid (n + 1,) that a checkpoint takes n steps on: one that was found for it, or its kind's."""
    found = b.contract.get("grids", {}).get(str(n))
    return GRIDS[b.contract["grid"]](n) if found is None else torch.tensor(found)


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
    everyone = torch.ones(len(text), dtype=torch.bool, device=text.device)
    return cond, (torch.zeros_like(ref), model.embed_text(text, align, mask, everyone))


def guided_velocity(model, x, when, cond, null, w, mask=None):
    """v = v_c + w (v_c - v_u): one network call at w = 0, two above. Guidance is computed only here."""
    v_c = model(x, when, *cond, mask)                                             # (B, T, M)
    return v_c if w == 0 else v_c + w * (v_c - model(x, when, *null, mask))


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
        v = guided_velocity(model, states[-1], model.when(n, t, r), cond, null, w, batch["mask"])
        x = states[-1] + (r - t) * v
        if known is not None:
            x = torch.where(known[..., None], (1 - r) * x0 + r * batch["ref"], x)
        states.append(x)
    return torch.stack(states)


# ----------------------------------------------------------------------------------------------------- speech

FADE = 0.0                      # seconds in which chunks cross over; ours begin and end in silence
BATCH = 8                       # sentences at a time


def front_end(b):
    """What reads text and prompts for a checkpoint, and gives durations: this file, or speech/f5_text.py."""
    return f5_text if b.lang == "f5" else sys.modules[__name__]


def make_voice(b, path, words):
    """A recording and its words -> voice prompt {"mel" (P, M), "text" (L,), "durations" (L,)}, aligned."""
    settings = b.settings
    mel = mel_spectrogram(load_audio(path, settings, longest=15), settings)
    ids = encode_checked(words, b, "--prompt_text")
    odd = outliers([sum(letters(b.vocab[i - 1]) for i in ids)], [speech_seconds(mel, settings)])
    if odd or len(ids) >= len(mel):
        raise BadInput(f"--prompt {path}, --prompt_text {words[:30]!r}: {odd.get(0, 'too many symbols')}")
    ids, durations = align(cepstra(mel), ids, b.gauss, reader.pauses(b.vocab, b.lang))
    return dict(mel=mel, text=ids, durations=durations)


def encode_checked(words, b, flag):
    """encode() for a user's text: names the symbols it drops, and refuses a text with nothing to say."""
    ids, dropped = reader.encode(words, b.vocab, b.lang)
    reader.tell(flag, words, b.lang, dropped)
    if not any(b.vocab[i - 1].strip(reader.FINAL + ", ") for i in ids.tolist()):
        raise BadInput(f"{flag} {words[:30]!r}: nothing to say; expected words of language {b.lang}")
    return ids


def chunks(b, words, voice, speed, flag="--text"):
    """--text -> its sentences as speak() takes them, (L,) ids each; without those with nothing to say."""
    found, unread = reader.chunks(words, b.lang)
    ids, unknown = zip(*(reader.to_ids(symbols, b.vocab) for _, symbols in found)) if found else ([], [])
    reader.tell(flag, words, b.lang, set(unread).union(*unknown))
    if not found:
        raise BadInput(f"{flag} {words[:30]!r}: nothing to say; expected words of language {b.lang}")
    return list(ids)


def plan(b, texts, voice, speed):
    """Ids of each text [(L,)] -> prompt and text as one, durations predicted, [(ids (L,), align (T,))]."""
    if voice is None:
        none = torch.zeros(0, dtype=torch.long)
        voice = dict(text=none, durations=none)

    def predict(ids, speed):                    # durations in frames, (B, L), padding 0
        ids = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        return b.duration.predict(ids.to(next(b.model.parameters()).device), speed).cpu()
    if len(voice["text"]):                      # a slow speaker is continued slowly
        rate = voice["durations"].sum() / predict([voice["text"]], 1.0).sum()
        speed = speed / float(rate.clamp(0.6, 1.6))
    return [(torch.cat([voice["text"], ids]), frame_to_symbol(torch.cat([voice["durations"], d[:len(ids)]])))
            for ids, d in zip(texts, predict(texts, speed))]


def speak(b, texts, voice=None, steps=1, w=0.0, seed=0, speed=1.0, grid=None, batch=BATCH, start=0,
          temperature=1.0):
    """Texts -> their mels [(T, M)], durations predicted; b is a Bundle.

    texts: what its front end's chunks() gives. voice: a prompt (make_voice) that gives voice and speaking
    rate, None for whatever the noise suggests. steps: network steps N; w: guidance; grid: (N + 1,), None: b's
    own. Item i's noise comes from (seed, start + i); temperature is its standard deviation.
    """
    device, M = next(b.model.parameters()).device, b.settings.n_mels
    grid = own_grid(b, steps) if grid is None else grid
    pad, mels = torch.nn.utils.rnn.pad_sequence, []
    prompt = torch.zeros(0, M) if voice is None else voice["mel"].float()         # (P, M)
    P, drift = len(prompt), b.contract.get("prompt") == "drift"
    cut = voice["frames"] if drift else P
    for first in range(0, len(texts), batch):
        ids, aligns = zip(*front_end(b).plan(b, texts[first:first + batch], voice, speed))
        lengths = torch.tensor([len(a) for a in aligns])
        frames = torch.arange(int(lengths.max()))[None]                           # (1, T)
        ref = torch.zeros(len(ids), frames.shape[1], M)
        ref[:, :P] = prompt
        made = dict(text=pad(ids, batch_first=True), align=pad(aligns, batch_first=True), ref=ref,
                    x0=temperature * noise(seed, lengths, M, start + first),
                    mask=frames < lengths[:, None] if len(ids) > 1 else None,     # (B, T)
                    known=None if drift else (frames < P).expand(len(ids), -1))
        made = {name: v if v is None else v.to(device) for name, v in made.items()}
        x1 = rollout(b.model, made, grid, w)[-1].cpu()                            # (B, T, M)
        x1[:, :P] = prompt
        mels += [x[cut:T] for x, T in zip(x1, lengths)]
    return mels


def crossfade(wavs, fade):
    """Audio of the chunks -> the same in pieces to write, crossing over linearly in `fade` samples."""
    tail = np.zeros(0, np.float32)
    for wav in wavs:
        n = min(fade, len(tail), len(wav))
        ramp, start = np.linspace(0, 1, n, dtype=np.float32), len(tail) - n
        audio = np.concatenate([tail[:start], tail[start:] * (1 - ramp) + wav[:n] * ramp, wav[n:]])
        yield audio[:max(0, len(audio) - fade)]
        tail = audio[max(0, len(audio) - fade):]
    yield tail


# ---------------------------------------------------------------------------------------------------- command


def pick_voice(b, flags):
    """The voice that --prompt, --prompt_text and --voice ask for: a prompt made, a ready one, or None."""
    if (flags.prompt, flags.prompt_text) != (None, None):
        if not (flags.prompt and flags.prompt_text and flags.prompt_text.strip()):
            raise BadInput("--prompt and --prompt_text go together: a recording and the words spoken in it")
        return front_end(b).make_voice(b, flags.prompt, flags.prompt_text)
    if front_end(b) is f5_text:
        raise BadInput("this checkpoint continues a recording: give one as --prompt, and its words as "
                       "--prompt_text")
    if flags.voice not in (None, "none", *b.voices):
        raise BadInput(f"--voice {flags.voice}: this checkpoint has {', '.join(b.voices)}, or use --prompt")
    if flags.voice == "none" or not b.voices:
        return None
    return b.voices[flags.voice or next(iter(b.voices))]


def check_steps(b, steps, w):
    """--steps as the checkpoint allows them and --cfg, defaults filled in -> (steps, w)."""
    allowed, kind = b.contract["steps"], b.contract["kind"]
    steps = (min(allowed) if allowed else b.contract.get("default", 10)) if steps is None else steps
    if not 1 <= steps <= 1000 or (allowed and steps not in allowed):
        takes = f"one of {', '.join(map(str, allowed))}" if allowed else "any number from 1 to 1000"
        raise BadInput(f"--steps {steps}: this {kind} takes {takes}")
    return steps, (b.contract["cfg"] if kind == "teacher" else 0.0) if w is None else w


def pick_grid(b, steps, words, asked=None):
    """--grid: a kind's name, or times 0,...,1 -> (N, grid (N + 1,)). asked: --steps, None if not given."""
    if words is None or (b.contract["steps"] and words == b.contract["grid"]):
        return steps, own_grid(b, steps)
    if b.contract["steps"]:
        raise BadInput(f"--grid {words}: this student was made for the {b.contract['grid']} grid")
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


def read_file(path):
    """--text_file FILE, or - for standard input -> its text, and how an error names it."""
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        return data.decode("utf-8-sig"), f"--text_file {path}"
    except (OSError, UnicodeDecodeError) as problem:
        raise BadInput(f"--text_file {path}: {problem}; expected a text file in UTF-8, or -") from None


def arguments():
    """Command-line flags with their reasons."""
    p = Parser(__doc__, idle=[("--voice", "--prompt"), ("--text", "--text_file")])
    add = p.add_argument
    add("--text", help="what to say; long text is spoken in sentence chunks")
    add("--text_file", metavar="FILE", help="a file that holds the text; - is standard input")
    add("--ckpt", default="checkpoints/student_dmd.pt", help="teacher or student (default %(default)s)")
    add("--steps", type=int, help="network steps (default: a student's fewest, 10 for a teacher)")
    add("--cfg", type=number(0, 20),
        help="guidance w in v_c + w (v_c - v_u); above 0 each step is two network calls (default: 0 for a "
        "student, for a teacher the --cfg of its training run)")
    add("--grid", help="times of the steps: cosine, uniform, or 0,0.3,1 (default: the checkpoint's own; "
        "a student of fixed steps has one)")
    add("--voice", help="one of the checkpoint's own voices, or 'none' (default: its first)")
    add("--prompt", help="a recording whose voice to use, with --prompt_text")
    add("--prompt_text", help="the words spoken in --prompt")
    add("--speed", type=number(0.25, 4), default=1.0, help="2 is twice as fast (default 1)")
    add("--seed", type=number(0, 10**9, int), default=0, help="item i's noise is from (seed, i) (default 0)")
    add("--temperature", type=number(0, 2), help="standard deviation of the noise: below 1 less varied and "
        "clearer, as in Matcha-TTS (default 0.5, for F5-TTS 1, which is what training knows)")
    add("--vocoder", help="griffin_lim, a .pt of vocoder.py, or a folder or hub name of SpeechT5's "
        "HiFi-GAN or, for F5-TTS, Vocos (default: checkpoints/vocoder.pt if it fits, else griffin_lim)")
    add("--bf16", action="store_true", help="compute in bfloat16: pays for large networks and long batches")
    add("--compile", action="store_true", help="torch.compile the network: half a minute, for long text")
    add("--device", default="auto", help="auto, cuda, mps or cpu (default auto)")
    add("--out", type=Path, default=Path("out/sample.wav"), help="a .wav or .flac; a .png goes beside it")
    flags = p.parse_args()
    out = flags.out
    if flags.text is None and flags.text_file is None:
        raise BadInput("--text or --text_file is missing: give the words to say")
    if out.suffix.lower() not in (".wav", ".flac") or out.is_dir():
        raise BadInput(f"--out {out}: expected the name of a .wav or .flac file")
    if flags.prompt and out.resolve() == Path(flags.prompt).resolve():
        raise BadInput(f"--out {out}: is the recording of --prompt; choose another name")
    return flags


PICTURE = 60                    # seconds of mel in the picture, at most


def main():
    flags = arguments()
    out, device = flags.out, pick_device(flags.device)
    b = load_checkpoint(flags.ckpt, device)
    steps, w = check_steps(b, flags.steps, flags.cfg)
    steps, grid = pick_grid(b, steps, flags.grid, flags.steps)
    words, flag = read_file(flags.text_file) if flags.text is None else (flags.text, "--text")
    voice = pick_voice(b, flags)
    texts = front_end(b).chunks(b, words, voice, flags.speed, flag)
    vocoder = load_vocoder(flags.vocoder, b.settings, device)
    out.parent.mkdir(parents=True, exist_ok=True)
    if flags.compile:
        b.model.compile(dynamic=True)           # one program for every length
    calls, spent, shown, length = [], [0.0, 0.0], [], 0.0    # calls: count what happens, not what should
    b.model.register_forward_hook(lambda *_: calls.append(1))
    usual = 1.0 if front_end(b) is f5_text else 0.5
    temperature = usual if flags.temperature is None else flags.temperature
    rate, hop, gain = b.settings.rate, b.settings.hop, (voice or {}).get("gain", 1.0)

    def sounds():                               # audio of the chunks, BATCH at a time: memory stays flat
        for first in tqdm(range(0, len(texts), BATCH), "speak", disable=None if len(texts) > BATCH else True):
            start = clock.perf_counter()
            with torch.autocast(device.type, torch.bfloat16, enabled=flags.bf16):
                mels = speak(b, texts[first:first + BATCH], voice, steps, w, flags.seed, flags.speed, grid,
                             start=first, temperature=temperature)
            synchronise(device)
            spent[0] += clock.perf_counter() - start
            for mel in mels:
                start = clock.perf_counter()
                wav = vocoder(mel, b.settings) * gain
                spent[1] += clock.perf_counter() - start
                shown.extend([mel] if sum(map(len, shown)) < PICTURE * rate / hop else [])
                yield wav
    with audio_file(out, rate) as append:
        for piece in crossfade(sounds(), int(front_end(b).FADE * rate)):
            append(piece)
            length += len(piece) / rate
    title = words[:100].encode(errors="replace").decode()                         # a terminal's broken bytes
    taken = f"{b.contract['kind']} at {steps} step{'s' * (steps > 1)}, w = {w}"
    plot_mels([(f"{title}   ({taken})", torch.cat(shown)[:PICTURE * rate // hop])], out.with_suffix(".png"))
    batches = math.ceil(len(texts) / BATCH)
    print(f"{taken}: {len(calls)} network call{'s' * (len(calls) > 1)}"
          f"{f' ({batches} batches of sentences)' * (batches > 1)}, {length:.2f} s of speech")
    print(f"seconds: text to mel {spent[0]:.3f}, mel to sound {spent[1]:.3f} (first calls included); real-"
          f"time factor of both {sum(spent) / length:.4f}")
    print(f"wrote {out} and {out.with_suffix('.png')}")


if __name__ == "__main__":
    cli(main)
