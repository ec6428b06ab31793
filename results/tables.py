"""The tables of the pages here and of README.md, from the CSVs, and the lines of code README.md points at.

    PYTHONPATH=. python results/tables.py       puts them into the pages; a test checks that they stand there
"""
import re
from pathlib import Path

from common.files import markdown, mean_and_spread, read_csv, write_text

HERE = Path(__file__).parent
WORDS, MOS = "corpus word error rate", "Distill-MOS"
SIZE = ("parameters", "ablation.csv", "parameters", "{:,.0f}")
FOUND = ("endpoint, adaLN, weak CFG", "dual, adaLN, weak CFG", "intmeanflow", "endpoint, tokens, weak CFG",
         "dual, tokens, weak CFG")


def quality(n):
    """The column of predicted quality at n steps of the methods."""
    return f"Distill-MOS, {n} step{'s' * (n > 1)}", "ear.csv", MOS, "{:.2f}", f" @{n}"


def distances(file):
    """The columns of the mel's distance to the teacher's ten steps, at 1, 2, 4 steps."""
    return [(f"MSE, {n} step{'s' * (n > 1)}", file, f"mse@{n} to teacher@10", "{:.4f}") for n in (1, 2, 4)]


# page -> (systems, all of the first column's file if None, and columns: title, CSV, its column, how a figure
# is written, what is added to the system's name)
TABLES = {
    "README.md": (FOUND, [SIZE, quality(1), quality(4)]),
    "results/speak.md": (None, [
        ("calls", "natural.csv", "network calls", "{:.0f}"), ("words wrong", "natural.csv", WORDS, "{:.3f}"),
        ("Distill-MOS", "natural.csv", MOS, "{:.2f}"),
        ("new voice: nearest to its own prompt", "unseen.csv", "own voice", "{:.0%}"),
        ("its Distill-MOS", "unseen.csv", MOS, "{:.2f}"),
        ("a person's voice: words wrong", "human.csv", WORDS, "{:.3f}"),
        ("its Distill-MOS", "human.csv", MOS, "{:.2f}")]),
    "results/fast.md": (None, [("seconds per second of speech, median", "speed.csv", "RTF p50", "{:.4f}"),
                               ("95th percentile", "speed.csv", "RTF p95", "{:.4f}")]),
    "results/methods.md": ((*FOUND, "consistency", "progressive", "velocity"),
                           [SIZE, *distances("ablation.csv"), *map(quality, (1, 2, 4))]),
    "results/networks.md": (None, [
        ("parameters", "networks.csv", "parameters", "{:,.0f}"), *distances("networks.csv"),
        ("words wrong, 1 step", "networks.csv", "words@1", "{:.3f}"),
        ("Distill-MOS, 1 step", "networks.csv", "Distill-MOS@1", "{:.2f}"),
        ("Distill-MOS, 4 steps", "networks.csv", "Distill-MOS@4", "{:.2f}")]),
}
PILOTS = {"results/failed.md": "what did not help?", "results/sound.md": "what made it sound better?"}


def table(page):
    """The table of a page -> Markdown: a line a system, means over its rows, with the spread of several."""
    systems, columns = TABLES[page]
    files = {file: read_csv(HERE / file) for file in {column[1] for column in columns}}

    def cell(system, file, key, form, more=""):
        values = [row[key] for row in files[file] if row["system"] == system + more and row.get(key) not in
                  (None, "", "nan")]
        if len(set(values)) > 1:
            return mean_and_spread(values, form)
        return form.format(float(values[0])) if values else ""
    lines = [[system, *(cell(system, *column) for _, *column in columns)]
             for system in systems or dict.fromkeys(row["system"] for row in files[columns[0][1]])]
    return markdown(["system", *(title for title, *_ in columns)], lines)


def pilots(question):
    """The table of what was tried on the way to a question, from pilots.csv -> Markdown."""
    rows = [row for row in read_csv(HERE / "pilots.csv") if row["question"] == question]
    return markdown(["tried", "figure", "with it", "without", "note"],
                    [[row[key] for key in ("system", "figure", "value", "without", "note")] for row in rows])


def with_tables(page, text):
    """The text of a page, its table put in anew, which is found by its first line."""
    made = pilots(PILOTS[page]) if page in PILOTS else table(page)
    before, start, after = text.partition(made.split("\n")[0] + "\n")
    rest = after.split("\n")
    while rest and rest[0].startswith("|"):
        rest.pop(0)
    if not start:
        raise ValueError(f"{page}: no table that begins {made.split(chr(10))[0]}")
    return "\n".join([before + made.rstrip("\n"), *rest])


def with_lines(text):
    """README.md's text, each link [`code`](file.py#L1) led to the last line that begins with that code."""
    def found(link):
        code, file = link[1], link[2]
        lines = (HERE.parent / file).read_text(encoding="utf-8").splitlines()
        numbers = [n for n, line in enumerate(lines, 1) if line.strip().startswith(code)]
        if not numbers:
            raise ValueError(f"README.md: no line of {file} begins with {code}")
        return f"[`{code}`]({file}#L{numbers[-1]})"
    return re.sub(r"\[`([^`]+)`\]\(([\w/]+\.py)#L\d+\)", found, text)


if __name__ == "__main__":
    for page in (*TABLES, *PILOTS):
        path = HERE.parent / page
        text = with_tables(page, path.read_text(encoding="utf-8"))
        write_text(path, with_lines(text) if page == "README.md" else text)
