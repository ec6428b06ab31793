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
import csv
import itertools
import math
import os
import signal
import sys
import threading
import time as clock
from datetime import timedelta
from pathlib import Path

import filelock
import torch
import torch.distributed as dist
from tqdm import tqdm

from common.cli import BadInput
from common.files import as_cell, fit_weights, load_torch, read_csv, save_torch, write_csv
from common.plots import plot_curves

# ------------------------------------------------------------------------------------------------- one update


def learning_rate(step, peak, warmup, total):
    """Linear warm-up, then cosine decay to 2 % of the peak at `total` updates. A warm-up that would not end
    is shortened to a tenth of them.
    """
    warmup = warmup if warmup < total else total // 10
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
    """Ctrl-C and SIGTERM set a flag: the loop ends its update, saves and stops. Twice: it stops at once.

    Only a program's main thread may ask for signals; a run in another thread goes without.
    """

    def __init__(self):
        self.asked = False
        self.listens = threading.current_thread() is threading.main_thread()
        if self.listens:
            for name in (signal.SIGINT, signal.SIGTERM):
                signal.signal(name, self)

    def __call__(self, *_):
        self.asked = True
        self.restore()

    def restore(self):
        """Give both signals back to Python."""
        if self.listens:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


FREE = {"data", "out", "cache", "device", "resume", "overwrite", "eval_every", "save_every", "max_iters",
        "count", "recompute", "accumulate"}     # may differ on --resume; what --data holds may not


def lock_folder(folder):
    """Make a folder and lock it for this process -> the lock. BadInput where another process has it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise BadInput(f"--out {folder}: another run is writing there; choose another --out") from None
    except (OSError, NotImplementedError) as problem:
        reason = getattr(problem, "strerror", None) or "its file system has no locks"
        raise BadInput(f"--out {folder}: cannot be locked for this run ({reason}); choose an --out "
                       "on another disk") from None
    return lock


def claim(flags):
    """Take --out for this run -> a lock, which ends with the process. BadInput where another run is at work,
    or one would be destroyed.
    """
    if not is_main_process():
        return None
    lock = lock_folder(flags.out)
    found = [name for name in ("last.pt", "teacher.pt", "student.pt", "vocoder.pt")
             if (flags.out / name).is_file()]
    if found and not (flags.resume or flags.overwrite):
        raise BadInput(f"--out {flags.out}: holds a run ({found[0]}); continue it by --resume, replace it by "
                       "--overwrite, or choose another --out")
    begun = getattr(flags, "init", None)
    if begun and flags.overwrite and Path(begun).resolve().parent == flags.out.resolve():
        raise BadInput(f"--init {begun}: is in --out, and --overwrite replaces it; choose another --out")
    if flags.resume and found and found[0] != "last.pt":
        raise BadInput(f"--resume: {flags.out} has a {found[0]} but no last.pt to continue from; replace it "
                       "by --overwrite, or choose another --out")
    if flags.resume and not found:
        print(f"--resume: nothing is saved in {flags.out} yet, starting from the beginning")
    return lock


class Log:
    """A CSV with one row a report, a picture of its curves beside it, and the same on the screen.

    Resuming at `step` drops the rows that will come again.
    """

    def __init__(self, path, step):
        self.path, self.rows = Path(path), []
        try:
            for number, row in enumerate(read_csv(path) if step else [], 2):
                [float(value) for value in row.values() if value != ""]           # all that a log holds
                self.rows += [row] if int(row["step"]) <= step else []
        except (ValueError, KeyError, TypeError, csv.Error):
            raise BadInput(f"--resume: {path} is no log of a run; move it away and --resume again") from None

    def report(self, **row):
        """Add one row of numbers; those that are nan stay empty."""
        self.rows.append({k: as_cell(v) for k, v in row.items() if v == v})
        write_csv(self.path, self.rows)
        plot_curves(self.rows, self.path.with_suffix(".png"))
        tqdm.write("  ".join(f"{k} {v}" for k, v in self.rows[-1].items() if "/" not in k))


class Run:
    """One training run in its folder: what --resume needs, the log, interrupts, means between reports.

        for step in run.steps("name"):
            ...
            run.finish(step, terms, report=lambda: {...}, save=lambda: ...)

    recipe: name -> plain value, which must be the same on --resume, except those in FREE. nets: name ->
    network, what last.pt holds beside the optimiser. `first` is the number of the first update to make.
    """

    def __init__(self, flags, device, nets, optimiser, recipe):
        self.flags, self.device, self.nets, self.optimiser = flags, device, nets, optimiser
        self.recipe = {k: str(v) if isinstance(v, Path) else v for k, v in recipe.items()}
        self.again = flags.resume and (flags.out / "last.pt").is_file()
        self.first = self.load() if self.again else 0
        warmup = getattr(flags, "warmup", 0)
        if warmup >= flags.max_iters:
            print(f"--warmup {warmup}: as long as the run or longer, shortened to {flags.max_iters // 10}")
        self.log, self.interrupt = Log(flags.out / "log.csv", self.first), Interrupt()
        self.start_record()

    def steps(self, name):
        """The numbers of the updates that are left, with a progress bar."""
        return tqdm(range(self.first, self.flags.max_iters), name, initial=self.first,
                    total=self.flags.max_iters, disable=None if is_main_process() else True)

    def finish(self, step, terms, report, save):
        """Update `step` is made: keep its terms; report, save and stop when that is due.

        terms: for each part of the update {name: tensor ()}, nan where a part gave nothing. report() measures
        -> {name: number}; save() writes the checkpoint. Both are called in the process that writes alone.
        """
        for part in terms:
            for name, value in part.items():
                self.record.setdefault(name, []).append(value.detach())
        done, flags = step + 1, self.flags
        if step == self.first and not self.again and is_main_process():
            for name in ("last.pt", "log.csv", "log.png"):  # nothing of an older run may pass for this one's
                (flags.out / name).unlink(missing_ok=True)
        last, stop = done == flags.max_iters, anywhere(self.interrupt.asked, self.device)
        if last:
            self.interrupt.restore()
        if done % flags.eval_every == 0 or last:
            if is_main_process():
                pace = (clock.perf_counter() - self.since) / (done - self.recorded_from)
                means = {name: float(torch.stack(values).nanmean()) for name, values in self.record.items()}
                self.log.report(step=done, **means, **report(), seconds_per_update=pace)
            self.start_record(done)
        if is_main_process() and (done % flags.save_every == 0 or last or stop):
            self.save(done, save)
        if stop:
            print(f"interrupted: saved after update {done}; continue with --resume")
            raise KeyboardInterrupt

    def start_record(self, done=None):
        """Forget the terms of the updates until now, which were reported."""
        self.record, self.since = {}, clock.perf_counter()
        self.recorded_from = self.first if done is None else done

    def save(self, done, save_checkpoint):
        """Write the checkpoint and last.pt, everything that --resume needs: each whole or not at all, and the
        checkpoint is never the older one.
        """
        nets = {name: net.state_dict() for name, net in self.nets.items()}
        save_torch(self.flags.out / "last.pt",
                   dict(format="dsflow-state-1", step=done, **nets, settings=self.recipe,
                        optimiser=self.optimiser.state_dict()), before=save_checkpoint)

    def load(self):
        """Restore save()'s last.pt -> updates done."""
        path = self.flags.out / "last.pt"
        state = load_torch(path, "dsflow-state-1", "the last.pt of a training run")
        try:
            for name in sorted(self.recipe.keys() - FREE):
                old, new = state["settings"].get(name), self.recipe[name]
                if old != new:
                    raise BadInput(f"--resume: {path} was made with another {name}: {old}, now {new}")
            if type(state["step"]) is not int or state["step"] < 0:
                raise ValueError(f"step is {state['step']!r:.20}, not a number of updates")
            for name, net in self.nets.items():
                fit_weights(net, state[name], name)
            fit_optimiser(self.optimiser, state["optimiser"]["state"])
            if state["step"] > self.flags.max_iters:
                raise BadInput(f"--max_iters {self.flags.max_iters}: {path} has {state['step']} updates; "
                               "expected as many or more")
            return state["step"]
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as problem:
            raise BadInput(f"--resume: {path} does not fit this run ({problem}); --overwrite it") from None


def fit_optimiser(optimiser, state):
    """Load AdamW's averages, {number of a parameter: {name: tensor}}. ValueError names what does not fit:
    torch itself would take tensors of any shape, and write beyond their end.
    """
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    for i, averages in state.items():
        if i not in range(len(parameters)) or set(averages) != {"step", "exp_avg", "exp_avg_sq"}:
            raise ValueError(f"optimiser: entry {i} is not known")
        for name, value in averages.items():
            shape = () if name == "step" else parameters[i].shape
            if value.shape != shape or not value.is_floating_point() or not value.isfinite().all():
                raise ValueError(f"optimiser: {name} {i} is no finite tensor of shape {tuple(shape)}")
    groups = optimiser.state_dict()["param_groups"]                               # this run's settings stay
    optimiser.load_state_dict(dict(state=state, param_groups=groups))


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


def is_main_process():
    """Whether this is the process that measures, prints and writes."""
    return world()[0] == 0


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
    the numbers (B,) of its items among the J, which it has as joint, and its shares of the frames to
    generate, frame_share (), and of the symbols, symbol_share (): the sum of share * loss over all parts is
    the loss of the joint batch, where that is a mean over frames, or symbols. A part for which no item is
    left repeats one, at share 0.
    """
    (rank, ranks), J, found = world(), len(batch["mask"]), []
    rows = torch.arange(J)
    if ranks * accumulate == 1:
        return [dict(batch, rows=rows, joint=J, frame_share=1.0, symbol_share=1.0)]
    for k in range(rank * accumulate, (rank + 1) * accumulate):
        mine = rows[k::ranks * accumulate] if k < J else rows[:1]
        part = {name: v[mine.to(v.device)] for name, v in batch.items()}
        T, L = int(part["mask"].sum(1).max()), int((part["text"] > 0).sum(1).max())
        width = dict.fromkeys(part, T) | dict(text=L, durations=L)
        part = {name: v[:, :width[name]] if v.dim() > 1 else v for name, v in part.items()}
        found.append(dict(part, rows=mine, joint=J,
                          frame_share=(k < J) * part["todo"].sum() / batch["todo"].sum(),
                          symbol_share=(k < J) * (part["text"] > 0).sum() / (batch["text"] > 0).sum()))
    return found


def pooled(make, batches, pool, reuse, first):
    """Yield make(number, batch) for each update, from number `first` on: `pool` batches are made, each is
    used `reuse` times, in turn, then the next. What an update gets follows from its number alone, so a
    resumed run makes again only what it needs.
    """
    block, place = divmod(first, pool * reuse)
    batches = itertools.islice(batches, block * pool, None)
    while True:
        plan, made = list(itertools.islice(batches, pool)), {}
        for use in range(place, pool * reuse):
            i = use % pool
            if i not in made:
                made[i] = make(block * pool + i, plan[i])
            yield made[i]
        block, place = block + 1, 0


def draw(parts, names, g, most=6):
    """Random numbers for the parts of a joint batch -> the parts with u, {name: (B,) uniform in [0, 1)}, and
    coin, one uniform number for all items.

    They are drawn for the J items together, so that cutting the batch changes none; and `most` an item
    however many have a name, so that a method that needs one more has the same ones otherwise.
    """
    numbers = torch.rand(parts[0]["joint"], max(most, len(names)), generator=g)   # (J, most)
    coin = float(torch.rand((), generator=g))
    columns = dict(zip(names, numbers.T))                                         # (J,) each
    return [dict(part, u={name: column[part["rows"]].to(part["mask"].device)
                          for name, column in columns.items()}, coin=coin) for part in parts]


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
