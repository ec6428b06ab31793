"""Networks that tell recordings from copies, for the vocoder's adversarial training. No part of speaking.

Three look at spectrograms of different resolution, as in UnivNet (Jang et al. 2021) and EnCodec (Defossez et
al. 2022): a short window shows when something happens, a long one at which frequencies.

Shapes: B batch, N samples, T frames, F frequencies, W channels.
"""
import torch
from torch import nn
from torch.nn import functional as fn
from torch.nn.utils.parametrizations import weight_norm

WINDOWS = (256, 512, 1024)      # samples; hops are a quarter


def spectrum(wav, n_fft):
    """Audio (B, N) -> complex spectrum (B, F, T), hops of a quarter window."""
    window = torch.hann_window(n_fft, device=wav.device)
    return torch.stft(wav, n_fft, n_fft // 4, window=window, return_complex=True)


def magnitude_of(spec, floor=1e-4):
    """|spec|, with a gradient where it is 0 too."""
    return torch.view_as_real(spec).square().sum(-1).clamp(min=floor ** 2).sqrt()


class Discriminator(nn.Module):
    """Audio (B, N) -> scores (B, 1, F / 8, T), above 0 for recordings, and the features of its layers.

    It sees magnitudes to the power of 0.3, so that quiet parts count, and the same turned by the phases.
    """

    def __init__(self, n_fft, width=12):
        super().__init__()
        self.n_fft = n_fft
        wide = dict(kernel_size=(9, 3), stride=(2, 1))
        layers = [nn.Conv2d(3, width, (9, 3), padding=(4, 1))]
        layers += [nn.Conv2d(width, width, padding=(4, far), dilation=(1, far), **wide) for far in (1, 2, 4)]
        layers += [nn.Conv2d(width, width, 3, padding=1)]
        self.layers = nn.ModuleList(weight_norm(layer) for layer in layers)
        self.out = weight_norm(nn.Conv2d(width, 1, 3, padding=1))

    def forward(self, wav):
        spec = spectrum(wav, self.n_fft)
        size = magnitude_of(spec)
        loud, turn = size ** 0.3, spec / size
        x, features = torch.stack([loud, loud * turn.real, loud * turn.imag], 1), []         # (B, 3, F, T)
        for layer in self.layers:
            x = fn.leaky_relu(layer(x), 0.1)                                      # (B, W, F / 1 ... 8, T)
            features.append(x)
        return self.out(x), features


def discriminators():
    """One for each of WINDOWS."""
    return nn.ModuleList(Discriminator(n_fft) for n_fft in WINDOWS)


def hinge_loss(critics, real, fake):
    """What the critics learn from: recordings above 1, copies below -1. Audio (B, N) each -> ()."""
    scores = [(critic(real)[0], critic(fake.detach())[0]) for critic in critics]
    return sum(fn.relu(1 - r).mean() + fn.relu(1 + f).mean() for r, f in scores)


def generator_losses(critics, real, fake):
    """What copies learn from critics that hold still -> minus their scores, and feature matching, () each."""
    score, matching = 0.0, 0.0
    critics.requires_grad_(False)
    for critic in critics:
        found, features = critic(fake)
        with torch.no_grad():
            _, wanted = critic(real)
        score = score - found.mean() / len(critics)
        off = sum((a - b).abs().mean() / b.abs().mean().clamp(min=1e-3) for a, b in zip(features, wanted))
        matching = matching + off / len(features) / len(critics)
    critics.requires_grad_(True)
    return score, matching


def spectral_loss(fake, real, windows=(256, 512, 1024, 2048)):
    """Multi-resolution STFT loss (Yamamoto et al. 2020): magnitudes over their mean, and their logs, L1."""
    total = 0.0
    for n_fft in windows:
        a, b = (magnitude_of(spectrum(wav, n_fft), 1e-3) for wav in (fake, real))
        total = total + (a - b).abs().mean() / b.mean() + (a.log() - b.log()).abs().mean()
    return total / len(windows)
