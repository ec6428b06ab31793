"""How noisy the gradients of endpoint, velocity and dual loss are: noise.csv.

    PYTHONPATH=. python results/noise.py                            the page's figures
    PYTHONPATH=. python results/noise.py --seeds 0 --pool 4 --out x.csv     a try

sum Var(g) / || E g ||^2 of a batch's gradient g at the folded student of the shipped teacher, 64 batches, for
each of three seeds, beside the loss's own mean and its deviation over batches, relative to the mean. A batch
counts once, since a repeated one would repeat its gradient. Both parts of the fraction are unbiased.
"""
import itertools
import statistics
from pathlib import Path

import torch
from tqdm import tqdm

import distill
from common.cli import Parser, cli, count
from common.files import write_csv
from common.run import draw, seed_update
from networks.checkpoint import load_teacher
from speech.prepare import prepare

NAMES = ["endpoint", "velocity", "dual, both terms (Eq. 7)", "dual, one term an item (ours)"]


def gradient(student, flags, batch, number, a):
    """The gradient of DSFlow's loss at weight a, flat, and the loss, on a batch of one part."""
    student.zero_grad()
    (part,) = draw(batch, distill.DRAWS, seed_update(flags.seed, number))
    loss = distill.dsflow_loss(student, part, min(flags.steps), a=a, weak_cfg=False)[0]
    loss.backward()
    return torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None]), loss.item()


def gradient_noise(student, flags, batches):
    """-> a row for each loss of NAMES."""
    total, squares = dict.fromkeys(NAMES, 0.0), dict.fromkeys(NAMES, 0.0)
    losses, rows = {name: [] for name in NAMES}, []
    for number, batch in enumerate(tqdm(batches, "noise", leave=False, disable=None)):
        endpoint, velocity, ours = (gradient(student, flags, batch, number, a) for a in (1.0, 0.0, 0.7))
        both = [0.7 * at_end + 0.3 * on_chord for at_end, on_chord in zip(endpoint, velocity)]
        for name, (g, loss) in zip(NAMES, (endpoint, velocity, both, ours)):
            total[name], squares[name] = total[name] + g, squares[name] + float(g.square().sum())
            losses[name].append(loss)
    for name in NAMES:
        mean = float((total[name] / len(batches)).square().sum())
        spread = (squares[name] - len(batches) * mean) / (len(batches) - 1)
        rows.append(dict(system=name, batches=len(batches), variance=spread,
                         relative=spread / (mean - spread / len(batches)), loss=statistics.mean(losses[name]),
                         loss_deviation=statistics.stdev(losses[name]) / statistics.mean(losses[name])))
    return rows


def main():
    p = Parser(__doc__)
    p.add_argument("--seeds", type=count(0), nargs="+", default=[0, 1, 2], help="default 0 1 2")
    p.add_argument("--pool", type=count(2), default=64, help="batches of each seed (default 64)")
    p.add_argument("--out", type=Path, default=Path(__file__).with_name("noise.csv"), help="the CSV")
    given = p.parse_args()
    bundle = load_teacher("checkpoints/teacher.pt", "--teacher")
    corpus = prepare("corpus", bundle.settings, bundle.lang, bundle.vocab, "cache")
    found = []
    for seed in given.seeds:
        flags = distill.arguments(words=["--steps", "1", "--pool", str(given.pool), "--seed", str(seed)])
        student, _, _ = distill.make_student(flags, distill.METHODS["dsflow"], bundle.model)
        source = distill.trajectories(bundle.model, corpus, flags, False, torch.device("cpu"))
        found += [row | dict(seed=seed) for row in gradient_noise(student, flags,
                                                                  list(itertools.islice(source, given.pool)))]
    write_csv(given.out, found)


if __name__ == "__main__":
    cli(main)
