"""Audio and text in, batches out: mel spectrograms, text, corpora, alignment, cache. Imports nothing local.

    python data.py --data corpus              what is in there, what was skipped and why, an alignment picture
    python data.py --download ljspeech        fetch and unpack a real corpus (24 h, one voice, 2.6 GB)

A corpus folder becomes one memory-mapped array of mel frames plus, for every utterance, its characters and
how many frames each of them lasts. Durations come from a flat-start Viterbi aligner (align_corpus), so that a
folder of audio and text needs no lexicon, no phonemizer and no external aligner.

Shapes: B batch, T mel frames, L characters, M mel bands, C cepstral features, V vocabulary.
"""
import argparse
import errno
import functools
import hashlib
import http.client
import json
import math
import os
import re
import shutil
import sys
import tarfile
import tempfile
import urllib.request
import zlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import librosa
import numpy as np
import soundfile
import torch
from num2words import num2words
from tqdm import tqdm

# -------------------------------------------------------------------------------------------------- bad input


class BadInput(Exception):
    """Something the user gave cannot be used. The message is one line: what, where, and what would be right.
    """


def cli(main):
    """Run a command's main(): bad input becomes one line on stderr and exit status 2."""
    if hasattr(sys.stdout, "reconfigure"):      # a terminal that lacks a character shows its code
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main()
    except (BadInput, soundfile.LibsndfileError) as problem:
        sys.exit(_complain(problem))
    except OSError as problem:                  # no space, no permission, no such folder
        sys.exit(_complain(f"cannot use {problem.filename or 'a file'}: {problem.strerror or problem}"))
    except KeyboardInterrupt:
        sys.exit(130)


def _complain(problem):
    print(f"error: {problem}", file=sys.stderr)
    return 2


RANGES = dict(
    max_iters=(1, 1e9), batch_frames=(1, 1e9), eval_every=(1, 1e9), save_every=(1, 1e9), pool=(1, 1e9),
    reuse=(1, 1e9), duration_iters=(0, 1e9), warmup=(0, 1e9), seed=(0, 1e9), lr=(1e-9, 1), cfg=(0, 20),
    ema=(0, 1), p_noref=(0, 1), p_nothing=(0, 1), speed=(0.25, 4), count=(1, 1e9), a=(0, 1),
    seeds=(0, 1e9), page=(0, 1e9), teacher_steps=(1, 1000), accumulate=(1, 1e4),
    rounds=(1, 1e4), batch=(1, 1e4))


def check_numbers(a):
    """Flags of a command with a number outside RANGES, or nan -> BadInput."""
    for name, (low, high) in RANGES.items():
        given = getattr(a, name, None)
        for value in given if isinstance(given, list) else [given]:
            if value is not None and not low <= value <= high:
                raise BadInput(f"--{name} {value}: expected a number from {low:g} to {high:g}")


# ---------------------------------------------------------------------------------------------------- mel


@dataclass(frozen=True)
class MelSettings:
    """How audio becomes a mel spectrogram. Every checkpoint carries one, so nothing is assumed twice.

    The defaults are the convention of microsoft/speecht5_hifigan (log10 of a Slaney-scaled magnitude mel),
    with a higher floor: at its 1e-10, digital silence would lie 6 decades under speech and dominate every
    squared error.
    """
    rate: int = 16000       # Hz
    n_fft: int = 1024       # samples, FFT and Hann window
    hop: int = 256          # samples between frames: 62.5 frames a second
    n_mels: int = 80
    fmin: float = 80.0      # Hz
    fmax: float = 7600.0    # Hz
    htk: bool = False       # mel scale: Slaney (False) or HTK
    norm: str = "slaney"    # area normalisation of the filters: "slaney" or "" for none
    log: str = "log10"      # "log10" or "ln"
    floor: float = 1e-4     # magnitudes under this count as silence
    mean: float = -2.2      # (log mel - mean) / std has about zero mean and unit variance, like x0 ~ N(0, I):
    std: float = 0.9        # load_audio brings every recording to the same level
    center: bool = True     # a frame's middle is its sample; False: (n_fft - hop) / 2 samples are padded
    power: float = 0.0      # added to the squared magnitude
    keep_loud: bool = False  # recordings louder than the level stay as they are

VOCOS = MelSettings(rate=24000, n_mels=100, fmin=0.0, fmax=12000.0, htk=True, norm="", log="ln", floor=1e-5,
                    mean=0.0, std=1.0, keep_loud=True)
MELS = {"speecht5": MelSettings(), "vocos": VOCOS,        # the two that F5-TTS was published with
        "bigvgan": replace(VOCOS, htk=False, norm="slaney", center=False, power=1e-9)}


@functools.lru_cache
def filterbank(s):
    """Mel filters of settings s, (M, n_fft / 2 + 1) float32 tensor."""
    filters = librosa.filters.mel(sr=s.rate, n_fft=s.n_fft, n_mels=s.n_mels, fmin=s.fmin, fmax=s.fmax,
                                  htk=s.htk, norm=s.norm or None)
    return torch.from_numpy(filters)


def mel_spectrogram(wav, s):
    """Audio (samples,) in [-1, 1] -> normalised log mel (T, M). The only mel.

    T = samples // hop + 1, or samples // hop if not centred.
    """
    wav = torch.as_tensor(wav, dtype=torch.float32)
    if not s.center:
        wav = torch.nn.functional.pad(wav[None], ((s.n_fft - s.hop) // 2,) * 2, "reflect")[0]
    spec = torch.stft(wav, s.n_fft, s.hop, window=torch.hann_window(s.n_fft), center=s.center,
                      pad_mode="reflect", return_complex=True).abs()              # (n_fft / 2 + 1, T)
    spec = (spec ** 2 + s.power).sqrt() if s.power else spec
    mel = (filterbank(s) @ spec).clamp(min=s.floor).T                             # (T, M)
    log = mel.log10() if s.log == "log10" else mel.log()
    return (log - s.mean) / s.std


def log_mel(mel, s):
    """Undo the normalisation: model units (T, M) -> log mel in the units of s.log, as vocoders expect it."""
    return mel * s.std + s.mean


def griffin_lim(mel, s, n_iter=60):
    """Normalised log mel (T, M) -> audio (samples,) float32: pseudo-inverse, Griffin-Lim, no weights."""
    log = log_mel(mel.float().cpu(), s).clamp(max=3.0)                            # never an overflow
    magnitude = 10 ** log if s.log == "log10" else log.exp()
    magnitude = magnitude * (magnitude > 2 * s.floor)                             # the floor is silence
    spec = (torch.linalg.pinv(filterbank(s)) @ magnitude.T).clamp(min=0)          # (n_fft / 2 + 1, T)
    wav = librosa.griffinlim(spec.numpy(), n_iter=n_iter, hop_length=s.hop, n_fft=s.n_fft, center=s.center,
                             random_state=0)
    edge = 0 if s.center else (s.n_fft - s.hop) // 2
    return wav[edge:len(wav) - edge].astype(np.float32)


def load_audio(path, s, level=0.1, longest=math.inf):
    """Any soundfile format, rate and channel count -> mono (samples,) at s.rate, RMS set to level (0: as is).

    Raises BadInput, naming the file, when it is missing, unreadable, silent, shorter than one FFT window, or,
    without decoding it, over `longest` seconds.
    """
    try:
        seconds = soundfile.info(path).duration
        if seconds > longest:
            raise BadInput(f"{path}: {seconds:.1f} s, longer than {longest:g} s")
        wav, rate = soundfile.read(path, dtype="float32", always_2d=True)         # (samples, channels)
    except (soundfile.LibsndfileError, OSError, RuntimeError) as problem:
        detail = str(problem).split(": ")[-1]
        reason = f"unreadable audio ({detail})" if Path(path).is_file() else "no such file"
        raise BadInput(f"{path}: {reason}") from None
    wav = wav.mean(axis=1)                                                        # (samples,)
    if len(wav) < rate * s.n_fft / s.rate:
        raise BadInput(f"{path}: only {len(wav) / rate:.2f} s of audio, too short to use")
    if rate != s.rate and np.isfinite(wav).all():
        wav = librosa.resample(wav, orig_sr=rate, target_sr=s.rate)
    rms = float(np.sqrt(np.mean(wav ** 2)))
    if not 1e-4 < rms < 1e4:                                                      # also catches NaN and inf
        raise BadInput(f"{path}: silent or not audio (RMS {rms:.1e})")
    gain = 1.0 if not level or (s.keep_loud and rms > level) else level / rms
    return np.clip(wav * gain, -1.0, 1.0).astype(np.float32)


# ---------------------------------------------------------------------------------------------------- text

ABBREVIATIONS = {"mr": "mister", "mrs": "missus", "ms": "miz", "dr": "doctor", "st": "saint",
                 "prof": "professor", "capt": "captain", "col": "colonel", "gen": "general",
                 "lt": "lieutenant", "rev": "reverend", "hon": "honorable", "jr": "junior", "co": "company",
                 "vs": "versus", "etc": "et cetera"}
SYMBOLS = {"&": " and ", "%": " percent ", "+": " plus ", "=": " equals ", "@": " at ",
           "\u2019": "'", "\u2018": "'", "\u201c": '"', "\u201d": '"', "\u2014": ", ", "\u2013": ", ",
           "\u2026": "."}
NUMBER = r"\d+(?:,\d{3}(?!\d))*(?:\.\d+)?"     # a comma is part of it only before three digits


def normalise(text):
    """Written English -> lower-case spoken English: numbers, amounts and common abbreviations spelled out."""
    text = text.lower()
    for symbol, spoken in SYMBOLS.items():
        text = text.replace(symbol, spoken)
    text = re.sub(r"\b(" + "|".join(ABBREVIATIONS) + r")\.", lambda m: ABBREVIATIONS[m[1]], text)
    text = re.sub(rf"\$({NUMBER})", lambda m: f"{m[1]} dollar{'s' * (m[1] != '1')}", text)
    text = re.sub(NUMBER + r"(?:st|nd|rd|th)?", lambda m: " " + _spoken_number(m[0]) + " ", text)
    return re.sub(r"\s+([,.;:!?])", r"\1", " ".join(text.split()))


def _spoken_number(token):
    digits = token.rstrip("stndrh").replace(",", "")
    if len(digits) > 15:                                                          # a serial number
        return " ".join(num2words(int(d)) for d in digits if d.isdigit())
    if "." in digits:
        return num2words(float(digits)).replace("-", " ")
    year = "," not in token and 1100 <= int(digits) <= 1999
    kind = "ordinal" if token[-1].isalpha() else "year" if year else "cardinal"
    return num2words(int(digits), to=kind).replace(" and ", " ").replace("-", " ").replace(",", "")


def encode(text, vocab):
    """Text -> character ids (L,) int64 in 1 ... V (0 is the filler), and the characters that vocab lacks.

    vocab a string: our characters, spoken English. A space at each end gives the silence before and after the
    sentence a character of its own; what is unknown is dropped. A list: F5-TTS's tokens; what is unknown
    becomes its first token, the space, as there.
    """
    f5 = isinstance(vocab, list)
    tokens = f5_tokens(text) if f5 else " " + normalise(text) + " "
    number = {token: i for i, token in enumerate(vocab, 1)}
    ids = [number.get(token, 1) for token in tokens if f5 or token in number]
    return torch.tensor(ids, dtype=torch.long), set(tokens) - set(number)


CHINESE = re.compile("[\u3100-\u9fff]")
# Words as the segmenter rjieba finds them in English: "re-use" and "3.14" are one, "don't" is three.
ENGLISH = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*%?|[._-]{2,}|.", re.S)


def f5_tokens(text):
    """Text -> F5-TTS's tokens: its characters, and for Chinese a space and pinyin with the tone, like "dui4".

    As there, a word of Latin letters gets a space before it unless the text has one ("Hello,world").
    """
    text = text.translate(str.maketrans(";\u201c\u201d\u2018\u2019", ",\"\"''"))
    if CHINESE.search(text):
        try:
            import rjieba
            from pypinyin import Style, lazy_pinyin
        except ImportError:
            raise BadInput("Chinese text needs the packages pypinyin and rjieba: pip install pypinyin rjieba "
                           f"({text[:20]!r})") from None
    tokens = []
    for word in rjieba.cut(text) if CHINESE.search(text) else ENGLISH.findall(text):
        sounds = word
        if word.isascii() and len(word) > 1 and tokens and tokens[-1] not in " :'\"":
            tokens.append(" ")
        elif CHINESE.search(word):
            sounds = lazy_pinyin(word, style=Style.TONE3, tone_sandhi=True, errors=list)
        for char, sound in zip(word, sounds):
            tokens += [" ", sound] if CHINESE.match(char) else [sound]
    return tokens


def read_vocab(path):
    """F5-TTS's vocab.txt, one token a line -> list of tokens. The first is the space, and has to be."""
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")               # any line end, nothing else
    except (OSError, UnicodeDecodeError) as problem:
        raise BadInput(f"--vocab {path}: cannot be read ({problem})") from None
    tokens = lines[:-1] if lines[-1] == "" else lines
    if not tokens or tokens[0] != " ":
        raise BadInput(f"--vocab {path}: its first line is {tokens[:1]}, not a single space; expected the "
                       "vocab.txt of the checkpoint as published, not stripped")
    return tokens


# ---------------------------------------------------------------------------------------------------- corpora

AUDIO = (".wav", ".flac", ".ogg", ".opus", ".mp3")
MAX_SECONDS = 20.0          # longer recordings are skipped: they would set the memory of every batch


def find_utterances(folder):
    """Recordings and texts in a folder -> [(id, path, text, speaker)], [(what was skipped, why)].

    LJSpeech (metadata.csv with id|text|normalised text beside wavs/), also one such folder per speaker;
    LibriTTS (speaker/chapter/*.normalized.txt beside the audio); any tree of audio with a .txt or .lab of the
    same name.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BadInput(f"--data {folder}: no such folder; give a folder of recordings, for example corpus")
    found, skipped = [], []
    tables = sorted(folder.glob("metadata.csv")) or sorted(folder.glob("*/metadata.csv"))
    for table in tables:
        rows, bad = read_metadata(table, speaker="" if table.parent == folder else table.parent.name)
        found, skipped = found + rows, skipped + bad
    if not tables:
        for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in AUDIO):
            sides = [path.with_suffix(end) for end in (".normalized.txt", ".txt", ".lab")]
            side = next((p for p in sides if p.is_file()), None)
            name = str(path.relative_to(folder).with_suffix(""))
            if side is None:
                skipped.append((name, "no .normalized.txt, .txt or .lab beside it"))
                continue
            libritts = side.name.endswith(".normalized.txt")                      # speaker/chapter/file
            home = path.parents[1] if libritts else path.parent
            speaker = home.name if home.is_relative_to(folder) and home != folder else ""
            text = side.read_text(encoding="utf-8-sig", errors="replace").strip()
            found.append((name, path, text, speaker))
    if not found:
        reason = f" ({len(skipped)} skipped, the first: {skipped[0][0]}: {skipped[0][1]})" if skipped else ""
        raise BadInput(f"--data {folder}: no usable recordings{reason}; expected metadata.csv (id|text) and "
                       f"wavs/, or audio files, each with a .txt of the same name")
    return found, skipped


def read_metadata(table, speaker):
    """One LJSpeech table -> rows as find_utterances gives them, and what was skipped. BOM, CRLF are fine."""
    rows, skipped, seen = [], [], set()
    files = {p.stem: p for p in sorted((table.parent / "wavs").glob("*")) if p.suffix.lower() in AUDIO}
    lines = table.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        columns = [c.strip() for c in line.split("|")]
        name = columns[0] if len(columns) in (2, 3) else f"{table.name} line {number}"
        if not line.strip():
            continue
        if len(columns) not in (2, 3):
            skipped.append((name, f"{len(columns)} columns, expected id|text or id|text|normalised text"))
        elif name in seen:
            skipped.append((name, "duplicate id"))
        elif name not in files:
            skipped.append((name, f"no audio {table.parent / 'wavs' / name}.*"))
        else:
            seen.add(name)
            rows.append((name, files[name], columns[-1] or columns[1], speaker))
    return rows, skipped


# -------------------------------------------------------------------------------------------------- alignment


def cepstra(mel, n=14):
    """Normalised log mel (T, M) -> n cepstra (DCT-II, utterance mean removed) and slopes, (T, C = 2 n)."""
    T, M = mel.shape
    k, m = torch.arange(n)[:, None], torch.arange(M)[None, :]
    dct = torch.cos(torch.pi * k * (m + 0.5) / M) * (2 / M) ** 0.5                # (n, M)
    c = mel.float() @ dct.T                                                       # (T, n)
    c = c - c.mean(0)                                                             # voice and channel drop out
    padded = torch.cat([c[:1], c[:1], c, c[-1:], c[-1:]])                         # (T + 4, n)
    return torch.cat([c, (padded[4:] - padded[:-4]) / 4], dim=1)                  # (T, 2 n)


def viterbi(score, T, L):
    """Best monotonic path through score (B, T, L), at least one frame a character -> durations (B, L) int64.

    T, L: (B,) valid frames and characters of each item, L <= T. All items advance together, frame by frame.
    """
    B, frames, chars = score.shape
    best = torch.full((B, chars), -1e30)
    best[:, 0] = score[:, 0, 0]
    moved = torch.zeros(frames, B, chars, dtype=torch.bool)
    for t in range(1, frames):
        move = torch.cat([torch.full((B, 1), -1e30), best[:, :-1]], dim=1)        # (B, L) arrive from l - 1
        moved[t] = move > best
        best = torch.maximum(move, best) + score[:, t]
    here, rows = L - 1, torch.arange(B)
    durations = torch.zeros(B, chars, dtype=torch.long)
    for t in range(frames - 1, -1, -1):                                           # back from its own end
        inside = t < T
        durations[rows, here] += inside
        here = here - (moved[t, rows, here] & inside).long()
    return durations


def align_batch(features, ids, gauss):
    """Durations of texts ids [(L,)] on features [(T, C)] under one diagonal Gaussian per character -> [(L,)].

    gauss: {"mean", "var"}, each (V + 1, C). The quadratic form is two products, so no (T, V, C) tensor.
    """
    T, L = torch.tensor([len(f) for f in features]), torch.tensor([len(i) for i in ids])
    x = torch.nn.utils.rnn.pad_sequence(features, batch_first=True)               # (B, T, C)
    text = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)                 # (B, L)
    mean, precision = gauss["mean"], 1 / gauss["var"]
    logp = (x @ (mean * precision).T) - 0.5 * (x ** 2 @ precision.T)              # (B, T, V + 1)
    logp = logp - 0.5 * (mean ** 2 * precision + gauss["var"].log()).sum(1)
    score = logp.gather(2, text[:, None, :].expand(-1, logp.shape[1], -1))        # (B, T, L)
    return [d[:n] for d, n in zip(viterbi(score, T, L), L)]


def align_corpus(features, lengths, ids, vocab_size, rounds=8, batch=32, learn=4000):
    """Flat-start alignment -> durations [(L,)] and the Gaussians {"mean", "var"} that produced them.

    features(i) gives (T, C) of utterance i, lengths[i] its T; ids[i] is (L,) with L <= T. Start: every
    character gets an equal share of the frames. Each round estimates one Gaussian per character from the
    present alignment, then re-aligns. A corpus of more than `learn` utterances takes as many of all lengths
    for that, and is aligned once at the end.
    """
    order = sorted(range(len(ids)), key=lambda i: lengths[i])
    some = order[::math.ceil(len(order) / learn)]
    durations = [torch.bincount(torch.arange(T) * len(i) // T) for T, i in zip(lengths, ids)]
    gauss = None

    def realign(order):
        for b in range(0, len(order), batch):
            part = order[b:b + batch]
            for i, d in zip(part, align_batch([features(i) for i in part], [ids[i] for i in part], gauss)):
                durations[i] = d
    for _ in tqdm(range(rounds), desc="align", leave=False, disable=None):
        count, s1, s2 = torch.zeros(vocab_size + 1, 1), 0.0, 0.0
        for i in some:
            f, char = features(i), ids[i].repeat_interleave(durations[i])         # (T, C), (T,)
            count.index_add_(0, char, torch.ones(len(char), 1))
            s1 = s1 + torch.zeros(vocab_size + 1, f.shape[1]).index_add_(0, char, f)
            s2 = s2 + torch.zeros(vocab_size + 1, f.shape[1]).index_add_(0, char, f ** 2)
        overall = (s2.sum(0) - s1.sum(0) ** 2 / count.sum()) / count.sum()        # (C,) of everything
        seen = count.clamp(min=1)
        mean = s1 / seen
        var = torch.where(count > 1, s2 / seen - mean ** 2, overall).clamp(min=0) + 0.02 * overall + 1e-6
        gauss = {"mean": mean, "var": var}
        realign(some)
    if len(some) < len(order):
        realign(order)
    return durations, gauss


# ---------------------------------------------------------------------------------------------------- cache


class Ragged:
    """Sequences of different lengths in one array; item i is its slice as a tensor (L,) int64."""

    def __init__(self, flat, lengths):
        self.flat, self.end, self.lengths = torch.from_numpy(flat), np.cumsum(lengths), lengths

    def __getitem__(self, i):
        return self.flat[self.end[i] - self.lengths[i]:self.end[i]].long()


class Corpus:
    """A prepared corpus: mel frames on disk, everything else in memory, under a kilobyte an utterance.

    names, speakers, texts: a string each; ids, durations: of each (L,) int64; mel(i): (T, M) float32;
    frames: (U,) int64; vocab: str; gauss: the aligner's Gaussians; skipped: [(name, reason)]; s: MelSettings;
    train, held: lists of utterance numbers. All takes of one sentence are on one side of that split.
    """

    def __init__(self, folder):
        index = json.loads((folder / "index.json").read_text())
        arrays = np.load(folder / "arrays.npz")
        self.s, self.vocab, self.skipped = MelSettings(**index["mel"]), index["vocab"], index["skipped"]
        self.names, self.speakers, self.texts = index["names"], index["speakers"], index["texts"]
        self.frames = torch.from_numpy(arrays["frames"])
        self.start = self.frames.cumsum(0) - self.frames
        self.ids = Ragged(arrays["ids"], arrays["chars"])
        self.durations = Ragged(arrays["durations"], arrays["chars"])
        self.gauss = {"mean": torch.from_numpy(arrays["mean"]), "var": torch.from_numpy(arrays["var"])}
        self.memory = np.memmap(folder / "mel.f16", np.float16, "r",
                                shape=(int(self.frames.sum()), self.s.n_mels))
        held = [i for i, t in enumerate(self.texts) if zlib.crc32(t.encode()) % 100 < 4]
        self.held = held or [i for i, t in enumerate(self.texts) if t == self.texts[-1]]
        self.train = sorted(set(range(len(self.texts))) - set(self.held)) or self.held     # one: it is both

    def mel(self, i):
        """Normalised log mel of utterance i, (T, M) float32."""
        start = int(self.start[i])
        return torch.from_numpy(self.memory[start:start + int(self.frames[i])].astype(np.float32))

    def hours(self):
        """Hours of usable speech."""
        return int(self.frames.sum()) * self.s.hop / self.s.rate / 3600


CACHE_VERSION = 5           # count it up when anything in this file changes what an entry holds


def prepare(folder, s=MelSettings(), vocab=None, cache="cache"):
    """Corpus folder -> Corpus, computed once and cached under cache/NAME-KEY.

    KEY is a hash of the settings, the vocabulary and every recording's name, text, speaker, size and time, so
    that any change makes a new entry. The entry is built in a temporary folder and renamed into place: two
    processes that start at once both succeed, and a killed one leaves nothing that looks complete. vocab:
    keep a checkpoint's characters (None: the corpus's).
    """
    found, skipped = find_utterances(folder)
    stamp = [(n, str(p), t, who, p.stat().st_size, p.stat().st_mtime_ns) for n, p, t, who in found]
    key = json.dumps([asdict(s), vocab, stamp, skipped, CACHE_VERSION]).encode()
    target = Path(cache) / f"{Path(folder).resolve().name}-{hashlib.sha256(key).hexdigest()[:16]}"
    if not (target / "index.json").is_file():
        Path(cache).mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix="partial-", dir=cache))
        try:
            _build(found, skipped, s, vocab, partial, folder)
            os.rename(partial, target)
        except OSError as problem:
            if problem.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # lost the race: the other's is as good
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return Corpus(target)


def _build(found, skipped, s, vocab, out, folder):
    """Mels of all usable recordings into out/mel.f16, then alignment, then the index; adds to skipped."""
    aligned = not isinstance(vocab, list)                                         # F5-TTS is not
    texts = [normalise(text) if aligned else text for _, _, text, _ in found]
    vocab = vocab or "".join(sorted(set(" ".join(texts)) | {" "}))
    rows, ids, frames, unknown = [], [], [], set()
    with open(out / "mel.f16", "wb") as file:
        for (name, path, _, speaker), text in zip(tqdm(found, desc="mel", leave=False, disable=None), texts):
            try:
                mel = mel_spectrogram(load_audio(path, s, longest=MAX_SECONDS), s)   # (T, M)
            except BadInput as problem:
                skipped.append((name, str(problem)))
                continue
            i, dropped = encode(text, vocab)
            unknown |= dropped
            if len(i) <= 2 or len(i) > len(mel):
                skipped.append((name, f"{len(mel)} frames of audio cannot hold its {len(i)} characters"
                                if len(i) > 2 else "no text"))
            else:
                file.write(mel.numpy().astype(np.float16).tobytes())
                rows.append((name, speaker, text))
                ids.append(i)
                frames.append(len(mel))
    if unknown:
        print(f"characters that the vocabulary lacks: {' '.join(sorted(unknown))}")
    if not rows:
        raise BadInput(f"--data {folder}: none of its {len(found)} recordings can be used, for example "
                       f"{skipped[0][0]}: {skipped[0][1]}")
    memory = np.memmap(out / "mel.f16", np.float16, "r", shape=(sum(frames), s.n_mels))
    start = np.cumsum(frames) - frames

    def features(i):
        return cepstra(torch.from_numpy(memory[start[i]:start[i] + frames[i]].astype(np.float32)))
    if aligned:
        durations, gauss = align_corpus(features, frames, ids, len(vocab))
    else:                                       # all frames are filed under the first token
        durations = [torch.cat([torch.tensor([T]), torch.zeros_like(i)[1:]]) for T, i in zip(frames, ids)]
        gauss = {"mean": torch.zeros(0), "var": torch.zeros(0)}
    np.savez(out / "arrays.npz", frames=np.array(frames), chars=np.array([len(i) for i in ids]),
             ids=torch.cat(ids).short().numpy(), durations=torch.cat(durations).short().numpy(),
             mean=gauss["mean"].numpy(), var=gauss["var"].numpy())
    names, speakers, texts = (list(column) for column in zip(*rows))
    (out / "index.json").write_text(json.dumps(dict(mel=asdict(s), vocab=vocab, skipped=skipped, names=names,
                                                    speakers=speakers, texts=texts)))


# ---------------------------------------------------------------------------------------------------- batches


def batch_indices(frames, max_frames, seed):
    """Endless batches (lists of positions into frames) of similar lengths, at most max_frames padded frames.

    A longer utterance is a batch of its own. Deterministic in seed: a resumed run skips what it has done with
    itertools.islice and meets the same ones. Of corpus/, 1 % is padding at 800 frames and 4 % at 8,000,
    against 13 % and 44 % in random order.
    """
    g = torch.Generator().manual_seed(seed)
    while True:
        jitter = 1 + 0.05 * torch.rand(len(frames), generator=g)                   # new neighbours each epoch
        batches, batch, longest = [], [], 0
        for i in (frames * jitter).argsort().tolist():
            longest = max(longest, int(frames[i]))
            if batch and longest * (len(batch) + 1) > max_frames:
                batches.append(batch)
                batch, longest = [], int(frames[i])
            batch.append(i)
        batches.append(batch)
        for b in torch.randperm(len(batches), generator=g).tolist():
            yield batches[b]


def collate(corpus, items):
    """Utterance numbers -> batch of padded tensors; padding is 0 and mask says what is real.

    mel (B, T, M), mask (B, T) bool, text (B, L) ids, durations (B, L), align (B, T): each frame's character.
    """
    pad = torch.nn.utils.rnn.pad_sequence
    durations = [corpus.durations[i] for i in items]
    return dict(
        mel=pad([corpus.mel(i) for i in items], batch_first=True),
        mask=pad([torch.ones(int(corpus.frames[i]), dtype=torch.bool) for i in items], batch_first=True),
        text=pad([corpus.ids[i] for i in items], batch_first=True),
        durations=pad(durations, batch_first=True),
        align=pad([frame_to_char(d) for d in durations], batch_first=True))


def frame_to_char(durations):
    """Durations in frames (L,) -> the character that each frame speaks, (T,) int64."""
    return torch.arange(len(durations)).repeat_interleave(durations)


# ---------------------------------------------------------------------------------------------------- command

# address, SHA-256, folder inside
DOWNLOADS = {"ljspeech": ("https://data.keithito.com/data/speech/LJSpeech-1.1.tar.bz2",
                          "be1a30453f28eb8dd26af4101ae40cbf2c50413b1bb21936cbcdc6fae3de8aa5", "LJSpeech-1.1")}


def download(url, sha256, folder):
    """Fetch an archive into folder (continuing a partial file), check its SHA-256, unpack it -> folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    archive, part = folder / url.rsplit("/", 1)[-1], folder / (url.rsplit("/", 1)[-1] + ".part")
    if not archive.is_file():
        have = part.stat().st_size if part.is_file() else 0
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                have = have if reply.status == 206 else 0                         # 200: it starts over
                total = int(reply.headers.get("Content-Length", 0)) + have
                with open(part, "ab" if have else "wb") as file, tqdm(
                        total=total, initial=have, unit="B", unit_scale=True, disable=None) as bar:
                    while chunk := reply.read(1 << 20):
                        bar.update(file.write(chunk))
                    if file.tell() < total:
                        raise ConnectionError("the connection ended early")
        except (OSError, http.client.HTTPException) as problem:
            if getattr(problem, "code", None) != 416:                             # 416: nothing is missing
                raise BadInput(f"{url}: download failed ({problem}); run it again to continue") from None
        digest = hashlib.sha256()
        with open(part, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        if digest.hexdigest() != sha256:
            part.unlink()
            raise BadInput(f"{url}: checksum {digest.hexdigest()[:9]}, not {sha256[:9]}; deleted, try again")
        os.replace(part, archive)
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")                                     # no path leaves folder
    return folder


def plot_alignment(corpus, i, path):
    """Mel picture of utterance i with each character where the aligner put it."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    ends = corpus.durations[i].cumsum(0)
    fig, ax = plt.subplots(figsize=(14, 3.5), constrained_layout=True)
    ax.imshow(corpus.mel(i).numpy().T, origin="lower", aspect="auto", interpolation="nearest")
    for char, end, length in zip(corpus.ids[i].tolist(), ends.tolist(), corpus.durations[i].tolist()):
        ax.axvline(end - 0.5, color="white", lw=0.4)
        ax.text(end - length / 2 - 0.5, corpus.s.n_mels + 1, corpus.vocab[char - 1], ha="center", fontsize=8)
    ax.set(xlabel="frame", ylabel="mel band")
    fig.savefig(path, dpi=90)
    plt.close(fig)


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0],
                                formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--data", default="corpus",
                   help="folder of recordings: LJSpeech or LibriTTS layout, or audio + .txt")
    p.add_argument("--cache", default="cache", help="where mels and alignments are kept")
    p.add_argument("--out", default="out/data", help="where the alignment picture goes")
    p.add_argument("--download", choices=sorted(DOWNLOADS),
                   help="fetch this corpus first, into --data (default data)")
    a = p.parse_args()
    if a.download:
        url, sha256, inside = DOWNLOADS[a.download]
        a.data = download(url, sha256, "data" if a.data == "corpus" else a.data) / inside
    corpus = prepare(a.data, cache=a.cache)
    print(f"{a.data}: {len(corpus.names)} recordings, {corpus.hours():.2f} h, "
          f"{len(corpus.train)} to train on, {len(corpus.held)} held out")
    for speaker in sorted(set(corpus.speakers)):
        mine = [i for i, s in enumerate(corpus.speakers) if s == speaker]
        minutes = float(corpus.frames[mine].sum()) * corpus.s.hop / corpus.s.rate / 60
        print(f"  speaker {speaker or 'not known'}: {len(mine)} recordings, {minutes:.1f} min")
    print(f"  characters ({len(corpus.vocab)}): {corpus.vocab!r}")
    print(f"  skipped: {len(corpus.skipped)}")
    for name, reason in corpus.skipped[:20]:
        print(f"    {name}: {reason}")
    Path(a.out).mkdir(parents=True, exist_ok=True)
    plot_alignment(corpus, corpus.held[0], Path(a.out) / "alignment.png")
    print(f"  alignment of {corpus.names[corpus.held[0]]}: {Path(a.out) / 'alignment.png'}")


if __name__ == "__main__":
    cli(main)
