"""vocoder.py: python -m pytest -q tests/test_vocoder.py"""
import gc
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import soundfile
import torch

import model
import sample
from methods import pairs
from speech import discriminators, phases
from speech import vocoder
from common.cli import BadInput
from common.files import read_csv
from conftest import ROOT, make_batch, run
from data import MelSettings, mel_spectrogram
from speech.audio import load_audio

MELS = MelSettings()
NET = vocoder.Vocoder
RECORDINGS = sorted((ROOT / "eval").glob("**/*.opus"))


def voiced(seconds, f0=120.0, seed=0):
    """Something like speech: gliding harmonics under two formants, and noise."""
    g, t = np.random.default_rng(seed), np.arange(int(16000 * seconds)) / 16000
    f = f0 * (1 + 0.1 * np.sin(2 * np.pi * 0.7 * t))
    phase = 2 * np.pi * np.cumsum(f) / 16000
    wav = 0.05 * g.normal(size=len(t))
    for k in range(1, 40):
        loud = 1 / (1 + ((k * f0 - 600) / 300) ** 2) + 0.5 / (1 + ((k * f0 - 1800) / 400) ** 2)
        wav += loud * np.sin(k * phase + k * k)
    return (0.1 * wav / wav.std() * (0.2 + np.abs(np.sin(2 * np.pi * 1.5 * t)))).astype(np.float32)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Two folders of recordings, in two layouts."""
    root = tmp_path_factory.mktemp("sound")
    (root / "a" / "wavs").mkdir(parents=True)
    (root / "b").mkdir()
    rows = []
    for i in range(6):
        soundfile.write(root / "a" / "wavs" / f"{i}.wav", voiced(1.5, 90 + 20 * i, i), 16000)
        rows.append(f"{i}|sentence number {i}\n")
    (root / "a" / "metadata.csv").write_text("".join(rows))
    soundfile.write(root / "b" / "one.flac", voiced(1.2, 200, 9), 16000)
    (root / "b" / "one.txt").write_text("another voice")
    return root


def train(monkeypatch, out, *words):
    monkeypatch.setattr(sys, "argv", ["vocoder.py", "--out", str(out), "--device", "cpu", "--batch", "4", *map(str, words)])
    vocoder.main()
    return vocoder.load_net(out / "vocoder.pt")


def tiny():
    torch.manual_seed(0)
    return vocoder.Vocoder(MELS, width=16, blocks=1).eval()


def convergence(sound, magnitude):
    """How far the sound's magnitudes are from those asked for, in dB of these."""
    return float(20 * torch.log10((magnitudes(sound) - magnitude).norm() / magnitude.norm()))


def magnitudes(wav):
    window = torch.hann_window(1024)
    return torch.stft(torch.as_tensor(wav), 1024, 256, window=window, return_complex=True).abs().T


def test_shapes_and_determinism():
    net = tiny()
    assert net(torch.randn(2, 7, 80)).shape == (2, 13, 513)
    for T in (2, 3, 5, 60):
        mel = torch.randn(T, 80)
        wav = net.speak(mel)
        assert wav.shape == ((T - 1) * 256,) == vocoder.griffin_lim(mel, MELS, 1).shape
        assert np.isfinite(wav).all() and np.array_equal(wav, net.speak(mel))
    assert len(net.speak(torch.randn(1, 80))) == 0
    assert np.isfinite(net.speak(1e4 * torch.randn(9, 80))).all()
    assert sum(p.numel() for p in vocoder.Vocoder(MELS).parameters()) < 2e6


def test_frames_between_are_between():
    """A straight line stays one; every other frame written is what the network makes of the mel's own."""
    line = torch.arange(9.0)[None, :, None] * torch.randn(80)                     # (1, 9, 80)
    assert torch.allclose(vocoder.halfway(line)[:, 1:-2], (line[:, 1:-2] + line[:, 2:-1]) / 2, atol=1e-5)
    net, mel = tiny(), torch.randn(2, 9, 80)
    own = net.write(net.blocks(net.read(mel.mT).mT)) + phases.blurred(mel, MELS).clamp(min=phases.FLOOR).log()
    assert torch.allclose(net(mel)[:, ::2], own, atol=1e-5)
    wav = torch.as_tensor(voiced(1))[None, :12288]
    assert torch.allclose(vocoder.magnitudes(wav, MELS)[0, ::2], magnitudes(wav[0]), atol=1e-3)


def test_phases_find_the_sound_of_true_magnitudes():
    """Phase gradients alone are as close as Griffin-Lim gets in 16 iterations; iterations bring it closer."""
    magnitude = magnitudes(voiced(2))
    far = [convergence(phases.fast_griffin_lim(magnitude[None], MELS, n)[0], magnitude) for n in (0, 4, 16)]
    assert far[0] < -25 and far[1] < far[0] - 1 and far[2] < far[1], far
    silence = phases.fast_griffin_lim(torch.zeros(1, 20, 513), MELS, 4)
    assert silence.abs().max() < 1e-3


def test_own_transforms_are_torchs(monkeypatch):
    """Phases that are right stay right: the sound comes back, and torch.istft would have made it."""
    wav = torch.as_tensor(voiced(1))
    spec = torch.stft(wav, 1024, 256, window=torch.hann_window(1024), return_complex=True)
    monkeypatch.setattr(phases, "first_phases", lambda magnitude, settings: spec.angle().T[None])
    made = phases.fast_griffin_lim(spec.abs().T[None].contiguous(), MELS, 2)[0]
    assert (made - wav[:len(made)]).abs()[600:-600].max() < 1e-3


def test_training_lowers_the_loss_and_resumes_exactly(monkeypatch, corpus, tmp_path):
    flags = ("--data", corpus / "a", corpus / "b", "--eval_every", 2, "--save_every", 2)
    whole = train(monkeypatch, tmp_path / "whole", *flags, "--max_iters", 8)
    rows = read_csv(tmp_path / "whole" / "log.csv")
    assert float(rows[-1]["held_loss"]) < 0.95 * float(rows[0]["held_loss"])
    assert (tmp_path / "whole" / "vocoder.pt").stat().st_size < 4.5e6

    class Stop(Exception):
        pass

    def stop(*_):
        raise Stop
    with monkeypatch.context() as patch:            # it dies after its fourth update, which was saved
        save = vocoder.Run.save
        patch.setattr(vocoder.Run, "save", lambda run, done, *more: (save(run, done, *more), done == 4 and stop()))
        patch.setattr(vocoder, "claim", lambda flags: flags.out.mkdir(parents=True))      # no lock outlives it
        with pytest.raises(Stop):
            train(patch, tmp_path / "parts", *flags, "--max_iters", 8)
    parts = train(monkeypatch, tmp_path / "parts", *flags, "--max_iters", 8, "--resume")
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), parts.state_dict().values()))
    gc.collect()                                    # the lock of a run that has ended, were it another process
    with pytest.raises(BadInput, match="made with another lr"):
        train(monkeypatch, tmp_path / "parts", *flags, "--max_iters", 8, "--resume", "--lr", 1e-3)
    further = train(monkeypatch, tmp_path / "further", *flags, "--max_iters", 1, "--lr", 1e-6,
                    "--init", tmp_path / "whole" / "vocoder.pt")
    assert (further.read.weight - whole.read.weight).abs().max() < 1e-4


def test_gradients_reach_magnitudes_through_the_phases():
    log = torch.randn(2, 9, 513, requires_grad=True)
    tiny().sound(log).square().mean().backward()
    assert log.grad.isfinite().all() and (log.grad.abs() > 0).float().mean() > 0.9


def test_critics_tell_noise_from_recordings_and_hold_still_for_copies():
    torch.manual_seed(0)
    real = torch.as_tensor(voiced(1))[None, :12288].repeat(2, 1)
    critics = discriminators.discriminators()
    optimiser = torch.optim.Adam(critics.parameters(), 2e-3)
    for _ in range(30):
        loss = discriminators.hinge_loss(critics, real, 0.1 * torch.randn(2, 12288))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 3                             # 6: they cannot tell
    optimiser.zero_grad()
    copy = (0.1 * torch.randn(2, 12288)).requires_grad_()
    score, matching = discriminators.generator_losses(critics, real, copy)
    (score + matching).backward()
    assert copy.grad.abs().sum() > 0 and all(p.grad is None and p.requires_grad for p in critics.parameters())
    assert discriminators.generator_losses(critics, real, real)[1] < 1e-6 and discriminators.spectral_loss(real, real) < 1e-6


def test_adversarial_training_runs_and_refuses_another_start(monkeypatch, corpus, tmp_path):
    monkeypatch.setattr(vocoder, "Vocoder", lambda settings: NET(settings, 16, 1))
    flags = ("--data", corpus / "a", "--eval_every", 2, "--save_every", 2, "--batch", 2)
    train(monkeypatch, tmp_path / "first", *flags, "--max_iters", 2)
    flags += ("--adversarial", "--init", tmp_path / "first" / "vocoder.pt", "--lr", 1e-4)
    whole = train(monkeypatch, tmp_path / "whole", *flags, "--max_iters", 4)
    with pytest.raises(BadInput, match="--init"):
        train(monkeypatch, tmp_path / "alone", *flags[:8], "--adversarial")
    rows = read_csv(tmp_path / "whole" / "log.csv")
    assert {"hinge", "score", "matching", "held_spectral_loss"} < set(rows[-1])
    state = torch.load(tmp_path / "whole" / "last.pt", weights_only=True)
    assert state["critics"] and state["step"] == 4
    (tmp_path / "first" / "vocoder.pt").write_bytes((tmp_path / "whole" / "vocoder.pt").read_bytes())
    gc.collect()
    with pytest.raises(BadInput, match="made with another init"):
        train(monkeypatch, tmp_path / "whole", *flags, "--max_iters", 5, "--resume")
    assert whole.read.weight.isfinite().all()


def test_the_noise_of_a_recording_leads_back_to_it():
    """On straight paths exactly: a network whose velocity is constant goes back to where it came from."""
    batch = make_batch()
    batch["x0"] = batch["x0"] / batch["x0"][batch["mask"]].std()

    class Straight(torch.nn.Module):
        config, step_condition = model.DiTConfig(vocab=9, mels=8), model.DiT.step_condition

        def embed_text(self, text, align, mask=None, drop=None):
            return torch.zeros(*align.shape, 1)

        def forward(self, x, step_cond, ref, h, mask=None):
            return batch["mel"] - batch["x0"]
    found = pairs.noise_of(Straight(), batch, sample.cosine_grid(5))
    assert torch.allclose(found, batch["x0"], atol=1e-5)


def test_pairs_are_made_and_trained_on(monkeypatch, tmp_path, capsys):
    checkpoints = ROOT / "checkpoints"
    if not (checkpoints / "teacher.pt").is_file():
        pytest.skip("no checkpoints")
    (tmp_path / "c" / "wavs").mkdir(parents=True)
    for i in range(6):
        soundfile.write(tmp_path / "c" / "wavs" / f"u{i}.wav", voiced(2 + 0.1 * i), 16000)
    texts = ["good morning to you all", "one more line to say", "and the last one of them"] * 2
    (tmp_path / "c" / "metadata.csv").write_text("".join(f"u{i}|{text}|{text}\n" for i, text in enumerate(texts)))
    monkeypatch.chdir(ROOT)
    assert run(pairs, "--data", tmp_path / "c", "--cache", tmp_path / "cache", "--count", 3, "--out", tmp_path / "p.pt") == 0
    made = torch.load(tmp_path / "p.pt", weights_only=True)
    assert len(made["mels"]) == len(made["wavs"]) > 0
    assert all((len(mel) - 1) * 256 <= len(wav) for mel, wav in zip(made["mels"], made["wavs"]))
    batch = vocoder.excerpts(torch.as_tensor((voiced(3) * 32767).astype(np.int16)), [0, 5, 9, 20], 48 * 256, MELS)
    kept = [(mel, wav) for mel, wav in vocoder.load_pairs(tmp_path / "p.pt", 49, MELS)]
    mixed = vocoder.with_pairs(batch, kept, MELS, torch.Generator().manual_seed(0))
    assert all(torch.equal(a[2:], b[2:]) and not torch.equal(a[:2], b[:2]) for a, b in zip(batch, mixed))
    with pytest.raises(BadInput, match="--pairs"):
        vocoder.load_pairs(tmp_path / "p.pt", 10_000, MELS)
    capsys.readouterr()
    for wrong, said in ((["--students", checkpoints / "teacher.pt"], "teacher.pt: holds a teacher"),
                        (["--students", checkpoints / "vocoder.pt"], "vocoder.pt: a file of another kind"),
                        (["--out", tmp_path], "--out")):
        assert run(pairs, "--out", tmp_path / "q.pt", *wrong) == 2 and said in capsys.readouterr().err
    assert not (tmp_path / "q.pt").exists()


def test_wrong_input_is_one_line(monkeypatch, corpus, tmp_path):
    (tmp_path / "no.pt").write_bytes(b"no weights")
    torch.save(dict(format="dsflow-bundle-1"), tmp_path / "other.pt")
    torch.save(dict(format=vocoder.FORMAT, mel=asdict(MELS), net=dict(x=torch.ones(1))), tmp_path / "odd.pt")
    reasons = {"no.pt": "refused|truncated", "other.pt": "another kind", "none.pt": "no such file",
               "odd.pt": "does not fit"}
    for name, words in reasons.items():
        with pytest.raises(BadInput, match=words) as problem:
            vocoder.load_vocoder(str(tmp_path / name), MELS)
        assert name in str(problem.value) and "\n" not in str(problem.value)
    (tmp_path / "short" / "wavs").mkdir(parents=True)
    soundfile.write(tmp_path / "short" / "wavs" / "a.wav", voiced(0.3), 16000)
    (tmp_path / "short" / "metadata.csv").write_text("a|some spoken words\n")
    with pytest.raises(BadInput, match="a second"):
        train(monkeypatch, tmp_path / "out", "--data", tmp_path / "short")
    with pytest.raises(BadInput, match="no such folder"):
        train(monkeypatch, tmp_path / "out", "--data", tmp_path / "nowhere")


def test_which_vocoder(monkeypatch, tmp_path):
    monkeypatch.setattr(vocoder, "WEIGHTS", tmp_path / "vocoder.pt")
    mel, other = torch.randn(9, 80), replace(MELS, log="ln")
    assert vocoder.load_vocoder(None, MELS) is vocoder.griffin_lim                # no weights there
    net, mels = vocoder.Vocoder(MELS), asdict(MELS)
    torch.save(dict(format=vocoder.FORMAT, mel=mels, net=net.half().state_dict()), tmp_path / "vocoder.pt")
    net = net.float().eval()
    for name in (None, str(tmp_path / "vocoder.pt")):
        monkeypatch.chdir(tmp_path.parent)                                        # wherever one stands
        assert np.array_equal(vocoder.load_vocoder(name, MELS)(mel, MELS), net.speak(mel))
    assert vocoder.load_vocoder(None, other) is vocoder.griffin_lim               # weights for other mels
    assert vocoder.load_vocoder("griffin_lim", MELS) is vocoder.griffin_lim
    with pytest.raises(BadInput, match="none is known for these mels"):
        vocoder.load_vocoder(str(tmp_path / "vocoder.pt"), other)


@pytest.mark.skipif(not vocoder.WEIGHTS.is_file(), reason="no checkpoints/vocoder.pt")
def test_shipped_weights_beat_the_pseudo_inverse():
    """Copy synthesis: its spectrogram is nearer to the recording's. (Its mel is not: that is all plain has.)"""
    speak, error = vocoder.load_vocoder(None, MELS), dict(ours=0.0, plain=0.0)
    wavs = [load_audio(path, MELS) for path in RECORDINGS[::max(1, len(RECORDINGS) // 3)][:3]]
    if not wavs:
        pytest.skip("no recordings in eval/")
    for wav in wavs:
        mel = mel_spectrogram(wav, MELS)
        for name, make in (("ours", speak), ("plain", vocoder.griffin_lim)):
            log = magnitudes(make(mel, MELS)).clamp(min=phases.FLOOR).log()
            error[name] += float(vocoder.losses(log, magnitudes(wav)[:len(log)])[0])
    assert error["ours"] < error["plain"], error
