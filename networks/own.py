"""A network of your own, whole: python teacher.py --backbone own. For another, copy this file and add it to
BACKBONES in checkpoint.py. Shapes: see model.py.
"""
from dataclasses import dataclass

import torch
from torch import nn

from model import ConvNeXtV2, TextEncoder, TimestepMLP, frame_text


@dataclass(frozen=True)
class OwnConfig:
    vocab: int
    mels: int = 80
    dim: int = 192
    time: str = "t"             # "pair" for IntMeanFlow


SIZES = {"tiny": {}, "small": dict(dim=384), "base": dict(dim=768)}


class Own(nn.Module):
    tokens = False              # there is no adaLN for step tokens to replace

    def __init__(self, config):
        super().__init__()
        c = self.config = config
        self.text, self.timestep = TextEncoder(c.vocab, c.dim, 4), TimestepMLP(c.dim, c.time == "pair")
        self.proj_in = nn.Linear(2 * c.mels + c.dim, c.dim)
        self.blocks = nn.ModuleList(ConvNeXtV2(c.dim) for _ in range(12))
        self.proj_out = nn.Linear(c.dim, c.mels)

    def embed_text(self, text, align, mask=None, drop=None):
        return frame_text(self.text, text, align, drop)                           # h (B, T, E)

    def step_condition(self, n, t, r):
        return (t, r) if self.config.time == "pair" else t

    def forward(self, x, step_cond, ref, h, mask=None):
        x = self.proj_in(torch.cat([x, ref, h], -1)) + self.timestep(step_cond)[:, None]    # (B, T, D)
        for block in self.blocks:
            x = block(x, mask)
        return self.proj_out(x)                                                   # v (B, T, M)
