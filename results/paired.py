"""Is one system better than another? Paired over sentences, seeds pooled: difference, 95 % bootstrap.

    PYTHONPATH=. python results/paired.py out/evaluate/utterances.csv teacher@10 student@1

Names are beginnings of names in the column system: all seeds of a method, dual_tokens_weak_cfg-, are one.
"""
from pathlib import Path

import numpy as np

from common.cli import BadInput, Parser, cli
from common.files import read_csv
from measure.evaluate import bootstrap

COLUMNS = ("mel MSE", "word error rate", "Distill-MOS")


def main():
    p = Parser(__doc__)
    p.add_argument("path", help="utterances.csv of measure.evaluate")
    p.add_argument("names", nargs="+", metavar="NAME", help="the system to compare with, and the others")
    flags = p.parse_args()
    if not Path(flags.path).is_file():
        raise BadInput(f"{flags.path}: no such file; expected an utterances.csv of measure.evaluate")
    found = {name: {} for name in flags.names}  # name -> (sentence, column) -> values
    for row in read_csv(flags.path):
        for name in (name for name in flags.names if row["system"].startswith(name)):
            for column in (column for column in COLUMNS if row.get(column)):
                found[name].setdefault((row["sentence"], column), []).append(float(row[column]))
    for name, values in found.items():
        if not values:
            raise BadInput(f"{name}: {flags.path} has no system of that name")
    first, *others = flags.names
    for name in others:
        for column in COLUMNS:
            same = sorted(key for key in found[name].keys() & found[first].keys() if key[1] == column)
            apart = [np.mean(found[name][key]) - np.mean(found[first][key]) for key in same]
            if same:
                low, high = bootstrap(apart)
                print(f"{name} - {first}, {column}: {np.mean(apart):+.4f} ({low:+.4f} to {high:+.4f}), "
                      f"{len(same)} sentences")


if __name__ == "__main__":
    cli(main)
