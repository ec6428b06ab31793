"""F5-TTS's own network: text that no durations spread over the frames. f5.py gives it the published weights.

    python teacher.py --backbone f5

Clock and shapes: see model.py.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from model import DiT, DiTConfig, masked, rotary_table


@dataclass(frozen=True)
class F5Config(DiTConfig):
    """Everything needed to build an F5. By the two fields F5-TTS's versions differ, see FLAVOURS in f5.py."""
    mask_filler: bool = True    # fillers, which follow the text, stay 0 between the text blocks
    rotary_heads: int = 0       # so many heads have positions; 0: all


class F5(DiT):
    """The DiT, but its text blocks run over T frames: first the symbols, one a frame, then fillers, all with
    absolute positions. Which frame speaks which symbol is for attention to find.
    """

    def embed_text(self, text, align, mask=None, drop=None):
        """Frame-level text features h (B, T, E), as DiT.embed_text(); takes only T from align (B, T)."""
        T = align.shape[1]
        text = F.pad(text, (0, max(0, T - text.shape[1])))[:, :T]                 # (B, T)
        keep = text > 0 if self.config.mask_filler else mask
        h = self.text.embed(text if drop is None else text.masked_fill(drop[:, None], 0))    # (B, T, E)
        if self.text.blocks:
            table = rotary_table(T, h.shape[2], h.device)                         # (T, E / 2)
            h = masked(h + torch.cat([table.real, table.imag], -1).type_as(h), keep)
        for block in self.text.blocks:
            h = masked(block(h, mask), keep)
        return masked(h, mask)

    def rotary(self, T, device):
        """Positions of T frames, (T, d / 2) or, where only the first rotary_heads have any, (H, T, d / 2)."""
        table, c = super().rotary(T, device), self.config
        if not c.rotary_heads:
            return table
        first = torch.arange(c.heads, device=device) < c.rotary_heads             # (H,)
        return torch.where(first[:, None, None], table, 1)
