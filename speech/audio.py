"""Audio files of any kind -> sound that a mel can be made of."""
import math
import os
import re
from dataclasses import replace
from pathlib import Path

import librosa
import numpy as np
import scipy.signal
import soundfile
from scipy import ndimage

from common.cli import BadInput
from data import MelSettings

VOCOS = MelSettings(rate=24000, n_mels=100, fmin=0.0, fmax=12000.0, htk=True, norm="", log="ln", floor=1e-5,
                    mean=0.0, std=1.0, keep_loud=True)
MELS = {"speecht5": MelSettings(), "vocos": VOCOS,      # the conventions of three public vocoders
        "bigvgan": replace(VOCOS, htk=False, norm="slaney", center=False, epsilon=1e-9)}
LEVEL = 0.1079              # RMS of speech; that of recordings with their pauses is then 0.1 on average


def renamed_mel(given):
    """The fields of MelSettings as a file has them: in older ones epsilon is called power."""
    return {"epsilon" if name == "power" else name: value for name, value in given.items()}


def check_settings(s):
    """ValueError that names the first thing in MelSettings of which no mel can be made."""
    for fits, what in (
            (0 < s.hop < s.n_fft <= 16384 and 0 < s.n_mels <= s.n_fft // 2,
             f"hop {s.hop}, n_fft {s.n_fft}, {s.n_mels} bands"),
            (0 < s.rate <= 400_000 and 0 <= s.fmin < s.fmax <= s.rate / 2,
             f"rate {s.rate}, {s.fmin} to {s.fmax} Hz"),
            (s.log in ("log10", "ln") and s.norm in ("slaney", ""), f"log {s.log!r}, norm {s.norm!r}"),
            (s.floor > 0 and s.std > 0, f"floor {s.floor}, std {s.std}")):
        if not fits:
            raise ValueError(f"a mel of {what}")


def speech_frames(power):
    """Power of frames (N,) -> which are speech, (N,) bool: those within 40 dB of the loudest, or 30 dB where
    the background is that loud. A click is none: it lasts less than three frames.
    """
    smooth = ndimage.median_filter(power, 5, mode="mirror")
    top = smooth.max()
    return smooth > np.clip(4 * np.percentile(smooth, 10), 1e-4 * top, 1e-3 * top)


def steady(db, most, frames, smooth):
    """Levels of frames (N,) in dB -> which lie in a window of so many that changes by less than `most` dB."""
    level = ndimage.uniform_filter1d(db, smooth)
    calm = ndimage.maximum_filter1d(level, frames) - ndimage.minimum_filter1d(level, frames) < most
    return ndimage.binary_dilation(calm, np.ones(frames))


def without_drift(wav, power, rate):
    """Power of frames (N,), of (samples,) -> the same, with that below 12 Hz left out where most of it is
    there for 0.6 s or longer. So low is no voice.
    """
    hop = len(wav) // len(power)
    above = scipy.signal.sosfiltfilt(scipy.signal.butter(4, 12, "high", fs=rate, output="sos"), wav)
    above = np.square(above).reshape(-1, hop).mean(1).astype(power.dtype)
    low = ndimage.binary_closing(above < 0.25 * power, np.ones(9))
    low = ndimage.binary_opening(low, np.ones(1 + int(0.6 * rate / hop)))
    return np.where(low, np.minimum(above, power), power)


def find_speech(power, second):
    """Power of frames (N,), `second` of them a second -> which are speech, (N,) bool, without what happens
    before and after it: hum or hiss, as even as no voice is, up to the end; knocks and beeps, apart from it.
    """
    db, whole, odd = 10 * np.log10(power + 1e-12), speech_frames(power), np.zeros(len(power), bool)
    long = ndimage.binary_dilation(steady(db, 3, max(1, int(0.3 * second)), 5), iterations=3)
    short = steady(db, 1, max(1, int(0.1 * second)), 1)
    for _ in range(6):                          # what was hidden by something louder is found next time
        before, speech = odd.copy(), speech_frames(np.where(odd, 0, power))
        for way in (1, -1):                     # from both ends, until there is speech
            on, most = speech[::way], speech.sum() / 3
            starts, ends = np.flatnonzero(np.diff(on, prepend=False, append=False)).reshape(-1, 2).T
            for a, b, gap in zip(starts, ends, (starts[1:] - ends[:-1]) / second):
                apart = b - a < 0.2 * second and gap > 0.2 or short[::way][a:b].mean() > 0.5
                if gap <= 0.1 or b - a >= most or not apart:
                    break
                odd[::way][max(0, a - 3):b + 3] = True
            odd[::way] |= np.logical_and.accumulate((long | odd)[::way])
        if odd.all() or (odd == before).all():
            break
    return speech if speech.sum() > 0.2 * second else whole                       # of even noise all is kept


def load_audio(path, settings, level=LEVEL, longest=math.inf):
    """Any format, rate and channels -> mono (samples,) at the settings' rate: no offset, at most 0.3
    s of silence or noise at each end, its speech at RMS `level` (0: as it is).

    Raises BadInput, naming the file, when it is missing, unreadable, cut short, silent, shorter than one FFT
    window, or, without decoding it, over `longest` seconds.
    """
    if not Path(path).is_file():                # a pipe would be waited for
        raise BadInput(f"{path}: {'no file of audio' if Path(path).exists() else 'no such file'}")
    try:
        name = os.fsencode(path) if os.name == "posix" else path                  # also one that is no UTF-8
        info = soundfile.info(name)
        if info.duration > longest:
            raise BadInput(f"{path}: {info.duration:.1f} s, longer than {longest:g} s")
        wav, rate = soundfile.read(name, dtype="float32", always_2d=True)         # (samples, channels)
    except (soundfile.LibsndfileError, OSError, RuntimeError) as problem:
        detail = str(problem).split(": ")[-1] or "format not recognised"
        raise BadInput(f"{path}: unreadable audio ({detail}); convert it to .wav") from None
    # libsndfile reads what is left of a cut file; its log has what the header promised (2 GB: a stream)
    sizes = [tuple(map(int, pair)) for pair in re.findall(r"(\d+) \(should be (\d+)\)", info.extra_info)]
    if len(wav) < 0.98 * info.frames - 0.05 * rate or "lacks an end-of-stream" in info.extra_info or any(
            0.98 * promised > there for promised, there in sizes if promised < 0x7f000000):
        raise BadInput(f"{path}: cut short, its end is missing (convert it to .wav to use what is there)")
    wav = wav.mean(axis=1)                                                        # (samples,)
    if len(wav) < rate * settings.n_fft / settings.rate:
        raise BadInput(f"{path}: only {len(wav) / rate:.2f} s of audio, too short to use")
    if rate != settings.rate and np.isfinite(wav).all():
        wav = librosa.resample(wav, orig_sr=rate, target_sr=settings.rate)
    rms, hop, margin = float(wav.std()), settings.hop, int(0.3 * settings.rate)
    if 1e-4 < rms < 1e4 and level:
        end = len(wav) // hop * hop
        wav = wav - np.median(wav[:end].reshape(-1, hop).mean(1))
        power = np.square(wav[:end]).reshape(-1, hop).mean(1)                     # (frames,)
        power = without_drift(wav[:end], power, settings.rate)
        speech = np.flatnonzero(find_speech(power, settings.rate / hop))
        rms = float(np.sqrt(power[speech].mean())) if len(speech) else 0.0
        wav = wav[max(0, speech[0] * hop - margin):(speech[-1] + 1) * hop + margin] if len(speech) else wav
    if not 1e-4 < rms < 1e4:                                                      # also catches NaN and inf
        raise BadInput(f"{path}: silent or not audio (RMS {rms:.1e})")
    gain = 1.0 if not level or (settings.keep_loud and rms > level) else level / rms
    return np.clip(wav * gain, -1.0, 1.0).astype(np.float32)


def crossfade(tail, wav, fade):
    """The end of what was spoken and the next chunk, crossing over linearly in `fade` samples -> audio that
    is ready, and the new end, which waits for the chunk after.
    """
    n = min(fade, len(tail), len(wav))
    ramp, start = np.linspace(0, 1, n, dtype=np.float32), len(tail) - n
    audio = np.concatenate([tail[:start], tail[start:] * (1 - ramp) + wav[:n] * ramp, wav[n:]])
    ready = max(0, len(audio) - fade)
    return audio[:ready], audio[ready:]


def joined(wavs, fade):
    """Audio of chunks -> of all of them, crossing over."""
    ready, tail = [], np.zeros(0, np.float32)
    for wav in wavs:
        audio, tail = crossfade(tail, wav, fade)
        ready.append(audio)
    return np.concatenate([*ready, tail])
