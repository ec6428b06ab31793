"""What a checkpoint holds, to disk and back. All that speaks or trains reads and writes through here.

    python -m networks.checkpoint out/student/student.pt small.pt     half the size, weights as 8-bit integers
"""
from common.cli import BadInput, Parser, cli
from common.files import fit_weights, load_torch, save_torch

import copy
import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch

from networks import own, unet
from data import MelSettings
from model import SIZES, DiT, DiTConfig
from networks.durations import DurationPredictor
from networks.e2 import E2, F5E2, FRAMED
from networks.f5_net import F5, F5Config
from speech.audio import check_settings, renamed_mel

EXPECTED = "a checkpoint written by teacher.py, distill.py or f5.py"
# teacher.py --backbone NAME -> network, its config, and the config's fields by --size
BACKBONES = {"dit": (DiT, DiTConfig, SIZES),
             "e2": (E2, DiTConfig, SIZES),                                        # E2-TTS: time is a frame
             "f5": (F5, F5Config, SIZES),                                         # F5-TTS: no durations
             "f5_e2": (F5E2, F5Config, SIZES),                                    # both
             "unet": (unet.UNet, unet.UNetConfig, unet.SIZES),                    # CosyVoice2, Matcha-TTS
             "own": (own.Own, own.OwnConfig, own.SIZES)}


@dataclass
class Bundle:
    """Enough to speak, to distil and to be checked, with nothing assumed elsewhere."""
    model: torch.nn.Module          # one of BACKBONES
    duration: DurationPredictor     # None for F5-TTS, which has a rule instead
    settings: MelSettings
    vocab: str                      # or a list: the symbols, ids 1 ... V in this order
    lang: str                       # how text becomes symbols, see text.py
    gauss: dict                     # the aligner's Gaussians, to align a voice prompt with its text
    voices: dict                    # name -> {"mel" (P, M), "text" (L,), "durations" (L,)}: ready prompts
    contract: dict                  # kind ("teacher", "student"), steps (allowed counts, [] = any), default
    #                                 (of --steps), grid (its kind), grids ({N: times} that were found), and
    #                                 cfg: a teacher's usual guidance, or that inside a student's target;
    #                                 voice: the name of the usual one, None where there is none
    config: dict                    # the flags of the training run, for the record


def save_checkpoint(path, bundle):
    """Write a Bundle to path, whole or not at all; weights as float16."""
    def pack(module):
        return {k: v.detach().cpu().half() for k, v in module.state_dict().items()}
    b = bundle
    backbone = next(name for name, (network, *_) in BACKBONES.items() if type(b.model) is network)
    save_torch(path, dict(format="dsflow-1", backbone=backbone, dit=asdict(b.model.config),
                          model=pack(b.model), duration=pack(b.duration) if b.duration else None,
                          mel=asdict(b.settings), vocab=b.vocab, lang=b.lang, gauss=b.gauss,
                          voices=b.voices, contract=b.contract, config=b.config))


def to_integers(weights):
    """Weights by name -> the same, matrices as int8, and {name: step of each row}.

    A step is a tenth of the row's standard deviation, so that few bits are left to compress; where symbols
    and mels come in and go out, which do three quarters of the damage, as fine as int8 can be. A matrix of
    which most would be lost, as what IntMeanFlow learns beside the ones of its [I | 0], stays as it is.
    """
    steps = {}
    for name in [name for name, value in weights.items() if value.dim() > 1]:
        rows = weights[name].float().flatten(1)                                   # (out, in)
        coarse = not set(name.split(".")) & {"embed", "proj_in", "proj_out"}
        step = torch.maximum(coarse * rows.std(1) / 10, rows.abs().amax(1) / 127).clamp(min=1e-7)
        if (rows.abs() < step[:, None]).float().mean() > 0.5:
            continue
        steps[name] = step.view(-1, *[1] * (weights[name].dim() - 1))
        weights = weights | {name: (weights[name].float() / steps[name]).round().to(torch.int8)}
    return weights, steps


def require(fits, what):
    """ValueError(what) unless fits."""
    if not fits:
        raise ValueError(what)


def renamed(backbone, fields):
    """A network as a checkpoint has it -> its name in BACKBONES and its config's fields, as they are today.

    In older files all are a "dit" or the U-Net, and fields of the config tell E2-TTS's frame of time
    (enters="prepend") and F5-TTS's text (aligned=False).
    """
    fields, frame = dict(fields), fields.get("enters") == "prepend"
    if backbone == "dit":
        backbone = {(False, True): "dit", (True, True): "e2", (False, False): "f5",
                    (True, False): "f5_e2"}[frame, fields.get("aligned", True)]
    for name in ("enters", "aligned"):
        fields.pop(name, None)
    for name, usual in (("mask_filler", True), ("rotary_heads", 0)):              # F5-TTS's alone
        if fields.get(name) == usual:
            del fields[name]
    return backbone, fields


def typed(kind, given):
    """A dataclass from a checkpoint's dict; each value must be of its default's type (a whole number is a
    float, a list a tuple).
    """
    require(isinstance(given, dict), f"{kind.__name__} is no dictionary")
    known = {field.name: field for field in fields(kind)}
    values = {}
    for name, value in given.items():
        require(name in known, f"{kind.__name__} has no {name}")
        want = known[name].type
        value = tuple(value) if want is tuple and isinstance(value, list) else value
        value = float(value) if want is float and type(value) is int else value
        require(type(value) is want, f"{name} is {value!r}, expected {want.__name__}")
        require(want not in (int, float) or abs(value) < 1e6, f"{name} is {value}")
        values[name] = value
    return kind(**values)


def check_sizes(config, settings, tensors):
    """ValueError that names the first size of a network or a mel that cannot be."""
    require(config.time in ("t", "pair", "step"), f"time is {config.time!r}")
    for name, size in vars(config).items():
        may_be_0 = name in ("rotary_heads", "text_blocks")
        require(type(size) is not int or size >= 1 - may_be_0, f"{name} is {size}")
        require(name not in ("depth", "text_blocks") or size <= tensors,
                f"{name} is {size}, but there are {tensors} tensors")
        require(name != "dim" or size % 16 == 0, f"dim is {size}, no multiple of 16")
        require(name != "head_dim" or size % 2 == 0, f"head_dim is {size}, odd")
    steps = getattr(config, "steps", ())
    require(all(type(n) is int and n > 0 for n in steps), f"steps are {steps}")
    check_settings(settings)
    require(settings.n_mels == config.mels,
            f"a mel of {settings.n_mels} bands; the network has {config.mels}")


def check_rest(c, config, settings):
    """ValueError that names the first of vocabulary, Gaussians, voices and contract that does not fit."""
    V, contract = config.vocab, c["contract"]
    require(isinstance(c["vocab"], (str, list)) and all(isinstance(symbol, str) for symbol in c["vocab"])
            and len(set(c["vocab"])) == len(c["vocab"]) == V, f"vocab is not {V} different symbols")
    require(isinstance(c["lang"], str), "lang is no word")
    require(isinstance(c["config"], dict), "config is no dictionary")
    for name, value in c["gauss"].items():
        require(name in ("mean", "var") and value.shape == (2 * V + 2, 28) and (          # cepstra and deltas
            value.isfinite().all() and (name == "mean" or (value > 0).all())),
            f"gauss: {name} is not ({2 * V + 2}, 28) finite values")
    require(c["duration"] or c["lang"] == "f5", "the duration predictor is missing")
    require(not c["duration"] or set(c["gauss"]) == {"mean", "var"}, "gauss is missing")
    for name, voice in c["voices"].items():
        mel, text, durations = voice["mel"], voice["text"], voice["durations"]
        whole = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
        require(mel.is_floating_point() and {text.dtype, durations.dtype} <= whole,
                f"voice {name}: its mel is no sound, or its text or durations are no whole numbers")
        require(mel.dim() == 2 and mel.shape[1] == settings.n_mels and mel.isfinite().all()
                and text.shape == durations.shape == (len(text),)
                and ((text > 0) & (text <= V) & (durations >= 0)).all() and durations.sum() == len(mel),
                f"voice {name}: its mel, text and durations do not fit each other")
    require(contract["kind"] in ("teacher", "student"), f"kind is {contract['kind']!r}")
    require(contract["kind"] == "student" or not contract["steps"], "a teacher of fixed steps")
    require(contract["grid"] in ("cosine", "uniform"), f"grid is {contract['grid']!r}")
    require(contract.get("prompt") is None or contract["prompt"] == "drift" and not c["duration"],
            f"prompt is {contract.get('prompt')!r}")
    steps = [*contract["steps"], contract.get("default", 1)]
    require(all(type(n) is int and n > 0 for n in steps), f"steps are {steps}")
    require(config.time != "step" or set(contract["steps"]) <= set(config.steps), f"steps are {steps}")
    require(contract.get("voice") in (None, *c["voices"]), f"its voice {contract.get('voice')!r} is missing")
    require(0 <= contract["cfg"] <= 20, f"cfg is {contract['cfg']}")              # not nan either
    for n, times in contract.get("grids", {}).items():
        require(len(times) == int(n) + 1 and times[0] == 0 and times[-1] == 1
                and all(s < e for s, e in zip(times, times[1:])), f"grids: {n} is not {n} steps from 0 to 1")


def load_checkpoint(path, device="cpu"):
    """File -> Bundle in float32 eval mode on device. BadInput, one line that names the first thing that does
    not fit, when it is no checkpoint, or what it holds is not what its own config builds.
    """
    hint = EXPECTED + " (F5-TTS's own goes through f5.py)" * str(path).endswith(".safetensors")
    c = load_torch(path, "dsflow-1", hint)
    try:
        backbone, given = renamed(c["backbone"], c["dit"])
        require(backbone in BACKBONES, f"its network is {backbone!r}, not one of {', '.join(BACKBONES)}")
        network, kind, _ = BACKBONES[backbone]
        config, settings = typed(kind, given), typed(MelSettings, renamed_mel(c["mel"]))
        check_sizes(config, settings, len(c["model"]))
        for name, step in c.get("steps", {}).items():                             # whole steps -> weights
            part, name = name.split(".", 1)
            whole = c[part][name]
            require(whole.dtype is torch.int8 and step.shape == (len(whole), *[1] * (whole.dim() - 1)),
                    f"steps: {name} has no step for each row of integers")
            c[part][name] = whole * step
        with torch.device("meta"):              # no memory, no initialisation: the file's tensors move in
            model, duration = network(config), DurationPredictor(config.vocab) if c["duration"] else None
        fit_weights(model, c["model"], "model")
        if duration:
            duration = fit_weights(duration, c["duration"], "duration").to(device).eval()
        check_rest(c, config, settings)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError,
            AssertionError) as problem:
        reason = f"{problem} is missing" if isinstance(problem, KeyError) else str(problem).split("\n")[0]
        raise BadInput(f"{path}: does not hold what it says ({reason[:200]}); expected {EXPECTED}") from None
    return Bundle(model.to(device).eval(), duration, settings, c["vocab"], c["lang"],
                  c["gauss"], c["voices"], c["contract"], c["config"])


def load_teacher(path, flag, device="cpu"):
    """load_checkpoint(), which refuses a student. flag: what asked for the file."""
    b = load_checkpoint(path, device)
    if b.contract["kind"] != "teacher":
        raise BadInput(f"{flag} {path}: holds a student; expected a checkpoint of teacher.py")
    return b


def load_student(path, flag, teacher, time, device="cpu"):
    """load_checkpoint(), frozen, which names the first thing in which it is no student of teacher, a Bundle,
    or is not conditioned on `time` (None: on whatever it is).
    """
    def made_for(b, network, time):
        sizes = asdict(b.model.config) | dict(time=time, steps=())                # steps are free to differ
        return dict(network=network.__name__, mel=asdict(b.settings), lang=b.lang, symbols=b.vocab, **sizes)
    b = load_checkpoint(path, device)
    if b.contract["kind"] != "student":
        raise BadInput(f"{flag} {path}: holds a teacher; expected a student.pt of distill.py")
    network, like, switch = type(b.model), type(teacher.model), b.model.config.time
    if switch == "step" and network is FRAMED.get(like):                          # of --token prepend
        network = like
    found, want = made_for(b, network, switch), made_for(teacher, like, time or switch)
    for name, value in want.items():
        if found.get(name) != value:
            raise BadInput(f"{flag} {path}: its {name} is {found.get(name)!r:.80}; expected {value!r:.80}, "
                           "as --teacher and --method have it")
    b.model.requires_grad_(False)
    return b


def student_contract(teacher, steps, default, cfg):
    """What a student of teacher, a Bundle, promises: step counts ([]: any), the usual one, the guidance that
    it has learned, and the teacher's usual voice.
    """
    voice = teacher.contract.get("voice") or next(iter(teacher.voices), None)
    return dict(kind="student", steps=steps, default=default, grid="cosine", cfg=cfg, voice=voice)


@torch.no_grad()
def refit(student, steps):
    """Student -> the same for other step counts: a new vector begins as that of the nearest count it had. A
    network conditioned on times takes any count and stays as it is.
    """
    if student.config.time != "step":
        return copy.deepcopy(student)
    old, new = student.config.steps, tuple(sorted(steps))
    other = type(student)(replace(student.config, steps=new)).to(next(student.parameters()))
    nearest = [min(range(len(old)), key=lambda i: abs(math.log(old[i] / n))) for n in new]
    other.load_state_dict(student.state_dict() | {"token.weight": student.token.weight[nearest]})
    return other


def main():
    p = Parser(__doc__)
    p.add_argument("source", help="a checkpoint")
    p.add_argument("target", help="where the small one goes")
    flags = p.parse_args()
    if not flags.target.endswith(".pt") or Path(flags.target).resolve() == Path(flags.source).resolve():
        raise BadInput(f"{flags.target}: expected the name of another .pt file; {flags.source} is kept")
    load_checkpoint(flags.source)
    c = load_torch(flags.source, "dsflow-1", EXPECTED)
    if "steps" in c:
        raise BadInput(f"{flags.source}: holds integers already; expected what a training wrote")
    steps = {}
    for part in [part for part in ("model", "duration") if c[part]]:
        c[part], found = to_integers(c[part])
        steps |= {f"{part}.{name}": step for name, step in found.items()}
    for voice in c["voices"].values():          # a mel as precise as its audio needs
        voice["mel"] = (voice["mel"] * 32).round() / 32
    save_torch(flags.target, c | dict(steps=steps))
    print(f"wrote {flags.target}")


if __name__ == "__main__":
    cli(main)
