"""How long each symbol lasts: a small network, trained beside the teacher and kept in its checkpoint.

Shapes: B batch, L symbols.
"""
import torch
from torch import nn

from model import TextEncoder


class DurationPredictor(nn.Module):
    """Symbols (B, L) -> log durations (B, L), natural log of frames. Small, trained beside the teacher."""

    def __init__(self, vocab, dim=128, blocks=3):
        super().__init__()
        self.text = TextEncoder(vocab, dim, blocks, dropout=0.1)
        self.out = nn.Linear(dim, 1)

    def forward(self, text):
        return self.out(self.text(text, text > 0)).squeeze(-1)                     # (B, L)

    def loss(self, text, durations):
        """Mean squared error of the log durations over valid symbols."""
        error = self(text) - durations.clamp(min=1).log()                         # (B, L)
        return (error ** 2)[text > 0].mean()

    @torch.no_grad()
    def predict(self, text, speed=1.0):
        """Whole frames per symbol (B, L) int64, 1 to 120 (two seconds), padding 0; speed 2 halves them."""
        frames = (self(text).exp() / speed).round().clamp(1, 120).long()
        return frames * (text > 0)
