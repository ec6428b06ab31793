"""What a training loop needs that is no method: flags, schedule, average, updates, interrupts, --resume, and
one update made by many processes or in smaller parts.

    torchrun --standalone --nproc_per_node=8 distill.py --batch_frames 64000 --accumulate 2 ...

An update is defined by its joint batch of --batch_frames; processes and --accumulate only cut it into parts.
So every number of processes makes the same run, to rounding, and resumes the run of any other: more of them
make an update faster, a larger --batch_frames makes it larger. Not equal, only alike, are the dropout of the
duration predictor, and losses that are no mean over frames (--method meanflow). Only the first process prints
and writes; when one dies, all end with an error.

Shapes: J items of the joint batch, B of a part; T mel frames, L symbols.
"""
import math
import os
import signal
import sys
import time as clock
from datetime import timedelta
from pathlib import Path

import filelock
import torch
import torch.distributed as dist
from tqdm import tqdm

from common.cli import BadInput, count, number
from common.files import as_cell, fit_weights, load_torch, read_csv, save_torch, write_csv
from common.plots import plot_curves

# ------------------------------------------------------------------------------------------------ the command


def add_flags(add, out, **default):
    """The flags that every training command has. default: of those whose default differs between them."""
    add("--data", default="corpus", help="folder of recordings, see prepare.py (default corpus)")
    add("--out", type=Path, default=Path(out),
        help="checkpoints, log, tables, pictures and audio go here (default %(default)s)")
    add("--cache", default="cache", help="where mels and alignments are kept (default %(default)s)")
    add("--keep_outliers", action="store_true", help="take recordings whose text and sound do not fit")
    add("--keep_unknown", action="store_true", help="drop symbols that the checkpoint lacks, however many")
    add("--max_iters", type=count(), default=default["max_iters"], help="updates (default %(default)s)")
    add("--batch_frames", type=count(), default=default["batch_frames"],
        help="mel frames per update, padding included (default %(default)s)")
    add("--accumulate", type=count(1, 10**4), default=1,
        help="parts of a batch, one after the other: less memory, the same update (default %(default)s)")
    add("--lr", type=number(1e-9, 1), default=default["lr"],
        help="peak learning rate of AdamW (default %(default)s)")
    add("--warmup", type=count(0), default=default["warmup"],
        help="updates of linear warm-up (default %(default)s)")
    add("--ema", type=number(0, 1), default=default["ema"],
        help="decay of the weight average that is saved (default %(default)s)")
    add("--p_noref", type=number(0, 1), default=default["p_noref"],
        help="share of items without a reference (default %(default)s)")
    add("--cfg", type=number(0, 20), default=default["cfg"], help=default["cfg_help"])
    add("--eval_every", type=count(), default=default["eval_every"],
        help="updates between reports (default %(default)s)")
    add("--save_every", type=count(), default=default["save_every"],
        help="updates between checkpoints (default %(default)s)")
    add("--resume", action="store_true",
        help="continue the run in --out with the same flags; --max_iters may change, the schedule follows it")
    add("--overwrite", action="store_true", help="replace the run that is in --out")
    add("--seed", type=count(0), default=0, help="everything random follows from it (default 0)")
    add("--device", default="auto", help="auto, cuda, mps or cpu (default auto)")


# ------------------------------------------------------------------------------------------------- one update


def learning_rate(step, peak, warmup, total):
    """Linear warm-up, then cosine decay to 2 % of the peak at `total` updates."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


@torch.no_grad()
def ema_update(ema, net, step, decay):
    """ema <- decay * ema + (1 - decay) * net; the first updates average over a tenth of their number."""
    decay = min(decay, (1 + step) / (10 + step))
    for mean, now in zip(ema.parameters(), net.parameters()):
        mean.lerp_(now, 1 - decay)


def seed_update(seed, step):
    """Seed torch (for dropout) from (seed, step) -> generator of the update: a resumed run draws the same."""
    torch.manual_seed(seed * 1_000_003 + step)
    return torch.Generator().manual_seed(seed * 1_000_003 + step + 1)


def adamw(groups, lr, weight_decay):
    """AdamW, fused: a step takes 2 ms instead of 9, of 110 to 180 an update on two cores."""
    return torch.optim.AdamW(groups, lr, betas=(0.9, 0.98), weight_decay=weight_decay, fused=True)


def optimise(optimiser, rates, step, most=1.0):
    """Clip the gradients, update, clear them -> gradient norm. rates: learning rates of the first parameter
    groups; those of others stay.

    A gradient that is not finite, as of a loss that is not, stops the run before it reaches the weights.
    """
    for group, rate in zip(optimiser.param_groups, rates):
        group["lr"] = rate
    sum_gradients([p for group in optimiser.param_groups for p in group["params"]])
    norms = [torch.nn.utils.clip_grad_norm_(group["params"], most) for group in optimiser.param_groups]
    # clipped apart: the predictor's dropout is its own. sum(): on CUDA the norm of no gradients is on the CPU
    norm = sum(norm.square() for norm in norms).sqrt()
    if not torch.isfinite(norm):
        raise BadInput(f"gradient norm {norm.item():g} at update {step}: run again with a lower --lr (now "
                       f"{rates[0]:.1e}); the last checkpoint is intact")
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return norm


# ---------------------------------------------------------------------------------------------------- the run


class Interrupt:
    """Ctrl-C and SIGTERM set a flag: the loop ends its update, saves and stops. Twice: it stops at once."""

    def __init__(self):
        self.asked = False
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, self)

    def __call__(self, *_):
        self.asked = True
        self.restore()

    def restore(self):
        """Give both signals back to Python."""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


FREE = {"data", "out", "cache", "device", "resume", "overwrite", "eval_every", "save_every", "max_iters",
        "count", "recompute", "accumulate"}     # may differ on --resume; what --data holds may not


def claim(flags):
    """Take --out for this run -> a lock, which ends with the process. BadInput where another run is at work,
    or one would be destroyed.
    """
    flags.out.mkdir(parents=True, exist_ok=True)
    if world()[0]:
        return None
    lock, state = filelock.FileLock(flags.out / ".lock"), flags.out / "last.pt"
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise BadInput(f"--out {flags.out}: another run is writing there; choose another --out") from None
    found = [name for name in ("last.pt", "teacher.pt", "student.pt", "vocoder.pt")
             if (flags.out / name).is_file()]
    if found and not (flags.resume or flags.overwrite):
        raise BadInput(f"--out {flags.out}: holds a run ({found[0]}); continue it by --resume, replace it by "
                       "--overwrite, or choose another --out")
    if flags.resume and not state.is_file():
        print(f"--resume: nothing is saved in {flags.out} yet, starting from the beginning")
    return lock


class Log:
    """A CSV with one row a report, a picture of its curves beside it, and the same on the screen.

    Resuming at `step` drops the rows that will come again.
    """

    def __init__(self, path, step):
        self.path = Path(path)
        self.rows = [r for r in read_csv(path) if int(r["step"]) <= step] if step else []

    def report(self, **row):
        """Add one row of numbers; those that are nan stay empty."""
        self.rows.append({k: as_cell(v) for k, v in row.items() if v == v})
        write_csv(self.path, self.rows)
        plot_curves(self.rows, self.path.with_suffix(".png"))
        tqdm.write("  ".join(f"{k} {v}" for k, v in self.rows[-1].items() if "/" not in k))


class Run:
    """One training run in its folder: what --resume needs, the log, interrupts, means between reports.

    recipe: name -> plain value, which must be the same on --resume, except those in FREE. step counts from
    `first`; nets are what the state holds beside the optimiser.
    """

    def __init__(self, flags, device, nets, optimiser, recipe):
        self.flags, self.device, self.nets, self.optimiser = flags, device, nets, optimiser
        self.recipe = {k: str(v) if isinstance(v, Path) else v for k, v in recipe.items()}
        again = flags.resume and (flags.out / "last.pt").is_file()
        self.first = self.load() if again else 0
        self.speaks = world()[0] == 0           # the first process alone measures, prints and writes
        for name in ("last.pt", "log.csv", "log.png"):
            if self.speaks and not again:       # nothing of an older run may pass for this one's
                (flags.out / name).unlink(missing_ok=True)
        self.log, self.interrupt = Log(flags.out / "log.csv", self.first), Interrupt()
        self.begin()

    def begin(self):
        """Forget what was recorded since the last report."""
        self.records, self.updates, self.since = {}, 0, clock.perf_counter()

    def steps(self, name):
        """The numbers of the updates that are left, with a progress bar."""
        return tqdm(range(self.first, self.flags.max_iters), name, initial=self.first,
                    total=self.flags.max_iters, disable=None if self.speaks else True)

    def record(self, **values):
        """What one part of an update gave, tensors (); nan where it gave nothing."""
        for name, value in values.items():
            self.records.setdefault(name, []).append(value.detach())

    def report(self, **measured):
        """A row of the log: means of what was recorded, what was measured, seconds an update."""
        means = {name: float(torch.stack(values).nanmean()) for name, values in self.records.items()}
        pace = self.seconds() / max(1, self.updates)
        self.log.report(step=self.done, **means, **measured, seconds_per_update=pace)

    def seconds(self):
        """Seconds since the last report."""
        return clock.perf_counter() - self.since

    def count_update(self, step):
        """Update `step` is made: sets done, and report_due, save_due for the process that writes."""
        self.done, last = step + 1, step + 1 == self.flags.max_iters
        self.updates += 1
        self.stop = anywhere(self.interrupt.asked, self.device)
        self.reported = self.done % self.flags.eval_every == 0 or last
        self.report_due = self.speaks and self.reported
        self.save_due = self.speaks and (self.done % self.flags.save_every == 0 or last or self.stop)
        if last:
            self.interrupt.restore()

    def end_update(self):
        """Stop here if that was asked for; after a report, record anew."""
        if self.stop:
            print(f"interrupted: saved after update {self.done}; continue with --resume")
            raise KeyboardInterrupt
        if self.reported:
            self.begin()

    def save(self):
        """Everything --resume needs, whole or not at all. Write the checkpoint first: it is never older."""
        nets = {name: net.state_dict() for name, net in self.nets.items()}
        save_torch(self.flags.out / "last.pt",
                   dict(format="dsflow-state-1", step=self.done, **nets, settings=self.recipe,
                        optimiser=self.optimiser.state_dict()))

    def load(self):
        """Restore save()'s file -> updates done."""
        path = self.flags.out / "last.pt"
        state = load_torch(path, "dsflow-state-1", "the last.pt of a training run")
        try:
            for name in sorted(self.recipe.keys() - FREE):
                old, new = state["settings"].get(name), self.recipe[name]
                if old != new:
                    raise BadInput(f"--resume: {path} was made with another {name}: {old}, now {new}")
            for name, net in self.nets.items():
                fit_weights(net, state[name], name)
            self.optimiser.load_state_dict(state["optimiser"])
            return int(state["step"])
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as problem:
            raise BadInput(f"--resume: {path} does not fit this run ({problem}); --overwrite it") from None


# ---------------------------------------------------------------------------------------- processes and parts


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


def wait_for_all(act):
    """act(), which waits for all processes; when one of them is gone, the others end with one line."""
    try:
        act()
    except RuntimeError as problem:
        raise BadInput(f"another process of this run is gone ({str(problem).splitlines()[0][:80]}); "
                       "--resume continues from the last checkpoint") from None


def first_process_first(make):
    """make(), in the first process before the others: what it leaves in a cache they find there."""
    rank, ranks = world()
    if rank:
        wait_for_all(dist.barrier)
    made = make()
    if ranks > 1 and not rank:
        wait_for_all(dist.barrier)
    return made


def parts(batch, accumulate):
    """This process's share of a joint batch -> `accumulate` batches, without the padding others need.

    Part k of P has the items k, k + P, ...: they are sorted by length, so all have alike work. Each has rows,
    the numbers (B,) of its items among the J, and its shares of the frames to generate, frame_share (), and
    of the symbols, symbol_share (): the sum of share * loss over all parts is the loss of the joint batch,
    where that is a mean over frames, or symbols. A part for which no item is left repeats one, at share 0.
    """
    (rank, ranks), J, found = world(), len(batch["mask"]), []
    rows = torch.arange(J)
    if ranks * accumulate == 1:
        return [dict(batch, rows=rows, frame_share=1.0, symbol_share=1.0)]
    for k in range(rank * accumulate, (rank + 1) * accumulate):
        mine = rows[k::ranks * accumulate] if k < J else rows[:1]
        part = {name: v[mine.to(v.device)] for name, v in batch.items()}
        T, L = int(part["mask"].sum(1).max()), int((part["text"] > 0).sum(1).max())
        width = dict.fromkeys(part, T) | dict(text=L, durations=L)
        part = {name: v[:, :width[name]] if v.dim() > 1 else v for name, v in part.items()}
        found.append(dict(part, rows=mine, frame_share=(k < J) * part["todo"].sum() / batch["todo"].sum(),
                          symbol_share=(k < J) * (part["text"] > 0).sum() / (batch["text"] > 0).sum()))
    return found


def draw(batch, J, g, numbers=6):
    """Random numbers for the parts of a joint batch of J items, drawn where it is whole, so that cutting it
    changes none -> the parts with u (B, numbers), uniform in [0, 1), for their items, and coin, one for all.
    """
    u, coin = torch.rand(J, numbers, generator=g), float(torch.rand((), generator=g))
    return [dict(part, u=u[part["rows"]].to(part["mask"].device), coin=coin) for part in batch]


def sum_gradients(parameters):
    """Add up the gradients of all processes, in one message.

    DistributedDataParallel would overlap this with the backward pass, but it wants one forward() an update;
    a loss here calls parts of the network, some of them twice, or inside a forward-mode product.
    """
    if world()[1] > 1:
        grads = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([grad.flatten() for grad in grads])
        wait_for_all(lambda: dist.all_reduce(flat))
        for grad, total in zip(grads, flat.split([grad.numel() for grad in grads])):
            grad.copy_(total.view_as(grad))


def anywhere(flag, device):
    """True in every process if flag is in one: all of them stop after the same update."""
    if world()[1] == 1:
        return flag
    count = torch.tensor(float(flag), device=device)
    wait_for_all(lambda: dist.all_reduce(count))
    return bool(count)
