r"""Does one step survive without alignment? Any command, with durations known of GROUP symbols together.

    PYTHONPATH=. python results/unaligned.py 4 teacher --init checkpoints/teacher.pt --max_iters 2200 \
        --lr 1e-3 --duration_iters 0 --cfg 1
    PYTHONPATH=. python results/unaligned.py 4-160 teacher --init out/teacher/teacher.pt --max_iters 9000 \
        --lr 1e-3 --duration_iters 0 --cfg 1 --out out/whole
    PYTHONPATH=. python results/unaligned.py 4 ablation --teacher out/teacher/teacher.pt --steps 1 2 3 4
    PYTHONPATH=. python results/unaligned.py 4 evaluate --teacher out/teacher/teacher.pt ...

Inside a group every symbol gets as many frames (the even spread of ZipVoice, arXiv 2506.13053), and the
network must find what is spoken when: 4 symbols are about a word, 1000 a whole utterance. `teacher` withdraws
the durations: symbols move from their own frames to the even ones in the first 60 % of the updates, three
items of ten a part of that way only; with FROM-GROUP the groups grow, each doubling in as many updates, two
items of ten lagging behind. No --resume: the way is counted from the first update.
"""
import importlib
import sys

import torch

import data
import teacher
from common.cli import cli
from speech import voices

(begun, _, group), name, words = sys.argv[1].rpartition("-"), sys.argv[2], sys.argv[3:]
begun, group = int(begun or 0), int(group)
if name == "teacher" and "--max_iters" not in words:
    sys.exit("error: --max_iters: expected, the way is a share of it")
updates = int(words[words.index("--max_iters") + 1]) if "--max_iters" in words else 0
batches, g = -1, torch.Generator().manual_seed(5)


def warp(durations, way=1.0, group=group):
    """Durations (L,) -> the symbol that each frame is given (T,): their own at way 0, even in groups at 1."""
    even, start = [], 0
    for part in durations.split(group):
        even.append(start + int(part.sum()) * torch.arange(1, len(part) + 1).double() / len(part))
        start += int(part.sum())
    ends = ((1 - way) * durations.cumsum(0).double() + way * torch.cat(even)).round().long()           # (L,)
    return torch.arange(len(ends)).repeat_interleave(torch.diff(ends, prepend=ends.new_zeros(1)))


def withdrawn(durations):
    if batches <= 0:                            # the first batch of teacher.py is the held-out one
        return warp(durations)
    most, share = torch.rand(2, generator=g)
    front = min(1.0, batches / ((0.65 if begun else 0.6) * updates))
    front = front if most < (0.8 if begun else 0.7) else front * float(share)
    return warp(durations, 1.0, round(begun * (group / begun) ** front)) if begun else warp(durations, front)


def collate(*batch):
    global batches
    batches += 1
    return data.collate(*batch)


data.frame_to_symbol, voices.frame_to_symbol = withdrawn, warp
if name == "teacher":
    teacher.collate = collate
sys.argv = [f"{name}.py", *words]
cli(importlib.import_module(name).main)
