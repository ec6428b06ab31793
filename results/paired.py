"""Is one system better than another? Paired over sentences, seeds pooled: difference, 95 % bootstrap.

    PYTHONPATH=. python results/paired.py out/evaluate/utterances.csv teacher@10 student@1

Names are beginnings of names in the column system: all seeds of a method, dual_tokens_weak_cfg-, are one.
"""
import csv
import sys

import numpy as np

from measure.evaluate import bootstrap

COLUMNS = ("mel MSE", "word error rate", "Distill-MOS")
path, *names = sys.argv[1:]
found = {name: {} for name in names}            # name -> (sentence, column) -> values
with open(path, newline="", encoding="utf-8") as file:
    for row in csv.DictReader(file):
        for name in (name for name in names if row["system"].startswith(name)):
            for column in (column for column in COLUMNS if row.get(column)):
                found[name].setdefault((row["sentence"], column), []).append(float(row[column]))
for name in names[1:]:
    for column in COLUMNS:
        same = sorted(key for key in found[name].keys() & found[names[0]].keys() if key[1] == column)
        apart = [np.mean(found[name][key]) - np.mean(found[names[0]][key]) for key in same]
        if same:
            low, high = bootstrap(apart)
            print(f"{name} - {names[0]}, {column}: {np.mean(apart):+.4f} ({low:+.4f} to {high:+.4f}), "
                  f"{len(same)} sentences")
