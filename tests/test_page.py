"""The page to listen to: what it shows, its files, the command, and the one in docs/: python -m pytest -q tests/test_page.py"""
import re

import numpy as np
import pytest
import soundfile
import torch

from conftest import ROOT, SMALL, STEP, make_corpus, run, tiny_bundle
from measure import page
from measure.page import System
from networks.checkpoint import save_checkpoint


def links(path):
    """Files that a page refers to, other pages on the internet aside."""
    found = re.findall(r'(?:src|srcset|href)="([^"]+)"', path.read_text(encoding="utf-8"))
    return [link for link in found if not link.startswith("https://arxiv.org/")]


def system(name, level, **more):
    return System(name, [torch.randn(9, 80)] * 2, [np.full(16000, level, np.float32)] * 2, **more)


def test_text_is_escaped_and_files_exist(tmp_path):
    path = tmp_path / "page.html"
    columns = [system("teacher <i>", 0.1, calls=20, quality=[3.21, 4.0]), system("student", 0.2, calls=1)]
    page.write_page(path, "<u>", "<p>head</p>", [("<s>salt & pepper</s>", "voice <em>"), ("more", "")], columns, 16000)
    text = path.read_text(encoding="utf-8")
    assert "&lt;s&gt;salt &amp; pepper" in text and not re.search("<(s|i|u|em)>", text) and "<p>head</p>" in text
    assert "20 network calls<br>quality 3.2" in text and "1 network call<" in text
    assert len(links(path)) == 8 == len({*links(path)}) and all((tmp_path / link).is_file() for link in links(path))


@pytest.mark.parametrize("names", [("lr-3e4", "lr_3e4"), ("A@1", "a 1"), ("é", "ü"), ("same", "same")])
def test_systems_whose_names_squeeze_to_one_keep_their_own_sound(tmp_path, names):
    path = tmp_path / "page.html"
    page.write_page(path, "t", "", [("one", ""), ("two", "")], [system(names[0], 0.1), system(names[1], 0.3)], 16000)
    sounds = [link for link in links(path) if link.endswith(page.SUFFIX)]
    levels = [float(np.median(soundfile.read(tmp_path / link)[0])) for link in sounds]
    assert levels == pytest.approx([0.1, 0.3, 0.1, 0.3], abs=0.05)


def test_nothing_is_clipped_and_an_earlier_page_leaves_nothing(tmp_path):
    path, wave = tmp_path / "page.html", np.sin(np.arange(16000) / 20).astype(np.float32)
    loud = System("loud", [torch.randn(9, 80)], [2.4 * wave])
    page.write_page(path, "t", "", [("one", "")], [loud, loud], 16000)
    (tmp_path / "page_files" / "notes.txt").write_text("mine")
    page.write_page(path, "t", "", [("one", "")], [loud], 16000)
    left = {file.name for file in (tmp_path / "page_files").iterdir()}
    assert left == {"notes.txt", *(link.split("/")[1] for link in links(path))} and len(left) == 3
    heard = soundfile.read(tmp_path / "page_files" / f"0_0_loud{page.SUFFIX}")[0][2000:-2000]
    assert np.corrcoef(heard, np.sin(np.arange(len(heard)) / 20 + np.angle(heard @ np.exp(
        -1j * np.arange(len(heard)) / 20)) + np.pi / 2))[0, 1] > 0.999            # still a sine


def test_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(page, "load_vocoder", lambda *_: lambda mel, settings: (
        mel.mean(1).tanh().repeat_interleave(settings.hop).numpy()))
    monkeypatch.setattr(page, "load_judges", lambda names: {"mos": lambda wav: 3.14})
    for name, config in (("teacher", SMALL), ("student", STEP)):
        save_checkpoint(tmp_path / f"{name}.pt", tiny_bundle(config))
    make_corpus(tmp_path / "c" / "a", ("had a bad cab", "a bed ahead", "feed a hag"))
    make_corpus(tmp_path / "p" / "bob", ("had a bad cab",))
    out, student = tmp_path / "new" / "index.html", tmp_path / "student.pt"
    flags = ["--teacher", tmp_path / "teacher.pt", "--student", student, "--data", tmp_path / "c", "--prompts",
             tmp_path / "p", "--prompt_voice", "bob", "--ids", "u1", "u0", "--prompted", 1, "--out", out, "--device", "cpu"]
    assert run(page, *flags, "--also", f"x-1@2={student}", f"x_1={student}") == 0, capsys.readouterr().err
    text, files = out.read_text(encoding="utf-8"), links(out)
    assert all((out.parent / link).is_file() for link in files) and text.count("<audio") == 2 * 8
    assert [text.count(f"<td>{name}</td>") for name in ("teacher@10", "student@4", "x-1@2", "x_1")] == [1] * 4
    assert "voice: a" in text and "prompt: bob" in text and "<b>recording</b>" in text and "<b>prompt</b>" in text
    assert "quality 3.1" in text and text.count("3.14</td>") == 8
    for more, said in ((["--ids", "u7"], "--ids u7"), (["--prompt_voice", "eve"], "--prompt_voice eve"),
                       (["--also", "x"], "--also x: expected NAME=PATH"), (["--also", f"x@3={student}"], "--steps 3"),
                       (["--also", f"x={tmp_path / 'teacher.pt'}"], "holds a teacher"),
                       (["--student", tmp_path / "teacher.pt"], "holds a teacher"),
                       (["--out", tmp_path / "page"], ".html"), (["--data", tmp_path / "p"], "bob is not among")):
        more += ["--ids", "u0", "--prompted", 0] if said.startswith("bob") else []
        assert run(page, *flags, *more) == 2 and said in capsys.readouterr().err, said


def test_the_page_in_docs():
    """It opens from disk, is small, and speaks six sentences that are in no corpus."""
    path = ROOT / "docs" / "index.html"
    files = links(path)
    assert all((path.parent / link).is_file() for link in files) and len(files) == len(set(files)) > 70
    assert {path.parent / link for link in files} == {p for p in (path.parent / "index_files").iterdir()}
    assert sum(p.stat().st_size for p in path.parent.rglob("*") if p.is_file()) < 4_000_000
    spoken = re.findall("<h2>(.*)</h2>", path.read_text(encoding="utf-8"))
    trained = "".join(table.read_text(encoding="utf-8") for table in (ROOT / "corpus").glob("*/metadata.csv"))
    assert len(spoken) == 6 and len(trained) > 10_000 and not any(words in trained for words in spoken)
