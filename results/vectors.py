"""dmd.py that trains vectors alone: a student's file then differs from its --init's in a sixtieth.

    PYTHONPATH=. python results/vectors.py --init STUDENT.pt --cfg 1 --lr 5e-4 --max_iters 900 --pool 50 \
        --reuse 100 --out out/vectors

STUDENT.pt: of `python -m networks.checkpoint`, in 8-bit integers. Trained are norms, biases, tokens and the
last layer, 33,000 numbers of two million; out/vectors/small.pt keeps all integers but the last layer's.
"""
import sys

import torch

import distill
from methods import dmd
from networks.checkpoint import to_integers
from common.cli import BadInput, cli
from common.files import save_torch
from common.run import adamw

make_student = distill.make_student


def vectors(flags, method, teacher, init=None):
    """distill.make_student(), whose student has its matrices frozen."""
    student, nets, _ = make_student(flags, method, teacher, init)
    for name, p in student.named_parameters():
        p.requires_grad_(p.dim() < 2 or "token" in name or "proj_out" in name)
    trained = [p for p in student.parameters() if p.requires_grad]
    return student, nets, adamw([dict(params=trained), dict(params=nets["auxiliary"].parameters(), lr=4e-4)],
                                flags.lr, 0)


def main():
    if not {"--out", "--init"} <= set(sys.argv) and "--help" not in sys.argv:
        raise BadInput("--init and --out: expected both, see the top of vectors.py")
    distill.main(dmd.METHODS)
    out, old = (sys.argv[sys.argv.index(flag) + 1] for flag in ("--out", "--init"))
    new, small = (torch.load(path, weights_only=True) for path in (f"{out}/student.pt", old))
    whole, steps = to_integers({name: w for name, w in new["model"].items()
                                if "token" in name or "proj_out" in name})
    vector = {name: w for name, w in new["model"].items() if w.dim() < 2}
    small["model"] |= vector | whole
    small["steps"] |= {f"model.{name}": step for name, step in steps.items()}
    save_torch(f"{out}/small.pt", small | dict(config=new["config"]))
    print(f"wrote {out}/small.pt")


distill.make_student = vectors
cli(main)
