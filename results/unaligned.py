r"""Does one step survive without alignment? Any command, with durations known of GROUP symbols together.

    PYTHONPATH=. python results/unaligned.py 4 teacher --init checkpoints/teacher.pt --max_iters 2200 \
        --lr 1e-3 --duration_iters 0 --cfg 1
    PYTHONPATH=. python results/unaligned.py 4-160 teacher --init out/teacher/teacher.pt --max_iters 9000 \
        --lr 1e-3 --duration_iters 0 --cfg 1 --out out/whole
    PYTHONPATH=. python results/unaligned.py 4 measure.ablation --teacher out/teacher/teacher.pt
    PYTHONPATH=. python results/unaligned.py 4 measure.evaluate --ckpt out/teacher/teacher.pt ...

Inside a group every symbol gets as many frames (the even spread of ZipVoice, arXiv 2506.13053), and the
network must find what is spoken when: 4 symbols are about a word, 1000 a whole utterance. `teacher` withdraws
the durations: symbols move from their own frames to the even ones in the first 60 % of the updates, three
items of ten a part of that way only; with FROM-GROUP the groups grow, each doubling in as many updates, two
items of ten lagging behind. No --resume: the way is counted from the first update.
"""
import argparse
import importlib
import sys

import torch

import data
import teacher
from common.cli import BadInput, Parser, cli
from speech import voices

COMMANDS = ("teacher", "distill", "sample", "measure.ablation", "measure.evaluate")
begun, group, updates = 0, 1, 0                 # FROM, GROUP and --max_iters, see main()
batches, g = -1, torch.Generator().manual_seed(5)


def warp(durations, way=1.0, size=None):
    """Durations (L,) -> the symbol that each frame is given (T,): their own at way 0, even in groups at 1."""
    even, start = [], 0
    for part in durations.split(size or group):
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


def groups(word):
    """GROUP or FROM-GROUP -> (0 or FROM, GROUP)."""
    first, _, last = word.rpartition("-")
    if not (first or "0").isdecimal() or not last.isdecimal() or not int(first or 0) < int(last):
        raise argparse.ArgumentTypeError(f"{word}: expected a number of symbols, like 4, or two, like 4-160")
    return int(first or 0), int(last)


def main():
    global begun, group, updates
    p = Parser(__doc__)
    p.add_argument("groups", type=groups, metavar="GROUP", help="symbols, like 4, or FROM-GROUP, like 4-160")
    p.add_argument("command", choices=COMMANDS, help="what runs, with its flags behind")
    p.add_argument("words", nargs=argparse.REMAINDER, metavar="...", help="its flags")
    flags = p.parse_args()
    (begun, group), words = flags.groups, flags.words
    if flags.command == "teacher":
        if "--max_iters" not in words and "--help" not in words:
            raise BadInput("--max_iters: is missing; the way is a share of it")
        updates = int(dict(zip(words, words[1:])).get("--max_iters", 0))
        teacher.collate = collate
    data.frame_to_symbol, voices.frame_to_symbol = withdrawn, warp
    sys.argv = [f"{flags.command}.py", *words]
    importlib.import_module(flags.command).main()


if __name__ == "__main__":
    cli(main)
