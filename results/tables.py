"""The tables of README.md and of the pages here, made from the CSVs; a test checks that they stand there.

    PYTHONPATH=. python results/tables.py
"""
from pathlib import Path

from common.files import markdown, mean_and_spread, read_csv

WORDS = ("word error rate", "corpus word error rate", "{:.3f}")
MOS, DISTANCE = ("Distill-MOS", "Distill-MOS", "{:.2f}"), ("mel MSE to teacher@32", "mel MSE", "{:.4f}")
JUDGED = [("network calls", "network calls", "{:.0f}"), WORDS, MOS, DISTANCE]
VOICE = [("nearest to its prompt", "own voice", "{:.0%}"), ("cosine to it", "cosine own", "{:.2f}"),
         ("to others", "cosine other", "{:.2f}")]
SPEAKER = ("speaker cosine", "cosine own", "{:.2f}")
SIZE = ("parameters", "parameters", "{:,.0f}")
STEPS = [(f"MSE, {n} step{'s' * (n > 1)}", f"mse@{n} to teacher@10", "{:.4f}") for n in (1, 2, 4)]
VARIANCE = ("variance, 1 step", "variance@1", "{:.2f}")


def heard(n):
    """The columns of words and Distill-MOS at n steps."""
    return [(f"words, {n} step{'s' * (n > 1)}", f"words@{n}", "{:.3f}"),
            (f"Distill-MOS, {n}", f"Distill-MOS@{n}", "{:.2f}")]


# name -> CSV, columns: (title, the CSV's, how it is written)
TABLES = {
    "natural": ("natural.csv", [*JUDGED, ("variance", "variance", "{:.2f}"), SPEAKER]),
    "unseen": ("unseen.csv", [*VOICE, WORDS, MOS]),
    "human": ("human.csv", [*JUDGED, ("with its own vocoder", "own vocoder", "{:.2f}")]),
    "methods": ("ablation.csv", [SIZE, *STEPS, VARIANCE, *heard(1), ("paper's MOS-N", "paper", "{:.2f}")]),
    "ear": ("ear.csv", [*JUDGED, SPEAKER]),
    "networks": ("networks.csv", [SIZE, *STEPS, VARIANCE, *heard(1), *heard(4),
                                  ("RTF, 1 step", "RTF@1", "{:.4f}")]),
    "aligned": ("aligned.csv", [(f"{title}, {n}", f"{key}{n}{end}", form) for title, key, end, form in (
        ("MSE", "mse@", " to teacher@10", "{:.3f}"), ("words", "words@", "", "{:.3f}"),
        ("Distill-MOS", "Distill-MOS@", "", "{:.2f}")) for n in (1, 2, 3, 4)]),
    "teachers": ("teachers.csv", [SIZE, ("held-out loss", "loss", "{:.3f}"), WORDS, MOS]),
    "speed": ("speed.csv", [("p50", "RTF p50", "{:.4f}"), ("p95", "RTF p95", "{:.4f}")]),
}


def table(name, systems=None):
    """A table of TABLES -> Markdown: a line a system, means over its rows, with the spread of several.

    systems: only these, in this order.
    """
    file, columns = TABLES[name]
    rows, lines = read_csv(Path(__file__).parent / file), []
    for system in systems or dict.fromkeys(row["system"] for row in rows):
        mine = [row for row in rows if row["system"] == system]

        def cell(key, form):
            values = [row[key] for row in mine if row.get(key) not in (None, "", "nan")]
            if len(set(values)) > 1:
                return mean_and_spread(values, form)
            return form.format(float(values[0])) if values else ""
        lines.append([system, *(cell(key, form) for _, key, form in columns)])
    return markdown(["system", *(title for title, _, _ in columns)], lines)


if __name__ == "__main__":
    print("\n\n".join(f"{name}\n\n{table(name)}" for name in TABLES))
