"""What a checkpoint holds, to disk and back. All that speaks or trains reads and writes through here."""
from dataclasses import asdict, dataclass

from common import BadInput, load_torch, save_torch
from data import MelSettings
from model import DiT, DiTConfig, DurationPredictor

EXPECTED = "a checkpoint written by teacher.py, distill.py or f5.py"


@dataclass
class Bundle:
    """Enough to speak, to distil and to be checked, with nothing assumed elsewhere."""
    model: DiT
    duration: DurationPredictor     # None for F5-TTS, which has a rule instead
    settings: MelSettings
    vocab: str                      # or a list: the symbols, ids 1 ... V in this order
    lang: str                       # how text becomes symbols, see text.py
    gauss: dict                     # the aligner's Gaussians, to align a voice prompt with its text
    voices: dict                    # name -> {"mel" (P, M), "text" (L,), "durations" (L,)}: ready prompts
    contract: dict                # kind ("teacher", "student"), steps (allowed counts, [] = any), default
    #                                 (of --steps), grid (its kind), grids ({N: times} that were found), and
    #                                 cfg: a teacher's usual guidance, or that inside a student's target
    config: dict                    # the flags of the training run, for the record


def save_checkpoint(path, b):
    """Write Bundle b to path, whole or not at all; weights as float16."""
    def pack(module):
        return {k: v.detach().cpu().half() for k, v in module.state_dict().items()}
    save_torch(path, dict(format="dsflow-1", dit=asdict(b.model.config), model=pack(b.model),
                          duration=pack(b.duration) if b.duration else None, mel=asdict(b.settings),
                          vocab=b.vocab, lang=b.lang, gauss=b.gauss, voices=b.voices, contract=b.contract,
                          config=b.config))


def load_checkpoint(path, device="cpu"):
    """File -> Bundle in float32 eval mode on device. BadInput, one line, when it is not one."""
    hint = EXPECTED + " (F5-TTS's own goes through f5.py)" * str(path).endswith(".safetensors")
    c = load_torch(path, "dsflow-1", hint)
    config = DiTConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in c["dit"].items()})
    model, duration = DiT(config), DurationPredictor(config.vocab) if c["duration"] else None
    model.load_state_dict({k: v.float() for k, v in c["model"].items()})
    if duration:
        duration.load_state_dict({k: v.float() for k, v in c["duration"].items()})
        duration = duration.to(device).eval()
    return Bundle(model.to(device).eval(), duration, MelSettings(**c["mel"]), c["vocab"],
                  c.get("lang", "letters"), c["gauss"], c["voices"], c["contract"], c["config"])


def load_teacher(path, flag, device="cpu"):
    """load_checkpoint(), which refuses a student. flag: what asked for the file."""
    b = load_checkpoint(path, device)
    if b.contract["kind"] != "teacher":
        raise BadInput(f"{flag} {path}: holds a student; expected a checkpoint of teacher.py")
    return b
