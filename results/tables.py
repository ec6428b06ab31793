"""The tables of README.md and results/README.md, made from the CSVs here; a test checks that they stand there.

    PYTHONPATH=. python results/tables.py
"""
from pathlib import Path

from common import markdown, mean_and_spread, read_csv

WORDS, MOS, DISTANCE = "corpus word error rate", "Distill-MOS", "mel MSE"
JUDGED = [("network calls", "network calls", "{:.0f}"), ("word error rate", WORDS, "{:.3f}"),
          ("Distill-MOS", MOS, "{:.2f}")]
SPEAKS = [*JUDGED, ("mel MSE to teacher@32", DISTANCE, "{:.4f}")]
VOICE = [("nearest to its prompt", "own voice", "{:.0%}"), ("cosine to it", "cosine own", "{:.2f}"),
         ("to others", "cosine other", "{:.2f}")]
STEPS = [(f"MSE, {n} step{'s' * (n > 1)}", f"mse@{n} to teacher@10", "{:.4f}") for n in (1, 2, 4)]
# name -> CSV, columns: (title, the CSV's, how it is written)
TABLES = {
    "natural": ("natural.csv", [*SPEAKS, ("variance", "variance", "{:.2f}")]),
    "unseen": ("unseen.csv", [*VOICE, ("word error rate", WORDS, "{:.3f}"), ("Distill-MOS", MOS, "{:.2f}")]),
    "human": ("human.csv", [*SPEAKS, ("with its own vocoder", "own vocoder", "{:.2f}")]),
    "methods": ("ablation.csv", [("parameters", "parameters", "{:,.0f}"), *STEPS,
                                 ("variance, 1 step", "variance@1", "{:.2f}"), ("paper's MOS-N", "paper", "{}")]),
    "ear": ("ear.csv", [("students", "students", "{:.0f}"), *SPEAKS]),
    "guidance": ("guidance.csv", SPEAKS),
    "networks": ("networks.csv", [("parameters", "parameters", "{:,.0f}"), *STEPS]),
    "teachers": ("teachers.csv", [("parameters", "parameters", "{:,.0f}"), ("held-out loss", "loss", "{:.3f}"),
                                  ("word error rate", WORDS, "{:.3f}"), ("Distill-MOS", MOS, "{:.2f}")]),
}


def table(name):
    """A table of TABLES -> Markdown: a line a system, means over its rows, with the spread of several."""
    file, columns = TABLES[name]
    rows, lines = read_csv(Path(__file__).parent / file), []
    for system in dict.fromkeys(row["system"] for row in rows):
        mine = [row for row in rows if row["system"] == system]

        def cell(key, form):
            values = [row[key] for row in mine if row.get(key) not in (None, "", "nan")]
            alike = len(set(values)) < 2
            return (form.format(float(values[0])) if values else "") if alike else mean_and_spread(values, form)
        lines.append([system, *(cell(key, form) for _, key, form in columns)])
    return markdown(["system", *(title for title, _, _ in columns)], lines)


if __name__ == "__main__":
    print("\n\n".join(f"{name}\n\n{table(name)}" for name in TABLES))
