"""README.md and results/ say what the files say, in few words: python -m pytest -q tests/test_words.py"""
import re
import runpy

import pytest

from common.files import read_csv
from conftest import ROOT

HOMES = ("checkpoints", "corpus", "measure", "networks", "speech")
PAGES = ["README.md", *(f"{home}/README.md" for home in HOMES),
         *sorted(f"results/{path.name}" for path in ROOT.glob("results/*.md"))]
TABLES = runpy.run_path(ROOT / "results/tables.py")
ANEW = "run: PYTHONPATH=. python results/tables.py"


def text(page):
    return (ROOT / page).read_text(encoding="utf-8")


def words(page):
    """How many words a page has; the bars of tables are none."""
    return sum(any(letter.isalnum() for letter in word) for word in text(page).split())


def test_readme_is_short_and_narrow_and_in_order():
    page = text("README.md")
    assert words("README.md") <= 1300 and max(map(len, page.splitlines())) <= 120
    assert re.findall(r"^## (.*)", page, re.M) == [
        "Run, hear, test", "The method at a glance", "Three ideas", "Reading order", "Write a variant",
        "Your network, your data, F5-TTS", "What we found", "Departures from the papers", "Limits and licence"]
    first, glance, found = (re.search(rf"{start}(.*?)\n## ", page, re.S)[1] for start in
                            ("^# ", "## The method at a glance\n", "## What we found\n"))
    assert first.count(".opus)") == 3
    assert first.count("![") == 1 and first.count(". ") + first.count(",\n") >= 2
    assert len(re.search(r"```python\n(.*?)```", glance, re.S)[1].splitlines()) == 6
    assert found.count("\n| ") == 7 and found.count("\n- ") == 3


def test_results_are_one_short_page_a_question():
    pages = [page for page in PAGES if page.startswith("results/")]
    assert sum(map(words, pages)) <= 2500, {page: words(page) for page in pages}
    for page in pages:
        if page not in ("results/README.md", "results/faults.md"):
            title, verdict = text(page).split("\n\n")[:2]
            assert title.startswith("# ") and verdict.startswith("**") and verdict.endswith("**"), page
            assert text(page).count("\n| --- ") == 1, page
            assert page.split("/")[1] in text("results/README.md"), page


@pytest.mark.parametrize("page", PAGES)
def test_lines_are_narrow_figures_whole_and_links_lead_somewhere(page):
    prose = re.sub(r"```.*?```", "", text(page), flags=re.S)
    assert not [line for line in prose.splitlines() if len(line) > 120 and not line.startswith("|")]
    assert not re.findall(r"(?:^|[\s(+-])\.\d+", prose, re.M)                     # 0.14, not .14
    for target in re.findall(r"(?:\]\(|src(?:set)?=\")([\w./-]+)", text(page)):
        assert (ROOT / page).parent.joinpath(target).exists(), target


def test_readme_points_at_the_right_lines():
    page = text("README.md")
    assert len(re.findall(r"\.py#L\d+\)", page)) == len(re.findall(r"\[`[^`]+`\]\([\w/]+\.py#L\d+\)", page)) > 15
    for code, file, line in re.findall(r"\[`([^`]+)`\]\(([\w/]+\.py)#L(\d+)\)", page):
        there = text(file).splitlines()
        where = [n for n, said in enumerate(there, 1) if said.strip().startswith(code)]
        assert int(line) in where, f"{file}:{line} does not begin with {code}, lines {where} do; {ANEW}"
    assert TABLES["with_lines"](page) == page, ANEW


@pytest.mark.parametrize("page", [*TABLES["TABLES"], *TABLES["PILOTS"]])
def test_tables_are_their_csvs(page):
    assert TABLES["with_tables"](page, text(page)) == text(page), ANEW


def test_what_readme_says_of_sound_is_measured():
    """Its figures of predicted quality are natural.csv's, those of speed speed.csv's."""
    page = " ".join(text("README.md").split())
    quality = {row["system"].split(",")[0]: float(row["Distill-MOS"])
               for row in read_csv(ROOT / "results/natural.csv")}
    said = [f"{quality['teacher@10'] - quality[one]:.2f} less"
            for one in ("student@1", "student_one@1")]
    said = [said[0] + " of predicted quality", said[1],
            f"predicted quality of {quality['recording']:.2f}, our copies of them {quality['copy synthesis']:.2f}, "
            f"the teacher {quality['teacher@10']:.2f}, one call {quality['student_one@1']:.2f}."]
    for words_of_it in said:
        assert words_of_it in page, words_of_it
    speed = {row["system"]: float(row["RTF p50"]) for row in read_csv(ROOT / "results/speed.csv")}
    faster = int(re.search(r"(\d+) times faster than real time", page)[1])
    assert 0.9 < faster * speed["student@1"] < 1.1 and 7 < speed["teacher@10"] / speed["student@1"] < 9


def test_pilots_are_figures():
    rows = read_csv(ROOT / "results/pilots.csv")
    asked = {row["question"] for row in rows}
    assert len(asked) >= 5 and all(float(row["value"]) is not None and row["system"] and row["figure"] for row in rows)
    assert all(f"# {question.capitalize()}" in "".join(map(text, PAGES)) for question in asked), asked
