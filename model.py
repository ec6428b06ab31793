"""The network: a diffusion transformer (DiT) for mels, teacher and student alike. Imports nothing local.

ONE CLOCK for the whole project: t = 0 is noise x0 ~ N(0, I), t = 1 is data x1;
x_t = (1 - t) x0 + t x1, and the network predicts the velocity v = x1 - x0. Sampling moves t upward.

THE SWITCH is DiTConfig.time: on what a step is conditioned. step_condition() gives this STEP CONDITION.
    "t"        the time where it begins: an MLP makes of it scale, shift and gate of every branch (adaLN-Zero,
               as in F5-TTS). The teacher
    "pair"     the times where it begins and ends, (t, r), the same way: an average velocity (IntMeanFlow)
    "step"     how many steps there are: one learned vector per step count n, added to every frame; the blocks
               are plain, with affine LayerNorms. DSFlow's student
fold() turns "t" into "step" exactly, at one t; pair() turns it into "pair" exactly, at every t and r.

Details follow F5-TTS (Chen et al. 2024, arXiv 2410.06885): ConvNeXt-V2 text blocks, convolutional positions,
rotary attention. Unlike there, padding never leaks: an item gives the same output alone and in any batch.

Shapes: B batch, T mel frames, L symbols, M mel bands, D width, E text width, H heads, d head width.
"""
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class DiTConfig:
    """Everything needed to build a DiT. A checkpoint carries it as a plain dict."""
    vocab: int                  # symbols, ids 1 ... vocab; id 0 is the filler that means "no text"
    mels: int = 80
    dim: int = 192              # D
    depth: int = 4
    heads: int = 3              # H
    head_dim: int = 64          # d
    ff_mult: int = 2            # hidden width of the feed-forward, in D
    text_dim: int = 192         # E
    text_blocks: int = 4
    time: str = "t"             # the switch: "t", "pair" or "step"
    steps: tuple = ()           # "step" only: the step counts n that have a vector


SIZES = {
    "tiny": dict(dim=192, depth=4, heads=3, text_dim=192),                       # 3.1M: trains on a CPU
    "small": dict(dim=384, depth=8, heads=6, text_dim=256),                      # 19M: for a GPU
    "base": dict(dim=512, depth=16, heads=8, ff_mult=4, text_dim=512),           # the paper's shape
}


# ------------------------------------------------------------------------------------------------- leaves


def masked(x, mask):
    """x (B, T, D) with padded frames set to 0. mask (B, T) bool, or None: nothing is padded."""
    return x if mask is None else x * mask[..., None]


class ConvNeXtV2(nn.Module):
    """ConvNeXt-V2 block (Woo et al. 2023) over text, as in F5-TTS. (B, L, E) -> (B, L, E)."""

    def __init__(self, dim):
        super().__init__()
        self.dwconv = nn.Conv1d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, 2 * dim)
        self.gamma = nn.Parameter(torch.zeros(2 * dim))  # global response normalisation
        self.beta = nn.Parameter(torch.zeros(2 * dim))
        self.pwconv2 = nn.Linear(2 * dim, dim)

    def forward(self, x, mask):
        h = self.dwconv(masked(x, mask).transpose(1, 2)).transpose(1, 2)          # (B, L, E)
        h = F.gelu(self.pwconv1(self.norm(h)))                                    # (B, L, 2 E)
        energy = masked(h, mask).norm(dim=1, keepdim=True)  # (B, 1, 2 E) over valid symbols
        h = h + self.gamma * h * energy / (energy.mean(-1, keepdim=True) + 1e-6) + self.beta
        return x + self.pwconv2(h)


class TextEncoder(nn.Module):
    """Symbol ids (B, L) -> features (B, L, E): embedding, then ConvNeXt-V2 blocks, dropout before each.

    mask (B, L) bool: which symbols belong to the text. The others end as 0.
    """

    def __init__(self, vocab, dim, blocks, dropout=0.0):
        super().__init__()
        self.dropout = dropout
        self.embed = nn.Embedding(vocab + 1, dim)
        self.blocks = nn.ModuleList(ConvNeXtV2(dim) for _ in range(blocks))

    def forward(self, text, mask):
        x = self.embed(text)                                                      # (B, L, E)
        for block in self.blocks:
            x = masked(block(F.dropout(x, self.dropout, self.training), mask), mask)
        return masked(x, mask)


def frame_text(encoder, text, align, drop=None):
    """Symbols (B, L) and align (B, T), the symbol each frame speaks -> frame-level text features (B, T, E).

    drop (B,) bool: these items get "no text" (filler), the text half of the unconditional branch.
    """
    valid = text > 0                                                              # before drop, as in F5-TTS
    h = encoder(text if drop is None else text.masked_fill(drop[:, None], 0), valid)   # (B, L, E)
    return h.gather(1, align[..., None].expand(-1, -1, h.shape[-1]))              # (B, T, E)


class ConvPosition(nn.Module):
    """A frame's place among its neighbours: two convolutions of 31 frames, added. (B, T, D) -> (B, T, D)."""

    def __init__(self, dim):
        super().__init__()
        self.conv1 = nn.Conv1d(dim, dim, 31, padding=15, groups=16)
        self.conv2 = nn.Conv1d(dim, dim, 31, padding=15, groups=16)

    def forward(self, x, mask):
        h = F.mish(self.conv1(masked(x, mask).transpose(1, 2))).transpose(1, 2)   # (B, T, D)
        h = F.mish(self.conv2(masked(h, mask).transpose(1, 2))).transpose(1, 2)   # (B, T, D)
        return x + masked(h, mask)


def rotary_table(T, d, device):
    """Rotations of T positions for heads of width d, as complex numbers e^(i angle), (T, d / 2) complex64."""
    frequency = 10000 ** (-torch.arange(0, d, 2, device=device).float() / d)      # (d / 2,)
    angle = torch.arange(T, device=device).float()[:, None] * frequency           # (T, d / 2)
    return torch.polar(torch.ones_like(angle), angle)


def precise(x):
    """x in float32 at least: angles in less are wrong."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def rotate(x, rotary):
    """Rotary position embedding on interleaved pairs: each is a complex number. x (B, H, T, d)."""
    pairs = torch.view_as_complex(precise(x).unflatten(-1, (-1, 2)))              # (B, H, T, d / 2)
    return torch.view_as_real(pairs * rotary).flatten(-2).type_as(x)


class Attention(nn.Module):
    """Rotary multi-head self-attention that never looks at padding. (B, T, D) -> (B, T, D)."""

    def __init__(self, c):
        super().__init__()
        self.heads = c.heads
        self.qkv = nn.Linear(c.dim, 3 * c.heads * c.head_dim)
        self.out = nn.Linear(c.heads * c.head_dim, c.dim)

    def forward(self, x, rotary, mask):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, T, d) each
        keys = None if mask is None else mask[:, None, None, :]                   # (B, 1, 1, T)
        x = F.scaled_dot_product_attention(rotate(q, rotary), rotate(k, rotary), v, attn_mask=keys)
        return self.out(x.transpose(1, 2).flatten(2))                             # (B, T, D)


class TimestepMLP(nn.Module):
    """Time t in [0, 1], or a pair (t, r), floats or (B,) -> (B, D), (1, D) for floats: sinusoids of 1000 t
    as in F5-TTS. The embeddings of a pair are mixed by a matrix W without bias, as in IntMeanFlow.
    """

    def __init__(self, dim, pair=False):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.mixer = nn.Linear(2 * dim, dim, bias=False) if pair else None

    def embed(self, t):
        weight = self.mlp[0].weight
        t = precise(torch.as_tensor(t, device=weight.device)).reshape(-1, 1)     # (B, 1), (1, 1) for a float
        decay = torch.full((), 10000.0, device=t.device).log() / 127             # float32, as in F5-TTS
        angle = 1000 * t * torch.exp(-torch.arange(128, device=t.device).float() * decay)    # (B, 128)
        return self.mlp(torch.cat([angle.sin(), angle.cos()], -1).type_as(weight))

    def forward(self, step_cond):
        if self.mixer is None:
            return self.embed(step_cond)                                          # (B, D)
        return self.mixer(torch.cat([self.embed(t) for t in step_cond], -1))      # (B, 2 D) -> (B, D)


class Block(nn.Module):
    """Transformer block. adaln: temb (B, D), a time's vector, sets scale, shift and gate of both branches."""

    def __init__(self, c, adaln):
        super().__init__()
        self.norm1 = nn.LayerNorm(c.dim, eps=1e-6, elementwise_affine=not adaln)
        self.attn = Attention(c)
        self.norm2 = nn.LayerNorm(c.dim, eps=1e-6, elementwise_affine=not adaln)
        self.ff1 = nn.Linear(c.dim, c.ff_mult * c.dim)
        self.ff2 = nn.Linear(c.ff_mult * c.dim, c.dim)
        self.adaln = nn.Linear(c.dim, 6 * c.dim) if adaln else None

    def feed_forward(self, x):
        return self.ff2(F.gelu(self.ff1(x), approximate="tanh"))

    def forward(self, x, temb, rotary, mask):
        if self.adaln is None:
            x = x + self.attn(self.norm1(x), rotary, mask)
            return x + self.feed_forward(self.norm2(x))
        # shifts, scales, gates: (B, 1, D) each; of attention, then of the feed-forward
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = self.adaln(F.silu(temb))[:, None].chunk(6, -1)
        x = x + gate_a * self.attn(self.norm1(x) * (1 + scale_a) + shift_a, rotary, mask)
        return x + gate_f * self.feed_forward(self.norm2(x) * (1 + scale_f) + shift_f)


# ------------------------------------------------------------------------------------------------- DiT


class DiT(nn.Module):
    """Velocity network v(x, t or n, condition). The condition is (ref, h): reference mel, and text features
    of each frame, which embed_text() makes once per utterance. forward() is one network call.
    """
    tokens = True               # step tokens can replace its timestep network
    adaln = True                # a time sets scales, shifts and gates; False: networks/e2.py
    recompute = False           # True: blocks keep no activations for the backward pass, they run again in it

    def __init__(self, config):
        super().__init__()
        c = self.config = config
        assert c.time in ("t", "pair", "step"), c.time
        adaln = self.adaln and c.time != "step"
        self.text = TextEncoder(c.vocab, c.text_dim, c.text_blocks)
        self.proj_in = nn.Linear(2 * c.mels + c.text_dim, c.dim)
        self.position = ConvPosition(c.dim)
        self.timestep = TimestepMLP(c.dim, c.time == "pair") if c.time != "step" else None
        self.token = nn.Embedding(len(c.steps), c.dim) if c.time == "step" else None  # the step tokens
        self.blocks = nn.ModuleList(Block(c, adaln) for _ in range(c.depth))
        self.norm_out = nn.LayerNorm(c.dim, eps=1e-6, elementwise_affine=not adaln)
        self.adaln_out = nn.Linear(c.dim, 2 * c.dim) if adaln else None
        self.proj_out = nn.Linear(c.dim, c.mels)
        # a fresh network outputs exactly 0, and every adaLN block starts as the identity
        modulations = [block.adaln for block in self.blocks] + [self.adaln_out] if adaln else []
        for layer in (*modulations, self.proj_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        if self.token is not None:
            nn.init.zeros_(self.token.weight)

    def embed_text(self, text, align, mask=None, drop=None):
        """Frame-level text features h (B, T, E), see frame_text(). mask (B, T): valid frames, or None."""
        return frame_text(self.text, text, align, drop)

    def step_condition(self, n, t, r):
        """The step condition of a step from time t to r, one of n: by the switch n, (t, r) or t."""
        return {"step": n, "pair": (t, r), "t": t}[self.config.time]

    def embed_step(self, step_cond):
        """Step condition -> its vector: (B, D); (1, D) for one t or a step count."""
        if self.token is None:
            return self.timestep(step_cond)
        return self.token.weight[self.config.steps.index(step_cond)][None]

    def rotary(self, T, device):
        """Positions of T frames, as rotate() takes them."""
        return rotary_table(T, self.config.head_dim, device)

    def through_blocks(self, x, temb, mask):
        """All blocks and the last norm, (B, T, D) -> (B, T, D). temb (B, D): for adaLN."""
        rotary = self.rotary(x.shape[1], x.device)
        for block in self.blocks:
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, temb, rotary, mask, use_reentrant=False)
            else:
                x = block(x, temb, rotary, mask)
        return self.norm_out(x)

    def forward(self, x, step_cond, ref, h, mask=None):
        """One network call: velocity v = x1 - x0 at noisy mel x, (B, T, M).

        x, ref (B, T, M): noisy mel; reference mel, 0 where unknown. h (B, T, E): embed_text's features.
        step_cond: by the switch t, a float or (B,); two of those, (t, r); or the step count n, an int.
        mask (B, T) bool: valid frames, None if all are. What padded frames hold has no effect on valid ones.
        """
        x = self.position(self.proj_in(torch.cat([x, ref, h], -1)), mask)         # (B, T, D)
        temb = self.embed_step(step_cond)                                         # (B, D) or (1, D)
        if self.adaln_out is None:              # a step token
            return self.proj_out(self.through_blocks(x + temb[:, None], temb, mask))         # (B, T, M)
        x = self.through_blocks(x, temb, mask)
        scale, shift = self.adaln_out(F.silu(temb))[:, None].chunk(2, -1)         # (B, 1, D)
        return self.proj_out(x * (1 + scale) + shift)                             # (B, T, M)


def count_parameters(model):
    """(all parameters, those that condition on time: timestep MLP, adaLN or other layers, tokens)."""
    conditioning = ("timestep.", ".time.", "adaln", "token.")
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    return sum(sizes.values()), sum(n for name, n in sizes.items() if any(c in name for c in conditioning))


@torch.no_grad()
def pair(teacher):
    """Teacher conditioned on t -> student of pairs (t, r), equal at every t and r: IntMeanFlow's start.

    The embeddings of t and r are mixed by W = [I | 0]; [0 | I] would copy the end time instead.
    """
    student = type(teacher)(replace(teacher.config, time="pair")).to(next(teacher.parameters()))
    W = torch.eye(*student.timestep.mixer.weight.shape)                           # (D, 2 D)
    student.load_state_dict(teacher.state_dict() | {"timestep.mixer.weight": W})
    return student


@torch.no_grad()
def fold(teacher, steps, t=0.0, kind=None):
    """Teacher conditioned on t -> step-token student that equals it at time t to rounding.

    adaLN depends on t alone, so at one t it is a constant: LN(x) (1 + scale) + shift is an affine LayerNorm,
    and gate * (W h + b) is a linear layer (gate W) h + gate b; step vectors begin at 0. A teacher without
    adaLN takes t as a vector already: all step vectors begin as its vector at t. [ours: the papers do not say
    how to start] kind: the student's class, by default the teacher's.
    """
    c = replace(teacher.config, time="step", steps=tuple(steps))
    student = (kind or type(teacher))(c).to(next(teacher.parameters()))
    weights = {k: v for k, v in teacher.state_dict().items() if "adaln" not in k and "timestep" not in k}
    missing, extra = student.load_state_dict(weights, strict=False)
    assert not extra and all("norm" in k or "token" in k for k in missing), (missing, extra)
    temb = teacher.timestep(t)[0]                                                 # (D,)
    if teacher.adaln_out is None:
        student.token.weight.copy_(temb.expand(len(steps), -1))
        return student
    for old, new in zip(teacher.blocks, student.blocks):
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = old.adaln(F.silu(temb)).chunk(6)  # (D,) each
        for norm, scale, shift in ((new.norm1, scale_a, shift_a), (new.norm2, scale_f, shift_f)):
            norm.weight.copy_(1 + scale)
            norm.bias.copy_(shift)
        for out, gate in ((new.attn.out, gate_a), (new.ff2, gate_f)):
            out.weight.mul_(gate[:, None])
            out.bias.mul_(gate)
    scale, shift = teacher.adaln_out(F.silu(temb)).chunk(2)
    student.norm_out.weight.copy_(1 + scale)
    student.norm_out.bias.copy_(shift)
    return student
