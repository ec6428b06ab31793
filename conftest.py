"""What the tests share: small networks, batches and corpora, and one teacher and student made by the real commands.

    python -m pytest -q                       everything, on a CPU in under three minutes
    python -m pytest -q test_model.py         the mathematics alone
"""
import gc
import importlib
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from networks import checkpoint, durations, e2, f5_net, own, unet
import common.cli
import common.run
import data
import distill
import model
import speech.judges
import teacher

ROOT = Path(__file__).resolve().parent
if "PYTEST_XDIST_WORKER" in os.environ:         # two workers on two cores
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
SMALL = model.DiTConfig(vocab=9, mels=8, dim=32, depth=2, heads=2, head_dim=16, text_dim=16, text_blocks=2)
STEP = replace(SMALL, time="step", steps=(1, 2, 4))
UNET = unet.UNetConfig(vocab=9, mels=8, dim=32, depth=1, heads=2, head_dim=16, text_dim=16, text_blocks=2)
DRAWS = ("interval", "term", "chord", "pair", "same", "few", "time")
F5 = f5_net.F5Config(**vars(SMALL))
BACKBONES = {"dit": (model.DiT, SMALL), "e2": (e2.E2, SMALL), "f5": (f5_net.F5, F5), "unet": (unet.UNet, UNET)}


def randomised(net, seed=0):
    """Every weight random, so that nothing hides behind a zero initialisation."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * (0.2 if p.dim() < 2 else p.shape[-1] ** -0.5))
    return net.eval()


def make_batch(lengths=(14, 9), seed=0, mels=8):
    """A batch as held_out() makes it: mel, text, alignment, reference, frames to generate, noise; and the random
    numbers of common.run.draw().
    """
    g = torch.Generator().manual_seed(seed)
    B, T, pad = len(lengths), max(lengths), torch.nn.utils.rnn.pad_sequence
    durations = [torch.tensor([2, 3, 1, n - 6]) for n in lengths]
    mask = torch.arange(T)[None] < torch.tensor(lengths)[:, None]
    known = mask & (torch.arange(T)[None] < 3)
    mel = torch.randn(B, T, mels, generator=g) * mask[..., None]
    return dict(mel=mel, mask=mask, text=torch.randint(1, 10, (B, 4), generator=g), durations=torch.stack(durations),
                align=pad([data.frame_to_symbol(d) for d in durations], batch_first=True), known=known,
                ref=mel * known[..., None], todo=mask & ~known, x0=torch.randn(mel.shape, generator=g),
                drop=torch.zeros(B, dtype=torch.bool), u=uniforms(B, g), coin=0.5)


def uniforms(B, g):
    """What common.run.draw() gives B items, by every name that a method here has."""
    return {name: torch.rand(B, generator=g) for name in DRAWS}


def tiny_bundle(config=SMALL, network=model.DiT):
    """A checkpoint's contents around a random network, a teacher's or of the student STEP."""
    net, steps = randomised(network(config)), list(getattr(config, "steps", ()))
    voice = dict(mel=torch.randn(12, 8), text=torch.tensor([1, 2, 3]), durations=torch.tensor([4, 4, 4]))
    return checkpoint.Bundle(net, randomised(durations.DurationPredictor(9)), data.MelSettings(n_mels=8), " abcdefgh",
                             "letters", dict(mean=torch.zeros(20, 28), var=torch.ones(20, 28)), dict(a=voice),
                             dict(kind="student" if steps else "teacher", steps=steps, grid="cosine",
                                  cfg=1.5), {})


def write_wav(path, seconds=1.2, level=0.2, seed=0):
    """Noise at 16 kHz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    soundfile.write(path, (level * rng.normal(0, 0.3, int(16000 * seconds))).clip(-1, 1), 16000)


def make_corpus(folder, texts=("hello there you", "good morning to you", "one more line", "and the last one")):
    """A folder in LJSpeech's layout: noise, and texts that it might be."""
    for i, _ in enumerate(texts):
        write_wav(folder / "wavs" / f"u{i}.wav", seed=i)
    (folder / "metadata.csv").write_text("".join(f"u{i}|{t}|{t}\n" for i, t in enumerate(texts)))
    return folder


def run(command, *words):
    """A command in this process, as its file would run it -> exit status. Files that stand on distill.py and have no
    main() of their own run whole.
    """
    gc.freeze()                                 # what is there by now need not be looked through below, .3 s each time
    old = sys.argv
    sys.argv = [f"{command.__name__}.py", *map(str, words)]
    try:
        if getattr(getattr(command, "main", None), "__module__", None) == command.__name__:
            common.cli.cli(command.main)
        else:
            runpy.run_path(command.__file__, run_name="__main__")
        return 0
    except SystemExit as stop:
        return stop.code or 0
    finally:
        sys.argv = old
        gc.collect()                            # what a process's end would end, like the lock on --out


def without_judges(folder):
    """The environment of a real process that finds no speech recogniser and no predictor of listening tests: they
    are optional, and take longer than all the rest.
    """
    for name in ("faster_whisper", "pocketsphinx", "distillmos"):
        (folder / f"{name}.py").write_text("raise ImportError('hidden by a test')\n")
    paths = [str(folder), str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join(p for p in paths if p))


def start(folder, *words, **options):
    """python WORDS as a real process; both its outputs are one pipe."""
    return subprocess.Popen([sys.executable, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True, env=without_judges(folder), **options)


def one_of_many(output, command, words, rank, ranks, port):
    """What torchrun starts so many of: a command that finds the others by these variables."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1",
                      MASTER_PORT=str(port))
    sys.stdout = sys.stderr = open(output, "a", buffering=1)
    torch.set_num_threads(1)
    distill.final_table = lambda *_: None
    sys.exit(run(importlib.import_module(command), *words))


def start_many(output, ranks, command, *words):
    """So many processes of one run, each a fork of a process that has imported all it needs -> the processes; what
    they say is in the file `output`.
    """
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["conftest", "torch._dynamo", "librosa.core.spectrum", "matplotlib.pyplot"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    jobs = [context.Process(target=one_of_many, args=(str(output), command, list(map(str, words)), rank, ranks, port))
            for rank in range(ranks)]
    [job.start() for job in jobs]
    return jobs


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A corpus of a few recordings, a teacher of two updates of every backbone, and a student, by the real commands."""
    tmp = tmp_path_factory.mktemp("run")
    make_corpus(tmp / "corpus")
    flags = ["--data", tmp / "corpus", "--cache", tmp / "cache", "--device", "cpu", "--batch_frames", 400]
    with pytest.MonkeyPatch.context() as sizes:
        for kind in (model.SIZES, unet.SIZES):
            sizes.setitem(kind, "tiny", dict(dim=32, depth=2, heads=2, text_dim=16, text_blocks=1))
        sizes.setitem(own.SIZES, "tiny", dict(dim=32))
        of_each = {name: tmp / ("t" if name == "dit" else name) / "teacher.pt" for name in BACKBONES}
        for name, path in of_each.items():
            assert run(teacher, *flags, "--out", path.parent, "--max_iters", 2, "--backbone", name) == 0
        of = ["--teacher", of_each["dit"]]
        with pytest.MonkeyPatch.context() as judges:
            judges.setattr(speech.judges, "load_judges", lambda *_: {})
            assert run(distill, *flags, *of, "--out", tmp / "s", "--max_iters", 2, "--pool", 2) == 0
        yield types.SimpleNamespace(tmp=tmp, flags=flags, of=of, of_each=of_each, teacher=of[1], student=tmp / "s" / "student.pt")


@pytest.fixture
def bare(monkeypatch):
    """Training commands without tables, pictures and audio, which take longer than the few updates of a test."""
    monkeypatch.setattr(distill, "final_table", lambda *_: None)
    monkeypatch.setattr(common.run, "plot_curves", lambda *_: None)
    monkeypatch.setattr(teacher, "plot_mels", lambda *_: None)
    monkeypatch.setattr(teacher, "load_vocoder", lambda *_: lambda mel, _: np.zeros(len(mel)))
