"""Every method, and the eight combinations of DSFlow's three ideas, at an equal number of updates: one table.

    python -m measure.ablation   all of them, three seeds, resumable: two hours on two cores
    python -m measure.ablation --only endpoint intmeanflow --seeds 0
    python -m measure.ablation --also my_method.py --only huber dual     a variant of yours beside them

All runs of a seed share teacher trajectories, and update() and make_student() of distill.py. A row is written
when it is done, with the settings it was made with; a run that was cut off continues with the next one. The
students are kept in --out/students, so that evaluate.py --ckpt can hear them.
"""
import argparse
import csv
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

import distill
from common.cli import BadInput, Parser, cli, count, pick_device, synchronise
from common.files import as_cell, digest, markdown, mean_and_spread, read_csv, write_csv, write_text
from common.run import lock_folder
from distill import make_student, trajectories, update
from methods import baselines, dmd, intmeanflow
from model import count_parameters
from networks.checkpoint import load_teacher, save_checkpoint, student_contract
from sample import cosine_grid, rollout
from speech.prepare import prepare
from teacher import distance, held_out

METHODS = {**distill.METHODS, **intmeanflow.METHODS, **baselines.METHODS, **dmd.METHODS}


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
    """A CSV that grows by whole rows; a row is known by (system, seed, settings)."""

    def __init__(self, path):
        self.path = Path(path)
        try:
            self.rows = read_csv(path)
            if self.path.is_file() and not self.rows:
                raise ValueError("no rows")
            for row in self.rows:               # words in these columns, in all others numbers or nothing
                words = row["system"], row["settings"], row.get("budget")
                [float(value) for value in row.values() if value not in words and value != ""]
        except (ValueError, KeyError, TypeError, csv.Error):
            raise BadInput(f"{path}: is no table of ablation.py; move it or choose another --out") from None

    def find(self, **key):
        """The rows whose columns have these values; not those of equal seconds, which are older versions'."""
        return [row for row in self.rows if row.get("budget") != "seconds"
                and all(row.get(name) == str(value) for name, value in key.items())]

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
    if math.log2(min(flags.steps)) % 1:
        raise BadInput(f"--steps {min(flags.steps)}: progressive halves its steps, so the fewest are 1, 2, "
                       "4 and so on; or name other systems by --only")
    steps = sorted({2 ** k for k in range(int(math.log2(max(flags.steps))) + 1)} | {4, 2}, reverse=True)
    return [argparse.Namespace(**vars(flags) | dict(steps=[n],
                                                    max_iters=max(1, flags.max_iters // len(steps))))
            for n in steps if n >= min(flags.steps)]


def train(flags, methods, teacher, batches):
    """Distil on shared trajectories -> ({steps: the average that takes them}, seconds an update)."""
    averages, times, previous = {}, [], None
    for stage in stages(flags):
        method = methods[flags.method]
        student, nets, optimiser = make_student(stage, method, teacher, previous)
        for step in tqdm(range(stage.max_iters), flags.name, leave=False, disable=None):
            start = clock.perf_counter()
            update(stage, method, student, nets, optimiser, batches[step % len(batches)], step)
            synchronise(next(student.parameters()).device)
            times.append(clock.perf_counter() - start)
        previous = nets["ema"]
        averages |= dict.fromkeys(stage.steps, previous)
    return {n: net for n, net in averages.items() if n in flags.steps}, statistics.median(times)


def keep(nets, flags, method, bundle, folder):
    """Write the students of a system, {steps: network}, as checkpoints NAME-SEED.pt, with -STEPS where each
    step count has its own. bundle: the teacher's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{re.sub('[^a-z0-9]+', '_', flags.name.lower())}-{flags.seed}"
    for net in dict.fromkeys(nets.values()):
        mine = sorted(n for n in nets if nets[n] is net)
        contract = student_contract(bundle, mine if method.time == "step" else [], mine[0], flags.cfg)
        suffix = "" if len(mine) == len(nets) else f"-{mine[0]}"
        student = replace(bundle, model=net, contract=contract, config=vars(flags) | dict(out=str(flags.out)))
        save_checkpoint(folder / f"{name}{suffix}.pt", student)


# ------------------------------------------------------------------------------------------------- measuring


def variance(net, batch, grid, w, noises=4):
    """Variance of the mel over noises, mean over the frames to generate of 4 items: near 0 is a collapse."""
    few, takes = {k: v[:4] for k, v in batch.items()}, []
    for seed in range(noises):
        x0 = torch.randn(few["x0"].shape, generator=torch.Generator().manual_seed(seed))
        takes.append(rollout(net, dict(few, x0=x0.to(few["x0"].device)), grid, w)[-1])
    return float(torch.stack(takes).var(0)[few["todo"]].mean())


def measure(nets, fixed, targets):
    """Mel MSE of each n to each target {name: mel}, and the variance of the fewest steps over noises."""
    row = {}
    for n, net in sorted(nets.items()):
        x1 = rollout(net, fixed, cosine_grid(n), 0.0)[-1]
        row |= {f"mse@{n} to {name}": distance(x1, x, fixed["todo"]) for name, x in targets.items()}
    n = min(nets)
    return row | {f"variance@{n}": variance(nets[n], fixed, cosine_grid(n), 0.0)}


def table(rows, steps):
    """The CSV's rows -> Markdown: mean ± standard deviation over seeds, best first."""
    first, groups, lines = steps[0], {}, []
    for row in rows:
        groups.setdefault(row["system"], []).append(row)
    columns = {"parameters": ("parameters", "{:,.0f}"), "updates": ("updates", "{:.0f}"),
               "seconds an update": ("seconds an update", "{:.3f}"),
               **{f"MSE@{n}": (f"mse@{n} to teacher@10", "{:.4f}") for n in steps},
               f"variance@{first}": (f"variance@{first}", "{:.2f}")}
    for name, group in groups.items():
        cells = {title: mean_and_spread([row.get(key) for row in group], form)
                 for title, (key, form) in columns.items()}
        cells |= {title: cells[title].split(" ")[0] for title in ("parameters", "updates")}
        lines.append([name, *cells.values()])
    best = 1 + list(columns).index(f"MSE@{first}")
    return markdown(["system", *columns], sorted(lines, key=lambda cells: cells[best] or "~"))


# --------------------------------------------------------------------------------------------------- command


def arguments():
    """Command-line flags with their reasons."""
    p = Parser(__doc__)
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
    add("--max_iters", type=count(), default=300, help="updates of a run (default %(default)s)")
    add("--pool", type=count(), default=64, help="shared teacher trajectories (default %(default)s)")
    add("--count", type=count(), default=16, help="held-out recordings to measure on (default %(default)s)")
    add("--flags", default="", help="further flags for distill.py, as one string: \"--lr 4e-4 --cfg 1.5\"")
    add("--device", default="auto", help="auto, cuda, mps or cpu (default auto)")
    return p.parse_args()


def flags_of(system, ours, methods, seed):
    """What distill.py would get on its command line for a system -> its flags, with the system's name."""
    name, given = system
    words = [*given, "--seed", seed, "--max_iters", ours.max_iters, "--pool", ours.pool, "--reuse", 10 ** 6,
             "--steps", *ours.steps, *ours.flags.split()]
    flags = distill.arguments(methods, [str(word) for word in words])
    if flags.seed != seed or [flags.method] != given[1:2]:
        raise BadInput(f"--flags \"{ours.flags}\": for --seed and --method use --seeds and --only")
    own = {word.split("=")[0] for word in ours.flags.split()} & {
        f"--{name}" for name in [*vars(ours), "reuse", "resume", "overwrite", "eval_every", "save_every",
                                 "init", "keep_outliers", "keep_unknown"]}
    if own:
        raise BadInput(f"--flags \"{ours.flags}\": {min(own)} is this command's own, or does nothing here")
    return argparse.Namespace(**vars(flags), name=name)


def shared_batches(teacher, corpus, flags, pool, device):
    """The batches that all systems of a seed train on, with every state of the teacher, on a grid that every
    system's step counts divide: progressive always has 4 and 2.
    """
    flags = argparse.Namespace(**vars(flags) | dict(steps=sorted({*flags.steps, 2, 4})))
    source = trajectories(teacher, corpus, flags, True, device)
    return list(tqdm(itertools.islice(source, pool), "trajectories", pool, leave=False, disable=None))


def main():
    ours = arguments()
    methods = METHODS | load_methods(ours.also)
    names = systems(methods)
    chosen = {k: v for k, v in names.items() if not ours.only or any(k.startswith(o) for o in ours.only)}
    if not chosen:
        raise BadInput(f"--only {' '.join(ours.only)}: expected one of {'; '.join(names)}")
    seeds = dict.fromkeys(ours.seeds)
    runs = [flags_of(system, ours, methods, seed) for seed in seeds for system in chosen.items()]
    for flags in runs:
        stages(flags)                           # what is refused is refused before anything is trained
    device = pick_device(ours.device)
    bundle = load_teacher(ours.teacher, "--teacher", device)
    teacher, w = bundle.model.requires_grad_(False), runs[0].cfg
    corpus = prepare(ours.data, bundle.settings, bundle.lang, bundle.vocab, ours.cache)
    fixed = held_out(corpus, ours.count, device)
    lock = lock_folder(ours.out)                                                  # until this process ends
    rows = Rows(ours.out / "ablation.csv")
    settings = " ".join(f"--{name} {getattr(ours, name)}" for name in ("data", "teacher", "max_iters", "pool",
                                                                       "count"))
    settings += f" --steps {' '.join(map(str, ours.steps))} {ours.flags}".rstrip()
    settings += f" of {digest(ours.teacher)} {corpus.key}"  # the same names can hold others
    settings += "".join(f" {digest(path)}" for path in ours.also)
    targets = {f"teacher@{n}": rollout(teacher, fixed, cosine_grid(n), w)[-1] for n in (10, 32)}
    teachers_variance = variance(teacher, fixed, cosine_grid(10), w)
    for seed in seeds:
        left = [flags for flags in runs if flags.seed == seed
                and not rows.find(system=flags.name, seed=seed, settings=settings)]
        batches = shared_batches(teacher, corpus, left[0], ours.pool, device) if left else []
        for flags in left:
            nets, seconds = train(flags, methods, teacher, batches)
            keep(nets, flags, methods[flags.method], bundle, ours.out / "students")
            row = measure(nets, fixed, targets)
            row[f"variance@{min(flags.steps)}"] /= teachers_variance
            rows.add({"system": flags.name, "seed": seed, "updates": flags.max_iters,
                      "parameters": count_parameters(nets[min(flags.steps)])[0], "seconds an update": seconds,
                      **row, "settings": settings})
    text = table(rows.find(settings=settings), sorted(ours.steps))
    write_text(ours.out / "table.md", text + "\n")
    print(text)


if __name__ == "__main__":
    cli(main)
