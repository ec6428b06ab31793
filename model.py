"""The network: a diffusion transformer (DiT) for mels, teacher and student alike. Imports nothing local.

ONE CLOCK for the whole project: t = 0 is noise x0 ~ N(0, I), t = 1 is data x1;
x_t = (1 - t) x0 + t x1, and the network predicts the velocity v = x1 - x0. Sampling moves t upward.

THE SWITCH is two fields of DiTConfig. time: what the network is told of a step, as one vector of width D:
    "t"        where it begins, through a timestep MLP (the teacher)
    "pair"     where it begins and ends, (t, r): for the average velocity between (IntMeanFlow, MeanFlow)
    "step"     how many there are: one learned vector per step count n (DSFlow's student)
and enters: how that vector enters:
    "adaln"    as scale, shift and gate of every branch (adaLN-Zero: F5-TTS)
    "prepend"  as one frame more, in front; the blocks are plain, with affine LayerNorms (E2-TTS)
    "add"      added to every frame, the blocks plain (DSFlow's student)
fold() turns "t" into "step" exactly, at one t; pair() turns it into "pair" exactly, at every t and r.

Block details follow F5-TTS (Chen et al. 2024, arXiv 2410.06885): ConvNeXt-V2 text blocks, convolutional
positions, rotary attention, adaLN-Zero; three fields of DiTConfig make it F5-TTS itself (f5.py). Unlike
there, padding never leaks: an item gives the same output alone and in any batch.

Shapes: B batch, T mel frames, L symbols, M mel bands, D width, E text width, H heads, d head width.
"""
import copy
import math
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
    time: str = "t"             # the switch: "t", "pair" or "step"; and
    enters: str = "adaln"       # "adaln", "prepend" or "add"
    steps: tuple = ()           # "step" only: the step counts n that have a vector
    aligned: bool = True        # text blocks run over symbols, each frame takes those it speaks; False, as
    #                             in F5-TTS: over T frames, fillers after the text, with absolute positions
    mask_filler: bool = True    # not aligned: fillers stay 0 between the text blocks
    rotary_heads: int = 0       # so many heads have positions; 0: all


SIZES = {
    "tiny": dict(dim=192, depth=4, heads=3, text_dim=192),                       # 3.1M: trains on a CPU
    "small": dict(dim=384, depth=8, heads=6, text_dim=256),                      # 19M: one GPU, minutes
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

    mask (B, L): what belongs to the item, None: all. keep (B, L): what is not set to 0 between the blocks.
    """

    def __init__(self, vocab, dim, blocks, dropout=0.0, positions=False):
        super().__init__()
        self.dropout, self.positions = dropout, positions
        self.embed = nn.Embedding(vocab + 1, dim)
        self.blocks = nn.ModuleList(ConvNeXtV2(dim) for _ in range(blocks))

    def forward(self, text, mask, keep):
        x = self.embed(text)                                                      # (B, L, E)
        if self.positions and self.blocks:
            table = rotary_table(x.shape[1], x.shape[2], x.device)                # (L, E / 2)
            x = x + torch.cat([table.real, table.imag], -1).type_as(x)
            x = masked(x, keep)
        for block in self.blocks:
            x = masked(block(F.dropout(x, self.dropout, self.training), mask), keep)
        return masked(x, mask)


def frame_text(encoder, text, align, drop=None):
    """Symbols (B, L) and align (B, T), the symbol each frame speaks -> frame-level text features (B, T, E).

    drop (B,) bool: these items get "no text" (filler), the text half of the unconditional branch.
    """
    valid = text > 0                                                              # before drop, as in F5-TTS
    h = encoder(text if drop is None else text.masked_fill(drop[:, None], 0), valid, valid)  # (B, L, E)
    return h.gather(1, align[..., None].expand(-1, -1, h.shape[-1]))              # (B, T, E)


class ConvPosition(nn.Module):
    """Positions from content: two grouped convolutions of 31 frames, added. (B, T, D) -> (B, T, D)."""

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
        self.heads, self.rotary_heads = c.heads, c.rotary_heads or c.heads
        self.qkv = nn.Linear(c.dim, 3 * c.heads * c.head_dim)
        self.out = nn.Linear(c.heads * c.head_dim, c.dim)

    def forward(self, x, rotary, mask):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, T, d) each
        keys = None if mask is None else mask[:, None, None, :]                   # (B, 1, 1, T)
        q, k = (torch.cat([rotate(i[:, :self.rotary_heads], rotary), i[:, self.rotary_heads:]], 1)
                for i in (q, k))
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=keys)
        return self.out(x.transpose(1, 2).flatten(2))                             # (B, T, D)


class TimestepMLP(nn.Module):
    """Time t in [0, 1], or a pair (t, r), floats or (B,) -> (B, D), (1, D) for floats; sinusoids of 1000 t as
    in F5-TTS. A pair's two embeddings are mixed by a matrix W without bias, as in IntMeanFlow.
    """

    def __init__(self, dim, pair=False):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.mixer = nn.Linear(2 * dim, dim, bias=False) if pair else None

    def embed(self, t):
        weight = self.mlp[0].weight
        t = precise(torch.as_tensor(t, device=weight.device)).reshape(-1, 1)     # (B, 1), (1, 1) for a float
        per = torch.full((), 10000.0, device=t.device).log() / 127               # float32, as in F5-TTS
        angle = 1000 * t * torch.exp(-torch.arange(128, device=t.device).float() * per)      # (B, 128)
        return self.mlp(torch.cat([angle.sin(), angle.cos()], -1).type_as(weight))

    def forward(self, when):
        if self.mixer is None:
            return self.embed(when)                                               # (B, D)
        return self.mixer(torch.cat([self.embed(t) for t in when], -1))           # (B, 2 D) -> (B, D)


class Block(nn.Module):
    """Transformer block; adaln: temb sets scale, shift and gate of both branches, else affine norms."""

    def __init__(self, c):
        super().__init__()
        affine = c.enters != "adaln"
        self.norm1 = nn.LayerNorm(c.dim, eps=1e-6, elementwise_affine=affine)
        self.attn = Attention(c)
        self.norm2 = nn.LayerNorm(c.dim, eps=1e-6, elementwise_affine=affine)
        self.ff1 = nn.Linear(c.dim, c.ff_mult * c.dim)
        self.ff2 = nn.Linear(c.ff_mult * c.dim, c.dim)
        self.adaln = None if affine else nn.Linear(c.dim, 6 * c.dim)

    def feed_forward(self, x):
        return self.ff2(F.gelu(self.ff1(x), approximate="tanh"))

    def forward(self, x, temb, rotary, mask):
        if self.adaln is None:
            x = x + self.attn(self.norm1(x), rotary, mask)
            return x + self.feed_forward(self.norm2(x))
        # shifts, scales, gates: (B, 1, D) each
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = self.adaln(F.silu(temb))[:, None].chunk(6, -1)
        x = x + gate_a * self.attn(self.norm1(x) * (1 + scale_a) + shift_a, rotary, mask)
        return x + gate_f * self.feed_forward(self.norm2(x) * (1 + scale_f) + shift_f)


# ------------------------------------------------------------------------------------------------- DiT


class DiT(nn.Module):
    """Velocity network v(x, t or n, condition). The condition is (ref, h): reference mel and frame-level text
    features.

    embed_text() makes h once per utterance, which saves a fifth of each call at size tiny; forward() is one
    network call.
    """
    tokens = True               # step tokens can replace its timestep network
    recompute = False           # True: blocks keep no activations for the backward pass, they run again in it

    def __init__(self, config):
        super().__init__()
        c = self.config = config
        assert c.time in ("t", "pair", "step") and c.enters in ("adaln", "prepend", "add"), (c.time, c.enters)
        self.text = TextEncoder(c.vocab, c.text_dim, c.text_blocks, positions=not c.aligned)
        self.proj_in = nn.Linear(2 * c.mels + c.text_dim, c.dim)
        self.position = ConvPosition(c.dim)
        self.timestep = TimestepMLP(c.dim, c.time == "pair") if c.time != "step" else None
        self.token = nn.Embedding(len(c.steps), c.dim) if c.time == "step" else None  # the step tokens
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.depth))
        self.norm_out = nn.LayerNorm(c.dim, eps=1e-6, elementwise_affine=c.enters != "adaln")
        self.adaln_out = nn.Linear(c.dim, 2 * c.dim) if c.enters == "adaln" else None
        self.proj_out = nn.Linear(c.dim, c.mels)
        self.init_weights()

    def init_weights(self):
        """torch defaults, but a fresh network outputs exactly 0 and every adaLN block starts as the identity.
        """
        for layer in [block.adaln for block in self.blocks] + [self.adaln_out, self.proj_out]:
            if layer is not None:
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)
        if self.token is not None:
            nn.init.zeros_(self.token.weight)

    def embed_text(self, text, align, mask=None, drop=None):
        """Frame-level text features h (B, T, E), see frame_text(). mask (B, T) bool: valid frames, or None.
        A text that is not aligned takes only T from align.
        """
        if self.config.aligned:
            return frame_text(self.text, text, align, drop)
        T = align.shape[1]
        text = F.pad(text, (0, max(0, T - text.shape[1])))[:, :T]                 # (B, T)
        keep = text > 0 if self.config.mask_filler else mask
        return self.text(text if drop is None else text.masked_fill(drop[:, None], 0), mask, keep)

    def when(self, n, t, r):
        """What forward() is told about a step from time t to r, one of n: by the switch n, (t, r) or t."""
        return {"step": n, "pair": (t, r), "t": t}[self.config.time]

    def forward(self, x, when, ref, h, mask=None):
        """One network call: velocity v = x1 - x0 at noisy mel x, (B, T, M).

        x, ref (B, T, M): noisy mel; reference mel, 0 where unknown. h (B, T, E): embed_text's features.
        when: by the switch t as float or (B,); a pair of those, (t, r), for the average velocity from t to r;
        or the step count n as int.
        mask (B, T) bool: valid frames, None if all are. What padded frames hold has no effect on valid ones.
        """
        x = self.proj_in(torch.cat([x, ref, h], -1))                              # (B, T, D)
        x = self.position(x, mask)
        if self.timestep is not None:
            temb = self.timestep(when)                                            # (B, D), (1, D) for one t
        else:
            temb = self.token.weight[self.config.steps.index(when)][None]         # (1, D)
        if self.config.enters == "add":
            x = x + temb[:, None]
        elif self.config.enters == "prepend":
            x = torch.cat([temb[:, None].expand(len(x), 1, -1), x], 1)            # (B, 1 + T, D)
            mask = None if mask is None else F.pad(mask, (1, 0), value=True)
        rotary = rotary_table(x.shape[1], self.config.head_dim, x.device)
        for block in self.blocks:
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, temb, rotary, mask, use_reentrant=False)
            else:
                x = block(x, temb, rotary, mask)
        x = self.norm_out(x)
        if self.adaln_out is not None:
            scale, shift = self.adaln_out(F.silu(temb))[:, None].chunk(2, -1)     # (B, 1, D)
            x = x * (1 + scale) + shift
        elif self.config.enters == "prepend":
            x = x[:, 1:]                                                          # (B, T, D)
        return self.proj_out(x)                                                   # (B, T, M)


def count_parameters(model):
    """(all parameters, those that condition on time: timestep MLP, adaLN or other layers, tokens)."""
    conditioning = ("timestep.", ".time.", "adaln", "token.")
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    return sum(sizes.values()), sum(n for name, n in sizes.items() if any(c in name for c in conditioning))


@torch.no_grad()
def pair(teacher):
    """Teacher told t -> student of pairs (t, r) that equals it at every t, whatever r: IntMeanFlow's start.

    The embeddings of t and r are mixed by W = [I | 0]; r first would copy the END time.
    """
    student = type(teacher)(replace(teacher.config, time="pair")).to(next(teacher.parameters()))
    W = torch.eye(*student.timestep.mixer.weight.shape)                           # (D, 2 D)
    student.load_state_dict(teacher.state_dict() | {"timestep.mixer.weight": W})
    return student


@torch.no_grad()
def fold(teacher, steps, t=0.0, enters="add"):
    """Teacher told t -> step-token student that equals it at time t to rounding.

    adaLN depends on t alone, so at one t it is a constant: LN(x) (1 + scale) + shift is an affine LayerNorm,
    and gate * (W h + b) is a linear layer (gate W) h + gate b; step vectors begin at 0 (but "prepend" gives
    one more frame to attend to). Where t already is a frame, its vector at t is what they begin as.
    [ours: the papers do not say how to start]
    """
    plain = teacher.config.enters != "adaln"
    c = replace(teacher.config, time="step", steps=tuple(steps),
                enters=teacher.config.enters if plain else enters)
    student = type(teacher)(c).to(next(teacher.parameters()))
    weights = {k: v for k, v in teacher.state_dict().items() if "adaln" not in k and "timestep" not in k}
    missing, extra = student.load_state_dict(weights, strict=False)
    assert not extra and all("norm" in k or "token" in k for k in missing), (missing, extra)
    temb = teacher.timestep(t)[0]                                                 # (D,)
    if plain:
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


@torch.no_grad()
def refit(student, steps):
    """Student -> the same for other step counts: a new vector begins as that of the nearest count it had. A
    network that is told times takes any count and stays as it is.
    """
    if student.config.time != "step":
        return copy.deepcopy(student)
    old, new = student.config.steps, tuple(sorted(steps))
    other = type(student)(replace(student.config, steps=new)).to(next(student.parameters()))
    nearest = [min(range(len(old)), key=lambda i: abs(math.log(old[i] / n))) for n in new]
    other.load_state_dict(student.state_dict() | {"token.weight": student.token.weight[nearest]})
    return other


# ------------------------------------------------------------------------------------------------- durations


class DurationPredictor(nn.Module):
    """Symbols (B, L) -> log durations (B, L), natural log of frames. Small, trained beside the teacher."""

    def __init__(self, vocab, dim=128, blocks=3):
        super().__init__()
        self.text = TextEncoder(vocab, dim, blocks, dropout=0.1)
        self.out = nn.Linear(dim, 1)

    def forward(self, text):
        return self.out(self.text(text, text > 0, text > 0)).squeeze(-1)                    # (B, L)

    def loss(self, text, durations):
        """Mean squared error of the log durations over valid symbols."""
        error = self(text) - durations.clamp(min=1).log()                         # (B, L)
        return (error ** 2)[text > 0].mean()

    @torch.no_grad()
    def predict(self, text, speed=1.0):
        """Whole frames per symbol (B, L) int64, 1 to 120 (two seconds), padding 0; speed 2 halves them."""
        frames = (self(text).exp() / speed).round().clamp(1, 120).long()
        return frames * (text > 0)
