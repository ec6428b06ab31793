"""Text to speech: checkpoint, grid, guidance, the one Euler sampler, and text -> durations -> mel -> wav.

    python sample.py --text "The old clock in the hall struck seven, and nobody moved."
    python sample.py --ckpt checkpoints/teacher.pt --steps 10 --text "..." --prompt me.wav --prompt_text "..."

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

import numpy as np
import soundfile
import torch

from data import (BadInput, MelSettings, align_batch, cepstra, check_numbers, cli, encode, frame_to_char,
                  griffin_lim, load_audio, log_mel, mel_spectrogram, normalise)
from model import DiT, DiTConfig, DurationPredictor

# ------------------------------------------------------------------------------------------------- checkpoint


@dataclass
class Bundle:
    """What a checkpoint holds: enough to speak, to distil and to be checked, with nothing assumed elsewhere.
    """
    model: DiT
    duration: DurationPredictor
    s: MelSettings
    vocab: str
    gauss: dict         # the aligner's Gaussians, to align a voice prompt with its text
    # name -> {"mel" (P, M), "text" (L,), "durations" (L,)}: ready prompts; the first is the default
    voices: dict
    # kind ("teacher" or "student"), steps (allowed counts, [] = any), grid, iters, and cfg: a teacher's usual
    contract: dict      # guidance, or the one inside a student's target
    config: dict        # the flags of the training run, for the record


def save_checkpoint(path, b, half=True):
    """Write Bundle b to path, atomically; half: weights as float16."""
    def pack(module):
        return {k: v.detach().cpu().half() if half else v.detach().cpu() for k,
                v in module.state_dict().items()}
    save_atomic(path, dict(format="dsflow-1", dit=asdict(b.model.config), model=pack(b.model),
                           duration=pack(b.duration), mel=asdict(b.s), vocab=b.vocab, gauss=b.gauss,
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
    hint = "expected a checkpoint written by teacher.py or distill.py"
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


def load_checkpoint(path, device="cpu"):
    """File -> Bundle in float32 eval mode on device."""
    c = load_file(path)
    dit = DiTConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in c["dit"].items()})
    model, duration = DiT(dit), DurationPredictor(dit.vocab)
    model.load_state_dict({k: v.float() for k, v in c["model"].items()})
    duration.load_state_dict({k: v.float() for k, v in c["duration"].items()})
    return Bundle(model.to(device).eval(), duration.to(device).eval(), MelSettings(**c["mel"]), c["vocab"],
                  c["gauss"], c["voices"], c["contract"], c["config"])


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


GRIDS = {"cosine": cosine_grid, "uniform": uniform_grid}


def noise(seed, lengths, mels, first=0):
    """x0 (B, T, M), item i drawn from (seed, first + i) on the CPU: the same in any batch, on any device."""
    items = [torch.randn(int(T), mels, generator=torch.Generator().manual_seed(seed * 1_000_003 + first + i))
             for i, T in enumerate(lengths)]
    return torch.nn.utils.rnn.pad_sequence(items, batch_first=True)


def conditions(model, text, align, ref, w=1.0):
    """The condition (ref, h), and what guidance contrasts it with: (0, h of no text), or None at w = 0."""
    cond = ref, model.embed_text(text, align)
    if w == 0:
        return cond, None
    everyone = torch.ones(len(text), dtype=torch.bool, device=text.device)
    return cond, (torch.zeros_like(ref), model.embed_text(text, align, everyone))


def guided_velocity(model, x, time, cond, null, w, mask=None):
    """v = v_c + w (v_c - v_u): one network call at w = 0, two above. Guidance is computed only here."""
    v_c = model(x, time, *cond, mask)                                             # (B, T, M)
    return v_c if w == 0 else v_c + w * (v_c - model(x, time, *null, mask))


def euler(model, x0, grid, cond, null=None, w=0.0, mask=None, known=None):
    """Integrate from noise x0 (B, T, M) along grid (N + 1,) -> all states (N + 1, B, T, M); the last is x1.

    known (B, T) bool: frames where the reference is given. Their path needs no network, it is the straight
    line (1 - t) x0 + t ref that the teacher saw there in training [ours; F5-TTS lets them drift and
    overwrites at the end].
    """
    n, states = len(grid) - 1, [x0]
    for s, e in zip(grid[:-1].tolist(), grid[1:].tolist()):
        time = n if model.config.time == "step" else s
        x = states[-1] + (e - s) * guided_velocity(model, states[-1], time, cond, null, w, mask)
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
    if not any(vocab[i - 1].isalpha() for i in ids.tolist()):
        raise BadInput(f"{flag} {text[:30]!r}: nothing to say; this checkpoint knows {vocab!r}")
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


@torch.no_grad()
def speak(b, texts, voice=None, steps=1, w=0.0, seed=0, speed=1.0, grid=None, batch=8):
    """Character ids of each text [(L,)] -> their mels [(T, M)], durations predicted; b is a Bundle.

    voice: a prompt (make_voice) that gives voice and speaking rate, None for whatever the noise suggests.
    steps: network steps N; w: guidance; item i's noise comes from (seed, i). grid: (N + 1,), None: b's own.
    """
    device = b.model.proj_out.weight.device
    grid = GRIDS[b.contract["grid"]](steps) if grid is None else grid
    pad, mels = torch.nn.utils.rnn.pad_sequence, []
    if voice is None:
        voice = dict(mel=torch.zeros(0, b.s.n_mels), text=torch.zeros(0, dtype=torch.long),
                     durations=torch.zeros(0, dtype=torch.long))
    else:                                       # a slow speaker is continued slowly
        rate = voice["durations"].sum() / b.duration.predict(voice["text"][None].to(device)).sum().cpu()
        speed = speed / float(rate.clamp(0.6, 1.6))
    P = len(voice["mel"])
    for first in range(0, len(texts), batch):
        ids = pad(list(texts[first:first + batch]), batch_first=True)
        predicted = b.duration.predict(ids.to(device), speed).cpu()               # (B, L)
        durations = [torch.cat([voice["durations"], d[i > 0]]) for d, i in zip(predicted, ids)]
        lengths = [int(d.sum()) for d in durations]
        text = pad([torch.cat([voice["text"], i[i > 0]]) for i in ids], batch_first=True).to(device)
        align = pad([frame_to_char(d) for d in durations], batch_first=True).to(device)
        frames = torch.arange(max(lengths))[None]
        mask = (frames < torch.tensor(lengths)[:, None]).to(device)               # (B, T)
        known = (frames < P).expand(len(ids), -1).to(device)                      # (B, T)
        ref = torch.zeros(len(ids), max(lengths), b.s.n_mels)
        ref[:, :P] = voice["mel"].float()
        cond, null = conditions(b.model, text, align, ref.to(device), w)
        x0 = noise(seed, lengths, b.s.n_mels, first).to(device)
        x1 = euler(b.model, x0, grid, cond, null, w, None if len(ids) == 1 else mask, known)[-1].cpu()
        mels += [x[P:T] for x, T in zip(x1, lengths)]
    return mels


def check_steps(b, steps, w):
    """--steps as the checkpoint allows them and --cfg, defaults filled in -> (steps, w)."""
    allowed, kind = b.contract["steps"], b.contract["kind"]
    steps = (min(allowed) if allowed else 10) if steps is None else steps
    if not 1 <= steps <= 1000 or (allowed and steps not in allowed):
        takes = f"one of {', '.join(map(str, allowed))}" if allowed else "any number from 1 to 1000"
        raise BadInput(f"--steps {steps}: this {kind} takes {takes}")
    return steps, (b.contract["cfg"] if kind == "teacher" else 0.0) if w is None else w


def load_vocoder(name):
    """SpeechT5's HiFi-GAN from a local folder or hub name -> a function like griffin_lim."""
    try:
        from transformers import SpeechT5HifiGan
    except ImportError:
        raise BadInput("--vocoder needs the package transformers: pip install transformers") from None
    try:
        net = SpeechT5HifiGan.from_pretrained(name).eval()
    except (OSError, ValueError) as problem:
        raise BadInput(f"--vocoder {name}: {str(problem).splitlines()[0]}") from None

    def decode(mel, s):
        if (s.rate, s.n_mels, s.hop, s.fmin, s.fmax, s.log) != (16000, 80, 256, 80.0, 7600.0, "log10"):
            raise BadInput(f"--vocoder {name}: made for 16 kHz, 80 log10 mels of 80-7600 Hz, not {s}")
        with torch.no_grad():
            return net(log_mel(mel.float(), s)).numpy()
    return decode


def plot_mels(rows, path):
    """Pictures of mels [(title, (T, M))], one under the other on a common colour scale."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    fig, axes = plt.subplots(len(rows), 1, figsize=(11, 2.1 * len(rows)), squeeze=False,
                             constrained_layout=True)
    for ax, (title, mel) in zip(axes[:, 0], rows):
        ax.imshow(mel.float().cpu().numpy().T, origin="lower", aspect="auto", interpolation="nearest",
                  vmin=-2.5, vmax=3)
        ax.set_title(title, fontsize=9, loc="left", parse_math=False)     # "$" is a dollar
        ax.set_ylabel("mel band", fontsize=8)
    axes[-1, 0].set_xlabel("frame")
    fig.savefig(path, dpi=80)
    plt.close(fig)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--text", required=True, help="what to say; long text is spoken in sentence chunks")
    p.add_argument("--ckpt", default="checkpoints/student.pt",
                   help="teacher or student (default %(default)s)")
    p.add_argument("--steps", type=int, help="network steps (default: a student's fewest, 10 for a teacher)")
    p.add_argument("--cfg", type=float,
                   help="guidance w in v_c + w (v_c - v_u); above 0 each step is two network calls "
                   "(default: 0 for a student, for a teacher the --cfg of its training run)")
    p.add_argument("--voice", help="one of the checkpoint's own voices, or 'none' (default: its first)")
    p.add_argument("--prompt", help="a recording whose voice to use, with --prompt_text")
    p.add_argument("--prompt_text", help="the words spoken in --prompt")
    p.add_argument("--speed", type=float, default=1.0, help="2 is twice as fast (default 1)")
    p.add_argument("--seed", type=int, default=0, help="noise of item i is drawn from (seed, i) (default 0)")
    p.add_argument("--vocoder",
                   help="SpeechT5 HiFi-GAN folder or hub name, for example microsoft/speecht5_hifigan "
                   "(needs transformers; default: Griffin-Lim)")
    p.add_argument("--device", default="auto", help="auto, cuda, mps or cpu (default auto)")
    p.add_argument("--out", default="out/sample.wav",
                   help="where the audio goes, .wav or .flac; a .png of the mel goes beside it")
    a = p.parse_args()
    check_numbers(a)
    out = Path(a.out)
    if out.suffix.lower() not in (".wav", ".flac") or out.is_dir():
        raise BadInput(f"--out {out}: expected the name of a .wav or .flac file")
    device = pick_device(a.device)
    b = load_checkpoint(a.ckpt, device)
    steps, w = check_steps(b, a.steps, a.cfg)
    encode_checked(a.text, b.vocab, "--text")                                     # names what is dropped
    texts = [encode(chunk, b.vocab)[0] for chunk in sentences(normalise(a.text))  # chunks that keep a letter
             if any(map(str.isalpha, set(chunk) & set(b.vocab)))]
    if a.prompt or a.prompt_text:
        if not (a.prompt and a.prompt_text):
            raise BadInput("--prompt and --prompt_text go together: a recording and the words spoken in it")
        voice = make_voice(b, a.prompt, a.prompt_text)
    elif a.voice == "none" or not b.voices:
        voice = None
    elif a.voice and a.voice not in b.voices:
        raise BadInput(f"--voice {a.voice}: this checkpoint has {', '.join(b.voices)}, or use --prompt")
    else:
        voice = b.voices[a.voice or next(iter(b.voices))]
    vocoder = load_vocoder(a.vocoder) if a.vocoder else griffin_lim
    out.parent.mkdir(parents=True, exist_ok=True)

    calls = []                                  # count what really happens, not what should
    b.model.register_forward_hook(lambda *_: calls.append(1))
    start = clock.perf_counter()
    mels = speak(b, texts, voice, steps, w, a.seed, a.speed)                      # [(T, M)]
    flow = clock.perf_counter() - start
    wav = np.concatenate([vocoder(mel, b.s) for mel in mels])                     # memory follows the longest
    total = clock.perf_counter() - start
    soundfile.write(out, np.clip(wav, -1, 1), b.s.rate)
    plot_mels([(f"{a.text[:100]}   ({b.contract['kind']}, {steps} steps, w = {w})", torch.cat(mels))],
              out.with_suffix(".png"))
    seconds = len(wav) / b.s.rate
    per = math.ceil(len(texts) / 8)
    chunks = f" ({per} batches of sentences)" if per > 1 else ""
    print(f"{b.contract['kind']} at {steps} step{'s' * (steps > 1)}, w = {w}: {len(calls)} network call"
          f"{'s' * (len(calls) > 1)}{chunks}, {seconds:.2f} s of speech")
    print(f"real-time factor: flow {flow / seconds:.4f} (text, durations and network, first call included), "
          f"with vocoder {total / seconds:.4f}")
    print(f"wrote {out} and {out.with_suffix('.png')}")


if __name__ == "__main__":
    cli(main)
