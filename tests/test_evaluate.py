"""What evaluate.py and speed.py measure and promise: python -m pytest -q tests/test_evaluate.py"""
import importlib.util
import shutil
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch

import distill
import speech.judges
from speech import judges
from measure import evaluate
import model
import sample
from measure import speed
from networks.checkpoint import load_checkpoint, save_checkpoint
from common.cli import BadInput
from common.files import read_csv
from conftest import SMALL, STEP, make_batch, make_corpus, run, tiny_bundle, write_wav
from data import MelSettings, mel_spectrogram
from speech import prepare

def needs(package):
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"package {package} is missing")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A corpus of three recordings, and a teacher and a student that know its letters."""
    tmp = tmp_path_factory.mktemp("made")
    make_corpus(tmp / "c", ("had a bad cab", "a bed ahead", "feed a hag"))
    for name, config in (("teacher", SMALL), ("student", STEP)):
        save_checkpoint(tmp / f"{name}.pt", tiny_bundle(config))
    return tmp


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A vocoder that takes no time."""
    monkeypatch.setattr(evaluate, "load_vocoder", lambda *_: lambda mel, settings: (
        mel.mean(1).tanh().repeat_interleave(settings.hop).numpy()))


# ------------------------------------------------------------------------------------------------- the judges


def test_word_errors():
    assert judges.word_errors("the old clock struck".split(), "an old clock".split()) == 2
    assert judges.word_errors([], ["a"]) == judges.word_errors(["a"], []) == 1


def test_corpus_rate_and_mean_rate_are_told_apart():
    parrot = dict(words=str.split, asr=lambda wav: "one two" if wav[0] else "x")
    heard = evaluate.listen([np.ones(9), np.zeros(9)], ["one two three four", "y"], 16000, parrot)
    row = evaluate.summary(heard)
    assert heard["word errors"] == [2, 1] and heard["words"] == [4, 1]
    assert row["word error rate"] == 0.75 and row["corpus word error rate"] == 0.6
    assert row["word error rate low"] <= 0.75 <= row["word error rate high"]


@needs("whisper_normalizer")
def test_normalised_words_are_whispers_own():
    words = judges.load_words("en-us")
    assert words("Eleven neighbours, Mr. Hay!") == words("11 neighbors, mister hay")
    assert judges.load_words("de")("Zwölf Boxkämpfer!") == ["zwölf", "boxkämpfer"]


@pytest.mark.parametrize("name", ["nowhere", "/no/such/folder"])
def test_a_recogniser_that_cannot_be_had_is_one_line(name):
    with pytest.raises(BadInput, match=f"--asr {name}: ") as problem:
        judges.load_asr(name, "en-us")
    assert "\n" not in str(problem.value)


def test_without_packages_measures_are_left_out_and_said(monkeypatch, capsys):
    for package in ("faster_whisper", "pocketsphinx", "whisper_normalizer", "distillmos", "resemblyzer",
                    "parselmouth"):
        monkeypatch.setitem(sys.modules, package, None)                           # import raises ImportError
    left = evaluate.all_judges(None, "en-us")
    assert set(left) == {"words"} and left["words"]("It's 7, Sir") == ["it's", "7", "sir"]
    said = capsys.readouterr().out
    assert said.count("left out") == 4 and all(f"pip install {package}" in said for package in (
        "faster-whisper", "distillmos", "resemblyzer", "praat-parselmouth"))


def test_whisper_missing_falls_back_to_pocketsphinx(monkeypatch, capsys):
    decoder = types.SimpleNamespace(start_utt=lambda: 0, process_raw=lambda *_, **__: 0, end_utt=lambda: 0,
                                    hyp=lambda: types.SimpleNamespace(hypstr="a word"))
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    monkeypatch.setitem(sys.modules, "pocketsphinx", types.SimpleNamespace(Decoder=lambda **_: decoder))
    asr = judges.load_asr(None, "letters")
    assert (asr["recogniser"], asr["asr"](np.zeros(99))) == ("pocketsphinx", "a word")
    assert "pocketsphinx" in capsys.readouterr().out


@needs("distillmos")
def test_distill_mos_is_a_score():
    try:
        mos = judges.load_mos()
    except (ImportError, OSError, RuntimeError) as problem:
        pytest.skip(f"distillmos does not load: {problem}")
    assert 0.9 < mos(np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)) < 5.1


def test_nearest_voice():
    x, y = np.eye(2)
    near = evaluate.nearest_voice([x, y, y], ["a", "a", "nobody"], dict(a=x, b=y))
    assert near == {"own voice": 0.5, "cosine own": 0.5, "cosine other": 0.5}
    assert evaluate.nearest_voice([x], ["nobody"], dict(a=x, b=y)) == evaluate.nearest_voice(None, ["a"], {}) == {}


def pulses(periods, levels=None, rate=16000):
    """A train of decaying pulses, one a period (in samples)."""
    wav = np.zeros(int(sum(periods)) + 400, np.float32)
    ring = np.exp(-np.arange(200) / 30) * np.cos(np.arange(200) * 2 * np.pi * 700 / rate)
    for k, start in enumerate(np.cumsum(periods).astype(int)):
        wav[start:start + 200] += ring * (1 if levels is None else levels[k])
    return 0.3 * wav


@needs("parselmouth")
def test_praat_on_known_signals():
    prosody, hiss = judges.load_praat(), np.random.default_rng(0).normal(0, 0.1, 15760).astype(np.float32)
    tone, noisy = pulses([128] * 120), pulses([128] * 120) + 0.05 * hiss
    rough, shaky = pulses(128 * (1 + 0.03 * np.sin(np.arange(120)))), pulses([128] * 120, 1 + 0.3 * np.sin(
        np.arange(120)))
    heard = [prosody(wav) for wav in (tone, noisy, rough, shaky, hiss, hiss[:500])]
    plain, noisy, rough, shaky, none, _ = heard
    assert abs(plain["pitch Hz"] / 125 - 1) < 0.01 and plain["HNR dB"] > noisy["HNR dB"] > 0
    assert plain["jitter"] < 0.005 < rough["jitter"] and plain["shimmer"] < 0.02 < shaky["shimmer"]
    assert none["voiced"] < 0.1 < 0.8 < plain["voiced"]
    columns = {key: [figures[key] for figures in heard[:4]] for key in plain}
    same = evaluate.against(columns, columns)
    assert same["log F0 RMSE"] == 0 and same["hnr correlation"] > 0.999


# --------------------------------------------------------------------------------------------- tables and page


def test_intervals_and_tables():
    x = np.random.default_rng(1).normal(5, 1, 400)
    low, high = evaluate.bootstrap(x)
    fewer = evaluate.bootstrap(x[:40])
    assert low < x.mean() < high and high - low < fewer[1] - fewer[0]
    low, high = evaluate.bootstrap([1, 2, 0, 1], [10, 10, 5, 15])
    assert 0 <= low <= 0.1 <= high
    rows = [{"system": "a", "seed": k, "mel MSE": v, "mel MSE low": 0.1, "mel MSE high": 0.3}
            for k, v in enumerate((0.1, 0.3))]
    text = evaluate.table(rows, {"mel MSE": ".4f", "word error rate": ".3f"}, "whisper-base")
    assert "| a | 0.2000 (0.1000 to 0.3000) |" in text and "word" not in text     # no empty columns
    rows[0]["word error rate"] = 0.5
    assert "word error rate (whisper-base)" in evaluate.table(rows, {"word error rate": ".3f"}, "whisper-base")


@pytest.mark.parametrize("w, judges", [(0.7, dict(mos=lambda wav: 3.21)), (0.0, {})])
def test_final_table(tmp_path, monkeypatch, w, judges):
    b, student, batch = tiny_bundle(), tiny_bundle(STEP), make_batch((20, 14))
    goal = sample.rollout(b.model, batch, sample.cosine_grid(10), w)[-1]
    systems = {f"student@{n}": (student.model, n, 0.0) for n in (1, 2)}
    monkeypatch.setattr(speech.judges, "load_judges", lambda *_: judges)
    distill.final_table(b.model, systems, batch, goal, w, b.settings, tmp_path)
    lines = [line.split(" | ") for line in (tmp_path / "table.md").read_text().splitlines() if "|" in line]
    rows = {line[0].strip("| "): line[1:] for line in lines}
    copy = ["recording -> mel -> vocoder"] if judges else []
    teachers = ["teacher@10, w = 0.7", "teacher@1, w = 0.7"] if w else ["teacher@10, w = 0"]
    assert list(rows) == ["model", "---", *copy, *teachers, "teacher@1, w = 0", "student@1", "student@2"]
    assert rows[teachers[0]][3] == "0.0000" and rows[teachers[0]][0] == ("20" if w else "10")
    if copy:
        assert rows["student@1"][-1] == "3.21 |" and rows["model"][-1] == "Distill-MOS |"
    left = {path.name for path in tmp_path.iterdir()}
    assert {"mels_0.png", "mels_1.png", "recording.wav", "student_at_1.wav", f"teacher_at_10_w{w:g}.wav"} <= left


# -------------------------------------------------------------------------------------------------- the command


def test_evaluate_command(made, tmp_path, capsys, monkeypatch):
    judges = dict(words=str.split, asr=lambda wav: "a bad ear", recogniser="parrot", mos=lambda wav: float(wav.std()),
                  speaker=lambda wav: np.eye(2)[0])
    monkeypatch.setattr(evaluate, "all_judges", lambda *_: judges)
    flags = ["--data", made / "c", "--cache", made / "cache", "--device", "cpu", "--out", tmp_path]
    both = ["--ckpt", made / "teacher.pt", made / "student.pt"]
    others = tmp_path / "others"
    others.mkdir()
    for source, name in (("u0", "u0"), ("u1", "1")):
        shutil.copy(made / "c" / "wavs" / f"{source}.wav", others / f"{name}.wav")
    assert run(evaluate, *flags, *both, "--count", 2, "--seeds", 0, 1, "--page", 1, "--audio",
               f"kokoro={others}") == 0
    rows = read_csv(tmp_path / "table.csv")
    assert [r["system"].split(",")[0] for r in rows] == ["recording", "copy synthesis", "kokoro"] + [
        name for name in ("teacher@10", "student@1", "student@2", "student@4") for _ in (0, 1)]
    assert all(float(r["mel MSE"]) >= 0 and float(r["variance"]) >= 0 and float(r["text-to-sound RTF p95"]) > 0
               and 0 <= float(r["word error rate"]) <= 1 for r in rows[3:])
    assert rows[0]["Distill-MOS"] == rows[2]["Distill-MOS"] != rows[1]["Distill-MOS"]
    assert len(read_csv(tmp_path / "utterances.csv")) == 2 * len(rows)
    page = (tmp_path / "page.html").read_text()
    assert page.count("<audio") == 7 and "student@2" in (tmp_path / "table.md").read_text()    # the first seed's
    b = load_checkpoint(made / "teacher.pt")
    b.settings = replace(b.settings, floor=1e-3)
    save_checkpoint(tmp_path / "other.pt", b)
    for more, said in ((["--ckpt", made / "teacher.pt", tmp_path / "other.pt"], "other mel settings"),
                       (["--ckpt", made / "student.pt"], "--teacher"), ([*both, "--steps", 3], "--steps 3"),
                       ([*both, made / "teacher.pt"], "there twice"), ([*both, "--count", 0], "--count: 0"),
                       ([*both, "--seeds", -1], "--seeds"), ([*both, "--audio", f"x={tmp_path}"], "named u0 or 0"),
                       ([*both, "--audio", "x=a", "x=b"], "a name of its own"), ([*both, "--audio", "recording=a"], "of its own"),
                       ([*both, "--audio", "x"], "NAME=FOLDER"), ([*both, "--prompts", tmp_path / "x"], "no such")):
        assert run(evaluate, *flags, *more) == 2 and said in capsys.readouterr().err, said


def test_prompts_speak_every_sentence(made, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "all_judges", lambda *_: {})
    shutil.copytree(made / "c", tmp_path / "p" / "ann")
    shutil.copytree(made / "c", tmp_path / "p" / "bob")
    assert run(evaluate, "--ckpt", made / "teacher.pt", "--data", made / "c", "--cache", made / "cache", "--prompts",
               tmp_path / "p", "--steps", 2, "--page", 0, "--out", tmp_path / "o", "--device", "cpu") == 0
    rows = read_csv(tmp_path / "o" / "utterances.csv")
    assert [r["speaker"] for r in rows if r["system"].startswith("teacher")] == ["ann", "bob", "ann"]


@pytest.mark.parametrize("names", [("000", "001", "002"), ("a", "a b", "b")])
def test_two_days_of_one_reader_are_told_apart(tmp_path, names):
    """Each sentence gets its own recording, though the ids of both days are the same and one of them is left out."""
    days = dict(monday=("had a bad cab", "a bed ahead", "feed a hag"), tuesday=("a cab had gas", "he had a bag", "bad cafe"))
    for day, texts in days.items():
        for k, (name, text) in enumerate(zip(names, texts)):
            path = tmp_path / "c" / "ann" / day / "wavs" / f"{name}.wav"
            write_wav(path, 0.9 + 0.1 * k + 0.3 * (day == "tuesday"), seed=k)
            path.with_suffix(".txt").write_text(text)
    write_wav(tmp_path / "c" / "ann" / "monday" / "wavs" / f"{names[1]}.wav", level=0)          # skipped
    corpus = prepare.prepare(tmp_path / "c", lang="letters", cache=tmp_path / "cache", keep_outliers=True)
    items, ids, recordings = evaluate.choose(types.SimpleNamespace(data=tmp_path / "c", held=False, count=9), corpus)
    assert len(items) == 5 == len(set(ids))
    assert all(len(mel_spectrogram(wav, corpus.settings)) == len(corpus.mel(i)) for i, wav in zip(items, recordings))
    assert len({len(wav) for wav in recordings}) == 5


def test_checkpoints_named_alike_are_told_apart():
    assert evaluate.short_names(["x/t.pt", "x/s.pt"]) == ["t", "s"]
    assert evaluate.short_names(["x/a/s.pt", "x/b/s.pt", "t.pt"])[:2] == ["a-s", "b-s"]


@pytest.mark.parametrize("module", [evaluate, speed])
def test_help(module, capsys):
    assert run(module, "--help") == 0
    assert "--device" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------- speed


def test_flow_rtf_is_without_prompt_and_counts_what_it_says(monkeypatch):
    student, calls = tiny_bundle(STEP).model, []
    student.register_forward_hook(lambda net, inputs, out: calls.append(inputs[2].abs().max()))
    batch = dict(text=torch.ones(1, 4, dtype=torch.long), align=torch.zeros(1, 125, dtype=torch.long), mask=None,
                 x0=torch.randn(1, 125, 8), ref=torch.ones(1, 125, 8), known=torch.ones(1, 125, dtype=torch.bool))
    monkeypatch.setattr(distill, "in_turn", lambda jobs, rounds, device: {
        name: [job().sum() * 0 + 1.0] * rounds for name, job in jobs.items()})
    rtf = distill.flow_rtf({"a": (student, 2, 0.0)}, batch, MelSettings(n_mels=8), rounds=3)
    assert [float(x) for x in rtf["a"]] == [0.5] * 3                              # one second for two of speech
    assert len(calls) == 2 and not any(calls)


def test_text_to_sound_takes_turns():
    order = []

    def speaks(name, k):
        order.append((name, k))
        return 2.0
    rtf = speed.text_to_sound_rtf({n: lambda k, n=n: speaks(n, k) for n in "ab"}, 2, torch.device("cpu"))
    assert [len(v) for v in rtf.values()] == [2, 2] and order.index(("b", 0)) < order.index(("a", 1))


def test_speed_prints_a_row_for_each_size_of_work(monkeypatch, capsys):
    monkeypatch.setitem(model.SIZES, "tiny", dict(dim=32, depth=1, heads=2, text_dim=16, text_blocks=1))
    words = ["--device", "cpu", "--rounds", 1]
    assert run(speed, *words, "--batch", 1, 2, "--seconds", 0.5, 1) == 0
    told = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in told.splitlines() if line[:3] in ("| 1", "| 2")]
    assert [r[:2] for r in rows] == [["1", "0.5"], ["1", "1"], ["2", "0.5"], ["2", "1"]]
    assert all(float(r[4]) > 1 for r in rows) and "torch" in told
    for flag, value in (("--seconds", 0), ("--seconds", "nan"), ("--batch", 0)):
        assert run(speed, *words, flag, value) == 2 and f"{flag}: {value}" in capsys.readouterr().err


def test_speed_counts_the_calls_it_claims():
    calls = {}
    for name, (net, steps, w) in speed.networks("tiny", torch.device("cpu"), False).items():
        net.register_forward_hook(lambda *_, name=name: calls.update({name: calls.get(name, 0) + 1}))
        batch = speed.make_batch(2, 1, MelSettings(), torch.device("cpu"))
        distill.flow_rtf({name: (net, steps, w)}, batch, MelSettings(), 1)
    assert calls == {"teacher@10": 40, "student@1": 2}                            # a warm-up each


def test_a_picture_beside_a_sound_is_no_audio_and_a_lacking_voice_is_said(tmp_path, capsys):
    write_wav(tmp_path / "u0.wav", seed=0)
    (tmp_path / "u0.png").write_bytes(b"a picture")
    name, (wav,) = evaluate.other_audio(f"x={tmp_path}", ["u0"], tiny_bundle().settings)
    assert name == "x" and len(wav) > 1000
    both = {1: dict(ann=0, bob=0), 2: dict(ann=0)}
    assert evaluate.noted(["ann", "bob"], both) == ["ann", "bob"]
    assert capsys.readouterr().out.startswith("bob: spoken in a checkpoint's first voice")
    assert evaluate.noted(["ann"], both) and not capsys.readouterr().out
