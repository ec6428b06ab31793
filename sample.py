"""Text to speech: checkpoint, grid, guidance, the one Euler sampler, and text -> durations -> mel -> wav.

    python sample.py --text "The old clock in the hall struck seven, and nobody moved."
    python sample.py --ckpt checkpoints/teacher.pt --steps 10 --text "..." --prompt me.wav --prompt_text "..."
    python sample.py --ckpt my_teacher.pt --search 2 3 4          find and store its best grids (O3S)

--steps N is exactly N network calls; guidance (--cfg above 0) makes it 2 N. Clock and shapes: see model.py.
"""
import argparse
import io
import math
import os
import re
import time as clock
from dataclasses import asdict, dataclass
from pathlib import Path

import librosa
import numpy as np
import soundfile
import torch

from data import (MELS, BadInput, MelSettings, align_batch, cepstra, check_numbers, cli, encode,
                  frame_to_char, griffin_lim, load_audio, log_mel, mel_spectrogram, normalise, read_vocab)
from model import DiT, DiTConfig, DurationPredictor

# ------------------------------------------------------------------------------------------------- checkpoint


@dataclass
class Bundle:
    """What a checkpoint holds: enough to speak, to distil and to be checked, with nothing assumed elsewhere.
    """
    model: DiT
    duration: DurationPredictor     # None for F5-TTS, which has a rule instead, see f5_plan()
    s: MelSettings
    vocab: str
    gauss: dict         # the aligner's Gaussians, to align a voice prompt with its text
    # name -> {"mel" (P, M), "text" (L,), "durations" (L,)}: ready prompts; the first is the default
    voices: dict
    # kind ("teacher", "student"), steps (allowed counts, [] = any), default (of --steps), grid, iters and
    # cfg: a teacher's usual guidance, or the one inside a student's target
    contract: dict
    config: dict        # the flags of the training run, for the record


def save_checkpoint(path, b, half=True):
    """Write Bundle b to path, atomically; half: weights as float16."""
    def pack(module):
        return {k: v.detach().cpu().half() if half else v.detach().cpu() for k,
                v in module.state_dict().items()}
    save_atomic(path, dict(format="dsflow-1", dit=asdict(b.model.config), model=pack(b.model),
                           duration=b.duration and pack(b.duration), mel=asdict(b.s), vocab=b.vocab,
                           gauss=b.gauss,
                           voices=b.voices,
                           contract=b.contract, config=b.config))


def save_atomic(path, content):
    """torch.save that leaves either the old file or the whole new one, whatever happens in between."""
    buffer = io.BytesIO()  # serialise first: a full disk then is a plain OSError while writing
    torch.save(content, buffer)
    path, partial = Path(path), Path(f"{path}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load_file(path, kind="dsflow-1"):
    """torch.load of tensors and plain values only (no code can run) -> the dict, of our format."""
    hint = "expected a checkpoint written by teacher.py or distill.py, or F5-TTS's with --flavour v0 or v1"
    if not Path(path).is_file():
        raise BadInput(f"{path}: no such file; {hint}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:                                                  # torch raises many types
        code = "nsupported" in str(problem)                                       # ... global: a call
        reason = "holds more than tensors and values, refused" if code else "truncated or not a checkpoint"
        raise BadInput(f"{path}: {reason}; {hint}") from None
    if not isinstance(content, dict) or content.get("format") != kind:
        raise BadInput(f"{path}: a file of another kind; {hint}")
    return content


def load_checkpoint(path, device="cpu", flavour=None, vocab=None, mel="vocos"):
    """File -> Bundle in float32 eval mode on device. flavour, vocab, mel: only for F5-TTS's own files."""
    if flavour or str(path).endswith(".safetensors"):
        return load_f5(path, device, flavour, vocab, mel)
    c = load_file(path)
    dit = DiTConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in c["dit"].items()})
    model, duration = DiT(dit), DurationPredictor(dit.vocab) if c["duration"] else None
    model.load_state_dict({k: v.float() for k, v in c["model"].items()})
    if duration:
        duration.load_state_dict({k: v.float() for k, v in c["duration"].items()})
        duration = duration.to(device).eval()
    return Bundle(model.to(device).eval(), duration, MelSettings(**c["mel"]), c["vocab"],
                  c["gauss"], c["voices"], c["contract"], c["config"])


def load_teacher(path, flag, device="cpu", **f5):
    """load_checkpoint(), which refuses a student. flag: what asked for the file. f5: flavour, vocab, mel."""
    b = load_checkpoint(path, device, **f5)
    if b.contract["kind"] != "teacher":
        raise BadInput(f"{flag} {path}: holds a student; expected a checkpoint of teacher.py")
    return b


def pick_device(name):
    """--device auto|cuda|mps|cpu -> torch.device, announced. Asking for what is absent is an error."""
    kinds = dict(cuda=torch.cuda.is_available(), mps=torch.backends.mps.is_available(), cpu=True)
    have = [kind for kind in kinds if kinds[kind]]
    picked = have[0] if name == "auto" else name
    try:
        if picked.split(":")[0] not in have:
            raise RuntimeError
        torch.empty(0, device=picked)                                             # an index may be absent
    except RuntimeError:
        raise BadInput(f"--device {name}: not available here; use {' or '.join(have)}") from None
    threads = f"{torch.get_num_threads()} threads"
    print(f"device: {picked} ({torch.cuda.get_device_name(picked) if 'cuda' in picked else threads})")
    return torch.device(picked)


# ---------------------------------------------------------------------------------------------------- sampler


def cosine_grid(n):
    """n Euler steps, small ones first: t_k = 1 - cos(pi k / 2n), (n + 1,). That of n m contains it."""
    t = 1 - torch.cos(torch.pi * torch.arange(n + 1, dtype=torch.float64) / (2 * n))
    t[-1] = 1.0
    return t.float()


def uniform_grid(n):
    """n equal steps, (n + 1,)."""
    return torch.linspace(0, 1, n + 1)


EPSS = {5: "0 2 4 8 16 32", 6: "0 2 4 6 8 16 32", 7: "0 2 4 6 8 16 24 32",
        10: "0 2 4 6 8 12 16 20 24 28 32", 12: "0 2 4 6 8 10 12 14 16 20 24 28 32",
        16: "0 1 2 3 4 5 6 7 8 10 12 14 16 20 24 28 32"}


def epss_grid(n):
    """F5-TTS's default, (n + 1,): for some n a table in 1/32, else equal steps; then sway sampling."""
    t = torch.tensor([int(i) / 32 for i in EPSS[n].split()]) if n in EPSS else uniform_grid(n)
    t = 1 - torch.cos(torch.pi / 2 * t)
    t[-1] = 1.0
    return t


GRIDS = {"cosine": cosine_grid, "uniform": uniform_grid, "epss": epss_grid}


def own_grid(b, steps):
    """The grid (N + 1,) that a checkpoint takes N steps on: one that was searched for it, or its kind's."""
    found = b.contract.get("grids", {}).get(str(steps))
    return GRIDS[b.contract["grid"]](steps) if found is None else torch.tensor(found)


def pick_grid(b, steps, words, asked=None):
    """--grid: a kind's name, or its times 0,...,1 -> (N, grid (N + 1,)). asked: --steps, None if not given.
    """
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


def search_grid(score, n, sweeps=4, tolerance=0.01):
    """O3S (IntMeanFlow, arXiv 2510.07979): a grid of n steps of high score(grid) -> (grid (n + 1,), score).

    The interior points start uniform. Sweeps over i = n - 1 ... 1 search t_i between its neighbours by
    thirds, the others fixed, until one gains nothing, or all are done. A real score has more than one hill:
    the best grid seen wins, so the result is never worse than the start. score: any function of a grid.
    """
    if n < 2:
        raise BadInput(f"--search {n}: there is nothing to search at fewer than two steps")
    best = uniform_grid(n)
    top = score(best)
    for _ in range(sweeps):
        before = top
        for i in range(n - 1, 0, -1):
            low, high = float(best[i - 1]), float(best[i + 1])
            while high - low > tolerance:
                third, scores = (high - low) / 3, []
                for t in (low + third, high - third):
                    grid = best.clone()
                    grid[i] = t
                    scores.append(score(grid))
                    if scores[-1] > top:
                        best, top = grid, scores[-1]
                low, high = (low + third, high) if scores[0] < scores[1] else (low, high - third)
        if top <= before:
            break
    return best, top


def noise(seed, lengths, mels, first=0):
    """x0 (B, T, M), item i drawn from (seed, first + i) on the CPU: the same in any batch, on any device."""
    items = [torch.randn(int(T), mels, generator=torch.Generator().manual_seed(seed * 1_000_003 + first + i))
             for i, T in enumerate(lengths)]
    return torch.nn.utils.rnn.pad_sequence(items, batch_first=True)


def conditions(model, text, align, ref, mask=None, w=1.0):
    """The condition (ref, h), and what guidance contrasts it with: (0, h of no text), or None at w = 0."""
    cond = ref, model.embed_text(text, align, mask)
    if w == 0:
        return cond, None
    everyone = torch.ones(len(text), dtype=torch.bool, device=text.device)
    return cond, (torch.zeros_like(ref), model.embed_text(text, align, mask, everyone))


def guided_velocity(model, x, time, cond, null, w, mask=None):
    """v = v_c + w (v_c - v_u): one network call at w = 0, two above. Guidance is computed only here."""
    v_c = model(x, time, *cond, mask)                                             # (B, T, M)
    return v_c if w == 0 else v_c + w * (v_c - model(x, time, *null, mask))


def euler(model, x0, grid, cond, null=None, w=0.0, mask=None, known=None, midpoint=False):
    """Integrate from noise x0 (B, T, M) along grid (N + 1,) -> all states (N + 1, B, T, M); the last is x1.

    known (B, T) bool: frames where the reference is given. Their path needs no network, it is the straight
    line (1 - t) x0 + t ref that the teacher saw there in training [ours; F5-TTS lets them drift and
    overwrites at the end]. midpoint: F5-TTS's other solver, two velocities a step.
    """
    def velocity(x, s, e):
        time = {"step": len(grid) - 1, "pair": (s, e), "adaln": s}[model.config.time]
        return guided_velocity(model, x, time, cond, null, w, mask)
    states, times = [x0], grid.to(x0.device)    # tensors: a float would be compiled anew each step
    for s, e in zip(times[:-1], times[1:]):
        v = velocity(states[-1], s, e)
        if midpoint:
            v = velocity(states[-1] + (e - s) / 2 * v, (s + e) / 2, e)
        x = states[-1] + (e - s) * v
        if known is not None:
            x = torch.where(known[..., None], (1 - e) * x0 + e * cond[0], x)
        states.append(x)
    return torch.stack(states)


# ---------------------------------------------------------------------------------------------------- speech


def make_voice(b, path, text):
    """A recording and its words -> voice prompt {"mel" (P, M), "text" (L,), "durations" (L,)}, aligned."""
    mel = mel_spectrogram(load_audio(path, b.s, longest=15), b.s)
    ids = encode_checked(text, b.vocab, "--prompt_text")
    if len(ids) > len(mel):
        raise BadInput(f"--prompt {path}: {len(mel) * b.s.hop / b.s.rate:.1f} s for {len(ids)} characters of "
                       f"--prompt_text; expected at least one frame a character")
    return dict(mel=mel, text=ids, durations=align_batch([cepstra(mel)], [ids], b.gauss)[0])


def encode_checked(text, vocab, flag):
    """encode() for a user's text: names the characters it drops, and refuses a text with no letter left."""
    ids, dropped = encode(text, vocab)
    if dropped:
        print(f"{flag}: characters the checkpoint does not know, dropped: {' '.join(sorted(dropped))}")
    if not any(vocab[i - 1].isalnum() for i in ids.tolist()):
        raise BadInput(f"{flag} {text[:30]!r}: nothing to say; this checkpoint knows {str(vocab)[:99]}")
    return ids


def sentences(text, longest=160):
    """Normalised text -> chunks of whole sentences up to `longest` characters; or cut at a comma or space."""
    chunks = []
    for sentence in re.findall(r"\S.*?(?:[.!?;:]+(?=\s)|$)", text):
        while len(sentence) > longest:
            cut = sentence.rfind(", ", 1, longest) + 1 or sentence.rfind(" ", 1, longest) + 1 or longest
            chunks.append(sentence[:cut].strip())
            sentence = sentence[cut:].strip()
        if chunks and len(chunks[-1]) + len(sentence) < longest // 2:
            chunks[-1] += " " + sentence
        else:
            chunks.append(sentence)
    return chunks


def aligned_plan(b, texts, voice, speed):
    """Character ids of each text [(L,)] -> prompt and text as one, [(ids (L,), align (T,))]."""
    if voice is None:
        none = torch.zeros(0, dtype=torch.long)
        voice = dict(text=none, durations=none)

    def predict(ids, speed):                    # durations in frames, (B, L), padding 0
        ids = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        return b.duration.predict(ids.to(b.model.proj_out.weight.device), speed).cpu()
    if len(voice["text"]):                      # a slow speaker is continued slowly
        rate = voice["durations"].sum() / predict([voice["text"]], 1.0).sum()
        speed = speed / float(rate.clamp(0.6, 1.6))
    return [(torch.cat([voice["text"], ids]), frame_to_char(torch.cat([voice["durations"], d[:len(ids)]])))
            for ids, d in zip(texts, predict(texts, speed))]


def pick_voice(b, a):
    """The voice that --prompt, --prompt_text and --voice ask for: a prompt made, a ready one, or None."""
    if a.prompt or a.prompt_text:
        if not (a.prompt and a.prompt_text and a.prompt_text.strip()):
            raise BadInput("--prompt and --prompt_text go together: a recording and the words spoken in it")
        return (make_voice if b.model.config.aligned else f5_voice)(b, a.prompt, a.prompt_text)
    if not b.model.config.aligned:
        raise BadInput("F5-TTS continues a recording: give one as --prompt and its words as --prompt_text")
    if a.voice == "none" or not b.voices:
        return None
    if a.voice and a.voice not in b.voices:
        raise BadInput(f"--voice {a.voice}: this checkpoint has {', '.join(b.voices)}, or use --prompt")
    return b.voices[a.voice or next(iter(b.voices))]


def split_text(b, text, voice, speed):
    """--text -> its sentences as speak() takes them; those without a letter that b knows are left out."""
    encode_checked(text, b.vocab, "--text")                                       # names what is dropped
    if not b.model.config.aligned:
        chunks = sentences(" ".join(text.split()), f5_longest(voice, b.s, speed))
        return [chunk for chunk in chunks if any(map(str.isalnum, chunk))]
    return [encode(chunk, b.vocab)[0] for chunk in sentences(normalise(text))
            if any(map(str.isalpha, set(chunk) & set(b.vocab)))]


@torch.no_grad()
def speak(b, texts, voice=None, steps=1, w=0.0, seed=0, speed=1.0, grid=None, batch=8):
    """Texts -> their mels [(T, M)], durations predicted; b is a Bundle.

    texts: character ids of each [(L,)]; for F5-TTS the text itself. voice: a prompt (make_voice) that gives
    voice and speaking rate, None for whatever the noise suggests. steps: network steps N; w: guidance; item
    i's noise comes from (seed, i). grid: (N + 1,), None: b's own.
    """
    device = b.model.proj_out.weight.device
    grid = own_grid(b, steps) if grid is None else grid
    pad, mels = torch.nn.utils.rnn.pad_sequence, []
    prompt = torch.zeros(0, b.s.n_mels) if voice is None else voice["mel"].float()  # (P, M)
    plan, P = aligned_plan if b.model.config.aligned else f5_plan, len(prompt)
    for first in range(0, len(texts), batch):
        ids, aligns = zip(*plan(b, texts[first:first + batch], voice, speed))
        lengths = torch.tensor([len(a) for a in aligns])
        text, align = pad(ids, batch_first=True).to(device), pad(aligns, batch_first=True).to(device)
        frames = torch.arange(int(lengths.max()))[None]
        mask = (frames < lengths[:, None]).to(device) if len(ids) > 1 else None   # (B, T)
        known = (frames < P).expand(len(ids), -1).to(device)                      # (B, T)
        ref = torch.zeros(len(ids), len(frames[0]), b.s.n_mels)
        ref[:, :P] = prompt
        cond, null = conditions(b.model, text, align, ref.to(device), mask, w)
        x0 = noise(seed, lengths, b.s.n_mels, first).to(device)
        drift = b.contract.get("prompt") == "drift"                               # F5-TTS's way, see euler
        x1 = euler(b.model, x0, grid, cond, null, w, mask, None if drift else known)[-1].cpu()
        x1[:, :P] = prompt
        mels += [x[P - drift:T] for x, T in zip(x1, lengths)]                     # its cut keeps a frame more
    return mels


# ---------------------------------------------------------------------------------------------------- F5-TTS


def add_f5_flags(p):
    """What F5-TTS's own checkpoints do not say about themselves."""
    p.add_argument("--flavour", help="only for F5-TTS's checkpoints: v0 (F5TTS_Base) or v1 (F5TTS_v1_Base)")
    p.add_argument("--vocab", help="only for F5-TTS's checkpoints: the vocab.txt published with them")
    p.add_argument("--mel", choices=["vocos", "bigvgan"], default="vocos",
                   help="only for F5-TTS's checkpoints: the mel they were trained with (default vocos)")


def load_f5(path, device, flavour, vocab, mel):
    """F5-TTS's published files -> Bundle: a teacher that continues a prompt, with a rule for durations."""
    if not flavour or not vocab:
        raise BadInput(f"{path}: F5-TTS's checkpoints need --flavour, v0 or v1 (the file cannot tell), and "
                       "--vocab, the vocab.txt published with them")
    tokens, s = read_vocab(vocab), MELS[mel]
    try:
        model = DiT.from_pretrained(path, flavour)
    except ValueError as problem:
        raise BadInput(str(problem)) from None
    if (len(tokens), s.n_mels) != (model.config.vocab, model.config.mels):
        raise BadInput(f"--vocab {vocab}: {len(tokens)} tokens and {s.n_mels} mels, but {path} has "
                       f"{model.config.vocab} and {model.config.mels}; take its own")
    contract = dict(kind="teacher", steps=[], grid="epss", cfg=2.0, prompt="drift", iters=0)
    return Bundle(model.to(device), None, s, tokens, {}, {}, contract, {})


def f5_voice(b, path, text):
    """A recording and its words -> voice prompt {"mel" (P, M), "words", "frames", "gain"} as there."""
    wav = load_audio(path, b.s, level=0, longest=12)
    wav = librosa.effects.trim(wav, top_db=42, ref=1.0)[0]                        # under -42 dB full scale
    if not len(wav):
        raise BadInput(f"--prompt {path}: nothing in it is louder than -42 dB; expected speech")
    wav = np.append(wav, np.zeros(b.s.rate // 20, np.float32))
    gain = min(1.0, float(np.sqrt(np.mean(wav ** 2))) / 0.1)                      # made louder, never quieter
    words = text.strip() + " " * text.strip().endswith(".")
    words = words if words.endswith((". ", "\u3002")) else words + ". "
    words += " " * words[-1].isascii()
    return dict(mel=mel_spectrogram(wav / gain, b.s), words=words, frames=len(wav) // b.s.hop, gain=gain)


def f5_longest(voice, s, speed):
    """Bytes of text that make about 22 s together with the prompt: the size of F5-TTS's chunks."""
    seconds = voice["frames"] * s.hop / s.rate
    return max(10, int(len(voice["words"].encode()) / seconds * (22 - seconds) * speed))


def f5_plan(b, texts, voice, speed):
    """aligned_plan() by F5-TTS's rule: a byte of text lasts as long as in the prompt; attention aligns."""
    plan = []
    for text in texts:
        ids, size = encode(voice["words"] + text, b.vocab)[0], len(text.encode())
        slow = speed if size >= 10 else 0.3
        T = voice["frames"] + int(voice["frames"] / len(voice["words"].encode()) * size / slow)
        T = min(max(T, len(ids) + 1, len(voice["mel"]) + 1), 65536)
        plan.append((ids, torch.zeros(T, dtype=torch.long)))
    return plan


def crossfade(wavs, fade):
    """Audio of the chunks, one after the other, crossing over linearly in `fade` samples."""
    whole = wavs[0]
    for wav in wavs[1:]:
        n = min(fade, len(whole), len(wav))
        ramp = np.linspace(0, 1, n, dtype=np.float32)
        both = whole[len(whole) - n:] * (1 - ramp) + wav[:n] * ramp
        whole = np.concatenate([whole[:len(whole) - n], both, wav[n:]])
    return whole


# ---------------------------------------------------------------------------------------------------- search

DEV = ["Please close the window before it rains.", "She counted seven boats on the quiet river.",
       "Why did nobody answer the letter?", "The baker opened his shop an hour late today."]


def closeness(b, mels, goals, voices):
    """Minus the mean squared error to the goals, the teacher's fine solution from the same noise."""
    if [x.shape for x in mels] != [y.shape for y in goals]:
        raise BadInput("--teacher: its durations are not this student's; give the one it was distilled from")
    return -float(torch.cat([((x - y) ** 2).flatten() for x, y in zip(mels, goals)]).mean())


def speaker_similarity(b, mels, goals, voices):
    """Mean cosine of resemblyzer's speaker embeddings to the voice prompt, both through Griffin-Lim."""
    try:
        from resemblyzer import VoiceEncoder
    except ImportError:
        raise BadInput("--score speaker needs the package resemblyzer: pip install resemblyzer") from None
    encoder = VoiceEncoder("cpu", verbose=False)
    said, want = ([encoder.embed_utterance(griffin_lim(m.float(), b.s, 16)) for m in some]
                  for some in (mels, [v["mel"] for v in voices]))
    return float(np.mean([s @ v for s, v in zip(said, want)]))


SCORES = {"closeness": closeness, "speaker": speaker_similarity}   # (b, mels, goals, voices) -> float


def search(b, a, w):
    """--search: O3S for each N on DEV, beside the other grids; the found ones go into the checkpoint."""
    if b.contract["steps"] or not b.voices:
        why = f"takes {b.contract['steps']} steps on its own grid" if b.contract["steps"] else "is F5-TTS's"
        raise BadInput(f"--search: {a.ckpt} {why}; expected a checkpoint of ours that takes any grid")
    if b.contract["kind"] == "student" and not a.teacher:
        raise BadInput("--search: a student needs --teacher, whose fine solution it is compared with")
    teacher = load_teacher(a.teacher, "--teacher", b.model.proj_out.weight.device) if a.teacher else b
    inside = b.contract["cfg"] if b.contract["kind"] == "student" else w           # guidance in the goal
    ids, ready = [encode(t, b.vocab)[0] for t in DEV], list(b.voices.values())[:2]

    def say(bundle, guide, grid):
        return [mel for v in ready for mel in speak(bundle, ids, v, len(grid) - 1, guide, a.seed, 1.0, grid)]
    goals, voices = say(teacher, inside, cosine_grid(32)), [v for v in ready for _ in ids]
    found = dict(b.contract.get("grids", {}))
    for n in a.search:
        def score(grid):
            return SCORES[a.score](b, say(b, w, grid), goals, voices)
        grid, top = search_grid(score, n)
        found[str(n)] = grid.tolist()
        print(f"{n} steps, {a.score}: " + ", ".join(f"{k} {score(make(n)):.4f}" for k, make in GRIDS.items())
              + f", found {top:.4f} at {','.join(f'{t:.3f}' for t in grid.tolist())}")
    b.contract["grids"] = found
    save_checkpoint(a.ckpt, b)
    print(f"wrote {a.ckpt}: sample.py and evaluate.py use these grids from now on; --grid takes another")


# ---------------------------------------------------------------------------------------------------- command


def check_steps(b, steps, w):
    """--steps as the checkpoint allows them and --cfg, defaults filled in -> (steps, w)."""
    allowed, kind = b.contract["steps"], b.contract["kind"]
    steps = (min(allowed) if allowed else b.contract.get("default", 10)) if steps is None else steps
    if not 1 <= steps <= 1000 or (allowed and steps not in allowed):
        takes = f"one of {', '.join(map(str, allowed))}" if allowed else "any number from 1 to 1000"
        raise BadInput(f"--steps {steps}: this {kind} takes {takes}")
    return steps, (b.contract["cfg"] if kind == "teacher" else 0.0) if w is None else w


def load_vocoder(name, s):
    """The vocoder of mel settings s, from a local folder or hub name -> a function like griffin_lim.

    SpeechT5's HiFi-GAN (package transformers) for our mels, Vocos (package vocos) for F5-TTS's.
    """
    if s not in (MELS["speecht5"], MELS["vocos"]):
        raise BadInput(f"--vocoder {name}: none is known for these mels, {s}; leave it out for Griffin-Lim")
    package = "vocos" if s == MELS["vocos"] else "transformers"
    try:
        if package == "vocos":
            from vocos import Vocos
            if Path(name).is_dir():
                net = Vocos.from_hparams(Path(name) / "config.yaml")
                net.load_state_dict(torch.load(Path(name) / "pytorch_model.bin", weights_only=True))
            else:
                net = Vocos.from_pretrained(name)
            return lambda mel, s: net.eval().decode(log_mel(mel.float(), s).T[None])[0].numpy()
        from transformers import SpeechT5HifiGan
        net = SpeechT5HifiGan.from_pretrained(name).eval().requires_grad_(False)
        return lambda mel, s: net(log_mel(mel.float(), s)).numpy()
    except ImportError:
        raise BadInput(f"--vocoder needs the package {package}: pip install {package}") from None
    except (OSError, ValueError, RuntimeError) as problem:
        raise BadInput(f"--vocoder {name}: {str(problem).splitlines()[0]}") from None


def plot_mels(rows, path):
    """Pictures of mels [(title, (T, M))], one under the other on the colour scale of the first."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    fig, axes = plt.subplots(len(rows), 1, figsize=(11, 2.1 * len(rows)), squeeze=False,
                             constrained_layout=True)
    low, high = rows[0][1].float().quantile(torch.tensor([0.02, 0.999], device=rows[0][1].device)).tolist()
    for ax, (title, mel) in zip(axes[:, 0], rows):
        ax.imshow(mel.float().cpu().numpy().T, origin="lower", aspect="auto", interpolation="nearest",
                  vmin=low, vmax=high)
        ax.set_title(title, fontsize=9, loc="left", parse_math=False)     # "$" is a dollar
        ax.set_ylabel("mel band", fontsize=8)
    axes[-1, 0].set_xlabel("frame")
    fig.savefig(path, dpi=80)
    plt.close(fig)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--text", help="what to say; long text is spoken in sentence chunks")
    p.add_argument("--ckpt", default="checkpoints/student.pt",
                   help="teacher or student (default %(default)s)")
    p.add_argument("--steps", type=int, help="network steps (default: a student's fewest, 10 for a teacher)")
    p.add_argument("--cfg", type=float,
                   help="guidance w in v_c + w (v_c - v_u); above 0 each step is two network calls "
                   "(default: 0 for a student, for a teacher the --cfg of its training run)")
    p.add_argument("--grid", help="times of the steps: cosine, uniform, epss, or 0,0.3,1 (default: the "
                   "checkpoint's; a student of fixed steps has one)")
    p.add_argument("--search", type=int, nargs="+", metavar="N",
                   help="do not speak: find the best grid of N steps (O3S) and store it in --ckpt")
    p.add_argument("--score", choices=SCORES, default="closeness", help="what --search maximises (default "
                   "closeness: to the --teacher's 32-step mels; speaker: cosine to the voice, resemblyzer)")
    p.add_argument("--teacher", help="--search: the teacher of a student (default: --ckpt itself)")
    p.add_argument("--voice", help="one of the checkpoint's own voices, or 'none' (default: its first)")
    p.add_argument("--prompt", help="a recording whose voice to use, with --prompt_text")
    p.add_argument("--prompt_text", help="the words spoken in --prompt")
    p.add_argument("--speed", type=float, default=1.0, help="2 is twice as fast (default 1)")
    p.add_argument("--seed", type=int, default=0, help="noise of item i is drawn from (seed, i) (default 0)")
    p.add_argument("--vocoder",
                   help="folder or hub name: microsoft/speecht5_hifigan (needs transformers), for F5-TTS "
                   "charactr/vocos-mel-24khz (needs vocos; default: Griffin-Lim)")
    add_f5_flags(p)
    p.add_argument("--bf16", action="store_true", help="compute in bfloat16: faster on most machines")
    p.add_argument("--compile", action="store_true",
                   help="torch.compile the network first: half a minute, for long text on CUDA")
    p.add_argument("--device", default="auto", help="auto, cuda, mps or cpu (default auto)")
    p.add_argument("--out", default="out/sample.wav",
                   help="where the audio goes, .wav or .flac; a .png of the mel goes beside it")
    a = p.parse_args()
    check_numbers(a)
    out = Path(a.out)
    if out.suffix.lower() not in (".wav", ".flac") or out.is_dir():
        raise BadInput(f"--out {out}: expected the name of a .wav or .flac file")
    device = pick_device(a.device)
    b = load_checkpoint(a.ckpt, device, a.flavour, a.vocab, a.mel)
    steps, w = check_steps(b, a.steps, a.cfg)
    if a.search:
        return search(b, a, w)
    if a.text is None:
        raise BadInput("--text is missing: give the words to say")
    steps, grid = pick_grid(b, steps, a.grid, a.steps)
    voice = pick_voice(b, a)
    texts = split_text(b, a.text, voice, a.speed)
    vocoder = load_vocoder(a.vocoder, b.s) if a.vocoder else griffin_lim
    out.parent.mkdir(parents=True, exist_ok=True)

    if a.compile:
        b.model.compile(dynamic=True)           # one program for every length
    calls = []                                  # count what really happens, not what should
    b.model.register_forward_hook(lambda *_: calls.append(1))
    start = clock.perf_counter()
    with torch.autocast(device.type, torch.bfloat16, enabled=a.bf16):
        mels = speak(b, texts, voice, steps, w, a.seed, a.speed, grid)            # [(T, M)]
    flow = clock.perf_counter() - start
    fade = 0 if b.model.config.aligned else int(0.15 * b.s.rate)                  # no silence there
    wav = crossfade([vocoder(mel, b.s) for mel in mels], fade) * (voice or {}).get("gain", 1.0)
    total = clock.perf_counter() - start
    soundfile.write(out, np.clip(wav, -1, 1), b.s.rate)
    title = a.text[:100].encode(errors="replace").decode()                        # a terminal's broken bytes
    taken = f"{steps} step{'s' * (steps > 1)}, w = {w}"
    plot_mels([(f"{title}   ({b.contract['kind']}, {taken})", torch.cat(mels))],
              out.with_suffix(".png"))
    seconds = len(wav) / b.s.rate
    per = math.ceil(len(texts) / 8)
    chunks = f" ({per} batches of sentences)" if per > 1 else ""
    print(f"{b.contract['kind']} at {taken}: {len(calls)} network call"
          f"{'s' * (len(calls) > 1)}{chunks}, {seconds:.2f} s of speech")
    print(f"real-time factor: flow {flow / seconds:.4f} (text, durations and network, first call included), "
          f"with vocoder {total / seconds:.4f}")
    print(f"wrote {out} and {out.with_suffix('.png')}")


if __name__ == "__main__":
    cli(main)
