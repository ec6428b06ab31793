"""Audio, text, corpora, alignment, cache, download: python -m pytest -q tests/test_data.py"""
import functools
import hashlib
import http.server
import itertools
import os
import sys
import tarfile
import threading
import time as clock
import tracemalloc
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from speech import audio
from speech import align
import data
from speech import prepare
import teacher
from speech import vocoder
from common.cli import BadInput
from conftest import make_corpus, run, write_wav
from data import MelSettings

# ------------------------------------------------------------------------------------------------------ audio


def test_mel_scale_and_inverse():
    s = MelSettings()
    t = torch.arange(16000) / 16000
    wav = 0.3 * torch.sin(2 * torch.pi * (300 * t + 200 * t ** 2)) + 0.1 * torch.sin(2 * torch.pi * 1500 * t)
    mel = data.mel_spectrogram(wav, s)
    assert mel.shape == (16000 // 256 + 1, 80)
    back = data.mel_spectrogram(vocoder.griffin_lim(mel, s), s)
    loud = mel[: len(back)] > mel.max() - 2.0
    assert (back - mel[: len(back)])[loud].abs().mean() < 0.2
    silence = data.log_mel(data.mel_spectrogram(torch.zeros(4000), s), s)
    assert abs(float(silence.max()) - np.log10(s.floor)) < 1e-6
    other = data.mel_spectrogram(wav, replace(s, log="ln", htk=True, norm="", mean=0.0, std=1.0, n_mels=100))
    assert other.shape[1] == 100 and torch.isfinite(other).all()


def test_mel_is_speecht5s():
    """Against transformers' own feature extractor, when it is installed."""
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    extract = transformers.SpeechT5FeatureExtractor()
    wav = np.random.default_rng(0).normal(0, 0.1, 8000).astype(np.float32)
    want = extract(audio_target=wav, sampling_rate=16000, return_tensors="pt")["input_values"][0]
    s = MelSettings()
    got = data.log_mel(data.mel_spectrogram(wav, s), s)
    assert want.shape == got.shape and (want.clamp(min=-4) - got).abs().max() < 1e-3


def test_vocoder_with_random_weights(tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    config = transformers.SpeechT5HifiGanConfig(upsample_initial_channel=32)
    transformers.SpeechT5HifiGan(config).save_pretrained(tmp_path)
    wav = vocoder.load_vocoder(str(tmp_path), MelSettings())(torch.randn(20, 80), MelSettings())
    assert wav.shape == (20 * 256,) and np.isfinite(wav).all()


class FakeVocoder(torch.nn.Linear):
    """Stands for both public vocoders: says where it was when it was given mels, and what they were."""

    @classmethod
    def from_pretrained(cls, name):
        if name == "nowhere":
            raise OSError("nowhere is not a folder\nand more")
        return cls(1, 1)

    def forward(self, mel):
        self.given = (self.weight.device.type, mel.device.type, tuple(mel.shape))
        return torch.zeros(5)

    def decode(self, mel):
        return self(mel)[None]


@pytest.mark.parametrize("package, name, kind, shape", [("transformers", "SpeechT5HifiGan", "speecht5", (9, 80)),
                                                        ("vocos", "Vocos", "vocos", (1, 100, 9))])
def test_a_vocoder_goes_to_the_device_and_fits_the_mels(monkeypatch, package, name, kind, shape):
    made = []

    class Kept(FakeVocoder):
        def __init__(self, *size):
            super().__init__(*size)
            made.append(self)
    monkeypatch.setitem(sys.modules, package, types.SimpleNamespace(**{name: Kept}))
    speak = vocoder.load_vocoder("x", audio.MELS[kind], torch.device("meta"))
    assert speak(torch.zeros(9, shape[1]), audio.MELS[kind]).shape == (5,)
    assert made[0].given == ("meta", "meta", shape)
    for where, settings, words in (("nowhere", audio.MELS[kind], "--vocoder nowhere: nowhere is not a folder$"),
                                   ("x", replace(audio.MELS[kind], log="log2"), "none is known for these mels")):
        with pytest.raises(BadInput, match=words):
            vocoder.load_vocoder(where, settings)
    monkeypatch.setitem(sys.modules, package, None)                               # as if not installed
    with pytest.raises(BadInput, match=f"--vocoder needs the package {package}: pip install {package}"):
        vocoder.load_vocoder("x", audio.MELS[kind])


@pytest.mark.parametrize("rate, channels, subtype",
                         [(48000, 2, "FLOAT"), (16000, 1, "PCM_24"), (44100, 2, "PCM_16")])
def test_audio_formats(tmp_path, rate, channels, subtype):
    wav = np.random.default_rng(0).normal(0, 0.2, (rate, channels)).clip(-1, 1)
    soundfile.write(tmp_path / "a.wav", wav, rate, subtype=subtype)
    got = audio.load_audio(tmp_path / "a.wav", MelSettings())
    assert abs(len(got) - 16000) < 3 and abs(np.sqrt((got ** 2).mean()) - 0.1) < 0.01


# -------------------------------------------------------------------------------------------------- alignment


def test_alignment_recovers_known_boundaries():
    """Ten symbols with distinct sounds, random texts and durations: the flat start must find nearly every boundary."""
    g = torch.Generator().manual_seed(0)
    sound = torch.randn(11, 28, generator=g) * 3
    texts = [torch.randint(1, 11, (int(torch.randint(8, 20, (), generator=g)),), generator=g) for _ in range(60)]
    texts = [t[torch.cat([torch.tensor([True]), t[1:] != t[:-1]])] for t in texts]     # no doubled symbols
    truth = [torch.randint(2, 9, t.shape, generator=g) for t in texts]
    features = [sound[t.repeat_interleave(d)] + torch.randn(int(d.sum()), 28, generator=g)
                for t, d in zip(texts, truth)]
    lengths = [len(f) for f in features]
    same, found, gauss = align.align_corpus(lambda i: features[i], lengths, texts, 10)
    few = align.align_corpus(lambda i: features[i], lengths, texts, 10, learn=25)[1]   # as a large corpus is
    assert all(torch.equal(a, b) for a, b in zip(same, texts))                    # no symbol is silence: no pauses
    assert sum(int((f - d).abs().sum()) for f, d in zip(few, found)) < 0.1 * sum(lengths)
    assert all(int(f.sum()) == int(d.sum()) and (f >= 1).all() for f, d in zip(found, truth))
    off = torch.cat([(f.cumsum(0) - d.cumsum(0)).abs() for f, d in zip(found, truth)])
    assert (off <= 1).float().mean() > 0.95, off.float().mean()
    assert torch.equal(align.align(features[3], texts[3], gauss)[1], found[3])


def test_the_path_is_the_best_of_all_monotonic_ones():
    """Against every path of 8 frames through the 6 states of 3 symbols that passes over one state at most."""
    g = torch.Generator().manual_seed(1)
    gauss = dict(mean=torch.randn(12, 3, generator=g), var=torch.rand(12, 3, generator=g) + 0.5)
    for seed in range(5):
        features, ids = torch.randn(8, 3, generator=g.manual_seed(seed)), torch.randperm(5, generator=g)[:3] + 1
        normal = torch.distributions.Normal(gauss["mean"], gauss["var"].sqrt())
        score = {}
        for steps in itertools.product((0, 1, 2), repeat=7):
            if sum(steps) == 5:
                state = torch.tensor([0, *steps]).cumsum(0)                       # (T,)
                row = 2 * ids[state // 2] + state % 2
                score[tuple(state.tolist())] = float(normal.log_prob(features[:, None])[range(8), row].sum())
        best = torch.tensor(max(score, key=score.get)) // 2
        found, durations = align.align(features, ids, gauss)
        assert torch.equal(found, ids) and torch.equal(durations, best.bincount())


def test_a_pause_that_nobody_wrote_is_heard():
    """Silence of 8 frames between two sounds becomes the symbol of a pause there; one of 3 frames, as in a stop,
    does not; beside a written pause there is no second one; without symbols of silence nothing is put in.
    """
    g = torch.Generator().manual_seed(0)
    sound, comma = torch.randn(11, 28, generator=g) * 3, 10
    features, texts, truth = [], [], []
    for n in range(60):
        text = torch.randperm(9, generator=g)[:8] + 1
        text[3] = comma if n % 2 else text[3]
        heard = text.tolist()[:6] + [comma] * (n % 3 == 0) + text.tolist()[6:]
        lasts = [9 if s == comma else 5 for s in heard]
        frames = sound[torch.tensor(heard).repeat_interleave(torch.tensor(lasts))]
        if n % 3 == 1:
            frames = torch.cat([frames[:8], sound[comma].expand(3, -1), frames[8:]])
        features.append(frames + 0.3 * torch.randn(frames.shape, generator=g))
        texts.append(text), truth.append(heard)
    lengths = [len(f) for f in features]
    found, durations, gauss = align.align_corpus(lambda i: features[i], lengths, texts, 10, silent=[comma])
    assert [f.tolist() for f in found] == truth
    assert [int(d.sum()) for d in durations] == lengths and all((d >= 1).all() for d in durations)
    assert abs(durations[0][6] - 9) <= 1
    assert [f.tolist() for f in align.align_corpus(lambda i: features[i], lengths, texts, 10)[0]] == [
        t.tolist() for t in texts]
    crowded = torch.randn(9, 28, generator=g)                                     # 8 symbols: one frame each fits
    assert align.align(crowded, texts[0], gauss, [comma])[1].tolist().count(1) >= 7
    assert prepare.reader.pauses([" ", ",", ".", "a"], "en-us") == [2, 1, 3]
    assert not prepare.reader.pauses([" ", ",", ".", "a"], "none") and not prepare.reader.pauses(["a"], "de")


# ---------------------------------------------------------------------------------------------------- corpora


def test_metadata_with_every_fault(tmp_path):
    folder = make_corpus(tmp_path / "c")
    write_wav(folder / "wavs" / "silent.wav", level=0)
    write_wav(folder / "wavs" / "tiny.wav", seconds=0.05)
    write_wav(folder / "wavs" / "long.wav", seconds=21)
    (folder / "wavs" / "broken.wav").write_bytes(b"RIFF1234not audio")
    lines = (folder / "metadata.csv").read_text() + (
        "u0|again|again\nonly one column\na|b|c|d\nlost|no such wav|no such wav\n"
        "silent|quiet|quiet\ntiny|t|t\nbroken|x|x\nlong|x|x\n\n")
    (folder / "metadata.csv").write_bytes(b"\xef\xbb\xbf" + lines.replace("\n", "\r\n").encode())
    corpus = prepare.prepare(folder, cache=tmp_path / "cache")
    assert corpus.names == ["u0", "u1", "u2", "u3"]
    reasons = " ".join(f"{n}: {r}" for n, r in corpus.skipped)
    for word in ("duplicate id", "1 columns", "4 columns", "no audio", "silent or not", "too short",
                 "unreadable", "longer than 20 s"):
        assert word in reasons
    assert len(corpus.skipped) == 8


def test_libritts_and_plain_folders(tmp_path):
    write_wav(tmp_path / "libri" / "84" / "121" / "84_121_0.wav")
    (tmp_path / "libri" / "84" / "121" / "84_121_0.normalized.txt").write_text("hello there")
    write_wav(tmp_path / "plain" / "a.wav")
    (tmp_path / "plain" / "a.lab").write_text("hello there")
    write_wav(tmp_path / "plain" / "b.wav")
    found, skipped = prepare.find_utterances(tmp_path / "libri")
    assert (found[0][3], found[0][2], skipped) == ("84", "hello there", [])
    found, skipped = prepare.find_utterances(tmp_path / "plain")
    assert len(found) == 1 and skipped[0][0] == "b"
    make_corpus(tmp_path / "two" / "anna")
    make_corpus(tmp_path / "two" / "ben", ["hello"])
    found, _ = prepare.find_utterances(tmp_path / "two")
    assert [speaker for *_, speaker in found] == ["anna"] * 4 + ["ben"]
    (tmp_path / "empty").mkdir()
    for folder, word in ((tmp_path / "empty", "no usable recordings"), (tmp_path / "nowhere", "no such folder")):
        with pytest.raises(BadInput, match=word):
            prepare.find_utterances(folder)


def test_cache_is_reused_invalidated_and_survives_a_race(tmp_path, monkeypatch):
    folder, cache = make_corpus(tmp_path / "c"), tmp_path / "cache"
    first = prepare.prepare(folder, cache=cache)
    built, build = [], prepare.build
    monkeypatch.setattr(prepare, "build", lambda *a: (built.append(1), build(*a)))
    again = prepare.prepare(folder, cache=cache)
    assert not built and torch.equal(again.mel(1), first.mel(1))
    assert all(map(torch.equal, first.durations, again.durations))
    write_wav(folder / "wavs" / "u1.wav", seconds=1.5, seed=9)
    assert len(prepare.prepare(folder, cache=cache).mel(1)) > len(first.mel(1)) and len(built) == 1
    prepare.prepare(folder, replace(MelSettings(), floor=1e-3), cache=cache)
    assert len(built) == 2
    wider = prepare.prepare(folder, vocab=[*first.vocab, "zz"], cache=cache)         # a checkpoint's own symbols
    assert len(built) == 3 and wider.vocab == [*first.vocab, "zz"]
    workers = [threading.Thread(target=prepare.prepare, args=(folder,), kwargs=dict(cache=tmp_path / "c2"))
               for _ in range(3)]
    [w.start() for w in workers], [w.join() for w in workers]
    assert len(list((tmp_path / "c2").iterdir())) == 1                            # one entry, no partial folder left
    assert len(list(cache.iterdir())) == 4


def test_split_keeps_takes_together_and_one_utterance_works(tmp_path):
    texts = [f"sentence number {chr(97 + i % 24)} of many" for i in range(72)]
    corpus = prepare.prepare(make_corpus(tmp_path / "c", texts), cache=tmp_path / "cache")
    assert {corpus.texts[i] for i in corpus.train}.isdisjoint(corpus.texts[i] for i in corpus.held)
    assert len(corpus.train) + len(corpus.held) == 72 and corpus.held
    single = prepare.prepare(make_corpus(tmp_path / "d", ["only this"]), cache=tmp_path / "cache")
    assert single.train == single.held == [0]


def test_many_utterances_are_indexed_and_batched_in_little_memory(tmp_path, monkeypatch):
    """Indexing walks all files; an opened corpus holds an index, no audio; padding is under 5 %."""
    many = 6_000
    (tmp_path / "c" / "wavs").mkdir(parents=True)
    soundfile.write(tmp_path / "x.wav", np.zeros(8000, np.float32), 16000)
    with open(tmp_path / "c" / "metadata.csv", "w") as table:
        for i in range(many):
            os.link(tmp_path / "x.wav", tmp_path / "c" / "wavs" / f"{i}.wav")
            table.write(f"{i}|line {i} of a book with sentences of usual length\n")
    sizes = iter(torch.randint(60, 100, (many,), generator=torch.Generator().manual_seed(7)).tolist())
    frames, settings = torch.randn(100, 40), MelSettings(n_mels=40)
    monkeypatch.setattr(prepare, "load_audio", lambda *_, **__: None)             # not what is tested
    monkeypatch.setattr(prepare, "mel_spectrogram", lambda *_: frames[:next(sizes)])
    monkeypatch.setattr(prepare, "align_corpus", lambda _, lengths, ids, V, silent: (
        ids, [torch.bincount(torch.arange(T) * len(i) // T) for T, i in zip(lengths, ids)],
        dict(mean=torch.zeros(V), var=torch.ones(V))))

    def prepared():
        return prepare.prepare(tmp_path / "c", settings, "none", cache=tmp_path / "cache", keep_outliers=True)
    folder = Path(prepared().memory.filename).parent
    start = clock.perf_counter()
    assert len(prepared().names) == many                                          # from the cache
    opened = clock.perf_counter() - start
    tracemalloc.start()
    corpus = data.Corpus(folder)
    batches = data.batch_indices(corpus.frames[corpus.train], 8000, 0)
    real = padded = 0
    for _ in range(100):
        mask = data.collate(corpus, [corpus.train[i] for i in next(batches)])["mask"]
        real, padded = real + int(mask.sum()), padded + mask.numel()
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert opened < 30
    assert held < 1_000 * many < (folder / "mel.f16").stat().st_size / 5, held
    assert 1 - real / padded < 0.05
    assert len(teacher.pick_voices(corpus)) == 1


def test_the_first_ready_voice_is_the_one_with_most_recordings(capsys):
    """Of each speaker the recording nearest to three seconds; at most so many speakers."""
    frames = [100, 190, 400, 180, 50]
    corpus = types.SimpleNamespace(
        train=range(5), speakers=["a", "b", "b", "c", "c"], hours=lambda i: frames[i[0]] * 256 / 16000 / 3600,
        mel=lambda i: torch.full((frames[i], 2), float(i)), ids=torch.arange(5)[:, None],
        durations=torch.tensor(frames)[:, None])
    assert len(teacher.pick_voices(corpus, most=3)) == 3 and not capsys.readouterr().out
    voices = teacher.pick_voices(corpus, most=2)
    assert "voices: b, c," in capsys.readouterr().out
    assert list(voices) == ["b", "c"] and [len(v["mel"]) for v in voices.values()] == [190, 180]


def test_batches_respect_the_budget_and_repeat():
    frames = torch.randint(20, 300, (200,), generator=torch.Generator().manual_seed(0))
    first = list(itertools.islice(data.batch_indices(frames, 1000, 5), 120))
    assert first == list(itertools.islice(data.batch_indices(frames, 1000, 5), 120))
    assert all(int(frames[b].max()) * len(b) <= 1000 for b in first)
    seen = [i for b in first for i in b]
    assert sorted(seen[:200]) == list(range(200)) == sorted(seen[200:400])        # an epoch visits everything


def test_a_batch_is_padded_with_nothing(tmp_path):
    folder = make_corpus(tmp_path / "c")
    write_wav(folder / "wavs" / "u2.wav", seconds=0.9)
    corpus = prepare.prepare(folder, cache=tmp_path / "cache")
    b, (long, short) = data.collate(corpus, [0, 2]), corpus.frames[[0, 2]].tolist()
    assert b["mel"].shape == (2, long, 80) and short < long
    assert b["mask"].sum(1).tolist() == [long, short] and not b["mel"][1, short:].any()
    for row, i in enumerate((0, 2)):
        L = len(corpus.ids[i])
        assert torch.equal(b["text"][row, :L], corpus.ids[i]) and not b["text"][row, L:].any()
        assert torch.equal(b["align"][row, :corpus.frames[i]].bincount(minlength=L), corpus.durations[i])


# --------------------------------------------------------------------------------------------------- commands


def test_prepare_command(tmp_path, capsys):
    folder = make_corpus(tmp_path / "c")
    write_wav(folder / "wavs" / "long.wav", seconds=21)
    with open(folder / "metadata.csv", "a") as table:
        table.write("long|too long|too long\n")
    assert run(prepare, "--data", folder, "--cache", tmp_path / "cache", "--out", tmp_path / "new" / "out") == 0
    told = capsys.readouterr().out
    assert "4 recordings" in told and "skipped: 1\n" in told and "longer than 20 s" in told
    assert (tmp_path / "new" / "out" / "alignment.png").stat().st_size > 1000
    assert run(prepare, "--data", tmp_path / "nothing") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: --data") and "no such folder" in lines[0]


class Server(http.server.SimpleHTTPRequestHandler):
    """A file server that ends early, a hundred bytes in, where the address says so."""
    cut, asked = False, 0

    def do_GET(self):
        Server.asked += 1
        body = Path(self.translate_path(self.path)).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:100] if Server.cut else body)

    def log_message(self, *_):
        pass


def test_download_checks_what_it_gets_and_starts_over(tmp_path, monkeypatch, capsys):
    make_corpus(tmp_path / "src" / "LJ")
    archive = tmp_path / "www" / "LJ.tar.bz2"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:bz2") as tar:
        tar.add(tmp_path / "src" / "LJ", "LJ")
    handler = functools.partial(Server, directory=str(archive.parent))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url, out = f"http://127.0.0.1:{server.server_port}/LJ.tar.bz2", tmp_path / "out"
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(Server, "cut", True)
    for _ in range(2):                          # a transfer cut short: one line, nothing left that looks whole
        with pytest.raises(BadInput, match="download failed .*; run it again") as problem:
            prepare.download(url, digest, out)
        assert url in str(problem.value) and "\n" not in str(problem.value) and not list(out.glob("LJ*"))
    monkeypatch.setattr(Server, "cut", False)
    with pytest.raises(BadInput, match="download failed .*(hash|checksum)") as problem:
        prepare.download(url, "0" * 64, tmp_path / "other")
    assert "\n" not in str(problem.value) and not (tmp_path / "other" / "LJ").exists()
    monkeypatch.setattr(prepare, "DOWNLOADS", dict(ljspeech=(url, digest, "LJ")))
    flags = ["--download", "ljspeech", "--data", out, "--cache", tmp_path / "cache", "--out", tmp_path / "picture"]
    asked = Server.asked
    for _ in range(2):                          # the second finds it there
        assert run(prepare, *flags) == 0 and f"{out / 'LJ'}: 4 recordings" in capsys.readouterr().out
        assert Server.asked == asked + 1
    server.shutdown()
    with pytest.raises(BadInput, match="download failed"):
        prepare.download("http://127.0.0.1:9/x.tar.bz2", digest, tmp_path / "other")
