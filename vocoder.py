"""Mel -> audio: Griffin-Lim, which needs no weights, or a public vocoder by its hub name or folder."""
from pathlib import Path

import librosa
import numpy as np
import torch

from common import BadInput, need
from data import MELS, filterbank, log_mel


def griffin_lim(mel, settings, n_iter=60):
    """Normalised log mel (T, M) -> audio (samples,) float32: pseudo-inverse, then Griffin-Lim."""
    log = log_mel(mel.float().cpu(), settings).clamp(max=3.0)                     # never an overflow
    magnitude = 10 ** log if settings.log == "log10" else log.exp()
    magnitude = magnitude * (magnitude > 2 * settings.floor)                      # the floor is silence
    spec = (torch.linalg.pinv(filterbank(settings)) @ magnitude.T).clamp(min=0)   # (n_fft / 2 + 1, T)
    wav = librosa.griffinlim(spec.numpy(), n_iter=n_iter, hop_length=settings.hop, n_fft=settings.n_fft,
                             center=settings.center, random_state=0)
    edge = 0 if settings.center else (settings.n_fft - settings.hop) // 2
    return wav[edge:len(wav) - edge].astype(np.float32)


def load_vocoder(name, settings, device="cpu"):
    """--vocoder: a hub name or local folder -> a function (mel (T, M), settings) -> audio (samples,).

    None: griffin_lim. SpeechT5's HiFi-GAN (package transformers) for our mels, Vocos (package vocos) for
    those of F5-TTS. It runs on device; BadInput when it does not fit or its package is missing.
    """
    if name in (None, "griffin_lim"):
        return griffin_lim
    if settings not in (MELS["speecht5"], MELS["vocos"]):
        raise BadInput(f"--vocoder {name}: none is known for these mels, {settings}; leave it out")
    try:
        if settings == MELS["vocos"]:
            Vocos = need("vocos", "--vocoder").Vocos
            if Path(name).is_dir():
                net = Vocos.from_hparams(Path(name) / "config.yaml")
                net.load_state_dict(torch.load(Path(name) / "pytorch_model.bin", weights_only=True))
            else:
                net = Vocos.from_pretrained(name)
            net = net.to(device).eval()
            return lambda mel, settings: net.decode(log_mel(mel.to(device).float(),
                                                            settings).T[None])[0].cpu().numpy()
        net = need("transformers", "--vocoder").SpeechT5HifiGan.from_pretrained(name).to(device).eval()
        net.requires_grad_(False)
        return lambda mel, settings: net(log_mel(mel.to(device).float(), settings)).cpu().numpy()
    except (OSError, ValueError, RuntimeError) as problem:
        raise BadInput(f"--vocoder {name}: {str(problem).splitlines()[0]}") from None
