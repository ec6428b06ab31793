"""One training run in many processes, or in smaller pieces.

    torchrun --standalone --nproc_per_node=8 distill.py --batch_frames 64000 --accumulate 2 ...

An update is defined by its joint batch of --batch_frames; processes and --accumulate only cut it into parts.
So every number of processes makes the same run, to rounding, and resumes the run of any other: more of them
make an update faster, a larger --batch_frames makes it larger. Only the first process prints and writes.
Nothing here is needed to understand the method.

Shapes: J items of the joint batch, B of a part; T mel frames, L characters.
"""
import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist

from data import BadInput


def join():
    """Under torchrun: find the other processes, through NCCL on CUDA, else gloo. Without it: nothing."""
    if "RANK" not in os.environ:
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))                      # what "cuda" means from now
    # so long may the first process index a corpus while the others wait; torchrun sees one that died anyway
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timedelta(days=1))
    if dist.get_rank():
        sys.stdout = open(os.devnull, "w")


def world():
    """(number of this process, how many there are)."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def together(act):
    """act(), which waits for all processes; when one of them is gone, the others end with one line."""
    try:
        act()
    except RuntimeError as problem:
        raise BadInput(f"another process of this run is gone ({str(problem).splitlines()[0][:80]}); "
                       "--resume continues from the last checkpoint") from None


def first_alone(make):
    """make(), in the first process before the others: what it leaves in a cache they find there."""
    rank, ranks = world()
    if rank:
        together(dist.barrier)
    made = make()
    if ranks > 1 and not rank:
        together(dist.barrier)
    return made


def parts(batch, accumulate):
    """This process's share of a joint batch -> `accumulate` batches, without the padding others need.

    Part k of P has the items k, k + P, ...: they are sorted by length, so all have alike work. Each has rows
    (J,), which items it holds, and its shares of the frames to generate, weight (), and of the characters,
    letters (): the sum of share * loss over all parts is the loss of the joint batch, where that is a mean
    over frames, or characters. A part for which no item is left repeats one, at weight 0.
    """
    (rank, ranks), J, found = world(), len(batch["mask"]), []
    if ranks * accumulate == 1:
        return [dict(batch, weight=1.0, letters=1.0)]
    for k in range(rank * accumulate, (rank + 1) * accumulate):
        rows = torch.arange(J) % (ranks * accumulate) == (k if k < J else 0)
        part = {name: v[rows] for name, v in batch.items()}
        T, L = int(part["mask"].sum(1).max()), int((part["text"] > 0).sum(1).max())
        part = {name: v[:, :L if name in ("text", "durations") else T] if v.dim() > 1 else v
                for name, v in part.items()}
        shares = dict(weight=(k < J) * part["todo"].sum() / batch["todo"].sum(),
                      letters=(k < J) * (part["text"] > 0).sum() / (batch["text"] > 0).sum())
        found.append(dict(part, rows=rows, **shares))
    return found


def draw(batch, g, below=None):
    """A number for each item: uniform in [0, 1), or a whole one below a bound -> (B,) on the CPU.

    A part draws for its whole joint batch and keeps its own, so that cutting a batch changes no number.
    """
    rows = batch.get("rows", torch.ones(len(batch["mask"]), dtype=torch.bool))
    numbers = (torch.rand(len(rows), generator=g) if below is None
               else torch.randint(below, (len(rows),), generator=g))
    return numbers[rows]


def sum_gradients(net):
    """Add up the gradients of all processes, in one message.

    DistributedDataParallel would overlap this with the backward pass, but it wants one forward() an update;
    a loss here calls parts of the network, some of them twice, or inside a forward-mode product.
    """
    if world()[1] > 1:
        grads = [p.grad for p in net.parameters() if p.grad is not None]
        flat = torch.cat([grad.flatten() for grad in grads])
        together(lambda: dist.all_reduce(flat))
        for grad, total in zip(grads, flat.split([grad.numel() for grad in grads])):
            grad.copy_(total.view_as(grad))


def anywhere(flag, device):
    """True in every process if flag is in one: all of them stop after the same update."""
    if world()[1] == 1:
        return flag
    count = torch.tensor(float(flag), device=device)
    together(lambda: dist.all_reduce(count))
    return bool(count)
