"""Another network: a 1-D U-Net of convolutions and attention, as in Matcha-TTS and CosyVoice2.

    python teacher.py --backbone unet

Frames are processed at full rate, at half rate, and at full rate again, with skip connections across. Time
is added inside the residual blocks; there is no adaLN, so no step token can replace it: a student of it
keeps t, as in DSFlow's paper with CosyVoice2, or (t, r) for IntMeanFlow. Inputs and output are the DiT's,
see model.py, and so are clock and shapes. As there, padding never leaks: norms are over channels, as in
CosyVoice2's causal blocks, where Matcha-TTS (Mehta et al. 2023, arXiv 2309.03199) has norms over time.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from model import Block, TextEncoder, TimestepMLP, frame_text, masked, rotary_table


@dataclass(frozen=True)
class UNetConfig:
    """Everything needed to build a UNet; names as in DiTConfig."""
    vocab: int
    mels: int = 80
    dim: int = 128              # D, at both rates
    depth: int = 4              # stages in the middle, at half rate; two more on either side
    heads: int = 2
    head_dim: int = 64
    ff_mult: int = 2
    text_dim: int = 192
    text_blocks: int = 4
    time: str = "t"             # the switch: "t" or "pair"


SIZES = {
    "tiny": dict(dim=128, depth=4, heads=2),                                      # 3.2M
    "small": dict(dim=256, depth=12, heads=4, text_dim=256),                      # 19M
    "base": dict(dim=512, depth=12, heads=8, ff_mult=4, text_dim=512),            # CosyVoice2's depth; 93M
}


class FrameConv(nn.Module):
    """A convolution over time of (B, T, D), which never sees padding."""

    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x, mask):
        return self.conv(masked(x, mask).transpose(1, 2)).transpose(1, 2)


class ResBlock(nn.Module):
    """Two convolutions, the time embedding added between them, and a shortcut. (B, T, W) -> (B, T, D)."""

    def __init__(self, width, dim):
        super().__init__()
        self.conv1 = FrameConv(nn.Conv1d(width, dim, 3, padding=1))
        self.norm1 = nn.LayerNorm(dim)
        self.time = nn.Linear(dim, dim)
        self.conv2 = FrameConv(nn.Conv1d(dim, dim, 3, padding=1))
        self.norm2 = nn.LayerNorm(dim)
        self.shortcut = nn.Linear(width, dim)

    def forward(self, x, temb, mask):
        h = F.mish(self.norm1(self.conv1(x, mask))) + self.time(F.mish(temb))[:, None]       # (B, T, D)
        return F.mish(self.norm2(self.conv2(h, mask))) + self.shortcut(x)


class Stage(nn.Module):
    """A residual block, then a plain transformer block. (B, T, W) -> (B, T, D)."""

    def __init__(self, width, c):
        super().__init__()
        self.head_dim = c.head_dim
        self.res = ResBlock(width, c.dim)
        self.block = Block(c, adaln=False)

    def forward(self, x, temb, mask):
        x = self.res(x, temb, mask)
        return self.block(x, None, rotary_table(x.shape[1], self.head_dim, x.device), mask)


class UNet(nn.Module):
    """Velocity network v(x, t or (t, r), condition): the same calls as DiT. S = ceil(T / 2)."""
    tokens = False              # there is no adaLN for step tokens to replace
    recompute = False

    def __init__(self, config):
        super().__init__()
        c = self.config = config
        assert c.time in ("t", "pair"), c.time
        self.text = TextEncoder(c.vocab, c.text_dim, c.text_blocks)
        self.timestep = TimestepMLP(c.dim, c.time == "pair")
        self.down1 = Stage(2 * c.mels + c.text_dim, c)
        self.shrink = FrameConv(nn.Conv1d(c.dim, c.dim, 3, stride=2, padding=1))
        self.down2 = Stage(c.dim, c)
        self.middle = nn.ModuleList(Stage(c.dim, c) for _ in range(c.depth))
        self.up2 = Stage(2 * c.dim, c)
        self.grow = FrameConv(nn.ConvTranspose1d(c.dim, c.dim, 4, stride=2, padding=1))
        self.up1 = Stage(2 * c.dim, c)
        self.norm_out = nn.LayerNorm(c.dim)
        self.proj_out = nn.Linear(c.dim, c.mels)
        nn.init.zeros_(self.proj_out.weight)    # a fresh network outputs exactly 0, as the DiT does
        nn.init.zeros_(self.proj_out.bias)

    def embed_text(self, text, align, mask=None, drop=None):
        """Frame-level text features h (B, T, E), see model.frame_text()."""
        return frame_text(self.text, text, align, drop)

    def step_condition(self, n, t, r):
        """The step condition of a step from time t to r, one of n: by the switch (t, r) or t."""
        return {"pair": (t, r), "t": t}[self.config.time]

    def run(self, stage, x, temb, mask):
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(stage, x, temb, mask, use_reentrant=False)
        return stage(x, temb, mask)

    def forward(self, x, step_cond, ref, h, mask=None):
        """One network call, as DiT.forward(): velocity v (B, T, M)."""
        temb, T = self.timestep(step_cond), x.shape[1]                            # (B, D)
        half = None if mask is None else mask[:, ::2]                             # (B, S)
        full = self.run(self.down1, torch.cat([x, ref, h], -1), temb, mask)       # (B, T, D)
        low = x = self.run(self.down2, self.shrink(full, mask), temb, half)       # (B, S, D)
        for stage in self.middle:
            x = self.run(stage, x, temb, half)
        x = self.run(self.up2, torch.cat([x, low], -1), temb, half)               # (B, S, D)
        x = self.grow(x, half)[:, :T]                                             # (B, T, D)
        x = self.run(self.up1, torch.cat([x, full], -1), temb, mask)
        return self.proj_out(self.norm_out(x))                                    # (B, T, M)
