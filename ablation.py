"""Every method, and the eight combinations of DSFlow's three ideas, at an equal budget: one table.

    python ablation.py                          all of them, three seeds, resumable: two hours on two cores
    python ablation.py --only endpoint intmeanflow --seeds 0
    python ablation.py --noise                  how noisy the gradients of endpoint, velocity, dual loss are

All runs of a seed share teacher trajectories, and update() and the optimiser of distill.py. Two budgets: the
same number of updates, and the same seconds: as many updates as fit into the time that DSFlow's take, both
measured in turn, with a learning-rate schedule that ends there; a system whose updates take as long (5 %)
keeps its row of equal updates. A row is written when it is done, with the settings it was made with; a run
that was cut off continues with the next one.
"""
import argparse
import csv
import io
import itertools
import math
import os
import statistics
import time as clock
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

import distill
from data import BadInput, check_numbers, cli, prepare
from distill import METHODS, Trajectories, begin, distance, dsflow_loss, objective, update
from model import count_parameters
from sample import cosine_grid, load_teacher, pick_device
from teacher import held_out, rollout, seed_update


def systems():
    """Name -> the flags of distill.py that make it. dsflow and endpoint are two of the eight combinations."""
    names = {}
    switches = ("dual", "endpoint"), ("tokens", "adaLN"), ("weak CFG", "no CFG")
    for dual, tokens, weak in itertools.product(*switches):
        flags = ["--method", "dsflow" if dual == "dual" else "endpoint"]
        flags += ["--no-tokens"] * (tokens == "adaLN") + ["--no-weak_cfg"] * (weak == "no CFG")
        names[f"{dual}, {tokens}, {weak}"] = flags
    for method in METHODS:
        if method not in ("dsflow", "endpoint"):
            names[method] = ["--method", method]
    return names


DSFLOW = "dual, tokens, weak CFG"   # its updates set the time of the budget in seconds


class Rows:
    """A CSV that grows by whole rows, atomically; a row is known by (system, seed, budget, settings)."""

    def __init__(self, path):
        self.path, self.rows = Path(path), []
        if self.path.is_file():
            with open(self.path, newline="") as file:
                self.rows = list(csv.DictReader(file))

    def find(self, **key):
        """The rows whose columns have these values."""
        return [r for r in self.rows if all(r.get(k) == str(v) for k, v in key.items())]

    def add(self, row):
        """Append one row and write the file anew."""
        self.rows.append({k: f"{v:.6g}" if isinstance(v, float) else str(v) for k, v in row.items()})
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(dict.fromkeys(k for r in self.rows for k in r)))
        writer.writeheader()
        writer.writerows(self.rows)
        partial = Path(f"{self.path}.partial")
        partial.write_text(text.getvalue(), newline="")
        os.replace(partial, self.path)


def train(a, teacher, trajectories):
    """Distil with flags a on shared trajectories -> (the student's average, seconds an update)."""
    student, nets, optimiser = begin(a, teacher)
    method, times = objective(a), []
    for step in tqdm(range(a.max_iters), a.name, leave=False, disable=None):
        start = clock.perf_counter()
        update(a, method, student, nets, optimiser, trajectories[step % len(trajectories)], step)
        times.append(clock.perf_counter() - start)
    return nets["ema"], statistics.median(times)


def pace(a, base, teacher, trajectories, rounds=12):
    """How many updates flags a make while flags base make one. In turn: a machine's speed drifts."""
    jobs, times = [], ([], [])
    for flags in (a, base):
        student, nets, optimiser = begin(flags, teacher)
        jobs.append(partial(update, flags, objective(flags), student, nets, optimiser))
    for step in range(0, a.max_iters, math.ceil(a.max_iters / rounds)):           # progressive gets slower
        for job, spent in zip(jobs, times):
            start = clock.perf_counter()
            job(trajectories[step % len(trajectories)], step)
            spent.append(clock.perf_counter() - start)
    return sum(times[1]) / sum(times[0])


@torch.no_grad()
def measure(net, fixed, goals, steps, noises=4):
    """Mel MSE of n steps to each goal {name: mel}, and the variance over noises relative to the teacher's."""
    row = {}
    for n in steps:
        x1 = rollout(net, fixed, cosine_grid(n), 0.0)[-1]
        row |= {f"mse@{n} to {name}": distance(x1, goal, fixed["todo"]) for name, goal in goals.items()}
    few = {k: v[:4] for k, v in fixed.items()}
    row["variance@1"] = variance(net, few, cosine_grid(1), 0.0, noises)
    return row


def variance(net, batch, grid, w, noises):
    """Variance of the mel over noises, mean over the frames to generate: near 0 is a collapse."""
    outs = []
    for seed in range(noises):
        x0 = torch.randn(batch["x0"].shape, generator=torch.Generator().manual_seed(seed))
        outs.append(rollout(net, dict(batch, x0=x0.to(batch["x0"].device)), grid, w)[-1])
    return float(torch.stack(outs).var(0)[batch["todo"]].mean())


def gradient_noise(teacher, a, trajectories):
    """sum Var(g) / || E g ||^2 of a batch's gradient g, at the folded student -> a row for each loss.

    Every batch counts once: a repeated one would repeat its gradient. Both parts are unbiased.
    """
    student, _, _ = begin(a, teacher)
    batches = len(trajectories)

    def gradient(step, weight):
        student.zero_grad()
        g = seed_update(a.seed, step)
        batch, = trajectories[step]
        dsflow_loss(student, batch, 1, g, a=weight, p_uncond=0.0)[0].backward()
        return torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])
    names = ["endpoint", "velocity", "dual, both terms (Eq. 7)", "dual, one term an item (ours)"]
    total, squares = {name: 0.0 for name in names}, {name: 0.0 for name in names}
    for step in tqdm(range(batches), "noise", leave=False, disable=None):
        end, velocity = gradient(step, 1.0), gradient(step, 0.0)
        for name, g in zip(names, (end, velocity, 0.7 * end + 0.3 * velocity, gradient(step, 0.7))):
            total[name], squares[name] = total[name] + g, squares[name] + float(g.square().sum())
    rows = []
    for name in names:
        mean = float((total[name] / batches).square().sum())
        spread = (squares[name] - batches * mean) / (batches - 1)
        rows.append(dict(system=name, budget="noise", batches=batches, variance=spread,
                         relative=spread / (mean - spread / batches)))
    return rows


def table(rows, steps):
    """The CSV's rows -> Markdown: mean and standard deviation over seeds, best first within each budget."""
    lines = []
    for budget in dict.fromkeys(r["budget"] for r in rows):
        columns = ["system", "parameters", "updates", "seconds an update", *(f"MSE@{n}" for n in steps),
                   "variance@1"]
        lines += [f"\nEqual {budget}\n", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        groups = {}
        for r in rows:
            if r["budget"] == budget:
                groups.setdefault(r["system"], []).append(r)

        def cell(group, key, digits=4):
            values = [float(r[key]) for r in group]
            spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
            return f"{statistics.mean(values):.{digits}f}{spread}"
        for name, group in sorted(groups.items(), key=lambda i: cell(i[1], f"mse@{steps[0]} to teacher@10")):
            cells = [name, f"{int(group[0]['parameters']):,}", cell(group, "updates", 0).split(" ")[0],
                     cell(group, "seconds an update", 3)]
            cells += [cell(group, f"mse@{n} to teacher@10") for n in steps] + [cell(group, "variance@1", 2)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(words=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = p.add_argument
    add("--data", default="corpus", help="folder of recordings (default %(default)s)")
    add("--cache", default="cache", help="where mels and alignments are kept (default %(default)s)")
    add("--teacher", default="checkpoints/teacher.pt", help="checkpoint of teacher.py (default %(default)s)")
    add("--out", default="out/ablation", help="ablation.csv and table.md (default %(default)s)")
    add("--only", nargs="+", help="names of systems, or the beginning of a name (default: all)")
    add("--steps", type=int, nargs="+", default=[1, 2, 4], help="steps of the students (default 1 2 4)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds (default 0 1 2)")
    add("--budgets", nargs="+", choices=["updates", "seconds"], default=["updates", "seconds"],
        help="equal number of updates, then equal seconds (default both)")
    add("--max_iters", type=int, default=300, help="updates of a run (default %(default)s)")
    add("--pool", type=int, default=64, help="shared teacher trajectories (default %(default)s)")
    add("--count", type=int, default=16, help="held-out recordings to measure on (default %(default)s)")
    add("--flags", default="", help="further flags for distill.py, as one string: \"--lr 4e-4 --cfg 1.5\"")
    add("--noise", action="store_true", help="only the gradients' noise, over --pool batches")
    add("--device", default="auto", help="auto, cuda, mps or cpu (default auto)")
    a = p.parse_args(words)
    check_numbers(a)
    chosen = {k: v for k, v in systems().items() if not a.only or any(k.startswith(o) for o in a.only)}
    if not chosen:
        raise BadInput(f"--only {' '.join(a.only)}: expected one of {'; '.join(systems())}")
    if a.noise and a.pool < 2:
        raise BadInput(f"--pool {a.pool}: a variance needs two batches or more")
    device, out = pick_device(a.device), Path(a.out)

    def flags(name, seed):                      # what distill.py would get on its command line
        words = [*systems()[name], "--seed", seed, "--max_iters", a.max_iters, "--pool", a.pool,
                 "--reuse", 10 ** 6, "--steps", *a.steps, *a.flags.split()]
        return argparse.Namespace(**vars(distill.arguments([str(w) for w in words])), name=name)
    first = flags(DSFLOW, 0)
    b = load_teacher(a.teacher, "--teacher", device)
    corpus, teacher = prepare(a.data, b.s, b.vocab, a.cache), b.model.requires_grad_(False)
    fixed = held_out(corpus, a.count, device)
    out.mkdir(parents=True, exist_ok=True)
    rows = Rows(out / ("noise.csv" if a.noise else "ablation.csv"))
    settings = " ".join(f"--{name} {getattr(a, name)}" for name in ("data", "teacher", "max_iters", "pool",
                                                                    "count"))
    settings += f" --steps {' '.join(map(str, a.steps))} {a.flags}".rstrip()
    goals = {f"teacher@{n}": rollout(teacher, fixed, cosine_grid(n), first.cfg)[-1] for n in (10, 32)}
    own = variance(teacher, {k: v[:4] for k, v in fixed.items()}, cosine_grid(10), first.cfg, 4)
    for seed in a.seeds:
        left = [(budget, name) for budget in a.budgets for name in chosen
                if not rows.find(system=name, seed=seed, budget=budget, settings=settings)]
        if not left or (a.noise and rows.find(seed=seed, settings=settings)):
            continue
        shared = flags(DSFLOW, seed)
        shared.method = "intmeanflow"           # which wants every state, and so serves all
        source = Trajectories(teacher, corpus, shared, device, 0)
        trajectories = [source[i] for i in tqdm(range(a.pool), "trajectories", leave=False, disable=None)]
        if a.noise:
            for row in gradient_noise(teacher, flags(DSFLOW, seed), trajectories):
                rows.add(dict(row, seed=seed, settings=settings))
                tqdm.write("  ".join(f"{k} {v}" for k, v in rows.rows[-1].items()))
            continue
        for budget, name in left:
            run = flags(name, seed)
            if budget == "seconds":
                many = pace(run, flags(DSFLOW, seed), teacher, trajectories)
                known = rows.find(system=name, seed=seed, budget="updates", settings=settings)
                if known and abs(many - 1) < 0.05:
                    rows.add(dict(known[0], budget=budget))
                    continue
                run.max_iters = max(1, round(run.max_iters * many))
            net, seconds = train(run, teacher, trajectories)
            row = measure(net, fixed, goals, sorted(a.steps))
            row["variance@1"] /= own
            rows.add({"system": name, "seed": seed, "budget": budget, "updates": run.max_iters,
                      "parameters": count_parameters(net)[0], "seconds an update": seconds, **row,
                      "settings": settings})
            tqdm.write("  ".join(f"{k} {v}" for k, v in rows.rows[-1].items()))
    if not a.noise:
        text = table([r for r in rows.find(settings=settings) if r["budget"] in a.budgets], sorted(a.steps))
        (out / "table.md").write_text(text + "\n")
        print(text)


if __name__ == "__main__":
    cli(main)
