"""Every method, and the eight combinations of DSFlow's three ideas, at an equal budget: one table.

    python -m measure.ablation   all of them, three seeds, resumable: two hours on two cores
    python -m measure.ablation --only endpoint intmeanflow --seeds 0
    python -m measure.ablation --also my_method.py --only huber dual     a variant of yours beside them
    python -m measure.ablation --noise   how noisy the gradients of endpoint, velocity, dual loss are

All runs of a seed share teacher trajectories, and update() and begin() of distill.py. Two budgets: the same
number of updates, and the same seconds: as many updates as fit into the time that DSFlow's take, both
measured in turn, with a learning-rate schedule that ends there; a system whose updates take as long (5 %)
keeps its row of equal updates. A row is written when it is done, with the settings it was made with; a run
that was cut off continues with the next one. Students of equal updates are kept in --out/students, so that
evaluate.py --ckpt can hear them.
"""
from common.cli import BadInput, Parser, cli, count, pick_device, synchronise
from common.files import as_cell, digest, markdown, mean_and_spread, read_csv, write_csv, write_text

import argparse
import importlib.util
import itertools
import math
import re
import statistics
import time as clock
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from methods import baselines
import distill
from methods import dmd
from methods import intmeanflow
from networks.checkpoint import load_teacher, save_checkpoint
from distill import Trajectories, begin, update
from model import count_parameters
from speech.prepare import prepare
from sample import cosine_grid, rollout
from teacher import distance, held_out
from common.run import seed_update

METHODS = {**distill.METHODS, **intmeanflow.METHODS, **baselines.METHODS, **dmd.METHODS}
DSFLOW = "dual, tokens, weak CFG"   # its updates set the time of the budget in seconds


def load_methods(paths):
    """Files of other methods -> their entries METHODS {name: Method}, as distill.main() takes them."""
    found = {}
    for path in paths:
        try:
            spec = importlib.util.spec_from_file_location(Path(path).stem, path)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            found |= module.METHODS
        except (OSError, AttributeError, ImportError, SyntaxError) as problem:
            raise BadInput(f"--also {path}: {problem}; expected METHODS = {{name: Method}}") from None
    return found


def systems(methods):
    """Name -> the flags of distill.py that make it. dsflow and endpoint are two of the eight combinations."""
    names = {}
    for dual, tokens, weak in itertools.product(("dual", "endpoint"), ("tokens", "adaLN"),
                                                ("weak CFG", "no CFG")):
        flags = ["--method", "dsflow" if dual == "dual" else "endpoint"]
        flags += ["--no-tokens"] * (tokens == "adaLN") + ["--no-weak_cfg"] * (weak == "no CFG")
        names[f"{dual}, {tokens}, {weak}"] = flags
    return names | {method: ["--method", method] for method in methods if method not in distill.METHODS}


class Rows:
    """A CSV that grows by whole rows; a row is known by (system, seed, budget, settings)."""

    def __init__(self, path):
        self.path, self.rows = Path(path), read_csv(path)

    def find(self, **key):
        """The rows whose columns have these values."""
        return [r for r in self.rows if all(r.get(k) == str(v) for k, v in key.items())]

    def add(self, row):
        """Append one row, write the file anew and show the row."""
        self.rows.append({k: as_cell(v) for k, v in row.items()})
        write_csv(self.path, self.rows)
        tqdm.write("  ".join(f"{k} {v}" for k, v in self.rows[-1].items()))


# -------------------------------------------------------------------------------------------------- training


def stages(flags):
    """The runs that make one system: one, but for progressive distillation one for each step count, downward,
    with an equal share of the updates.
    """
    if flags.method != "progressive":
        return [flags]
    steps = sorted({2 ** k for k in range(int(math.log2(max(flags.steps))) + 1)} | {4, 2}, reverse=True)
    return [argparse.Namespace(**vars(flags) | dict(steps=[n],
                                                    max_iters=max(1, flags.max_iters // len(steps))))
            for n in steps if n >= min(flags.steps)]


def train(flags, methods, teacher, trajectories):
    """Distil on shared trajectories -> ({steps: the average that takes them}, seconds an update)."""
    nets, times, before = {}, [], None
    for stage in stages(flags):
        method = methods[flags.method]
        student, own, optimiser = begin(stage, method, teacher, before)
        for step in tqdm(range(stage.max_iters), flags.name, leave=False, disable=None):
            start = clock.perf_counter()
            update(stage, method, student, own, optimiser, trajectories[step % len(trajectories)], step)
            synchronise(next(student.parameters()).device)
            times.append(clock.perf_counter() - start)
        before = own["ema"]
        nets |= dict.fromkeys(stage.steps, own["ema"])
    return {n: net for n, net in nets.items() if n in flags.steps}, statistics.median(times)


def pace(flags, base, methods, teacher, trajectories, rounds=12):
    """How many updates flags make while flags base make one. In turn: a machine's speed drifts."""
    jobs, times = [], ([], [])
    for one in (flags, base):
        last, method = stages(one)[-1], methods[one.method]
        before = None
        if one.method == "progressive":         # a later stage also asks the student before it
            first = argparse.Namespace(**vars(last) | dict(steps=[2 * last.steps[0]]))
            before = begin(first, method, teacher)[1]["ema"]
        jobs.append((last, method, *begin(last, method, teacher, before)))
    for step in range(rounds):
        for job, spent in zip(jobs, times):
            start = clock.perf_counter()
            update(*job, trajectories[step % len(trajectories)], step)
            synchronise(next(teacher.parameters()).device)
            spent.append(clock.perf_counter() - start)
    return sum(times[1]) / sum(times[0])


def keep(nets, flags, method, b, folder):
    """Write the students of a system, {steps: network}, as checkpoints NAME-SEED.pt, with -STEPS where each
    step count has its own. b: the teacher's Bundle.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{re.sub('[^a-z0-9]+', '_', flags.name.lower())}-{flags.seed}"
    for net in dict.fromkeys(nets.values()):
        mine = sorted(n for n in nets if nets[n] is net)
        contract = dict(kind="student", steps=mine if method.time == "step" else [], default=mine[0],
                        grid="cosine", cfg=flags.cfg)
        suffix = "" if len(mine) == len(nets) else f"-{mine[0]}"
        student = replace(b, model=net, contract=contract, config=vars(flags) | dict(out=str(flags.out)))
        save_checkpoint(folder / f"{name}{suffix}.pt", student)


# ------------------------------------------------------------------------------------------------- measuring


def variance(net, batch, grid, w, noises=4):
    """Variance of the mel over noises, mean over the frames to generate of 4 items: near 0 is a collapse."""
    few, takes = {k: v[:4] for k, v in batch.items()}, []
    for seed in range(noises):
        x0 = torch.randn(few["x0"].shape, generator=torch.Generator().manual_seed(seed))
        takes.append(rollout(net, dict(few, x0=x0.to(few["x0"].device)), grid, w)[-1])
    return float(torch.stack(takes).var(0)[few["todo"]].mean())


def measure(nets, fixed, goals):
    """Mel MSE of each n to each goal {name: mel}, and the variance of the fewest steps over noises."""
    row = {}
    for n, net in sorted(nets.items()):
        x1 = rollout(net, fixed, cosine_grid(n), 0.0)[-1]
        row |= {f"mse@{n} to {name}": distance(x1, goal, fixed["todo"]) for name, goal in goals.items()}
    n = min(nets)
    return row | {f"variance@{n}": variance(nets[n], fixed, cosine_grid(n), 0.0)}


def gradient_noise(teacher, flags, trajectories):
    """sum Var(g) / || E g ||^2 of a batch's gradient g, at the folded student -> a row for each loss, with
    the loss's own mean and its deviation over batches, relative to the mean.

    Every batch counts once: a repeated one would repeat its gradient. Both parts are unbiased.
    """
    student, _, _ = begin(flags, METHODS["dsflow"], teacher)
    batches, n = len(trajectories), min(flags.steps)

    def gradient(step, a):
        student.zero_grad()
        (batch,), J = trajectories[step]
        part, = distill.draw([batch], J, seed_update(flags.seed, step))
        loss = distill.dsflow_loss(student, part, n, a=a, weak_cfg=False)[0]
        loss.backward()
        return torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None]), loss.item()
    names = ["endpoint", "velocity", "dual, both terms (Eq. 7)", "dual, one term an item (ours)"]
    total, squares = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    losses = {name: [] for name in names}
    for step in tqdm(range(batches), "noise", leave=False, disable=None):
        end, velocity = gradient(step, 1.0), gradient(step, 0.0)
        both = [0.7 * at_end + 0.3 * on_chord for at_end, on_chord in zip(end, velocity)]
        for name, (g, loss) in zip(names, (end, velocity, both, gradient(step, 0.7))):
            total[name], squares[name] = total[name] + g, squares[name] + float(g.square().sum())
            losses[name].append(loss)
    rows = []
    for name in names:
        mean = float((total[name] / batches).square().sum())
        spread = (squares[name] - batches * mean) / (batches - 1)
        rows.append(dict(system=name, budget="noise", batches=batches, variance=spread,
                         relative=spread / (mean - spread / batches), loss=statistics.mean(losses[name]),
                         loss_deviation=statistics.stdev(losses[name]) / statistics.mean(losses[name])))
    return rows


def table(rows, steps):
    """The CSV's rows -> Markdown: mean ± standard deviation over seeds, best first within each budget."""
    lines, first = [], steps[0]
    for budget in dict.fromkeys(r["budget"] for r in rows):
        groups, cells = {}, []
        for r in rows:
            if r["budget"] == budget:
                groups.setdefault(r["system"], []).append(r)

        def cell(group, key, form="{:.4f}"):
            return mean_and_spread([r.get(key) for r in group], form)
        for name, group in sorted(groups.items(), key=lambda i: cell(i[1], f"mse@{first} to teacher@10")
                                  or "~"):
            cells.append([name, f"{int(group[0]['parameters']):,}", cell(group, "updates",
                                                                         "{:.0f}").split(" ")[0],
                          cell(group, "seconds an update", "{:.3f}"),
                          *(cell(group, f"mse@{n} to teacher@10") for n in steps),
                          cell(group, f"variance@{first}", "{:.2f}")])
        columns = ["system", "parameters", "updates", "seconds an update", *(f"MSE@{n}" for n in steps),
                   f"variance@{first}"]
        lines.append(f"Equal {budget}\n\n{markdown(columns, cells)}")
    return "\n\n".join(lines)


# --------------------------------------------------------------------------------------------------- command


def arguments():
    """Command-line flags with their reasons."""
    p = Parser(__doc__, idle=[(flag, "--noise") for flag in ("--only", "--also", "--budgets")])
    add = p.add_argument
    add("--data", default="corpus", help="folder of recordings (default %(default)s)")
    add("--cache", default="cache", help="where mels and alignments are kept (default %(default)s)")
    add("--teacher", default="checkpoints/teacher.pt", help="checkpoint of teacher.py (default %(default)s)")
    add("--out", type=Path, default=Path("out/ablation"),
        help="ablation.csv and table.md (default %(default)s)")
    add("--also", nargs="+", default=[], help="Python files with METHODS of their own, to stand in the table")
    add("--only", nargs="+", help="names of systems, or the beginning of a name (default: all)")
    add("--steps", type=count(), nargs="+", default=[1, 2, 4], help="steps of the students (default 1 2 4)")
    add("--seeds", type=count(0), nargs="+", default=[0, 1, 2], help="seeds (default 0 1 2)")
    add("--budgets", nargs="+", choices=["updates", "seconds"], default=["updates", "seconds"],
        help="equal number of updates, then equal seconds (default both)")
    add("--max_iters", type=count(), default=300, help="updates of a run (default %(default)s)")
    add("--pool", type=count(), default=64, help="shared teacher trajectories (default %(default)s)")
    add("--count", type=count(), default=16, help="held-out recordings to measure on (default %(default)s)")
    add("--flags", default="", help="further flags for distill.py, as one string: \"--lr 4e-4 --cfg 1.5\"")
    add("--noise", action="store_true", help="only the gradients' noise, over --pool batches")
    add("--device", default="auto", help="auto, cuda, mps or cpu (default auto)")
    return p.parse_args()


def flags_of(a_system, ours, methods, seed):
    """What distill.py would get on its command line for a system -> its flags, with the system's name."""
    name, given = a_system
    words = [*given, "--seed", seed, "--max_iters", ours.max_iters, "--pool", ours.pool, "--reuse", 10 ** 6,
             "--steps", *ours.steps, *ours.flags.split()]
    flags = distill.arguments(methods, [str(word) for word in words])
    if flags.seed != seed or [flags.method] != given[1:2]:
        raise BadInput(f"--flags \"{ours.flags}\": for --seed and --method use --seeds and --only")
    return argparse.Namespace(**vars(flags), name=name)


def main():
    ours = arguments()
    methods = METHODS | load_methods(ours.also)
    names = systems(methods)
    chosen = {k: v for k, v in names.items() if not ours.only or any(k.startswith(o) for o in ours.only)}
    if not chosen:
        raise BadInput(f"--only {' '.join(ours.only)}: expected one of {'; '.join(names)}")
    if ours.noise and ours.pool < 2:
        raise BadInput(f"--pool {ours.pool}: a variance needs two batches or more")
    device = pick_device(ours.device)
    base = {seed: flags_of((DSFLOW, names[DSFLOW]), ours, methods, seed) for seed in ours.seeds}
    b = load_teacher(ours.teacher, "--teacher", device)
    corpus, teacher = prepare(ours.data, b.settings, b.lang, b.vocab,
                              ours.cache), b.model.requires_grad_(False)
    fixed, w = held_out(corpus, ours.count, device), base[ours.seeds[0]].cfg
    ours.out.mkdir(parents=True, exist_ok=True)
    rows = Rows(ours.out / ("noise.csv" if ours.noise else "ablation.csv"))
    settings = " ".join(f"--{name} {getattr(ours, name)}" for name in ("data", "teacher", "max_iters", "pool",
                                                                       "count"))
    settings += f" --steps {' '.join(map(str, ours.steps))} {ours.flags}".rstrip()
    settings += f" of {digest(ours.teacher)} {corpus.key}"  # the same names can hold others
    goals = {f"teacher@{n}": rollout(teacher, fixed, cosine_grid(n), w)[-1] for n in (10, 32)}
    own = variance(teacher, fixed, cosine_grid(10), w)
    for seed in ours.seeds:
        left = [(budget, name) for budget in ours.budgets for name in chosen
                if not rows.find(system=name, seed=seed, budget=budget, settings=settings)]
        if not left or (ours.noise and len(rows.find(seed=seed, settings=settings)) == 4):
            continue
        # dense, on a grid that every system's step counts divide: progressive always has 4 and 2
        shared = argparse.Namespace(**vars(base[seed]) | dict(steps=sorted({*ours.steps, 2, 4})))
        shared.accumulate = 1 if ours.noise else shared.accumulate
        source = Trajectories(teacher, corpus, shared, True, device, 0)
        trajectories = [source[i] for i in tqdm(range(ours.pool), "trajectories", leave=False, disable=None)]
        if ours.noise:
            rows.rows = [r for r in rows.rows if r not in rows.find(seed=seed, settings=settings)]
            for row in gradient_noise(teacher, base[seed], trajectories):
                rows.add(dict(row, seed=seed, settings=settings))
            continue
        for budget, name in left:
            flags = flags_of((name, names[name]), ours, methods, seed)
            if budget == "seconds":
                many = pace(flags, base[seed], methods, teacher, trajectories)
                known = rows.find(system=name, seed=seed, budget="updates", settings=settings)
                if known and abs(many - 1) < 0.05:
                    rows.add(dict(known[0], budget=budget))
                    continue
                flags.max_iters = max(1, round(flags.max_iters * many))
            nets, seconds = train(flags, methods, teacher, trajectories)
            if budget == "updates":
                keep(nets, flags, methods[flags.method], b, ours.out / "students")
            row = measure(nets, fixed, goals)
            row[f"variance@{min(flags.steps)}"] /= own
            rows.add({"system": name, "seed": seed, "budget": budget, "updates": flags.max_iters,
                      "parameters": count_parameters(nets[min(flags.steps)])[0], "seconds an update": seconds,
                      **row, "settings": settings})
    if not ours.noise:
        text = table([r for r in rows.find(settings=settings) if r["budget"] in ours.budgets],
                     sorted(ours.steps))
        write_text(ours.out / "table.md", text + "\n")
        print(text)


if __name__ == "__main__":
    cli(main)
