"""How many frames each symbol lasts: a flat-start aligner, so that recordings with their text need no lexicon
and no other aligner.

One diagonal Gaussian per symbol over cepstra; start with equal shares, then in turn estimate the Gaussians
and find the best monotonic path under them (Viterbi, as dynamic time warping).

Shapes: T mel frames, L symbols, M mel bands, C cepstral features, V vocabulary.
"""
import math

import librosa
import numpy as np
import torch
from tqdm import tqdm


def cepstra(mel, n=14):
    """Normalised log mel (T, M) -> n cepstra (DCT-II, utterance mean removed) and slopes, (T, C = 2 n)."""
    T, M = mel.shape
    k, m = torch.arange(n)[:, None], torch.arange(M)[None, :]
    dct = torch.cos(torch.pi * k * (m + 0.5) / M) * (2 / M) ** 0.5                # (n, M)
    c = mel.float() @ dct.T                                                       # (T, n)
    c = c - c.mean(0)                                                             # voice and channel drop out
    padded = torch.cat([c[:1], c[:1], c, c[-1:], c[-1:]])                         # (T + 4, n)
    return torch.cat([c, (padded[4:] - padded[:-4]) / 4], dim=1)                  # (T, 2 n)


def align(features, ids, gauss):
    """Durations of symbols ids (L,) on features (T, C), at least one frame each, L <= T -> (L,) int64.

    gauss: {"mean", "var"}, each (V + 1, C). The quadratic form is two products, so no (T, V, C) tensor.
    """
    mean, precision = gauss["mean"], 1 / gauss["var"]
    logp = (features @ (mean * precision).T) - 0.5 * (features ** 2 @ precision.T)   # (T, V + 1)
    logp = logp - 0.5 * (mean ** 2 * precision + gauss["var"].log()).sum(1)
    cost = -logp[:, ids].T.double().numpy()                                       # (L, T)
    _, path = librosa.sequence.dtw(C=cost, step_sizes_sigma=np.array([[0, 1], [1, 1]]),
                                   weights_add=np.zeros(2), weights_mul=np.ones(2))  # stay, or move on by one
    return torch.bincount(torch.from_numpy(path[:, 0].copy()), minlength=len(ids))


def align_corpus(features, lengths, ids, vocab_size, rounds=8, learn=4000):
    """Flat-start alignment -> durations [(L,)] and the Gaussians {"mean", "var"} that produced them.

    features(i) gives (T, C) of utterance i, lengths[i] its T; ids[i] is (L,) with L <= T. A corpus of more
    than `learn` utterances takes as many of all lengths to estimate with, and is aligned once at the end.
    """
    order = sorted(range(len(ids)), key=lambda i: lengths[i])
    some = order[::math.ceil(len(order) / learn)]
    durations = [torch.bincount(torch.arange(T) * len(i) // T) for T, i in zip(lengths, ids)]
    gauss = None
    for _ in tqdm(range(rounds), desc="align", leave=False, disable=None):
        n, s1, s2 = torch.zeros(vocab_size + 1, 1), 0.0, 0.0
        for i in some:
            f, symbol = features(i), ids[i].repeat_interleave(durations[i])       # (T, C), (T,)
            n.index_add_(0, symbol, torch.ones(len(symbol), 1))
            s1 = s1 + torch.zeros(vocab_size + 1, f.shape[1]).index_add_(0, symbol, f)
            s2 = s2 + torch.zeros(vocab_size + 1, f.shape[1]).index_add_(0, symbol, f ** 2)
        overall = (s2.sum(0) - s1.sum(0) ** 2 / n.sum()) / n.sum()                # (C,) of everything
        mean = s1 / n.clamp(min=1)
        var = torch.where(n > 1, s2 / n.clamp(min=1) - mean ** 2,
                          overall).clamp(min=0) + 0.02 * overall + 1e-6
        gauss = {"mean": mean, "var": var}
        for i in some:
            durations[i] = align(features(i), ids[i], gauss)
    for i in set(order) - set(some):
        durations[i] = align(features(i), ids[i], gauss)
    return durations, gauss
