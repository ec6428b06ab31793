"""Magnitudes -> audio without a network: phases from gradients, then Griffin-Lim. Plain Griffin-Lim too.

Shapes: B batch, T frames, M mel bands, N samples of a window, H of a hop, F = N / 2 + 1 frequencies,
R = N / H.
"""
import math
from functools import lru_cache

import librosa
import numpy as np
import torch
from torch.nn import functional as fn

from data import filterbank, log_mel

FLOOR = 1e-3                    # linear magnitudes under this are silence; the mel's floor is a little higher


@lru_cache
def pseudo_inverse(settings):
    """That of the mel filters, (F, M)."""
    return torch.linalg.pinv(filterbank(settings))


def blurred(mel, settings):
    """Normalised log mel (..., T, M) -> magnitudes (..., T, F) by the pseudo-inverse, which is blurred."""
    log = log_mel(mel.float(), settings).clamp(max=3.0)                           # never an overflow
    magnitude = 10 ** log if settings.log == "log10" else log.exp()
    magnitude = magnitude * (magnitude > 2 * settings.floor)                      # the floor is silence
    return (magnitude @ pseudo_inverse(settings).T.to(mel.device)).clamp(min=0)


def griffin_lim(mel, settings, n_iter=60):
    """Normalised log mel (T, M) -> audio (samples,) float32: pseudo-inverse, then Griffin-Lim."""
    wav = librosa.griffinlim(blurred(mel.cpu(), settings).T.numpy(), n_iter=n_iter, hop_length=settings.hop,
                             n_fft=settings.n_fft, center=settings.center, random_state=0)
    edge = 0 if settings.center else (settings.n_fft - settings.hop) // 2
    return wav[edge:len(wav) - edge].astype(np.float32)


def first_phases(magnitude, settings):
    """Magnitudes (B, T, F) -> phases (B, T, F): phase gradients (Prusa et al. 2017), summed up peak by peak.

    Under a nearly Gaussian window, the log magnitude's slope over frequency is how fast the phase turns over
    time, beside the bin's own frequency; its fall over time is how the phase turns over frequency. A peak of
    the spectrum continues the frame before; the bins on its sides follow it.
    """
    N, H, log = settings.n_fft, settings.hop, (magnitude + FLOOR).log()
    bins, around = torch.arange(log.shape[2], device=log.device), fn.pad(log, (1, 1), value=-math.inf)
    left, right = around[..., :-2], around[..., 2:]
    peak = bins + (right > left.maximum(log)).long() - (left > right.maximum(log)).long()  # climb by 1,
    for _ in range(3):
        peak = peak.gather(2, peak)                                               # then by 2, 4 and 8
    wide = 0.24 * N / H                                                           # Hann as a Gaussian
    turn = torch.gradient(log, dim=2)[0] / wide + 2 * math.pi / N * (bins * H % N)           # radians a frame
    turn = torch.cat([turn[:, :1], (turn[:, 1:] + turn[:, :-1]) / 2], 1).gather(2, peak)
    fall = (torch.cat([log[:, :1], log[:, :-1]], 1) - torch.cat([log[:, 1:], log[:, -1:]], 1)) / 2
    across = wide * fall - math.pi                                                           # radians a bin
    across = across.cumsum(2) - across / 2
    more = turn + across - across.gather(2, peak)                                 # (B, T, F)
    phases = [torch.zeros_like(log[:, 0])]
    for top, step in zip(peak.unbind(1)[1:], more.unbind(1)[1:]):                 # (B, F) each
        phases.append(phases[-1].gather(1, top) + step)
    return torch.stack(phases, 1)


def fast_griffin_lim(magnitude, settings, n_iter=2):
    """Magnitudes (B, T, F) -> audio (B, (T - 1) * H): Griffin-Lim (1984) from first_phases.

    2 iterations sound as good as 16 (Distill-MOS). Windows overlap by whole hops: adding them up here takes a
    third of the time of torch.istft. Gradients reach the magnitudes, so a network can be trained through it.
    """
    N, H, R = settings.n_fft, settings.hop, settings.n_fft // settings.hop
    T, window = magnitude.shape[1], torch.hann_window(N, device=magnitude.device)

    def overlap(frames):                        # (..., T, N) -> (..., T + R - 1, H)
        parts = frames.unflatten(-1, (R, H)).unbind(-2)
        return sum(fn.pad(part, (0, 0, k, R - 1 - k)) for k, part in enumerate(parts))

    def sound(spec):                            # (B, T, F) -> (B, (T + R - 1) * H)
        return (overlap(torch.fft.irfft(spec, N) * window) / envelope).flatten(1)
    envelope = overlap((window ** 2).expand(T, N)).clamp(min=1e-3)
    real = torch.view_as_real(magnitude.to(torch.complex64))                      # (B, T, F, 2): magnitude, 0
    phases = first_phases(magnitude, settings)
    spec = torch.complex(magnitude * phases.cos(), magnitude * phases.sin())      # torch.polar() is slower
    for _ in range(n_iter):
        spec = torch.fft.rfft(sound(spec).unfold(1, N, H) * window)
        square = torch.view_as_real(spec * spec.conj()).clamp(min=1e-8)           # abs() is four times slower
        spec = spec * torch.view_as_complex(square.rsqrt() * real)
    return sound(spec)[:, N // 2:N // 2 + (T - 1) * H]
