"""Commands, checkpoints, resume, processes, bad input, the repository itself: python -m pytest -q tests/test_runs.py"""
import ast
import graphlib
import io
import itertools
import os
import re
import runpy
import shutil
import signal
import statistics
import subprocess
import sys
import time as clock
import types
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import torch

from measure import ablation
from methods import baselines
from networks import checkpoint
import common.cli
import common.files
import common.run
import distill
from methods import dmd
from measure import evaluate
from networks import f5
from methods import intmeanflow, own_steps
import model
from networks import durations, e2, f5_net
from speech import prepare
import sample
import speech.judges
from measure import speed
import teacher
from speech import text
from common.cli import BadInput
from conftest import (BACKBONES, F5, ROOT, SMALL, STEP, make_batch, randomised, run, start, start_many, tiny_bundle,
                      write_wav)

METHODS = distill.METHODS | intmeanflow.METHODS | baselines.METHODS | dmd.METHODS
HOME = {name: module for module in (distill, intmeanflow, baselines, dmd) for name in module.METHODS}


def header(out):
    """The columns of a run's log, and how many rows it has."""
    rows = common.files.read_csv(out / "log.csv")
    return set().union(*rows), len(rows)


def one_line(capsys):
    """What a failed command said, which has to be one line."""
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


# ------------------------------------------------------------------------------------------------ checkpoints


@pytest.mark.parametrize("network, config", [*BACKBONES.values(), (model.DiT, STEP), (e2.F5E2, F5)])
def test_checkpoint_round_trip(tmp_path, network, config):
    b = tiny_bundle(config, network)
    checkpoint.save_checkpoint(tmp_path / "a.pt", b)
    c = checkpoint.load_checkpoint(tmp_path / "a.pt")
    for mine, loaded in ((b.model, c.model), (b.duration, c.duration)):
        assert all(torch.equal(x.half().float(), loaded.state_dict()[k]) for k, x in mine.state_dict().items())
        assert not loaded.training
    for name in ("settings", "vocab", "lang", "contract"):
        assert getattr(c, name) == getattr(b, name)
    assert c.model.config == b.model.config and type(c.model) is network
    assert all(torch.equal(v, c.voices["a"][k]) for k, v in b.voices["a"].items())
    size = 2 * sum(p.numel() for net in (b.model, b.duration) for p in net.parameters()) + 8 * b.gauss["mean"].numel()
    assert (tmp_path / "a.pt").stat().st_size < size + 60_000                     # two bytes a weight


@pytest.mark.parametrize("network, config", [*BACKBONES.values(), (model.DiT, STEP)])
def test_a_small_checkpoint_has_each_weight_to_half_a_step(tmp_path, network, config, capsys):
    b = tiny_bundle(config, network)
    checkpoint.save_checkpoint(tmp_path / "a.pt", b)
    assert run(checkpoint, tmp_path / "a.pt", tmp_path / "b.pt") == 0
    assert (tmp_path / "b.pt").stat().st_size < (tmp_path / "a.pt").stat().st_size
    c = checkpoint.load_checkpoint(tmp_path / "b.pt")
    for mine, loaded in ((b.model, c.model), (b.duration, c.duration)):
        for name, value in mine.state_dict().items():
            rows, off = value.flatten(1) if value.dim() > 1 else value[:, None], (
                loaded.state_dict()[name] - value.half()).abs().max()
            fine = {"embed", "proj_in", "proj_out"} & set(name.split("."))
            step = torch.maximum(rows.std(1) / 10 * (not fine), rows.abs().amax(1) / 127).max() if value.dim() > 1 else 0
            assert off <= 0.51 * step, name
            assert value.dim() < 2 or value.std() < 0.01 or off > 0, name         # it did become integers
    assert c.vocab == b.vocab and (c.voices["a"]["mel"] - b.voices["a"]["mel"]).abs().max() <= 1 / 64
    content = torch.load(tmp_path / "b.pt", weights_only=True)
    del content["steps"]
    common.files.save_torch(tmp_path / "c.pt", content)
    with pytest.raises(BadInput, match="c.pt"):                                   # no integers taken for weights
        checkpoint.load_checkpoint(tmp_path / "c.pt")
    for source in ("absent.pt", "b.pt"):                                          # b.pt: integers already
        assert run(checkpoint, tmp_path / source, tmp_path / "d.pt") == 2 and not (tmp_path / "d.pt").exists()
    before = (tmp_path / "a.pt").read_bytes()
    for target in (tmp_path / "a.pt", tmp_path / "nowhere" / ".." / "a.pt", tmp_path / "a.wav"):
        assert run(checkpoint, tmp_path / "a.pt", target) == 2
    assert (tmp_path / "a.pt").read_bytes() == before and not (tmp_path / "a.wav").exists()


def test_integers_keep_what_is_small_beside_ones():
    """As of intmeanflow.py's [I | 0] after training: a step of 1/127 would take all that was learnt."""
    learnt = torch.eye(32, 64) + 0.002 * torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    weights, steps = checkpoint.to_integers({"pair.weight": learnt, "other.weight": torch.randn(32, 64)})
    assert torch.equal(weights["pair.weight"], learnt) and set(steps) == {"other.weight"}


def test_steps_and_guidance_by_default_and_at_most():
    assert sample.check_steps(tiny_bundle(), None, None) == (10, 1.5)
    assert sample.check_steps(tiny_bundle(STEP), None, None) == (1, 0.0)
    with pytest.raises(BadInput, match="1 to 1000"):
        sample.check_steps(tiny_bundle(), 1001, None)


class Malicious:
    def __reduce__(self):
        return (Path.touch, (Path(self.target),))


def test_bad_checkpoints_are_refused_and_nothing_runs(tmp_path):
    checkpoint.save_checkpoint(tmp_path / "good.pt", tiny_bundle())
    (tmp_path / "cut.pt").write_bytes((tmp_path / "good.pt").read_bytes()[:5000])
    torch.save({"something": torch.zeros(1)}, tmp_path / "other.pt")
    evil = Malicious()
    evil.target = str(tmp_path / "executed")
    torch.save(evil, tmp_path / "evil.pt")
    (tmp_path / "text.pt").write_text("hello")
    for name, word in (("cut", "truncated"), ("other", "another kind"), ("evil", "refused"),
                       ("text", "not a checkpoint"), ("absent", "no such file")):
        with pytest.raises(BadInput, match=word) as problem:
            checkpoint.load_checkpoint(tmp_path / f"{name}.pt")
        assert name in str(problem.value) and "\n" not in str(problem.value)
    assert not (tmp_path / "executed").exists()


def test_a_full_disk_or_a_kill_while_saving_loses_nothing(tmp_path, monkeypatch):
    path, b = tmp_path / "a.pt", tiny_bundle()
    checkpoint.save_checkpoint(path, b)
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device", str(path))
    monkeypatch.setattr(common.files.os, "fsync", full)
    with pytest.raises(BadInput, match="No space left"):
        checkpoint.save_checkpoint(path, b)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    with pytest.raises(SystemExit) as stop:
        common.cli.cli(lambda: checkpoint.save_checkpoint(path, b))
    assert stop.value.code == 2
    monkeypatch.setattr(common.files.os, "fsync", lambda _: None)
    (tmp_path / "partial-1-a.pt").write_bytes(b"half a file from a killed process")
    assert checkpoint.load_checkpoint(path).vocab == b.vocab                      # the leftover is not mistaken for it
    checkpoint.save_checkpoint(path, b)
    assert path.read_bytes()[:4] == before[:4] and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("loss", [lambda w: w.sum() * torch.nan, lambda w: (w * 0).sum().sqrt(),
                                  lambda w: (w * 1e30).square().sum()])
def test_a_loss_or_gradient_that_is_not_finite_stops_the_run(loss):
    net = torch.nn.Linear(2, 2)
    before = net.weight.clone()
    loss(net.weight).backward()
    with pytest.raises(BadInput, match="gradient norm (nan|inf) at update 7"):
        common.run.optimise(torch.optim.SGD(net.parameters(), 1.0), [1.0], 7)
    assert torch.equal(net.weight, before)


def test_the_second_interrupt_stops_at_once():
    interrupt = common.run.Interrupt()
    signal.raise_signal(signal.SIGINT)
    assert interrupt.asked
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


# ---------------------------------------------------------------------------------------- processes and parts


def test_parts_of_a_batch_hold_each_item_once_and_draw_what_the_whole_draws(monkeypatch):
    batch = {k: v for k, v in make_batch((14, 13, 9, 8, 7)).items() if k not in ("u", "coin")}
    seed = torch.Generator().manual_seed
    names = ("interval", "term")
    (whole,) = common.run.draw(common.run.parts(batch, 1), names, seed(3))
    (more,) = common.run.draw(common.run.parts(batch, 1), (*names, "chord"), seed(3))
    assert torch.equal(more["u"]["term"], whole["u"]["term"]) and more["coin"] == whole["coin"]
    (many,) = common.run.draw(common.run.parts(batch, 1), tuple("abcdefghi"), seed(3))
    assert len(many["u"]) == 9 and all(u.shape == (5,) for u in many["u"].values())
    for ranks, accumulate in ((1, 3), (2, 2), (8, 1)):
        found = []
        for rank in range(ranks):
            monkeypatch.setattr(common.run, "world", lambda: (rank, ranks))
            mine = common.run.parts(batch, accumulate)
            assert len(mine) == accumulate
            found += common.run.draw(mine, names, seed(3))
        for share in ("frame_share", "symbol_share"):
            assert sum(float(p[share]) for p in found) == pytest.approx(1)
        assert sorted(i for p in found if p["frame_share"] > 0 for i in p["rows"].tolist()) == [0, 1, 2, 3, 4]
        for p in found:
            assert p["mel"].shape[1] == p["mask"].sum(1).max() == p["align"].shape[1]
            assert torch.equal(p["mel"], batch["mel"][p["rows"], :p["mel"].shape[1]])
            assert list(p["u"]) == ["interval", "term"] and p["coin"] == whole["coin"]
            assert all(torch.equal(p["u"][name], whole["u"][name][p["rows"]]) for name in names)


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"meanflow", "dmd"}))    # a mean over items; draws noise
def test_accumulation_equals_the_joint_batch(method, monkeypatch):
    """Gradients of 2, 3 and 7 parts (more than items) add up to the whole batch's, in float64."""
    batch = {k: v.double() if v.is_floating_point() else v for k, v in make_batch((14, 13, 9, 8, 7)).items()
             if k not in ("u", "coin")}
    lead, entry, gradients = randomised(model.DiT(SMALL)).double(), METHODS[method], {}
    flags = distill.arguments(METHODS, ["--method", method, "--seed", "5"])
    monkeypatch.setattr(distill, "optimise", lambda *_: torch.zeros(()))
    monkeypatch.setattr(distill, "ema_update", lambda *_: None)
    start = model.fold(lead, [2, 4, 8]) if method == "progressive" else None
    for parts in (1, 2, 3, 7):
        student, nets, _ = distill.make_student(flags, entry, lead, start)
        made = [distill.teacher_states(lead, part, flags.steps, 0.7, 4, entry.dense)
                for part in common.run.parts(batch, parts)]
        for step in range(6):
            distill.update(flags, entry, student, nets, None, made, step)
        gradients[parts] = torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])
    assert gradients[1].norm() > 1e-3
    for parts in (2, 3, 7):
        assert torch.allclose(gradients[parts], gradients[1], rtol=1e-5, atol=1e-6)   # t is float32


def test_accumulated_durations_equal_the_joint_batch():
    """A part's duration loss counts by its symbols (dropout, which each part draws anew, is off here)."""
    batch = {k: v for k, v in make_batch((14, 13, 9, 8, 7)).items() if k not in ("u", "coin")}
    net, gradients = durations.DurationPredictor(SMALL.vocab, 16, 1).eval(), []
    for parts in (1, 3):
        net.zero_grad()
        for part in common.run.parts(batch, parts):
            (part["symbol_share"] * net.loss(part["text"], part["durations"])).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    assert gradients[0].norm() > 1e-3 and torch.allclose(*gradients, rtol=1e-4, atol=1e-6)


def stop_after_update(number, monkeypatch):
    """As if Ctrl-C came in this update of a run."""
    class Stop(common.run.Interrupt):
        updates = itertools.count(1)
        asked = property(lambda self: next(self.updates) == number, lambda self, _: None)
    monkeypatch.setattr(common.run, "Interrupt", Stop)


@pytest.mark.parametrize("command", ["distill", "teacher"])
def test_two_processes_equal_one_and_resume_it(trained, tmp_path, command, bare, monkeypatch):
    """Two gloo processes make one process's run to rounding; distill: they continue that of one process."""
    flags = [*trained.flags, "--eval_every", 2]
    flags += (["--init", trained.teacher, "--duration_iters", 0] if command == "teacher" else
              [*trained.of, "--steps", 1, 2, "--pool", 2, "--reuse", 2])
    module, more = (teacher, []) if command == "teacher" else (distill, ["--resume"])
    assert run(module, *flags, "--out", tmp_path / "one", "--max_iters", 4) == 0
    if more:
        with monkeypatch.context() as patch:
            stop_after_update(2, patch)
            assert run(module, *flags, "--out", tmp_path / "two", "--max_iters", 4) == 130
    jobs = start_many(tmp_path / "told", 2, command, *flags, "--out", tmp_path / "two", "--max_iters", 4, *more)
    [job.join(300) for job in jobs]
    told = (tmp_path / "told").read_text()
    assert [job.exitcode for job in jobs] == [0, 0], told
    assert told.count("wrote ") == 1 and told.count("device: cpu") == 1           # one process speaks
    one, two = (torch.load(tmp_path / out / "last.pt", weights_only=True)["net"] for out in ("one", "two"))
    assert max(float((one[k] - two[k]).abs().max()) for k in one) < 1e-5
    (one, rows), (two, others) = header(tmp_path / "one"), header(tmp_path / "two")   # each logs its own parts
    assert rows == others == 2 and {c for c in one if "/" not in c} >= {"loss", "grad_norm"} <= two


def endless(trained, out):
    """Flags of a run that does not end by itself, and saves often."""
    return [*trained.flags, *trained.of, "--out", out, "--max_iters", 100000, "--save_every", 5, "--eval_every", 100000,
            "--pool", 2]


def wait_for(path, alive):
    """Until there is such a file, as long as those who make it are alive."""
    while not path.is_file():
        assert alive(), "ended early"
        clock.sleep(0.1)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds the processes in Linux's /proc")
def test_a_killed_process_ends_the_job_with_a_clear_error(trained, tmp_path):
    """Under torchrun itself, gloo on the CPU."""
    job = start(tmp_path, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", ROOT / "distill.py",
                *endless(trained, tmp_path))
    wait_for(tmp_path / "last.pt", lambda: job.poll() is None)
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGKILL)
    told = job.communicate(timeout=300)[0]
    assert job.returncode and "exitcode  : -9" in told, told                      # torchrun's, which it was
    assert checkpoint.load_checkpoint(tmp_path / "student.pt") and not list(tmp_path.glob("partial-*"))


def test_an_interrupt_saves_once_and_stops_every_process(trained, tmp_path):
    """One process alone is told; the other stops after the same update."""
    jobs = start_many(tmp_path / "told", 2, "distill", *endless(trained, tmp_path))
    wait_for(tmp_path / "last.pt", lambda: all(job.is_alive() for job in jobs))
    os.kill(jobs[1].pid, signal.SIGTERM)
    [job.join(300) for job in jobs]
    told = (tmp_path / "told").read_text()
    assert [job.exitcode for job in jobs] == [130, 130], told
    assert told.count("interrupted: saved after update") == 1, told


def test_a_process_left_alone_says_so():
    def broken():
        raise RuntimeError("Connection closed by peer [127.0.0.1]:1234\nand a trace")
    with pytest.raises(BadInput, match=r"another process of this run is gone \(Connection closed"):
        common.run.wait_for_all(broken)


# ------------------------------------------------------------------------------------------------------- runs


def test_commands_leave_what_they_promise(trained):
    """The log has losses by quarter of time (teacher), by interval and term (student), and its curve is drawn."""
    left = {p.name for p in (trained.tmp / "s").iterdir()}
    assert {"student.pt", "last.pt", "log.csv", "log.png", "table.md", "mels_0.png", "student_at_1.wav"} <= left
    columns, rows = header(trained.tmp / "s")
    assert {"loss", "grad_norm", "mse@1", "mse@4", "seconds_per_update", "teacher_seconds"} <= columns and rows == 1
    taken = {int(name.split("/")[1]) for name in columns if "/" in name}          # what two updates have drawn
    for n in taken:
        both = [f"{term} {k}/{n}" for term in ("endpoint", "velocity") for k in range(1, n + 1)]
        assert taken <= {1, 2, 4} and columns & set(both)
    assert taken and columns & {"endpoint", "velocity"}
    assert (trained.tmp / "s" / "table.md").read_text().count("student@") == 3
    left = {p.name for p in (trained.tmp / "t").iterdir()}
    assert {"teacher.pt", "last.pt", "log.csv", "log.png", "step000002.png", "step000002_0.wav"} <= left
    columns, rows = header(trained.tmp / "t")
    assert {"loss", "duration_loss", "held_loss", "held_duration_loss", "grad_norm"} <= columns and rows == 1
    assert columns & {f"loss t<{k}/4" for k in (1, 2, 3, 4)}
    for name in ("s", "t"):
        assert (trained.tmp / name / "log.png").read_bytes()[:4] == b"\x89PNG"


def test_the_log_keeps_apart_what_is_not_there(tmp_path):
    """A loss that no item supplied is an empty cell, not 0 and not nan; a resumed log drops later rows."""
    log = common.run.Log(tmp_path / "log.csv", 0)
    log.report(step=2, loss=1.0, **{"endpoint 1/2": 0.5, "endpoint 2/2": float("nan")})
    log.report(step=4, loss=0.5, **{"endpoint 1/2": float("nan"), "endpoint 2/2": 0.25})
    rows = common.files.read_csv(tmp_path / "log.csv")
    assert [(r["endpoint 1/2"], r["endpoint 2/2"]) for r in rows] == [("0.5", ""), ("", "0.25")]
    again = common.run.Log(tmp_path / "log.csv", 2)
    again.report(step=3, loss=0.7)
    assert [r["step"] for r in common.files.read_csv(tmp_path / "log.csv")] == ["2", "3"]


@pytest.mark.parametrize("flags", list(itertools.product(
    ("dsflow", "endpoint"), ([], ["--no-tokens"]), ([], ["--no-weak_cfg"]))))
def test_all_eight_combinations_run(trained, tmp_path, flags, bare):
    method, tokens, weak = flags
    assert run(distill, *trained.flags, *trained.of, "--out", tmp_path, "--max_iters", 1, "--pool", 1, "--count", 1,
               "--method", method, *tokens, *weak) == 0
    kind = checkpoint.load_checkpoint(tmp_path / "student.pt").model.config.time
    assert kind == ("t" if tokens else "step")


def quick_sound(monkeypatch):
    """sample.py with silence for a vocoder and no picture."""
    monkeypatch.setattr(sample, "load_vocoder", lambda *_: lambda mel, s: torch.zeros(len(mel) * s.hop).numpy())
    monkeypatch.setattr(sample, "plot_mels", lambda *_: None)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_its_student_speaks(trained, tmp_path, method, bare, monkeypatch):
    quick_sound(monkeypatch)
    out, words = tmp_path / "s", ["--text", "hello there", "--out", tmp_path / "x.wav"]
    assert run(HOME[method], *trained.flags, *trained.of, "--out", out, "--max_iters", 3, "--steps", 1, 2, "--pool", 2,
               "--method", method) == 0
    b = checkpoint.load_checkpoint(out / "student.pt")
    assert b.model.config.time == METHODS[method].time and b.contract["voice"] in b.voices
    for steps in [1, 2] + [3] * (not b.contract["steps"]):                        # free grids take any number
        assert run(sample, "--ckpt", out / "student.pt", "--steps", steps, *words) == 0
    assert any(name.endswith(("velocity", "consistency", "endpoint")) for name in header(out)[0])


def test_a_file_of_methods_has_its_first_as_default(trained, tmp_path, capsys, bare):
    assert run(intmeanflow, "--help") == 0 and "(default intmeanflow)" in capsys.readouterr().out
    assert run(baselines, "--help") == 0 and "(default velocity)" in capsys.readouterr().out
    assert run(baselines, "--method", "dsflow", "--out", tmp_path / "x") == 2 and "--method" in one_line(capsys)


def test_progressive_distillation_is_three_runs(trained, tmp_path, capsys, bare):
    """4 steps from the teacher, 2 from that student, 1 from that; any other order is one line."""
    words = [*trained.flags, *trained.of, "--max_iters", 2, "--pool", 2, "--count", 1, "--method", "progressive"]
    assert run(baselines, *words, "--steps", 4, "--out", tmp_path / "4") == 0
    for n in (2, 1):
        before = tmp_path / str(2 * n) / "student.pt"
        assert run(baselines, *words, "--steps", n, "--out", tmp_path / str(n), "--init", before) == 0
        b = checkpoint.load_checkpoint(tmp_path / str(n) / "student.pt")
        assert b.model.config.steps == (n,) and b.contract["steps"] == [n]
    capsys.readouterr()
    wrong = [*words, "--steps", 1, "--out", tmp_path / "wrong", "--init"]
    assert run(baselines, *wrong, tmp_path / "4" / "student.pt") == 2
    assert "--init: takes (4,) steps; expected a student of 2 for --steps 1" in one_line(capsys)
    assert run(baselines, *wrong, tmp_path / "nowhere.pt") == 2 and "no such file" in one_line(capsys)
    assert run(baselines, *wrong, trained.teacher) == 2 and "holds a teacher" in one_line(capsys)
    assert run(intmeanflow, *trained.flags, *trained.of, "--max_iters", 1, "--pool", 1, "--out", tmp_path / "i") == 0
    capsys.readouterr()
    assert run(baselines, *wrong, tmp_path / "i" / "student.pt") == 2 and "its time is 'pair'" in one_line(capsys)
    other = checkpoint.load_checkpoint(tmp_path / "4" / "student.pt")
    right, other.model = other.model, randomised(model.DiT(replace(other.model.config, dim=64)))
    checkpoint.save_checkpoint(tmp_path / "other.pt", other)
    assert run(baselines, *wrong, tmp_path / "other.pt") == 2 and "its dim is 64" in one_line(capsys)
    other.model, other.vocab = right, other.vocab[::-1]                           # as many symbols, other ones
    checkpoint.save_checkpoint(tmp_path / "other.pt", other)
    assert run(baselines, *wrong, tmp_path / "other.pt") == 2 and "its symbols is" in one_line(capsys)
    assert not (tmp_path / "wrong" / "student.pt").exists()


def test_one_call_learns_from_its_own_four(trained, tmp_path, capsys, bare, monkeypatch):
    """New sentences, other sentences of the corpus, cut and resumed; what is not a student of several steps: a line."""
    quick_sound(monkeypatch)
    (tmp_path / "new.txt").write_text("Good morning, you there. Hello again and again!\n")
    words = [*trained.flags, *trained.of, "--pool", 3, "--reuse", 2, "--count", 1, "--steps", 1, "--save_every", 3]
    both = [*words, "--init", trained.student, "--max_iters", 8]
    for more in ([], ["--sentences", tmp_path / "new.txt"]):
        whole, cut = tmp_path / f"whole{len(more)}", tmp_path / f"cut{len(more)}"
        assert run(own_steps, *both, *more, "--out", whole) == 0
        with monkeypatch.context() as patch:
            stop_after_update(5, patch)
            assert run(own_steps, *both, *more, "--out", cut) == 130
        assert run(own_steps, *both, *more, "--out", cut, "--resume") == 0
        nets = [torch.load(folder / "last.pt", weights_only=True)["net"] for folder in (whole, cut)]
        assert all(torch.equal(nets[0][name], nets[1][name]) for name in nets[0])
        assert checkpoint.load_checkpoint(whole / "student.pt").contract["steps"] == [1]
    further = [*words, "--init", whole / "student.pt", "--max_iters", 1]
    assert run(own_steps, *further, "--goal", trained.student, "--out", tmp_path / "further") == 0
    assert run(sample, "--ckpt", whole / "student.pt", "--text", "hello there", "--out", tmp_path / "x.wav") == 0
    capsys.readouterr()
    for wrong, said in ((words, "--goal"), ([*both, "--steps", 1, 2], "--steps 1 2"),
                        ([*both, "--teacher_steps", 12], "--teacher_steps"),
                        (further, "--init"), ([*further, "--goal", whole / "student.pt"], "--goal"),
                        ([*further, "--goal", trained.teacher], "--goal"),
                        ([*both, "--sentences", tmp_path / "no.txt"], "--sentences")):
        assert run(own_steps, *wrong, "--out", tmp_path / "wrong") == 2 and said in one_line(capsys)
    assert not (tmp_path / "wrong" / "student.pt").exists()
    before = {path.name: path.read_bytes() for path in whole.iterdir()}
    for wrong, said in (([*both, "--sentences", tmp_path / "no.txt"], "--sentences"), (words, "--goal")):
        assert run(own_steps, *wrong, "--out", whole, "--overwrite") == 2 and said in one_line(capsys)
    assert {path.name: path.read_bytes() for path in whole.iterdir()} == before   # refused, and nothing is lost
    (tmp_path / "new.txt").write_text("Good evening.\n")
    assert run(own_steps, *both, *more, "--out", whole, "--resume") == 2 and "another sentences" in one_line(capsys)


@pytest.mark.parametrize("goal", ["--init", "--goal", "--goal of any count"])
def test_own_steps_ends_are_four_calls_from_little_noise(trained, goal, tmp_path, bare):
    """What an update gets: the frames to generate, mostly no noise, and where the goal's four steps lead."""
    student = trained.student
    if goal == "--goal of any count":
        assert run(intmeanflow, *trained.flags, *trained.of, "--out", tmp_path, "--max_iters", 1, "--pool", 1) == 0
        student = tmp_path / "student.pt"
    flags = distill.arguments(own_steps.METHODS, [str(word) for word in (
        *trained.flags, *trained.of, "--steps", 1, goal.split()[0], student, "--pool", 40, "--reuse", 1)])
    setup = distill.build(flags, own_steps.METHODS["own_steps"], torch.device("cpu"))
    goal_net = checkpoint.load_checkpoint(student).model
    found = [part for (part,) in itertools.islice(own_steps.own_steps(setup, flags, torch.device("cpu"), 0), 40)]
    still = torch.cat([(part["x0"] == 0).all(-1).all(-1) for part in found])
    assert 0.6 < still.float().mean() < 0.95
    for part in found[:5]:
        known, todo = part["known"], part["todo"]
        assert torch.equal(known | todo, part["mask"]) and not (known & todo).any() and todo.any(1).all()
        assert (part["ref"][~known] == 0).all() and part["align"].shape == known.shape
        ends = sample.rollout(goal_net, part, sample.cosine_grid(4), 0.0)
        assert torch.equal(part["states"], torch.stack([part["x0"], ends[-1]])) and part["grid"].tolist() == [0, 1]
    texts = {tuple(line[line > 0].tolist()) for part in found for line in part["text"]}
    alone = {tuple(setup.corpus.ids[i].tolist()) for i in setup.corpus.train}
    assert alone & texts and texts - alone      # recordings alone, and with another sentence behind them


@pytest.mark.parametrize("name", [name for name in BACKBONES if name != "dit"])
def test_every_backbone_is_distilled_and_speaks(trained, tmp_path, name, bare, monkeypatch):
    """By dsflow, with tokens where they can be, and by IntMeanFlow; the scripts are told by the checkpoint alone."""
    quick_sound(monkeypatch)
    few, words = ["--max_iters", 1, "--pool", 1, "--count", 1], ["--text", "hello there", "--out", tmp_path / "x.wav"]
    of = ["--teacher", trained.of_each[name]]
    assert run(distill, *trained.flags, *of, *few, "--out", tmp_path / "s") == 0
    assert run(intmeanflow, *trained.flags, *of, *few, "--out", tmp_path / "i") == 0
    for folder, steps, time in (("s", 2, "t" if name == "unet" else "step"), ("i", 3, "pair")):
        assert run(sample, "--ckpt", tmp_path / folder / "student.pt", "--steps", steps, *words) == 0
        student = checkpoint.load_checkpoint(tmp_path / folder / "student.pt").model
        assert student.config.time == time and type(student) is BACKBONES[name][0]
    assert run(distill, *trained.flags, *trained.of, *few, "--out", tmp_path / "no", "--init",
               tmp_path / "i" / "student.pt") == 2


def test_a_network_of_your_own_trains_distils_and_speaks(trained, tmp_path, bare, capsys, monkeypatch):
    """own.py is a whole one in under 40 lines, and an ordinary --backbone."""
    quick_sound(monkeypatch)
    few = [*trained.flags, "--max_iters", 1]
    of = [*few, "--pool", 1, "--count", 1, "--teacher", tmp_path / "t" / "teacher.pt"]
    assert run(teacher, *few, "--backbone", "own", "--out", tmp_path / "t") == 0
    assert run(distill, *of, "--out", tmp_path / "s") == 0
    assert run(sample, "--ckpt", tmp_path / "s" / "student.pt", "--text", "hello", "--out", tmp_path / "x.wav") == 0
    assert (tmp_path / "x.wav").is_file()
    assert run(distill, *of, "--recompute", "--out", tmp_path / "r") == 2
    assert "--recompute: Own has no way to" in one_line(capsys)                   # not ignored
    lines = (ROOT / "networks/own.py").read_text().splitlines()
    assert len([line for line in lines if line.strip()]) < 40


def test_a_student_whose_token_is_a_frame(trained, tmp_path, bare, monkeypatch):
    """--token prepend, of a DiT and of F5-TTS's network: trains, speaks, and goes on by --init."""
    quick_sound(monkeypatch)
    few = [*trained.flags, "--max_iters", 1, "--pool", 1, "--count", 1, "--teacher"]
    for name, network in (("dit", e2.E2), ("f5", e2.F5E2)):
        of, path = [*few, trained.of_each[name], "--out"], tmp_path / name / "student.pt"
        assert run(distill, *of, path.parent, "--token", "prepend") == 0
        student = checkpoint.load_checkpoint(path).model
        assert type(student) is network and student.config.time == "step"
        assert run(sample, "--ckpt", path, "--text", "hello there", "--out", tmp_path / "x.wav") == 0
        assert run(distill, *of, tmp_path / f"{name} on", "--init", path, "--steps", 3) == 0
        assert type(checkpoint.load_checkpoint(tmp_path / f"{name} on" / "student.pt").model) is network


@pytest.mark.parametrize("network, config, told", [
    (model.DiT, SMALL, dict(enters="adaln", aligned=True)), (model.DiT, STEP, dict(enters="add", aligned=True)),
    (e2.E2, STEP, dict(enters="prepend", aligned=True)), (e2.F5E2, F5, dict(enters="prepend", aligned=False)),
    (f5_net.F5, replace(F5, mask_filler=False, rotary_heads=1), dict(enters="adaln", aligned=False))])
def test_older_checkpoints_load(tmp_path, network, config, told):
    """Then all networks but the U-Net were one, by four fields of its config, and a mel's epsilon had no name."""
    b = tiny_bundle(config, network)
    b.settings = replace(b.settings, epsilon=1e-9)
    checkpoint.save_checkpoint(tmp_path / "new.pt", b)
    content = torch.load(tmp_path / "new.pt", weights_only=True)
    content["dit"] = dict(mask_filler=True, rotary_heads=0) | content["dit"] | told
    content["mel"]["power"] = content["mel"].pop("epsilon")
    torch.save(content | dict(backbone="dit"), tmp_path / "old.pt")
    new, old = (checkpoint.load_checkpoint(tmp_path / name) for name in ("new.pt", "old.pt"))
    assert type(old.model) is network and old.model.config == config and old.settings == b.settings
    assert all(map(torch.equal, old.model.parameters(), new.model.parameters()))


@pytest.mark.parametrize("module, method, name", [(teacher, None, name) for name in BACKBONES] + [
    (distill, "dsflow", "dit"), (baselines, "consistency", "dit"), (distill, "dsflow", "unet"), (dmd, "dmd", "dit")])
def test_resume_equals_an_uninterrupted_run(trained, tmp_path, module, method, name, bare, monkeypatch):
    flags = trained.flags + ["--eval_every", 2, "--save_every", 3]
    flags += [*("--teacher", trained.of_each[name]), "--pool", 2, "--reuse", 2, "--count", 1, "--method",
              method] if method else ["--backbone", name]
    assert run(module, *flags, "--out", tmp_path / "whole", "--max_iters", 6) == 0
    with monkeypatch.context() as patch:
        stop_after_update(3, patch)
        assert run(module, *flags, "--out", tmp_path / "cut", "--max_iters", 6) == 130
    assert torch.load(tmp_path / "cut" / "last.pt", weights_only=True)["step"] == 3
    assert run(module, *flags, "--out", tmp_path / "cut", "--max_iters", 6, "--resume") == 0
    whole, cut = (torch.load(tmp_path / d / "last.pt", weights_only=True) for d in ("whole", "cut"))
    assert all(torch.equal(whole[part][k], cut[part][k]) for part in {"net", "ema", "auxiliary"} & set(whole)
               for k in whole[part])
    rows = [common.files.read_csv(tmp_path / d / "log.csv") for d in ("whole", "cut")]
    assert [r["step"] for r in rows[0]] == [r["step"] for r in rows[1]] == ["2", "4", "6"]
    assert rows[0][0]["loss"] == rows[1][0]["loss"] and rows[0][2]["loss"] == rows[1][2]["loss"]
    assert run(module, *flags, "--out", tmp_path / "cut", "--max_iters", 7, "--resume") == 0
    state = torch.load(tmp_path / "cut" / "last.pt", weights_only=True)
    assert state["step"] == 7 and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    state["settings"].pop("seed")
    torch.save(state, tmp_path / "cut" / "last.pt")
    assert run(module, *flags, "--out", tmp_path / "cut", "--resume") == 2            # an older file


@pytest.mark.parametrize("module, flag, value", [
    (teacher, "--lr", 0.1), (teacher, "--p_noref", 0.5), (teacher, "--size", "small"), (distill, "--pool", 3),
    (distill, "--method", "endpoint"), (distill, "--steps", 1), (distill, "--cfg", 0), (distill, "--a", 0.5)])
def test_resume_refuses_other_settings(trained, capsys, module, flag, value):
    flags = ["--out", trained.tmp / "t"] if module is teacher else ["--out", trained.tmp / "s", *trained.of, "--pool", 2]
    assert run(module, *trained.flags, *flags, "--resume", flag, value) == 2
    assert re.search(f"made with another ({flag[2:]}|model): .*, now ", one_line(capsys))


def test_an_unguided_target_is_listed_once(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(speech.judges, "load_judges", lambda *_: {})
    assert run(distill, *trained.flags, *trained.of, "--out", tmp_path, "--max_iters", 1, "--steps", 1, "--cfg", 0,
               "--count", 1, "--pool", 1) == 0
    assert (tmp_path / "table.md").read_text().count("teacher@1,") == 1


# --------------------------------------------------------------------------------------- a variant of your own

HUBER = '''"""DSFlow with Huber's loss in place of the square: python my_method.py --steps 1"""
import torch.nn.functional as F

from common.cli import cli
from distill import Method, interval, main
from sample import condition
from teacher import frame_mean


def huber_loss(student, batch, n, nets):
    X_s, X_e, s, e, _ = interval(batch, n)
    delta = (e - s)[:, None, None]
    v = student(X_s, student.step_condition(n, s, e), *condition(student, batch)[0], batch["mask"])
    loss = frame_mean(F.huber_loss(X_s + delta * v, X_e, reduction="none").mean(-1), batch["todo"])
    return loss, {"huber": loss}


METHODS = {"huber": Method(huber_loss)}
if __name__ == "__main__":
    cli(lambda: main(METHODS))
'''


def readme_blocks():
    """The Python that the READMEs show."""
    pages = "".join((ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "speech/README.md"))
    return re.findall(r"```python\n(.*?)```", pages, re.S)


def test_a_variant_is_one_short_file(trained, tmp_path, monkeypatch):
    """As a stranger would: a file elsewhere, run by Python; the README's own where it shows one."""
    monkeypatch.setattr(speech.judges, "load_judges", lambda *_: {})
    shown = next((block for block in readme_blocks() if "METHODS" in block), HUBER)
    assert len(shown.splitlines()) <= 20
    (tmp_path / "my_method.py").write_text(shown)
    flags = [*trained.flags, *trained.of, "--out", tmp_path / "s", "--steps", 1, "--pool", 2, "--count", 2]
    job = start(tmp_path, tmp_path / "my_method.py", *flags, "--max_iters", 2, cwd=tmp_path)
    told = job.communicate(timeout=300)[0]
    assert job.returncode == 0, told
    file = types.SimpleNamespace(__name__="my_method", __file__=str(tmp_path / "my_method.py"))
    for last, more in ((2, []), (3, ["--max_iters", 3, "--resume"])):
        assert not more or run(file, *flags, *more) == 0
        assert common.files.read_csv(tmp_path / "s" / "log.csv")[-1]["step"] == str(last)
        assert torch.load(tmp_path / "s" / "last.pt", weights_only=True)["step"] == last
    name = re.search(r"METHODS\b.*?[\"'](\w+)[\"']", shown, re.S)[1]
    b = checkpoint.load_checkpoint(tmp_path / "s" / "student.pt")
    assert b.config["method"] == name and b.contract["steps"] == [1]
    assert "| student@1 | 1 |" in (tmp_path / "s" / "table.md").read_text()
    columns, rows = header(tmp_path / "s")
    assert rows == 2 and {"loss", "mse@1"} < columns and (tmp_path / "s" / "log.png").is_file()


SPEAK = '''from common.files import write_audio
from networks.checkpoint import load_checkpoint
from sample import say
from speech.vocoder import load_vocoder
b = load_checkpoint("checkpoints/student.pt")
audio = say(b, "Hello there. Good morning.", next(iter(b.voices.values())), load_vocoder(None, b.settings))
write_audio("hello.wav", audio, b.settings.rate)
'''


def test_ten_lines_load_a_checkpoint_and_speak(trained, tmp_path, monkeypatch):
    shown = next((block for block in readme_blocks() if "load_checkpoint" in block and "METHODS" not in block), SPEAK)
    assert len(shown.splitlines()) <= 10
    for path in set(re.findall(r"[\"']([\w./]+\.pt)[\"']", shown)):               # any student does
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(trained.student, tmp_path / path)
    monkeypatch.chdir(tmp_path)
    exec(compile(shown, "README.md", "exec"), {"__name__": "__main__"})
    (sound,) = [path for path in tmp_path.rglob("*") if path.suffix in (".wav", ".flac")]
    assert soundfile.info(sound).samplerate == 16000 and 0.1 < soundfile.info(sound).duration < 20


# ------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("method, flag", [
    ("endpoint", "--a 0.5"), ("endpoint", "--t_mf mid"),
    ("intmeanflow", "--a 0.5"), ("intmeanflow", "--t_mf uniform"), ("intmeanflow", "--no-weak_cfg"),
    ("intmeanflow", "--no-tokens"), ("velocity", "--a 1"), ("velocity", "--t_mf mid"),
    ("progressive", "--a 0.5"), ("progressive", "--t_mf mid"), ("progressive", "--no-weak_cfg"),
    ("consistency", "--a 0.5"), ("consistency", "--t_mf mid"), ("consistency", "--no-weak_cfg"),
    ("consistency", "--no-tokens"), ("meanflow", "--a 0.5"), ("dsflow", "--sentences x"), ("endpoint", "--goal x"),
    ("meanflow", "--t_mf mid"), ("meanflow", "--no-weak_cfg"), ("meanflow", "--no-tokens"), ("meanflow", "--token prepend")])
def test_a_flag_that_a_method_does_not_take_is_refused(tmp_path, capsys, method, flag):
    words = ["--method", method, "--out", tmp_path / "new", "--teacher", "nowhere.pt", *flag.split()]
    assert run(HOME[method], *words) == 2
    said = one_line(capsys)
    assert f"{flag.split()[0]}: --method {method}" in said
    assert not list(tmp_path.iterdir())


def test_a_network_without_tokens_is_distilled_further(trained, tmp_path, capsys, bare):
    """--init of a --no-tokens run continues such a student, and refuses one with tokens."""
    words = [*trained.flags, *trained.of, "--max_iters", 1, "--pool", 1, "--count", 1, "--no-tokens", "--steps", 1]
    assert run(distill, *words, "--out", tmp_path / "a") == 0
    assert run(distill, *words, "--out", tmp_path / "b", "--init", tmp_path / "a" / "student.pt") == 0
    capsys.readouterr()
    assert run(distill, *words, "--out", tmp_path / "c", "--init", trained.student) == 2
    assert "--init" in one_line(capsys)


def test_sample_draws_no_noise_unless_a_take_is_asked_for(trained, tmp_path):
    heard = []
    for flags in ([], ["--temperature", 0], ["--seed", 0], ["--seed", 0, "--temperature", 0.5], ["--seed", 1],
                  ["--temperature", 1], ["--seed", 0, "--temperature", 1]):
        out = tmp_path / f"{len(heard)}.wav"
        assert run(sample, "--ckpt", trained.student, "--text", "hello there", "--out", out, "--device", "cpu", *flags) == 0
        heard.append(out.read_bytes())
    still, zero, take, half, other, loud, same = heard
    assert still == zero and take == half and loud == same and len({still, take, other, loud}) == 4
    b = checkpoint.load_checkpoint(trained.student)
    voice = sample.front_end(b).pick_voice()
    said = [sample.say(b, "hello there", voice, lambda mel, _: mel.numpy().ravel(), seed=seed) for seed in (None, 0, 1)]
    assert not (said[0] == said[1]).all() and not (said[1] == said[2]).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_every_script_runs_on_cuda(trained, tmp_path):
    """Past the duration predictor's last update too, where its gradients are none: once that mixed devices."""
    flags = [*trained.flags[:4], "--batch_frames", 400, "--device", "cuda"]
    assert run(teacher, *flags, "--out", tmp_path / "t", "--max_iters", 3, "--duration_iters", 1) == 0
    of = ["--teacher", tmp_path / "t" / "teacher.pt"]
    for script, out in ((distill, "s"), (intmeanflow, "i")):
        assert run(script, *flags, *of, "--bf16", "--out", tmp_path / out, "--max_iters", 2, "--pool", 2) == 0
    assert run(sample, "--ckpt", tmp_path / "s" / "student.pt", "--device", "cuda", "--text", "hello", "--out",
               tmp_path / "x.wav") == 0


def test_meanflow_with_recompute_is_one_line(trained, tmp_path, capsys, bare):
    assert run(baselines, *trained.flags, *trained.of, "--method", "meanflow", "--recompute", "--out", tmp_path,
               "--pool", 1) == 2
    assert "error: --recompute: --method meanflow cannot" in capsys.readouterr().err


@pytest.mark.parametrize("module", [prepare, teacher, distill, intmeanflow, baselines, sample, evaluate, ablation,
                                    f5, speed], ids=lambda module: module.__name__)
def test_help(module, capsys):
    assert run(module, "--help") == 0
    told = capsys.readouterr().out
    assert "--out" in told or module is speed
    assert module.__doc__ and "python " in module.__doc__


@pytest.mark.parametrize("module", [teacher, distill])
@pytest.mark.parametrize("flag, value", [
    ("--max_iters", 0), ("--max_iters", -1), ("--batch_frames", 0), ("--eval_every", 0), ("--save_every", 0),
    ("--lr", "nan"), ("--seed", -5), ("--cfg", "nan"), ("--ema", 1.5), ("--p_noref", "inf"), ("--accumulate", 0)])
def test_training_numbers_out_of_range(tmp_path, capsys, module, flag, value):
    assert run(module, "--out", tmp_path / "new", flag, value) == 2
    assert f"{flag}: {value}" in one_line(capsys) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("flags, words", [
    (["--steps", 0], "one of 1, 2, 4"), (["--steps", 3], "one of 1, 2, 4"), (["--cfg", "nan"], "--cfg: nan"),
    (["--text", "   "], "nothing to say"), (["--text", ""], "nothing to say"),
    (["--text", "\u4f60\u597d"], "nothing to say"), (["--text", "\U0001f600"], "nothing to say"),
    (["--device", "cuda:0" if not torch.cuda.is_available() else "tpu"], "--device"), (["--device", "cpu:x"], "--device"),
    (["--voice", "nobody"], "this checkpoint has"), (["--voice", ""], "given nothing"), (["--prompt", ""], "given nothing"),
    (["--prompt", "x.wav"], "go together"), (["--speed", 0], "--speed"),
    (["--prompt", "x.wav", "--prompt_text", "hello"], "no such file"), (["--no-such-flag", 1], "unrecognized"),
    (["--out", "/proc/nowhere/x.wav"], "cannot use"), (["--out", "x"], ".wav"), (["--out", "x.png"], ".wav"),
    (["--seed", 10 ** 30], "--seed"), (["--seed", 3, "--temperature", 0], "--seed 3"), (["--vocoder", "nowhere"], "--vocoder"), (["--grid", "uniform"], "--grid")])
def test_sample_bad_input(trained, tmp_path, capsys, flags, words):
    text = [] if "--text" in flags else ["--text", "hello"]
    out = [] if "--out" in flags else ["--out", tmp_path / "x.wav"]
    assert run(sample, "--ckpt", trained.student, *text, *out, *flags) == 2
    assert words in one_line(capsys) and not list(tmp_path.iterdir())


def test_sample_speaks_with_prompt_and_in_chunks(trained, tmp_path, capsys, monkeypatch):
    write_wav(tmp_path / "p.wav", seed=5)
    flags = ["--prompt", tmp_path / "p.wav", "--prompt_text", "hello there", "--out", tmp_path / "x.wav", "--seed", 3]
    text = "Dr. \u03b1 paid $5} or $6." + " \u0431" * 60 + ". Good morning to you."
    assert run(sample, "--ckpt", trained.student, "--text", text, *flags) == 0
    assert "1 network call," in capsys.readouterr().out and len(soundfile.read(tmp_path / "x.wav")[0]) > 1600
    assert (tmp_path / "x.png").is_file()
    many = "Good morning. " * 60
    quick_sound(monkeypatch)
    assert run(sample, "--ckpt", trained.teacher, "--text", many, "--steps", 2, "--cfg", 1, *flags) == 0
    assert "2 batches of sentences" in capsys.readouterr().out
    write_wav(tmp_path / "p.wav", seconds=15.5)
    write_wav(tmp_path / "q.wav")
    (tmp_path / "d.wav").mkdir()
    for more, words in (([], "longer than 15 s"), (["--out", tmp_path / "d.wav"], "expected the name"),
                        (["--prompt", tmp_path / "q.wav", "--prompt_text", "a"], "do not fit"),
                        (["--prompt", tmp_path / "q.wav", "--prompt_text", "hello there " * 8], "do not fit")):
        assert run(sample, "--ckpt", trained.student, "--text", text, *flags, *more) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize("module, flags, words", [
    (teacher, ["--data", "nowhere"], "no such folder"), (teacher, ["--out", "/proc/nowhere"], "cannot use"),
    (teacher, ["--resume", "--overwrite"], "--overwrite"), (distill, ["--steps", 0], "--steps: 0"),
    (distill, ["--steps", 1, 100], "at most 64"), (distill, ["--steps", 2, 2], "different numbers"),
    (distill, ["--teacher", "nowhere.pt"], "no such file"), (distill, ["--cfg", "nan"], "--cfg: nan"),
    (distill, ["--a", 2], "--a: 2"), (intmeanflow, ["--init", "nowhere.pt"], "no such file"),
    (evaluate, ["--count", 0], "--count: 0"), (evaluate, ["--cfg", 1, "nan"], "--cfg: nan")])
def test_training_bad_input(trained, tmp_path, capsys, module, flags, words):
    usual = ["--out", tmp_path, "--data", trained.tmp / "corpus", "--cache", trained.tmp / "cache", "--device", "cpu"]
    usual += trained.of if module in (distill, intmeanflow) else []
    assert run(module, *usual, *flags) == 2
    assert words in one_line(capsys)


def test_a_student_is_no_teacher(trained, tmp_path, capsys):
    shutil.copy(trained.teacher, tmp_path / "t.pt")
    few = trained.flags[:-2]
    for words in ((distill, *trained.flags, "--out", tmp_path), (ablation, *few, "--out", tmp_path), (evaluate, *few)):
        assert run(*words, "--teacher", trained.student) == 2
        assert f"--teacher {trained.student}: holds a student" in one_line(capsys)
    assert run(intmeanflow, "--ckpt", tmp_path / "t.pt", "--search", 2, "--teacher", trained.student) == 2
    assert "a teacher takes none" in one_line(capsys)
    assert run(teacher, *trained.flags, "--out", tmp_path, "--init", trained.student) == 2
    assert f"--init {trained.student}: holds a student" in one_line(capsys)
    b = tiny_bundle()
    b.duration, b.lang, b.gauss = None, "f5", {}                                  # as F5-TTS's
    checkpoint.save_checkpoint(tmp_path / "f5.pt", b)
    assert run(teacher, *trained.flags, "--out", tmp_path, "--init", tmp_path / "f5.pt") == 2
    assert "only distill.py takes it" in one_line(capsys)


def test_a_search_needs_the_teacher_of_the_student(trained, tmp_path, capsys, bare):
    student, other = tmp_path / "student.pt", tmp_path / "other.pt"
    assert run(intmeanflow, *trained.flags, *trained.of, "--out", tmp_path, "--max_iters", 1, "--pool", 1) == 0
    b = checkpoint.load_checkpoint(trained.teacher)
    b.duration.out.bias.data += 1.0
    checkpoint.save_checkpoint(other, b)
    capsys.readouterr()
    assert run(intmeanflow, "--ckpt", student, "--search", 2) == 2
    assert "a student needs the one it was distilled from" in one_line(capsys)
    assert run(intmeanflow, "--ckpt", student, "--search", 2, "--teacher", other) == 2
    assert "durations are not this student's" in one_line(capsys)
    b.voices, b.contract["voice"] = {}, None    # as F5-TTS's
    checkpoint.save_checkpoint(other, b)
    assert run(intmeanflow, "--ckpt", other, "--search", 2) == 2 and "is F5-TTS's" in one_line(capsys)


def test_o3s_command_stores_grids_that_speak(trained, tmp_path, capsys, monkeypatch):
    quick_sound(monkeypatch)
    ckpt, out = tmp_path / "t.pt", ["--out", tmp_path / "x.wav", "--text", "hello"]
    shutil.copy(trained.teacher, ckpt)
    assert run(intmeanflow, "--ckpt", ckpt, "--search", 2, "--cfg", 0) == 0
    assert "2 steps, closeness: cosine" in capsys.readouterr().out
    b = checkpoint.load_checkpoint(ckpt)
    assert sample.checkpoint_grid(b, 2).tolist() == pytest.approx(b.contract["grids"]["2"])
    assert torch.equal(sample.checkpoint_grid(b, 3), sample.cosine_grid(3))
    b.contract["grids"]["2"] = [0.0, 0.9, 1.0]
    other = sample.speak(b, [torch.tensor([1, 2, 1])], None, 2, seed=1)
    b.contract["grids"] = {}
    assert not torch.equal(other[0], sample.speak(b, [torch.tensor([1, 2, 1])], None, 2, seed=1)[0])
    assert run(sample, "--ckpt", ckpt, *out, "--grid", "0,0.2,0.5,1", "--cfg", 0) == 0
    assert "3 network calls" in capsys.readouterr().out
    for flags, words in ((["--grid", "0,0.5,0.4,1"], "from 0 up to 1"), (["--grid", "0,x,1"], "--grid 0,x,1"),
                         (["--grid", "0.1,1"], "from 0 up to 1"), (["--grid", "0,0.5,1", "--steps", 7], "has 2 steps")):
        assert run(sample, "--ckpt", ckpt, *out, *flags) == 2 and words in one_line(capsys)
    assert run(intmeanflow, "--ckpt", ckpt, "--search", "1") == 2 and "nothing to search" in one_line(capsys)
    assert run(intmeanflow, "--ckpt", trained.student, "--search", "2") == 2 and "own grid" in one_line(capsys)
    assert run(sample, "--ckpt", ckpt) == 2 and "--text" in one_line(capsys)


def test_a_terminal_that_lacks_a_character_shows_its_code(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    common.cli.cli(lambda: print("\u4f60", flush=True))
    assert sys.stdout.buffer.getvalue() == b"\\u4f60\n"


def test_exit_status_of_a_real_process(tmp_path):
    done = subprocess.run([sys.executable, "-m", "speech.prepare", "--data", tmp_path / "nothing"],
                          capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


# --------------------------------------------------------------------------------------------------- ablation


def test_ablation_resumes_without_losing_or_doubling_a_row(trained, tmp_path, capsys, monkeypatch):
    words = [*trained.flags[:-2], *trained.of, "--out", tmp_path, "--max_iters", 2, "--pool", 2, "--count", 2]
    both = [*words, "--seeds", 0, 1]
    assert len(ablation.systems(METHODS)) == 8 + len(METHODS) - 2

    def rows():
        file = ablation.Rows(tmp_path / "ablation.csv")
        keys = [(r["system"], r["seed"], r["settings"]) for r in file.rows]
        assert len(set(keys)) == len(keys)
        return file.rows
    assert run(ablation, *both, "--only", "dual, tokens") == 0
    made = rows()
    lines = (tmp_path / "ablation.csv").read_text().splitlines(keepends=True)
    (tmp_path / "ablation.csv").write_text("".join(lines[:2]))                    # as if it was cut off here
    assert run(ablation, *both, "--only", "dual, tokens") == 0
    again = rows()
    assert len(again) == len(made) == 4 and again[:1] == made[:1]
    key = "mse@1 to teacher@10"
    assert sorted(r[key] for r in again) == sorted(r[key] for r in made)          # the same figures again
    assert (tmp_path / "table.md").read_text().count("| dual, tokens, no CFG |") == 1
    kept = {path.name: checkpoint.load_checkpoint(path) for path in (tmp_path / "students").iterdir()}
    assert sorted(kept) == [f"dual_tokens_{weak}_cfg-{seed}.pt" for weak in ("no", "weak") for seed in (0, 1)]
    assert all(b.contract == dict(kind="student", steps=[1, 2, 4], default=1, grid="cosine", cfg=0.7,
                                  voice=next(iter(b.voices))) for b in kept.values())
    assert run(ablation, *both, "--only", "nothing") == 2 and "--only nothing" in capsys.readouterr().err
    other = [*both, "--max_iters", 1, "--only", "dual, tokens, w"]
    assert run(ablation, *other) == 0 and len(rows()) == 4 + 2                    # other settings, other rows
    assert (tmp_path / "table.md").read_text().count("\n| dual") == 1
    b = checkpoint.load_checkpoint(trained.teacher)
    b.model.proj_out.bias.data += 1             # another teacher of the same name
    checkpoint.save_checkpoint(tmp_path / "t.pt", b)
    other = [*other, "--teacher", tmp_path / "t.pt", "--seeds", 0]
    assert run(ablation, *other) == 0
    checkpoint.save_checkpoint(tmp_path / "t.pt", checkpoint.load_checkpoint(trained.teacher))
    assert run(ablation, *other) == 0 and rows()[-1][key] != rows()[-2][key]


def test_one_step_ablation_serves_progressive_and_a_variant(trained, tmp_path):
    """At --steps 1 the shared trajectories divide by 4 and 2 too, which progressive needs; a file joins the table."""
    (tmp_path / "my_method.py").write_text(HUBER)
    words = [*trained.flags[:-2], *trained.of, "--out", tmp_path, "--max_iters", 3, "--pool", 2, "--count", 2,
             "--steps", 1, "--seeds", 0, "--also", tmp_path / "my_method.py", "--only"]
    assert run(ablation, *words, "progressive", "huber") == 0
    assert [r["system"] for r in common.files.read_csv(tmp_path / "ablation.csv")] == ["progressive", "huber"]
    assert {"| progressive |", "| huber |"} <= set(re.findall(r"\| [a-z]+ \|", (tmp_path / "table.md").read_text()))
    (tmp_path / "my_method.py").write_text(HUBER + "# another loss\n")            # its old row is not passed for it
    assert run(ablation, *words, "huber") == 0 and len(common.files.read_csv(tmp_path / "ablation.csv")) == 3


def test_gradient_noise_counts_each_batch_once(monkeypatch):
    """Gradients of known mean and variance: the estimate is unbiased for few batches, too."""
    noise = runpy.run_path(ROOT / "results" / "noise.py")
    student, estimates, g = torch.nn.Linear(50, 1, bias=False).double(), [], torch.Generator().manual_seed(0)
    monkeypatch.setattr(distill, "dsflow_loss", lambda net, b, *_, **__: ((net.weight * b["x"]).sum(), {}))
    flags = types.SimpleNamespace(seed=0, steps=[1])
    for _ in range(100):                                        # E g = 1 in each of 50 places, Var g = 4
        batches = [[dict(x=1 + 2 * torch.randn(1, 50, generator=g).double(), rows=torch.arange(1), joint=1,
                         mask=torch.ones(1, 1))] for _ in range(8)]
        estimates.append(noise["gradient_noise"](student, flags, batches)[0])
    variance, relative = ([e[k] for e in estimates] for k in ("variance", "relative"))
    assert sum(variance) / 100 == pytest.approx(4 * 50, rel=0.03)
    assert sum(v / r for v, r in zip(variance, relative)) / 100 == pytest.approx(50, rel=0.03)
    losses = [float((student.weight * batch["x"]).sum()) for (batch,) in batches]
    assert estimates[-1]["loss"] == pytest.approx(statistics.mean(losses))
    assert estimates[-1]["loss_deviation"] == pytest.approx(statistics.stdev(losses) / statistics.mean(losses))


def test_what_ablation_cannot_do_is_refused_before_it_trains(trained, tmp_path, capsys):
    words = [*trained.flags[:-2], *trained.of, "--out", tmp_path, "--max_iters", 1, "--pool", 1, "--count", 1]
    assert run(ablation, *words, "--steps", 3) == 2 and "progressive halves its steps" in one_line(capsys)
    table = tmp_path / "ablation.csv"
    for rubbish in ("rubbish", "a,b\n1,2\n", "system,seed,settings,updates\nx,0,y,many\n",
                    "system,seed,settings\nx,0,y,z\n", "\0\n\0"):
        table.write_text(rubbish)
        assert run(ablation, *words, "--only", "velocity") == 2 and str(table) in one_line(capsys)
        assert table.read_text() == rubbish
    table.unlink()
    for flag in ("--keep_unknown", f"--init {trained.student}"):
        assert run(ablation, *words, f"--flags={flag}") == 2 and "does nothing here" in one_line(capsys)
    lock = common.run.lock_folder(tmp_path)
    assert run(ablation, *words, "--only", "velocity") == 2 and "another run is writing" in one_line(capsys)
    lock.release()
    assert run(ablation, *words, "--only", "velocity", "--seeds", 0, 0) == 0
    assert len(common.files.read_csv(table)) == 1


# --------------------------------------------------------------------------------------------- the repository

PATH = ("data", "model", "sample", "teacher", "distill")                          # in reading order
ROOMS = ("common", "speech", "networks", "methods", "measure")
TREES = {path.relative_to(ROOT).with_suffix("").as_posix(): ast.parse(path.read_text(encoding="utf-8"))
         for room in (".", *ROOMS, "tests") for path in sorted((ROOT / room).glob("*.py"))}
TESTS = {name for name in TREES if name.split("/")[-1].startswith("test_") or name == "conftest"}


def imports(tree):
    """Modules that a file imports, at its top or inside its functions, like "speech/text"."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.name.replace(".", "/") for a in node.names}
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{a.name}".replace(".", "/") for a in node.names} | {node.module.replace(".", "/")}
    return found


def test_requirements_are_the_imports():
    optional = {"transformers", "pocketsphinx", "resemblyzer", "safetensors", "vocos", "rjieba", "pypinyin",
                "faster_whisper", "whisper_normalizer", "distillmos", "parselmouth"}
    imported = {name.split("/")[0] for tree in TREES.values() for name in imports(tree)}
    imported -= {*ROOMS, *(name.split("/")[0] for name in TREES), *sys.stdlib_module_names, *optional}
    required = {re.split(r"[=<>~ ]", line)[0] for line in (ROOT / "requirements.txt").read_text().splitlines()
                if line.strip() and not line.startswith("#")}
    assert imported == required - {"pytest-xdist"} and "-n 2" in (ROOT / "pytest.ini").read_text()


def test_the_root_is_the_card():
    assert {path.name for path in ROOT.glob("*.py")} == {f"{name}.py" for name in PATH} | {"test_model.py", "conftest.py"}
    for room in ROOMS:                          # each lists its files
        told = ast.get_docstring(TREES[f"{room}/__init__"])
        assert all(f"{name.split('/')[1]}.py" in told for name in TREES if name.startswith(f"{room}/")
                   and not name.endswith("__init__")), room


def test_imports_run_one_way_by_file_and_by_folder():
    graph = {name: imports(tree) & set(TREES) for name, tree in TREES.items() if name not in TESTS}
    list(graphlib.TopologicalSorter(graph).static_order())                        # a circle is an error
    assert not graph["model"]
    floor = [{"model", "common"}, {"data"}, {"speech"}, {"networks"}, {"sample"}, {"teacher"}, {"distill"}, {"methods"},
             {"measure"}]
    level = {name: n for n, names in enumerate(floor) for name in names}
    for name, above in graph.items():
        for other in above:
            assert level[other.split("/")[0]] <= level[name.split("/")[0]], f"{name} imports {other}"


def test_the_reading_path_is_one_sitting():
    length = {name: len((ROOT / f"{name}.py").read_text(encoding="utf-8").splitlines()) for name in PATH}
    assert sum(length.values()) <= 1300 and max(length.values()) <= 350, length


def test_no_function_and_no_line_is_too_long():
    long = [f"{name}.py:{node.lineno} {node.name}" for name, tree in TREES.items() if name not in TESTS
            for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)
            and node.end_lineno - node.lineno + 1 > 60]
    wide = [f"{name}.py:{number}" for name in TREES if name not in TESTS for number, line in
            enumerate((ROOT / f"{name}.py").read_text(encoding="utf-8").splitlines(), 1) if len(line) > 110]
    assert not long and not wide, (long, wide)


def test_the_shipped_student_is_close_to_the_shipped_teacher(tmp_path):
    """From the same noise, student@1 must be nearer to teacher@10 than teacher@1 is, and near it."""
    t, s = (checkpoint.load_checkpoint(ROOT / "checkpoints" / f"{k}.pt") for k in ("teacher", "student"))
    ids = [text.encode("The old clock in the hall struck seven, and nobody moved.", t.vocab, t.lang)[0]]
    voice, w = next(iter(t.voices.values())), s.contract["cfg"]
    goal, own, one = (sample.speak(b, ids, voice, n, g)[0] for b, n, g in ((t, 10, w), (t, 1, 0.0), (s, 1, 0.0)))
    assert ((one - goal) ** 2).mean() < min(0.04, 0.6 * ((own - goal) ** 2).mean())
    spoken = tmp_path / "x.wav"
    assert run(sample, "--text", "Hello there.", "--ckpt", ROOT / "checkpoints" / "student.pt", "--out", spoken) == 0
    assert 0.3 < soundfile.info(spoken).duration < 3
