"""E2-TTS's way (Eskimez et al. 2024, arXiv 2406.18009): the step condition is a frame in front.

    python teacher.py --backbone e2
    python distill.py --token prepend       a student whose step token is that frame

The blocks are plain, with affine LayerNorms, and attend to that frame. Clock and shapes: see model.py.
"""
import torch
import torch.nn.functional as F

from model import DiT, fold
from networks.f5_net import F5


class E2(DiT):
    """The DiT, with a frame for the time, the pair of times or the step count in place of adaLN."""
    adaln = False

    def forward(self, x, step_cond, ref, h, mask=None):
        """One network call, as DiT.forward(): velocity v (B, T, M)."""
        x = self.position(self.proj_in(torch.cat([x, ref, h], -1)), mask)         # (B, T, D)
        temb = self.embed_step(step_cond)                                         # (B, D) or (1, D)
        x = torch.cat([temb[:, None].expand(len(x), 1, -1), x], 1)                # (B, 1 + T, D)
        mask = None if mask is None else F.pad(mask, (1, 0), value=True)          # (B, 1 + T)
        x = self.through_blocks(x, temb, mask)[:, 1:]                             # (B, T, D)
        return self.proj_out(x)                                                   # (B, T, M)


class F5E2(E2, F5):
    """F5-TTS's text and positions, and E2-TTS's frame."""


FRAMED = {DiT: E2, F5: F5E2}                    # a teacher's class -> its student's whose token is a frame


def prepend(teacher, steps):
    """fold() to a student whose step token is a frame in front. It is near the teacher at t = 0, not equal:
    there is one more frame to attend to, which begins at 0.
    """
    return fold(teacher, steps, kind=FRAMED.get(type(teacher)))
