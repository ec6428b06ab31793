"""What real texts, runs and files do to the program, kind by kind: python -m pytest -q tests/test_faults.py"""
import io
import os
import subprocess
import sys
import threading
import time as clock
import types

import numpy as np
import pytest
import soundfile
import torch

from measure import ablation
from methods import baselines
from networks import checkpoint
import common.cli
import common.files
import common.plots
import common.run
import distill
from methods import intmeanflow
import sample
import teacher
from speech import audio, text, vocoder, voices
from common.cli import BadInput
from conftest import ROOT, STEP, make_corpus, run, start, tiny_bundle, write_wav

LETTERS = " !',.;?abcdefghijklmnopqrstuvwxyz"


def said(capsys, words):
    """The one line of an error, which has to hold these words."""
    lines = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in "".join(lines), lines
    for word in [words] if isinstance(words, str) else words:
        assert word in errors[0], errors[0]


# ------------------------------------------------------------------------------------------------ text to speak


@pytest.mark.parametrize("lang", ["letters", "en-us", "none"])
@pytest.mark.parametrize("written", ["no mark at all", "in brackets (like this)", 'she said "stop"', "a list:",
                                     "cut here,", "a dash -", "one; two;", "(whole)", "trailing\n", "two\nlines"])
def test_every_text_ends_with_a_final_mark(lang, written):
    for _, symbols in text.chunks(written, lang)[0]:
        assert [s for s in symbols if s != " "][-1] in text.FINAL
    long = "and then we walked on through the long grass " * 40                   # cut into chunks
    found = text.chunks(long, lang)[0]
    assert len(found) > 3 and all([s for s in c if s != " "][-1] in text.FINAL for _, c in found)


@pytest.mark.parametrize("written, spoken", [
    ("-5 degrees", "minus five degrees"), ("−12°C", "minus twelve degrees Celsius"), ("and/or", "and or"),
    ("€50", "fifty euros"), ("£1", "one pound"), ("naïve façade", "naive facade"), ("Zoë's café", "Zoe's cafe"),
    ("A&B", "A and B"), ("50%", "fifty percent"), ("2+2=4", "two plus two equals four")])
def test_a_sign_is_spoken_and_nothing_in_a_word_is_deleted(written, spoken):
    assert text.spoken(written).lower() == spoken.lower()
    ids, unknown = text.encode(written, LETTERS, "letters")
    assert not unknown and "".join(LETTERS[i - 1] for i in ids).strip(" .") == spoken.lower()


def test_what_cannot_be_read_is_named(tmp_path, capsys, monkeypatch):
    b = tiny_bundle()
    b.vocab = list(" .?abdegh")
    assert voices.FrontEnd(b).chunks("a bad egg \u2603 hidden")
    heard = capsys.readouterr().out
    assert "\u2603" in heard and "left out" in heard
    for silent in ("...", "", "\n\n", "\u2603", "(-)"):
        with pytest.raises(BadInput, match="nothing to say"):
            voices.FrontEnd(b).chunks(silent)
    b.lang = "none"                             # its characters are all read, and none of them is known
    with pytest.raises(BadInput, match="nothing to say"):
        voices.FrontEnd(b).chunks("\u043f\u0440\u0438\u0432\u0435\u0442")


# --------------------------------------------------------------------------------------------------- long text


@pytest.fixture
def quick(monkeypatch):
    """A vocoder that costs nothing: silence of the right length."""
    monkeypatch.setattr(sample, "load_vocoder", lambda *_: lambda mel, s: np.full(len(mel) * s.hop, 0.1, np.float32))


def test_text_files_and_standard_input(trained, tmp_path, quick, capsys, monkeypatch):
    book, out = tmp_path / "book.txt", tmp_path / "b.flac"
    book.write_bytes("\ufeffhello there you. good morning to you.\r\n\r\nand the last one".encode())
    assert run(sample, "--ckpt", trained.student, "--text_file", book, "--out", out) == 0
    whole = soundfile.info(out).frames
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(book.read_bytes())))
    assert run(sample, "--ckpt", trained.student, "--text_file", "-", "--out", out) == 0
    assert soundfile.info(out).frames == whole > 0
    capsys.readouterr()
    book.write_bytes("caf\xe9".encode("cp1252"))
    (tmp_path / "empty.txt").write_text("")
    for path, words in ((tmp_path / "empty.txt", "--text_file " + str(tmp_path / "empty.txt")), (book, "UTF-8"), (tmp_path / "none.txt", "none.txt")):
        assert run(sample, "--ckpt", trained.student, "--text_file", path, "--out", out) == 2
        said(capsys, words)
    assert soundfile.info(out).frames == whole                                    # untouched
    assert run(sample, "--ckpt", trained.student, "--text", "-Hello", "--out", out) == 2
    said(capsys, '--text="-')
    assert run(sample, "--ckpt", trained.student, "--text=-Hello", "--out", out) == 0


def test_an_hour_of_speech_has_flat_memory_and_a_picture(trained, tmp_path, quick):
    sentence, out = "good morning to you and one more line. ", tmp_path / "hour.wav"
    (tmp_path / "book.txt").write_text(sentence * 250)
    pieces = []
    keep = sample.crossfade

    def kept(made):
        pieces.append(len(made[0]))
        return made
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample, "crossfade", lambda tail, *more: kept(keep(tail, *more)))
        assert run(sample, "--ckpt", trained.student, "--text_file", tmp_path / "book.txt", "--out", out) == 0
    assert len(pieces) > 20 and max(pieces) < 16000 * 30                          # written as it is made
    assert soundfile.info(out).frames == sum(pieces) and out.with_suffix(".png").is_file()
    common.plots.plot_mels([("an hour", torch.randn(62 * 3600, 80))], tmp_path / "long.png")   # a quantile of millions


def test_an_interruption_leaves_what_was_spoken(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with common.files.audio_file(tmp_path / "a.wav", 16000) as append:
            append(np.full(8000, 0.1))
            raise KeyboardInterrupt
    assert soundfile.info(tmp_path / "a.wav").frames == 8000
    with pytest.raises(KeyboardInterrupt):
        with common.files.audio_file(tmp_path / "a.wav", 16000):                        # nothing yet: the old one stays
            raise KeyboardInterrupt
    assert soundfile.info(tmp_path / "a.wav").frames == 8000 and len(list(tmp_path.iterdir())) == 1


def test_crossfade_in_pieces_is_the_crossfade_of_the_whole():
    wavs = [np.random.default_rng(i).normal(size=n).astype(np.float32) for i, n in enumerate((900, 50, 700, 3))]
    for fade in (0, 100, 2000):
        whole = wavs[0]
        for wav in wavs[1:]:
            n = min(fade, len(whole), len(wav))
            ramp = np.linspace(0, 1, n, dtype=np.float32)
            both = whole[len(whole) - n:] * (1 - ramp) + wav[:n] * ramp
            whole = np.concatenate([whole[:len(whole) - n], both, wav[n:]])
        assert np.allclose(audio.joined(wavs, fade), whole)


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
@pytest.mark.parametrize("peaks", [(0.2, 0.7, 0.1), (0.5, 2.4, 1.2), (1.001, 0.3)])
def test_one_gain_brings_a_whole_text_under_full_scale(tmp_path, capsys, peaks, suffix):
    with common.files.audio_file(tmp_path / f"a{suffix}", 16000) as append:
        for peak in peaks:
            append(peak * np.sin(np.arange(300000) / 3).astype(np.float32))
    found = np.abs(soundfile.read(tmp_path / f"a{suffix}")[0]).reshape(len(peaks), -1).max(1)
    gain = 0.99 / max(peaks) if max(peaks) > 1 else 1
    assert np.allclose(found, gain * np.array(peaks), atol=1e-3)                  # and in proportion
    assert capsys.readouterr().out.count("quieter") == (max(peaks) > 1)
    assert [path.name for path in tmp_path.iterdir()] == [f"a{suffix}"]


def test_a_checkpoints_usual_voice_and_a_text_said_whole():
    b = tiny_bundle()
    front, voices_ = sample.front_end(b), b.voices
    first = next(iter(voices_))
    b.voices = voices_ | {"other": voices_[first]}
    assert front.pick_voice() is b.voices[first] and front.pick_voice("none") is None
    b.contract["voice"] = "other"
    assert front.pick_voice() is b.voices["other"] and front.pick_voice(first) is b.voices[first]
    words = "Good morning to you and to all of them. " * 12

    def loud(mel, settings):
        return np.full(len(mel) * settings.hop, 3.0, np.float32)
    found, one = (sample.say(b, text, front.pick_voice(), loud, steps=1) for text in (words, words[:40]))
    assert len(found) > 5 * len(one) and np.abs(found).max() == pytest.approx(0.99)


# -------------------------------------------------------------------------------------------------------- runs


def test_a_second_run_does_not_destroy_the_first(trained, tmp_path, capsys, bare):
    words = [*trained.flags, "--out", tmp_path / "a", "--max_iters", 1]
    assert run(teacher, *words) == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}
    assert run(teacher, *words) == 2
    said(capsys, ["--out", "--resume", "--overwrite"])
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()} == before
    assert run(teacher, *words, "--overwrite", "--resume") == 2
    for flag in ("--data", "--init"):           # what is refused later has not taken the old run with it
        assert run(teacher, *words, "--overwrite", flag, tmp_path / "nowhere") == 2
        assert {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()} == before
    capsys.readouterr()
    assert run(teacher, *words, "--overwrite", "--init", tmp_path / "a" / "teacher.pt") == 2
    said(capsys, ["--init", "--overwrite", "another --out"])
    assert run(teacher, *words, "--overwrite", "--seed", 1, "--max_iters", 2) == 0
    assert run(teacher, *words, "--seed", 1, "--resume") == 2
    said(capsys, ["--max_iters 1", "2 updates"])
    assert (tmp_path / "a" / "teacher.pt").read_bytes() != before["teacher.pt"]


@pytest.mark.parametrize("name", ["teacher.pt", "student.pt", "vocoder.pt"])
def test_a_folder_of_checkpoints_is_no_place_for_a_run(trained, tmp_path, capsys, bare, name):
    """As checkpoints/ is: without a last.pt no run is there to resume, yet there is something to lose."""
    (tmp_path / name).write_bytes(trained.teacher.read_bytes())
    assert run(teacher, *trained.flags, "--init", tmp_path / name, "--out", tmp_path, "--max_iters", 1) == 2
    said(capsys, ["--out", name, "--overwrite"])
    assert (tmp_path / name).read_bytes() == trained.teacher.read_bytes()


def test_two_runs_in_one_folder(trained, tmp_path, capsys, bare):
    flags = types.SimpleNamespace(out=tmp_path / "a", resume=False, overwrite=False)
    lock = common.run.claim(flags)
    assert run(teacher, *trained.flags, "--out", tmp_path / "a", "--max_iters", 1) == 2
    said(capsys, "another run")
    lock.release()                              # as a killed process does
    assert run(teacher, *trained.flags, "--out", tmp_path / "a", "--max_iters", 1) == 0


def test_resume_from_nothing_starts_and_says_so(trained, tmp_path, capsys, bare):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "log.csv").write_text("step,loss\n1,99\n")                  # of a run that left no state
    assert run(teacher, *trained.flags, "--out", tmp_path / "a", "--max_iters", 2, "--resume", "--eval_every", 2) == 0
    assert "nothing is saved" in capsys.readouterr().out
    assert [row["step"] for row in common.files.read_csv(tmp_path / "a" / "log.csv")] == ["2"]


def test_resume_knows_another_corpus_and_another_teacher(trained, tmp_path, capsys, bare):
    corpus = make_corpus(tmp_path / "c")
    flags = ["--data", corpus, "--cache", tmp_path / "cache", *trained.flags[4:], "--pool", 1, "--count", 1]
    own = tmp_path / "teacher.pt"
    own.write_bytes(trained.teacher.read_bytes())
    words = [*flags, "--teacher", own, "--out", tmp_path / "s", "--steps", 1]
    assert run(distill, *words, "--max_iters", 1) == 0
    (corpus.rename(tmp_path / "moved"))                                           # the same recordings elsewhere
    moved = [tmp_path / "moved" if word == corpus else word for word in words]
    assert run(distill, *moved, "--max_iters", 2, "--resume") == 0
    capsys.readouterr()
    b = checkpoint.load_checkpoint(own)
    b.contract["cfg"] = 1.25
    checkpoint.save_checkpoint(own, b)
    assert run(distill, *moved, "--max_iters", 3, "--resume") == 2
    said(capsys, "another teacher")
    own.write_bytes(trained.teacher.read_bytes())
    write_wav(tmp_path / "moved" / "wavs" / "u9.wav", seed=9)
    with open(tmp_path / "moved" / "metadata.csv", "a") as table:
        table.write("u9|a new line here|a new line here\n")
    assert run(distill, *moved, "--max_iters", 3, "--resume") == 2
    said(capsys, "another corpus")


@pytest.mark.parametrize("command, words, named", [
    (teacher, ["--init", "x.pt", "--size", "tiny"], "--size"), (teacher, ["--resume", "--overwrite"], "--overwrite"),
    (distill, ["--no-tokens", "--token", "add"], "--token"), (distill, ["--method", "endpoint", "--a", 0.7], "--a"),
    (distill, ["--method", "endpoint", "--t_mf", "mid"], "--t_mf"), (distill, ["--init", "x", "--token", "add"], "--token"),
    (intmeanflow, ["--no-tokens"], "--no-tokens"), (intmeanflow, ["--token", "prepend"], "--token"),
    (baselines, ["--method", "consistency", "--no-weak_cfg"], "weak_cfg"),
    (teacher, ["--init", ""], "--init: is given nothing"), (distill, ["--goal="], "--goal: is given nothing"),
    (teacher, ["--lang", "f5"], "--lang: f5"), (sample, ["--text", "a", "--text_file", "b"], "--text"), (sample, ["--text", "a", "--voice", "b", "--prompt", "c"],
                                                                "--voice")])
def test_a_flag_that_does_nothing_is_refused(tmp_path, capsys, command, words, named):
    out = [] if command is sample else ["--out", tmp_path / "o"]
    assert run(command, *words, *out) == 2
    said(capsys, [named])
    assert not (tmp_path / "o").exists()


def test_gradients_of_both_networks_are_clipped_apart():
    def after(scale):
        a, b = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
        for p in [*a.parameters(), *b.parameters()]:
            torch.nn.init.ones_(p)
        optimiser = torch.optim.SGD([dict(params=a.parameters()), dict(params=b.parameters())], 0.1)
        for p, grad in [*((p, 3.0) for p in a.parameters()), *((p, scale) for p in b.parameters())]:
            p.grad = torch.full_like(p, grad)
        common.run.optimise(optimiser, [0.1, 0.1], 0)
        return a.weight.detach().clone()
    assert torch.equal(after(1.0), after(1000.0))


# ------------------------------------------------------------------------------------------------------- files


def test_a_flipped_bit_is_found(tmp_path):
    checkpoint.save_checkpoint(tmp_path / "a.pt", tiny_bundle())
    whole, changed = (tmp_path / "a.pt").read_bytes(), tiny_bundle().model.state_dict()
    rng = np.random.default_rng(0)
    for place in rng.integers(len(whole), size=120):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        (tmp_path / "a.pt").write_bytes(damaged)
        try:                                    # the archive has bytes that mean nothing
            read = checkpoint.load_checkpoint(tmp_path / "a.pt").model.state_dict()
            assert all(torch.equal(read[k], v.half().float()) for k, v in changed.items())
        except BadInput as problem:
            assert "a.pt" in str(problem) and "\n" not in str(problem)


def branches(tree, path=()):
    """Every (path, value) in nested dictionaries."""
    for key, value in tree.items():
        yield (*path, key), value
        if isinstance(value, dict):
            yield from branches(value, (*path, key))


def changed(tree, path, value):
    """Nested dictionaries with another value at a path."""
    return dict(tree, **{path[0]: changed(tree[path[0]], path[1:], value) if path[1:] else value})


@pytest.mark.parametrize("small", [False, True])
def test_every_misfit_in_a_checkpoint_is_one_line(tmp_path, small):
    """Each entry in turn is left out, or holds what it should not: refused in one line, or spoken as before."""
    checkpoint.save_checkpoint(tmp_path / "a.pt", tiny_bundle(STEP))
    assert not small or run(checkpoint, tmp_path / "a.pt", tmp_path / "small.pt") == 0
    whole = torch.load(tmp_path / ("small.pt" if small else "a.pt"), weights_only=True)
    refused = 0
    for number, (path, value) in enumerate(branches(whole)):
        wrong = [None, "x", -3, [1, 2], 10 ** 9, float("nan")]
        if torch.is_tensor(value):
            wrong = [[None, value.flatten()[1:], value.float() * torch.nan][number % 3]]
        alike = ("format", "config") if not small else set(whole) - {"steps", "model", "duration"}
        for change in wrong * (path[0] not in alike):
            common.files.save_torch(tmp_path / "b.pt", changed(whole, path, change))
            try:
                read = checkpoint.load_checkpoint(tmp_path / "b.pt")
                sample.speak(read, [torch.tensor([1, 2])], read.voices.get("a"), 1)
            except BadInput as problem:
                refused += 1
                assert "b.pt" in str(problem) and "\n" not in str(problem), problem
    assert refused > (50 if small else 150)


@pytest.mark.parametrize("harm", [
    lambda c: c.pop("lang"), lambda c: c.pop("config"), lambda c: c.update(lang=3), lambda c: c.update(config=[1]),
    lambda c: c["contract"].update(prompt="drift"), lambda c: c["contract"].update(prompt=1), lambda c: c["mel"].update(n_fft=999_999),
    lambda c: c["mel"].update(n_fft=65536), lambda c: c["mel"].update(hop=0), lambda c: c["gauss"].update(mean=torch.zeros(20, 5)),
    lambda c: c["gauss"].update(mean=torch.zeros(20, 5), var=torch.ones(20, 5)), *[
        lambda c, name=name, kind=kind: c["voices"]["a"].update({name: c["voices"]["a"][name].to(kind)})
        for name, kind in (("text", torch.bool), ("text", torch.float32), ("durations", torch.bool), ("durations", torch.float16),
                           ("mel", torch.bool), ("mel", torch.int64))]])
def test_what_a_checkpoint_lacks_or_has_of_another_kind_is_one_line(tmp_path, harm):
    checkpoint.save_checkpoint(tmp_path / "a.pt", tiny_bundle())
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    harm(content)
    common.files.save_torch(tmp_path / "b.pt", content)
    with pytest.raises(BadInput, match="b.pt: does not hold what it says"):
        checkpoint.load_checkpoint(tmp_path / "b.pt")


@pytest.mark.parametrize("change", [dict(hop=0), dict(n_fft=999_999), dict(hop=-3), dict(rate=0), dict(n_mels=0), dict(log="x")])
def test_a_vocoder_of_impossible_mels_is_one_line(tmp_path, change):
    content = torch.load(vocoder.WEIGHTS, weights_only=True)
    content["mel"] |= change
    common.files.save_torch(tmp_path / "v.pt", content)
    with pytest.raises(BadInput, match="v.pt: does not fit"):
        vocoder.load_net(tmp_path / "v.pt")


@pytest.mark.parametrize("flag", ["--ckpt", "--teacher", "--init"])
def test_weights_that_are_not_finite_are_refused_by_name(trained, tmp_path, capsys, flag, bare):
    content = torch.load(trained.student if flag == "--ckpt" else trained.teacher, weights_only=True)
    content["model"]["proj_out.bias"][3] = torch.nan
    common.files.save_torch(tmp_path / "nan.pt", content)
    command = {"--ckpt": sample, "--teacher": distill, "--init": teacher}[flag]
    words = ["--text", "a"] if command is sample else [*trained.flags, "--max_iters", 1, "--out", tmp_path / "o"]
    assert run(command, flag, tmp_path / "nan.pt", *words) == 2
    said(capsys, ["nan.pt", "proj_out.bias", "not finite"])


def test_a_state_that_does_not_fit_is_one_line(trained, tmp_path, capsys, bare):
    words = [*trained.flags, "--out", tmp_path / "a", "--max_iters"]
    assert run(teacher, *words, 1) == 0
    path = tmp_path / "a" / "last.pt"
    whole = torch.load(path, weights_only=True)
    for change in (lambda c: c.pop("net"), lambda c: c["net"].popitem(), lambda c: c.update(step="x"),
                   lambda c: c["ema"].update({"dit.proj_out.bias": torch.zeros(3)}), lambda c: c.pop("optimiser")):
        torch.save(whole, path)
        content = torch.load(path, weights_only=True)
        change(content)
        common.files.save_torch(path, content)
        assert run(teacher, *words, 2, "--resume") == 2
        said(capsys, "last.pt")


@pytest.mark.parametrize("write", [
    lambda p: common.files.write_audio(p, np.zeros(100), 16000), lambda p: common.files.write_text(p, "new"),
    lambda p: common.files.write_csv(p, [dict(a=1)]), lambda p: common.plots.plot_mels([("a", torch.randn(5, 8))], p)])
def test_a_full_disk_leaves_the_old_file_and_names_it(tmp_path, monkeypatch, write):
    path = tmp_path / "old.wav"
    if "plot" in write.__code__.co_names[1]:
        path = tmp_path / "old.png"
    path.write_bytes(b"old")

    def full(*_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(common.files.os, "replace", full)
    with pytest.raises(BadInput, match=f"{path.name}: cannot be written .No space left"):
        write(path)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_the_prompt_is_never_overwritten(trained, tmp_path, capsys):
    write_wav(tmp_path / "me.wav")
    before = (tmp_path / "me.wav").read_bytes()
    for out in (tmp_path / "me.wav", tmp_path / "x" / ".." / "me.wav"):
        assert run(sample, "--ckpt", trained.teacher, "--text", "a", "--prompt", tmp_path / "me.wav", "--prompt_text",
                   "hello there", "--out", out) == 2
        said(capsys, "--prompt")
    assert (tmp_path / "me.wav").read_bytes() == before


def test_importing_leaves_ctrl_c_to_the_caller(tmp_path):
    code = ("import signal, sys; before = signal.getsignal(signal.SIGINT); import sample; "
            "assert signal.getsignal(signal.SIGINT) is before; 1 / 0")
    heard = start(tmp_path, "-c", code).communicate(timeout=60)[0]
    assert "ZeroDivisionError" in heard and "AssertionError" not in heard         # other tracebacks stay


# ---------------------------------------------------------------------------------------------------- ablation


def test_ablation_takes_any_steps_and_refuses_what_mislabels(trained, tmp_path, capsys):
    words = ["--data", trained.flags[1], "--cache", trained.flags[3], *trained.of, "--device", "cpu", "--seeds", 0,
             "--max_iters", 1, "--pool", 2, "--count", 1]
    assert run(ablation, *words, "--out", tmp_path / "a", "--only", "endpoint, tokens, weak", "--steps", 2) == 0
    row, = common.files.read_csv(tmp_path / "a" / "ablation.csv")
    assert float(row["mse@2 to teacher@10"]) > 0 and float(row["variance@2"]) > 0
    capsys.readouterr()
    for flags in ("--seed 5", "--method endpoint", "--out x", "--data=y", "--lr 1e-4 --steps 2", "--resume"):
        assert run(ablation, *words, "--out", tmp_path / "b", "--flags", flags) == 2
        said(capsys, "--flags")


# ------------------------------------------------------------------------------------------- the state of a run


@pytest.mark.parametrize("name", ["teacher.pt", "student.pt", "vocoder.pt"])
def test_resume_without_a_state_does_not_train_over_a_checkpoint(trained, tmp_path, capsys, bare, name):
    (tmp_path / name).write_bytes(trained.teacher.read_bytes())
    assert run(teacher, *trained.flags, "--out", tmp_path, "--max_iters", 1, "--resume") == 2
    said(capsys, ["--resume", name, "no last.pt", "--overwrite"])
    assert (tmp_path / name).read_bytes() == trained.teacher.read_bytes()


def broken_states():
    """Name -> what is done to a last.pt."""
    def average(name, change):
        def act(state):
            averages = state["optimiser"]["state"][0]
            averages[name] = change(averages[name])
        return act
    return {"negative": lambda s: s.update(step=-1), "words": lambda s: s.update(step="many"),
            "share": lambda s: s.update(step=1.5), "short": average("exp_avg", lambda x: x.flatten()[:1].clone()),
            "long": average("exp_avg_sq", lambda x: torch.cat([x, x])), "count": average("step", lambda x: x.repeat(3)),
            "nan": average("exp_avg", lambda x: x * torch.nan), "whole": average("exp_avg", lambda x: x.long()),
            "other": average("exp_avg", lambda x: "a word"), "absent": lambda s: s["optimiser"]["state"][0].pop("exp_avg"),
            "extra": lambda s: s["optimiser"]["state"].update({10 ** 6: {}}), "none": lambda s: s.pop("optimiser"),
            "list": lambda s: s.update(optimiser=[1, 2]), "inner": lambda s: s["optimiser"].update(state=[])}


@pytest.mark.parametrize("kind", broken_states())
def test_a_broken_state_is_refused(trained, tmp_path, capsys, bare, kind):
    for name in ("last.pt", "teacher.pt", "log.csv"):
        (tmp_path / name).write_bytes((trained.tmp / "t" / name).read_bytes())
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    broken_states()[kind](state)
    torch.save(state, tmp_path / "last.pt")
    assert run(teacher, *trained.flags, "--out", tmp_path, "--max_iters", 3, "--resume") == 2
    said(capsys, ["--resume", "last.pt", "--overwrite"])


@pytest.mark.parametrize("rubbish", [b"step,loss\nmany,1\n", b"loss\n1\n", b"step,loss\n1,2,3\n", b"step,loss\n1\n",
                                     b"step,loss\n2,high\n", b"\xff\xfe\x00", b"a\n\x00\n"])
def test_a_log_of_rubbish_is_refused(trained, tmp_path, capsys, bare, rubbish):
    for name in ("last.pt", "teacher.pt"):
        (tmp_path / name).write_bytes((trained.tmp / "t" / name).read_bytes())
    (tmp_path / "log.csv").write_bytes(rubbish)
    assert run(teacher, *trained.flags, "--out", tmp_path, "--max_iters", 3, "--resume") == 2
    said(capsys, ["log.csv", "--resume"])
    assert (tmp_path / "log.csv").read_bytes() == rubbish


def test_a_warm_up_that_would_not_end_is_shortened(trained, tmp_path, capsys, bare):
    assert [common.run.learning_rate(step, 1.0, 200, 100) for step in (0, 9, 10)] == [0.1, 1.0, 1.0]
    assert common.run.learning_rate(0, 1.0, 20, 100) == 0.05                      # one that ends stays
    flags = [*trained.flags, "--out", tmp_path, "--warmup", 20]
    assert run(teacher, *flags, "--max_iters", 2) == 0
    assert "--warmup 20" in capsys.readouterr().out
    assert run(teacher, *flags, "--max_iters", 30, "--eval_every", 30, "--save_every", 30, "--resume") == 0
    assert "--warmup" not in capsys.readouterr().out                              # the flag itself stays as it was


def test_a_command_runs_in_a_thread(trained, tmp_path, bare):
    """Only the main thread may ask for signals; a run elsewhere does without them."""
    found = []
    words = [*trained.flags, "--out", tmp_path, "--max_iters", 1]
    thread = threading.Thread(target=lambda: found.append(run(teacher, *words)))
    thread.start()
    thread.join()
    assert found == [0] and (tmp_path / "teacher.pt").is_file()


def test_a_log_file_gets_each_line_at_once(tmp_path):
    """As `nohup python teacher.py > log` needs it, without PYTHONUNBUFFERED."""
    (tmp_path / "command.py").write_text("from common.cli import cli\n"
                                         "cli(lambda: (print('begun'), __import__('time').sleep(600)))\n")
    env = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"} | dict(PYTHONPATH=str(ROOT))
    with open(tmp_path / "log", "w") as log:
        job = subprocess.Popen([sys.executable, tmp_path / "command.py"], stdout=log, env=env)
    try:
        while "begun" not in (tmp_path / "log").read_text() and job.poll() is None:
            clock.sleep(0.1)
        assert job.poll() is None               # it has not ended, and yet its first line is there
    finally:
        job.kill()
        job.wait()


@pytest.mark.parametrize("home", ["/proc/none", "/dev/null", "relative/none"])
def test_a_home_that_cannot_be_written_is_done_without(tmp_path, home):
    """numba caches beside librosa, else at home, and without either importing librosa is a traceback."""
    code = "import common, os; print([os.environ[n] for n in ('NUMBA_CACHE_DIR', 'MPLCONFIGDIR')])"
    env = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "MPLCONFIGDIR")}
    job = subprocess.run([sys.executable, "-c", code], env=env | dict(HOME=home, PYTHONPATH=str(ROOT), TMPDIR=str(tmp_path)),
                         capture_output=True, text=True, timeout=60)
    assert job.stdout.count(str(tmp_path)) == 2 and not list(tmp_path.iterdir()), job.stderr      # and leaves nothing


@pytest.mark.parametrize("name", ["o\udce9.wav", "\udcff/o.wav", "\udce4\udcf6.flac"])
@pytest.mark.parametrize("command", [sample, teacher, vocoder])
def test_an_output_that_is_no_utf8_is_one_line(tmp_path, capsys, command, name):
    words = ["--text", "a"] if command is sample else []
    assert run(command, *words, "--out", tmp_path / name) == 2
    said(capsys, ["--out", "no UTF-8"])
    assert not list(tmp_path.iterdir())


def test_compiling_without_a_compiler_is_one_line(tmp_path):
    env = dict(os.environ, PATH="/nowhere", CC="/nowhere/cc", CXX="/nowhere/c++", TORCHINDUCTOR_CACHE_DIR=str(tmp_path))
    job = subprocess.run([sys.executable, "sample.py", "--text", "Hello.", "--compile", "--out", tmp_path / "a.wav"], cwd=ROOT, env=env,
                         capture_output=True, text=True, timeout=300)
    errors = [line for line in job.stderr.splitlines() if "arn" not in line]
    assert job.returncode == 2 and len(errors) == 1 and "--compile" in errors[0] and "leave it out" in errors[0], job.stderr


@pytest.mark.parametrize("place", ["http://127.0.0.1:9", "https://no.such.invalid", "http://localhost:1"])
def test_a_hub_that_is_not_there_is_known_soon(tmp_path, monkeypatch, place):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", place)
    monkeypatch.setitem(sys.modules, "huggingface_hub.constants", types.SimpleNamespace(HF_HUB_OFFLINE=False))
    common.cli.ask_hub(str(tmp_path))                                             # a folder: no hub is asked
    assert "HF_HUB_OFFLINE" not in os.environ
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")                                     # so that it is put back
    begun = clock.perf_counter()
    common.cli.ask_hub("some/model")
    assert os.environ["HF_HUB_OFFLINE"] == "1" and sys.modules["huggingface_hub.constants"].HF_HUB_OFFLINE
    assert clock.perf_counter() - begun < 6


def test_what_killed_runs_left_is_removed_by_the_next(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    names = [f"partial-{ended.pid}-a[1].pt", f"partial-{2 ** 80}-a[1].pt", f"partial-{os.getppid()}-a[1].pt", f"partial-{ended.pid}-b.pt",
             f"partial-{ended.pid}-x-a[1].pt", "partial-x-a[1].pt"]
    for name in names:
        (tmp_path / name).write_text("half")
    common.files.write_text(tmp_path / "a[1].pt", "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names[2:], "a[1].pt"])


@pytest.mark.parametrize("problem", [NotImplementedError("use SoftFileLock instead"), OSError(95, "Operation not supported"),
                                     OSError(37, "No locks available"), PermissionError(13, "Permission denied")])
def test_a_folder_that_cannot_be_locked_is_one_line(trained, tmp_path, capsys, monkeypatch, bare, problem):
    def acquire(*_, **__):
        raise problem
    monkeypatch.setattr(common.run.filelock.FileLock, "acquire", acquire)
    assert run(teacher, *trained.flags, "--out", tmp_path / "a", "--max_iters", 1) == 2
    said(capsys, [f"--out {tmp_path / 'a'}", "cannot be locked", "another disk"])
