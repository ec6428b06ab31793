"""F5-TTS: weights, text, prompt, durations, long text, commands: python -m pytest -q tests/test_f5.py"""
import importlib.util
import json
import random
import re
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import data
import distill
import speech.judges
from networks import f5
from networks.f5_net import F5, F5Config
from speech import audio, f5_text
import model
import sample
from speech import text
from networks.checkpoint import load_checkpoint, save_checkpoint
from common.cli import BadInput
from conftest import ROOT, SMALL, make_batch, make_corpus, run, write_wav

GOLDEN = ROOT.parent / "shared" / "f5"
golden = pytest.mark.skipif(not (GOLDEN / "golden_small.npz").is_file(), reason="needs ../shared/f5")
CAN_CHINESE = all(importlib.util.find_spec(name) for name in ("rjieba", "pypinyin"))
chinese = pytest.mark.skipif(not CAN_CHINESE, reason="needs rjieba and pypinyin")
FILES = [("v0", "golden_small_ckpt_v0.pt"), ("v1", "golden_small_ckpt_v1.safetensors")]
# F5-TTS 1.1.22 (PyPI, MIT) on the weights and inputs of official(), guidance's two branches; every third
# frame and mel. An independent implementation: it takes no golden tensors to check equality.
OFFICIAL = {
    ("v0", False): [-.96788, -.53272, 1.01871, -.77601, 1.52274, -.74786, -2.75442, -.70014, .73634, -2.10746,
                    -.21832, -.24778],
    ("v0", True): [-1.57461, -.08359, 1.1248, -.71672, .65532, -.35035, -2.46596, .06205, 1.00419, -1.78446,
                   -.21935, -.51099],
    ("v1", False): [-.51547, -.62825, .46378, -.95636, 1.17646, -.89368, -2.29474, -1.11661, .61501, -1.48894,
                    .24337, -.51925],
    ("v1", True): [-1.55464, -.50502, .8277, -1.40766, .08466, -.64201, -2.18013, -.19629, .91756, -.72273,
                   .1611, -.50109]}


def official(path, config=SMALL):
    """Random weights in the official .pt layout, optional keys, an old mel buffer included -> generator."""
    tensors, g = {"rotary_embed.inv_freq": torch.zeros(8)}, torch.Generator().manual_seed(0)
    for name, p in model.DiT(config).state_dict().items():
        for theirs in f5.official_names(name):
            rows = len(p) // len(f5.official_names(name))
            tensors[theirs] = torch.empty((1, 1, *p.shape) if "grn" in theirs else (rows, *p.shape[1:]))
    for name, p in sorted(tensors.items()):
        if "inv_freq" not in name:
            p.copy_(torch.randn(p.shape, generator=g) * (p.shape[1] ** -0.5 if p.dim() == 2 else 0.3))
    file = {f"ema_model.transformer.{k}": v for k, v in tensors.items()}
    file |= {"initted": torch.tensor(True), "step": torch.tensor(1),
             "ema_model.mel_spec.mel_stft.spectrogram.window": torch.ones(4)}
    torch.save(dict(ema_model_state_dict=file), path)
    return g


def forward(net, x, t, ref, words, drop=False):
    """The public functions, from F5-TTS's ids (-1 is padding) to the velocity."""
    batch = dict(text=words + 1, align=torch.zeros(x.shape[:2], dtype=torch.long), ref=ref, mask=None)
    cond, null = sample.condition(net, batch, guided=True)
    with torch.no_grad():
        return net(x, t, *(null if drop else cond))


# ------------------------------------------------------------------------------------------------- network


@pytest.mark.parametrize("flavour, drop", list(OFFICIAL))
def test_weights_give_the_official_output(tmp_path, flavour, drop):
    g = official(tmp_path / "a.pt")
    net = f5.load_network(tmp_path / "a.pt", flavour)
    x, ref = torch.randn(1, 12, 8, generator=g), torch.randn(1, 12, 8, generator=g)
    v = forward(net, x, 0.3, ref, torch.tensor([[3, 0, 7, 7, 1]]), drop)
    assert (v[0, ::3, ::3].flatten() - torch.tensor(OFFICIAL[flavour, drop])).abs().max() < 2e-5


@golden
@pytest.mark.parametrize("flavour, file", FILES)
def test_golden_forward_and_sampler(flavour, file):
    if file.endswith("safetensors"):
        pytest.importorskip("safetensors", reason="needs safetensors")
    net, arrays = f5.load_network(GOLDEN / file, flavour), np.load(GOLDEN / "golden_small.npz")

    def of(name):
        return torch.from_numpy(arrays[name])
    x, ref, words, t = of("in.x"), of("in.cond"), of("in.text"), of("in.time")
    j = int(of("in.lens").argmin())
    n, one = int(of("in.lens")[j]), slice(j, j + 1)
    for name, case in dict(
            cond_nomask=(x, t, ref, words), uncond_nomask=(x, t, ref, words, True),
            single_cond=(x[one, :n], t[one], ref[one, :n], words[one]),
            single_uncond=(x[one, :n], t[one], ref[one, :n], words[one], True),
            trunc_cond_nomask=(of("in.trunc.x"), t, of("in.trunc.cond"), of("in.trunc.text"))).items():
        assert (forward(net, *case) - of(f"{flavour}.out.{name}")).abs().max() < 1e-5, name
    j = int(of("in.smp.lens").argmin())
    P = int(of("in.smp.lens")[j])
    for name, grid in (("euler4", sample.cosine_grid(4)), ("euler7epss", f5.epss_times(f5.EPSS[7]))):
        case = f"{flavour}.smp.single_{name}_cfg2_sway"
        states, out = of(f"{case}.traj"), of(f"{case}.out")
        ref = torch.zeros_like(out)
        ref[:, :P] = of("in.smp.cond")[j, :P]
        batch = dict(text=of("in.text")[j:j + 1] + 1, align=torch.zeros(ref.shape[:2]).long(), ref=ref,
                     x0=states[0], mask=None, known=None)
        assert (grid - of(f"{case}.t")).abs().max() < 1e-6
        got = sample.rollout(net, batch, grid, 2.0)
        assert (got - states).abs().max() < 1e-3, name
        assert (torch.cat([ref[:, :P], got[-1, :, P:]], 1) - out).abs().max() < 1e-3, name


def test_base_and_its_student_count_as_published():
    """Counts on the meta device: 337,096,804 is F5TTS_Base with its 2545 tokens."""
    base = dict(vocab=2545, mels=100, dim=1024, depth=22, heads=16, text_dim=512)
    with torch.device("meta"):
        net = F5(F5Config(**base, **f5.FLAVOURS["v1"]))
        student = F5(F5Config(**base, **f5.FLAVOURS["v1"], time="step", steps=(1, 2, 4)))
    (total, conditioning), (kept, vectors) = model.count_parameters(net), model.count_parameters(student)
    assert (total, conditioning) == (337_096_804, 141_959_168)
    assert (kept, vectors) == (total - conditioning + 2 * 1024 * (2 * 22 + 1) + 3 * 1024, 3 * 1024)
    assert round(1 - kept / total, 4) == 0.4208


@pytest.mark.parametrize("flavour", f5.FLAVOURS)
def test_padding_never_leaks_and_fold_is_exact(tmp_path, flavour):
    official(tmp_path / "a.pt")
    net, batch = f5.load_network(tmp_path / "a.pt", flavour), make_batch()
    alone = {k: batch[k][1:, :9] for k in ("align", "ref", "x0")} | dict(text=batch["text"][1:], mask=None)
    student = model.fold(net, [1, 2, 4])
    for w in (0, 1):                                                              # both branches of guidance
        want = None
        for network, step_cond in ((net, 0.0), (student, 2)):
            with torch.no_grad():
                together, single = (network(b["x0"], step_cond, *sample.condition(network, b, True)[w], b["mask"])
                                    for b in (batch, alone))
            assert (single[0] - together[1, :9]).abs().max() < 2e-5
            want = together if want is None else want
        assert (want - together)[batch["mask"]].abs().max() < 2e-5                         # folded at t = 0


# ----------------------------------------------------------------------------------------------- conversion


def test_files_that_do_not_fit(tmp_path):
    official(tmp_path / "good.pt")
    good = torch.load(tmp_path / "good.pt", weights_only=True)["ema_model_state_dict"]
    prefix = "ema_model.transformer."
    some, q = prefix + "proj_out.bias", prefix + "transformer_blocks.1.attn.to_q.weight"

    def write(name, file):
        torch.save(file, tmp_path / f"{name}.pt")

    def changed(**tensors):
        return dict(ema_model_state_dict=good | {prefix + k: v for k, v in tensors.items()})
    write("online", dict(model_state_dict={k.removeprefix("ema_model."): v for k, v in good.items()}))
    write("unet", dict(ema_model_state_dict={k.replace("transformer_blocks", "layers"): v
                                             for k, v in good.items()}))
    write("missing", dict(ema_model_state_dict={k: v for k, v in good.items() if k != some}))
    write("nothing", dict(ema_model_state_dict={k: v for k, v in good.items() if "transformer" not in k}))
    write("extra", changed(long_skip=torch.zeros(1)))
    write("shape", changed(**{"proj_out.bias": torch.zeros(3)}))
    write("whole", changed(**{"proj_out.bias": torch.zeros(8, dtype=torch.int8)}))
    write("vector", changed(**{"proj_out.weight": torch.zeros(8)}))
    write("odd", changed(**{"proj_out.weight": torch.zeros(8, 30)}))
    write("nan", changed(**{"transformer_blocks.1.attn.to_q.weight": torch.full_like(good[q], torch.nan)}))
    write("inf", changed(**{"proj_out.bias": torch.full((8,), -torch.inf)}))
    write("large", changed(**{"proj_out.bias": torch.full((8,), 7e4)}))
    write("many", dict(ema_model_state_dict={k: v for k, v in good.items() if "norm" not in k}))
    write("list", [1, 2])
    write("inner", dict(ema_model_state_dict=[1, 2]))
    (tmp_path / "cut.pt").write_bytes((tmp_path / "good.pt").read_bytes()[:9000])
    (tmp_path / "empty.pt").write_bytes(b"")
    for name, words in dict(
            online="only the online", unet="UNetT", missing="proj_out.bias missing",
            nothing="expected F5-TTS's DiT", extra="long_skip not known", shape=r"proj_out.bias \(3,\)",
            whole="proj_out.bias missing", vector="expected a matrix", odd="no DiT has its sizes",
            nan="1.attn.to_q.weight not finite", inf="proj_out.bias not finite",
            large="proj_out.bias not finite", many=r"and \d+ more",
            list="not a checkpoint", inner="not a checkpoint", cut="truncated", empty="truncated",
            absent="no such file").items():
        with pytest.raises(BadInput, match=words) as problem:
            f5.load_network(tmp_path / f"{name}.pt", "v1")
        assert f"{name}.pt" in str(problem.value) and "\n" not in str(problem.value)
        assert len(str(problem.value)) < 400 + len(str(tmp_path))
    write("half", dict(ema_model_state_dict={k: v.half() for k, v in good.items()}))
    net = f5.load_network(tmp_path / "half.pt", "v1")
    assert net.proj_out.weight.dtype == torch.float32
    assert torch.equal(net.proj_out.bias, good[some].half().float())


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_no_code_in_a_file_runs(tmp_path):
    torch.save(dict(ema_model_state_dict=Malicious(tmp_path / "ran")), tmp_path / "a.pt")
    with pytest.raises(BadInput, match="not a checkpoint"):
        f5.load_network(tmp_path / "a.pt", "v1")
    assert not (tmp_path / "ran").exists()


def test_safetensors_equal_pt_and_may_be_damaged(tmp_path):
    tensors = pytest.importorskip("safetensors.torch", reason="needs safetensors")
    official(tmp_path / "a.pt")
    state = torch.load(tmp_path / "a.pt", weights_only=True)["ema_model_state_dict"]
    tensors.save_file(state, tmp_path / "a.safetensors")
    one, other = (f5.load_network(tmp_path / f"a.{end}", "v0").state_dict() for end in ("pt", "safetensors"))
    assert all(torch.equal(v, other[k]) for k, v in one.items())
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:9000])
    with pytest.raises(BadInput, match="truncated"):
        f5.load_network(tmp_path / "cut.safetensors", "v0")


def test_epss_is_stored_and_other_step_counts_take_the_cosine_grid(teacher):
    for n in range(1, 33):
        t = torch.linspace(0, 1, n + 1)
        if n in f5.EPSS:
            t = torch.tensor([int(i) for i in f5.EPSS[n].split()]) / 32
            assert len(t) == n + 1
        sway = t - (torch.cos(torch.pi / 2 * t) - 1 + t)                          # as F5-TTS writes it
        grid = sample.checkpoint_grid(teacher.b, n)
        assert (grid - sway).abs().max() < 1e-6 and grid[0] == 0 and grid[-1] == 1 and (grid.diff() > 0).all()


def test_the_round_trip_is_float16_rounding(teacher, tmp_path):
    save_checkpoint(tmp_path / "a.pt", teacher.b)
    b = load_checkpoint(tmp_path / "a.pt")
    for name, weight in teacher.b.model.state_dict().items():
        assert torch.equal(b.model.state_dict()[name], weight.half().float())     # nothing but rounding:
        assert ((b.model.state_dict()[name] - weight).abs() <= weight.abs() * 2 ** -11 + 2 ** -25).all()
    for name in ("vocab", "lang", "settings", "contract", "duration", "gauss", "voices", "config"):
        assert getattr(b, name) == getattr(teacher.b, name)
    assert b.model.config == teacher.b.model.config and b.settings == audio.MELS["vocos"]
    x, words = torch.randn(1, 40, 100, generator=torch.Generator().manual_seed(0)), torch.tensor([[1, 5, 9]])
    one, other = (forward(net, x, 0.5, x, words) for net in (teacher.b.model, b.model))
    assert (one - other).norm() < 2e-3 * one.norm()


@pytest.mark.parametrize("change, words", [
    (dict(vocab="stripped"), "not a single space"), (dict(vocab="longer"), "33 tokens"),
    (dict(vocab="absent"), "cannot be read"), (dict(vocab="p.wav"), "cannot be read"),
    (dict(model="p.wav"), "not a checkpoint"), (dict(model="absent.pt"), "no such file"),
    (dict(model="absent.safetensors"), "no such file"), (dict(flavour="v3"), "--flavour.*v0.*v1"),
    (dict(flavour=None), "required: --flavour"), (dict(vocab=None), "required: --vocab"),
    (dict(mel="speecht5"), "--mel"), (dict(out="x.safetensors"), r"expected the name of a \.pt"),
    (dict(out="."), r"expected the name of a \.pt"), (dict(out="m.pt"), "is the checkpoint to convert"),
    (dict(out="sub/../m.pt"), "is the checkpoint to convert")])
def test_flags_that_do_not_fit(teacher, capsys, change, words):
    given = dict(model="m.pt", flavour="v1", vocab="vocab.txt", mel="vocos", out="x.pt") | change
    given |= {name: teacher.tmp / given[name] for name in ("model", "vocab", "out") if given[name]}
    flags = [word for name in ("flavour", "vocab", "mel", "out") if given[name]
             for word in (f"--{name}", given[name])]
    before = (teacher.tmp / "m.pt").read_bytes()
    assert run(f5, given["model"], *flags) == 2
    error = capsys.readouterr().err
    assert re.search(words, error) and error.startswith("error: ") and error.count("\n") == 1
    assert not (teacher.tmp / "x.pt").exists() and (teacher.tmp / "m.pt").read_bytes() == before


def test_help(capsys):
    assert run(f5, "--help") == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("--flavour", "F5TTS_v1_Base", "vocab.txt", "--prompt_text"))


def test_the_official_file_itself_is_no_checkpoint_of_ours(teacher):
    for name in ("m.pt", "absent.safetensors"):
        with pytest.raises(BadInput, match="f5.py"):
            load_checkpoint(teacher.tmp / name)


# ------------------------------------------------------------------------------------------------ text, mels


@golden
def test_golden_mels_and_text():
    arrays = np.load(GOLDEN / "golden_mel.npz")
    for kind in ("vocos", "bigvgan"):
        mel = data.mel_spectrogram(arrays["wav"][0], audio.MELS[kind])
        assert (mel.T - torch.from_numpy(arrays[f"mel_{kind}"][0])).abs().max() < 2e-4
    items = json.loads((GOLDEN / "golden_text.json").read_text(encoding="utf-8"))["items"]
    vocab = [""] * 2545                                                           # the published file's lines
    for item in items:
        for token, i in zip(item["tokens"], item["ids"]):
            vocab[i] = token
    for item in items:
        if CAN_CHINESE or not f5_text.CHINESE.search(item["text"]):
            assert (f5_text.encode(item["text"], vocab) - 1).tolist() == item["ids"]
            assert torch.equal(text.encode(item["text"], vocab, "f5")[0], f5_text.encode(item["text"], vocab))


def test_text_and_mels():
    assert "".join(f5_text.tokens("Hello,world; it's 3.14 (x)")) == "Hello, world, it's 3.14 (x)"
    vocab = [" ", "a", "b"]
    assert f5_text.encode("ab\u00e9", vocab).tolist() == [2, 3, 1]                     # unknown: the space
    assert text.encode("ab\u00e9", vocab, "f5")[0].tolist() == [2, 3, 1]          # the corpus reads alike
    assert f5_text.encode("", vocab).tolist() == []
    wav = 0.1 * np.random.default_rng(0).normal(size=24000)
    for kind, frames in (("vocos", 94), ("bigvgan", 93)):
        assert data.mel_spectrogram(wav, audio.MELS[kind]).shape == (frames, 100)


def test_chinese_without_its_packages_says_so(monkeypatch):
    for name in ("rjieba", "pypinyin"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BadInput, match="pip install rjieba pypinyin"):
        f5_text.tokens("\u4f60\u597d")
    assert f5_text.tokens("hi") == ["h", "i"]


# ---------------------------------------------------------------------------------------- prompt, durations


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A random checkpoint of 100 mels in the official layout, with its vocab.txt and a prompt, converted."""
    tmp = tmp_path_factory.mktemp("f5")
    (tmp / "sub").mkdir()
    tokens = " abcdefghijklmnopqrstuvwxyz.,ABC"
    (tmp / "vocab.txt").write_text("\r\n".join(tokens) + "\r\n", newline="")
    (tmp / "stripped").write_text("\n".join(tokens).strip())
    (tmp / "longer").write_text("\n".join(tokens) + "\nx\n")
    official(tmp / "m.pt", replace(SMALL, vocab=len(tokens), mels=100))
    write_wav(tmp / "p.wav", seconds=1.5, seed=3)
    return types.SimpleNamespace(tmp=tmp, b=f5.convert(tmp / "m.pt", "v1", tmp / "vocab.txt", "vocos"),
                                 prompt=["--prompt", tmp / "p.wav", "--prompt_text", "good morning to you"])


def test_prompt_and_duration_rule(teacher):
    b = teacher.b
    voice = f5_text.FrontEnd(b).make_voice(teacher.tmp / "p.wav", "good morning")
    assert voice["words"] == "good morning.  " and abs(voice["frames"] - 1.55 * 24000 / 256) <= 1
    assert len(voice["mel"]) == voice["frames"] + 1 and voice["gain"] < 1
    (ids, align), (_, short) = f5_text.FrontEnd(b).plan(["hello there, you", "hi"], voice, 1.0)
    assert len(align) == voice["frames"] + int(voice["frames"] / 15 * 16)
    assert len(short) == voice["frames"] + int(voice["frames"] / 15 * 2 / 0.3)    # under ten bytes: slowly
    [(_, fast)] = f5_text.FrontEnd(b).plan(["hello there, you"], voice, 2.0)
    assert len(fast) == voice["frames"] + voice["frames"] * 16 // 30
    assert torch.equal(ids, f5_text.encode("good morning.  hello there, you", b.vocab))
    mels = sample.speak(b, ["hello there, you"], voice, steps=2, w=0.0)
    assert len(mels[0]) == len(align) - voice["frames"]                           # a prompt frame first
    assert torch.equal(mels[0][0], voice["mel"][-1])
    assert sample.front_end(b).fade == 0.15


@pytest.mark.parametrize("words, ending", [
    ("go on.", "go on.  "), ("go on", "go on.  "), ("go on. ", "go on.  "), ("go on?", "go on?.  ")])
def test_the_prompts_words_end_as_there(teacher, words, ending):
    assert f5_text.FrontEnd(teacher.b).make_voice(teacher.tmp / "p.wav", words)["words"] == ending


@pytest.mark.parametrize("seconds, level, said, words", [
    (13, 0.2, "good morning", "longer than 12 s"), (2, 0.01, "good morning", "nothing in it is louder"),
    (2, 0.2, "??? 123", "nothing to say"), (11, 0.2, "good", "give all its words"),
    (1, 0.2, "good morning " * 30, "and no others")])
def test_prompts_that_cannot_be(teacher, tmp_path, seconds, level, said, words):
    write_wav(tmp_path / "p.wav", seconds, level)
    with pytest.raises(BadInput, match=words) as problem:
        f5_text.FrontEnd(teacher.b).make_voice(tmp_path / "p.wav", said)
    assert "\n" not in str(problem.value)


# ------------------------------------------------------------------------------------------------ long text


def without_spaces(words):
    return "".join(words.split())


def voice_of(seconds, words):
    """A prompt without sound: all that chunks() and plan() look at."""
    frames = int(seconds * 24000 / 256)
    return dict(mel=torch.zeros(frames + 1, 100), words=words, frames=frames)


def check_chunks(b, words, voice, speed=1.0):
    """Chunks that keep to 22 s with their prompt and lose nothing."""
    found = f5_text.FrontEnd(b).chunks(words, voice, speed)
    assert without_spaces("".join(found)) == without_spaces(words)
    assert all(chunk == chunk.strip() and chunk for chunk in found)
    seconds = [len(align) * 256 / 24000 for _, align in f5_text.FrontEnd(b).plan(found, voice, speed)]
    assert max(seconds) <= 22
    return found, seconds


@chinese
def test_chinese_is_cut_at_its_marks_into_at_most_22_seconds(teacher):
    b = replace(teacher.b, vocab=[" ", "ni3", "hao3", "wo3", "men5"])
    voice = voice_of(4.0, "你好，我们是你的朋友。")                                 # 33 bytes, 8 a second
    line = "今天天气很好，我们一起去公园散步吧！你说什么？他们都说好；可是我不知道，因为我没有去过。"
    found, seconds = check_chunks(b, line * 12, voice)
    assert all(chunk[-1] in "。！？" for chunk in found)                           # never within a sentence
    assert min(seconds[:-1]) > 12                                                 # and filled
    clauses = "我们一起去公园散步，" * 60
    assert all(chunk.endswith("，") for chunk in check_chunks(b, clauses, voice)[0])
    import rjieba
    unmarked = "我们中华人民共和国的朋友一起去公园散步" * 20
    ends = np.cumsum([len(word) for word in rjieba.cut(unmarked)])
    found, _ = check_chunks(b, unmarked, voice)
    assert set(np.cumsum([len(chunk) for chunk in found])) <= set(ends)           # never within a word


@chinese
def test_mixed_text_is_never_cut_within_a_latin_word(teacher):
    b, voice = replace(teacher.b, vocab=[" ", "wo3", "ran2", "e"]), voice_of(6.0, "Good morning, friend.  ")
    words = ("我们喜欢re-use和naïve的café没有空格don't停下来3.14元，Then we said: hello, my friends."
             "然后走了1,000米")
    for many in (1, 7, 30):
        found, _ = check_chunks(b, words * many, voice)
        for whole in ("re-use", "naïve", "café", "don't", "3.14", "friends", "hello", "1,000"):
            assert sum(chunk.count(whole) for chunk in found) == many, whole


def test_english_is_cut_at_the_best_mark_there_is(teacher):
    assert f5_text.cut("One two. Three, four. Five.", 20) == ["One two. ", "Three, four. Five."]
    assert f5_text.cut("One two three, four five six. No.", 20) == ["One two three, ", "four five six. No."]
    assert f5_text.cut("one two three four five six", 14) == ["one two three ", "four five six"]
    assert f5_text.cut("He said \"no.\" Then 3.14 or 1,000.5 more.", 19) == ["He said \"no.\" ", "Then 3.14 or ",
                                                                       "1,000.5 more."]
    assert f5_text.cut("a " + "x" * 25 + " b", 10) == ["a ", "x" * 10, "x" * 10, "x" * 5 + " b"]  # alone too long
    assert f5_text.cut("Short.", 100) == ["Short."]
    voice = voice_of(3.0, "this is my own voice, as it is.  ")
    found, seconds = check_chunks(teacher.b, "He went home, and that was all there was. " * 40, voice)
    assert all(chunk.endswith("was.") for chunk in found) and min(seconds[:-1]) > 15
    found, _ = check_chunks(teacher.b, "wewillneverknow" * 60 + " yes. " + "and on we go " * 60, voice)
    assert len(found) > 3


def test_no_text_prompt_or_speed_makes_more_than_22_seconds(teacher):
    """Random texts without Chinese, random prompts as make_voice() allows them."""
    rng, tried = random.Random(0), 0
    alphabet = "aaabcde.,;:!? \u2026\u201d\u00e9ü\u0915\u0964..ab "
    while tried < 60:
        said = "".join(rng.choices("abc ", k=rng.randint(1, 300))) + ".  "
        voice = voice_of(rng.uniform(0.5, 12), said)
        if len(f5_text.tokens(said)) > voice["frames"] or f5_text.FrontEnd(teacher.b).longest(voice, 1.0) < 30:
            continue
        tried += 1
        words = "".join(rng.choices(alphabet, k=rng.randint(1, 3000))) + " a."
        speed = rng.choice([0.25, 0.7, 1.0, 1.0, 2.0, 4.0])
        found = f5_text.FrontEnd(teacher.b).chunks(words, voice, speed)
        assert max(len(align) for _, align in f5_text.FrontEnd(teacher.b).plan(found, voice, speed)) * 256 / 24000 <= 22
        kept = re.sub(r"[^abcde]", "", words)                                     # all that has a sound here
        assert re.sub(r"[^abcde]", "", "".join(found)) == kept


def test_what_cannot_be_said(teacher, capsys):
    voice = voice_of(3.0, "this is my own voice, as it is.  ")
    assert f5_text.FrontEnd(teacher.b).chunks("Привет мир. hello\n\tthere.", voice, 1.0) == ["Привет мир. hello there."]
    assert "--text: not known to the checkpoint, read as spaces: " in capsys.readouterr().out
    assert f5_text.FrontEnd(teacher.b).chunks("hello \udcff there", voice, 1.0)                 # a terminal's broken byte
    for words in ("", "  \n", "...", "Привет"):
        with pytest.raises(BadInput, match="nothing to say"):
            f5_text.FrontEnd(teacher.b).chunks(words, voice, 1.0)


# ------------------------------------------------------------------------------------------------- commands


def test_convert_and_speak(teacher, tmp_path, capsys):
    flags = ["--flavour", "v1", "--vocab", teacher.tmp / "vocab.txt", "--out", tmp_path / "new" / "f5.pt"]
    assert run(f5, teacher.tmp / "m.pt", *flags) == 0
    assert "32 tokens" in capsys.readouterr().out
    b = load_checkpoint(tmp_path / "new" / "f5.pt")
    assert (b.lang, b.contract["prompt"], len(b.vocab)) == ("f5", "drift", 32)
    out = ["--out", tmp_path / "x.wav", "--text", "Hello there, and good night.", "--device", "cpu"]
    converted = ["--ckpt", tmp_path / "new" / "f5.pt"]
    assert run(sample, *converted, *teacher.prompt, *out, "--steps", 2, "--bf16") == 0
    assert "4 network calls" in capsys.readouterr().out
    assert soundfile.info(tmp_path / "x.wav").samplerate == 24000
    assert run(sample, *converted, *out) == 2
    assert "give one as --prompt" in capsys.readouterr().err
    write_wav(tmp_path / "long.wav", seconds=13)
    flags = ["--prompt", tmp_path / "long.wav", "--prompt_text", "a b c"]
    assert run(sample, *converted, *flags, *out) == 2
    assert "longer than 12 s" in capsys.readouterr().err


def test_its_student_speaks(teacher, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(speech.judges, "load_judges", lambda *_: {})
    save_checkpoint(tmp_path / "f5.pt", teacher.b)
    flags = ["--data", make_corpus(tmp_path / "corpus"), "--cache", tmp_path / "cache", "--device", "cpu"]
    flags += ["--max_iters", 2, "--batch_frames", 400, "--steps", 1, 2, "--count", 1, "--bf16", "--recompute"]
    assert run(distill, "--teacher", tmp_path / "f5.pt", *flags, "--out", tmp_path / "s") == 0
    student = tmp_path / "s" / "student.pt"
    out = ["--out", tmp_path / "x.wav", "--text", "Hello there.", "--device", "cpu"]
    capsys.readouterr()
    for steps in (1, 2):
        assert run(sample, "--ckpt", student, *teacher.prompt, *out, "--steps", steps) == 0
        assert f"{steps} network call" in capsys.readouterr().out
    assert run(sample, "--ckpt", student, *out) == 2 and "give one as --prompt" in capsys.readouterr().err
