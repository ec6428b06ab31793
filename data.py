"""Audio in, batches out: the mel spectrogram, prepared corpora, batches of similar lengths.

speech/prepare.py makes the corpora that Corpus reads, with the symbols of text.py and durations of align.py.

A BATCH is a dict that gathers keys on its way to a loss. infill is in teacher.py, teacher_states in
distill.py, parts and draw in common/run.py:
    key           shape             what it is                                added by        read by
    mel           (B, T, M)         normalised log mel, padding 0             collate         infill, cfm_loss
    mask          (B, T) bool       frames that are no padding                collate         networks, infill
    text          (B, L)            symbol ids from 1 on, padding 0           collate         embed_text
    durations     (B, L)            frames of each symbol                     collate         its predictor
    align         (B, T)            place of the symbol a frame speaks        collate         embed_text
    known         (B, T) bool       frames that are given                     infill          rollout
    todo          (B, T) bool       frames to generate: mask without known    infill          losses
    ref           (B, T, M)         mel where known, else 0                   infill          networks
    x0            (B, T, M)         noise                                     infill          rollout, losses
    drop          (B,) bool         items that get no text                    infill          cfm_loss
    t             (B,)              time at which a teacher trains            teacher.py      cfm_loss
    joint         int               items in the update, of which B are here  parts           draw
    rows          (B,)              their numbers among those                 parts           draw
    frame_share   ()                their share of the update's todo frames   parts           the loops
    symbol_share  ()                their share of its symbols                parts           teacher.py
    states        (I + 1, B, T, M)  points of the teacher's trajectory        teacher_states  losses
    grid          (I + 1,)          their times, from 0 to 1                  teacher_states  losses
    w             float             the guidance that made them               teacher_states  dmd_loss
    u             {name: (B,)}      uniform numbers, named by a Method        draw            losses
    coin          float             one more, for all items                   draw            dsflow_loss

Shapes: B batch, T mel frames, L symbols of text, M mel bands, I intervals of a trajectory.
"""
import functools
import json
import zlib
from dataclasses import dataclass

import librosa
import numpy as np
import torch

# ---------------------------------------------------------------------------------------------------- mel


@dataclass(frozen=True)
class MelSettings:
    """How audio becomes a mel spectrogram. Every checkpoint carries its own.

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
    epsilon: float = 0.0    # added to the squared magnitude
    keep_loud: bool = False  # recordings louder than the level stay as they are


@functools.lru_cache
def filterbank(settings):
    """Mel filters, (M, n_fft / 2 + 1) float32 tensor."""
    s = settings
    return torch.from_numpy(librosa.filters.mel(sr=s.rate, n_fft=s.n_fft, n_mels=s.n_mels, fmin=s.fmin,
                                                fmax=s.fmax, htk=s.htk, norm=s.norm or None))


def mel_spectrogram(wav, settings):
    """Audio (samples,) in [-1, 1] -> normalised log mel (T, M). All mels are made here.

    T = samples // hop + 1, or samples // hop if not centred.
    """
    n_fft, hop = settings.n_fft, settings.hop
    wav = torch.as_tensor(wav, dtype=torch.float32)
    if not settings.center:
        wav = torch.nn.functional.pad(wav[None], ((n_fft - hop) // 2,) * 2, "reflect")[0]
    spec = torch.stft(wav, n_fft, hop, window=torch.hann_window(n_fft), center=settings.center,
                      pad_mode="reflect", return_complex=True).abs()              # (n_fft / 2 + 1, T)
    spec = (spec ** 2 + settings.epsilon).sqrt() if settings.epsilon else spec
    mel = (filterbank(settings) @ spec).clamp(min=settings.floor).T               # (T, M)
    log = mel.log10() if settings.log == "log10" else mel.log()
    return (log - settings.mean) / settings.std


def log_mel(mel, settings):
    """Undo the normalisation: (T, M) -> log mel in the units of settings.log, as vocoders expect it."""
    return mel * settings.std + settings.mean


# ------------------------------------------------------------------------------------------------- corpora


class Ragged:
    """Sequences of different lengths in one array; item i is its slice as a tensor (L,) int64."""

    def __init__(self, flat, lengths):
        self.flat, self.end, self.lengths = torch.from_numpy(flat), np.cumsum(lengths), lengths

    def __getitem__(self, i):
        return self.flat[self.end[i] - self.lengths[i]:self.end[i]].long()


class Corpus:
    """A prepared corpus: mel frames on disk, everything else in memory, under a kilobyte an utterance.

    Of each utterance: names, paths, speakers, texts; ids and durations (L,), frames, mel(i) (T, M) float32.
    Of all: vocab, the symbols; gauss, the aligner's Gaussians; skipped, what and why; settings; key, a hash
    of all this. train, held: utterance numbers; a text that is spoken twice is in one of them only.
    """

    def __init__(self, folder):
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        arrays, self.key = np.load(folder / "arrays.npz"), (folder / "key").read_text()
        self.settings, self.vocab = MelSettings(**index["mel"]), index["vocab"]
        self.skipped, self.paths = index["skipped"], index["paths"]                # below the corpus's folder
        self.names, self.speakers, self.texts = index["names"], index["speakers"], index["texts"]
        self.frames = torch.from_numpy(arrays["frames"])
        self.start = self.frames.cumsum(0) - self.frames
        self.ids = Ragged(arrays["ids"], arrays["counts"])
        self.durations = Ragged(arrays["durations"], arrays["counts"])
        self.gauss = {"mean": torch.from_numpy(arrays["mean"]), "var": torch.from_numpy(arrays["var"])}
        self.memory = np.memmap(folder / "mel.f16", np.float16, "r",
                                shape=(int(self.frames.sum()), self.settings.n_mels))
        held = [i for i, text in enumerate(self.texts) if zlib.crc32(text.encode()) % 100 < 4]   # 4 %
        self.held = held or [i for i, text in enumerate(self.texts) if text == self.texts[-1]]
        self.train = sorted(set(range(len(self.texts))) - set(self.held)) or self.held     # one: it is both

    def mel(self, i):
        """Normalised log mel of utterance i, (T, M) float32."""
        start = int(self.start[i])
        return torch.from_numpy(self.memory[start:start + int(self.frames[i])].astype(np.float32))

    def hours(self, items=slice(None)):
        """Hours of speech in all utterances, or in those of these numbers."""
        return int(self.frames[items].sum()) * self.settings.hop / self.settings.rate / 3600


# ------------------------------------------------------------------------------------------------- batches


def batch_indices(frames, max_frames, seed):
    """Endless batches (lists of positions into frames) of similar lengths, at most max_frames padded frames.

    A longer utterance is a batch of its own. Deterministic in seed, so a resumed run meets the same ones. Of
    an hour of sentences 1 % is padding at 800 frames and 4 % at 8,000, against 13 % and 44 % in random order.
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
        for number in torch.randperm(len(batches), generator=g).tolist():
            yield batches[number]


def collate(corpus, items):
    """Utterance numbers -> batch of padded tensors; padding is 0."""
    pad = torch.nn.utils.rnn.pad_sequence
    durations = [corpus.durations[i] for i in items]
    return dict(
        mel=pad([corpus.mel(i) for i in items], batch_first=True),
        mask=pad([torch.ones(int(corpus.frames[i]), dtype=torch.bool) for i in items], batch_first=True),
        text=pad([corpus.ids[i] for i in items], batch_first=True),
        durations=pad(durations, batch_first=True),
        align=pad([frame_to_symbol(d) for d in durations], batch_first=True))


def frame_to_symbol(durations):
    """Durations in frames (L,) -> the place of the symbol that each frame speaks, (T,) int64."""
    return torch.arange(len(durations)).repeat_interleave(durations)
