"""Text to sound beside Kokoro-82M, in one process and in turn: real-time factors.

    pip install "kokoro-onnx>=0.6"
    PYTHONPATH=. python results/kokoro.py kokoro-v1.0.int8.onnx voices-v1.0.bin     (see corpus/make.py)
"""
import contextlib
import io
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from kokoro_onnx import Kokoro

from checkpoint import load_checkpoint
from common import write_csv
from sample import chunks, speak
from speed import processor, text_to_sound_rtf
from vocoder import load_vocoder

VOICE = "af_heart"                              # both have it
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = torch.get_num_threads()
kokoro = Kokoro.from_session(onnxruntime.InferenceSession(
    sys.argv[1], options, providers=["CPUExecutionProvider"]), sys.argv[2])
teacher, student = (load_checkpoint(f"checkpoints/{kind}.pt") for kind in ("teacher", "student"))
learned, plain = (load_vocoder(name, student.settings) for name in (None, "griffin_lim"))


def ours(b, steps, w, vocoder):
    """Function(k) that speaks sentence k, from its words -> seconds of audio."""
    def say(k):
        with contextlib.redirect_stdout(io.StringIO()):
            ids = chunks(b, texts[k], b.voices[VOICE], 1.0)
        mels = speak(b, ids, b.voices[VOICE], steps, w)
        return sum(len(vocoder(mel, b.settings)) for mel in mels) / b.settings.rate
    return say


def theirs(k):
    audio, rate = kokoro.create(texts[k], voice=VOICE, lang="en-us")
    return len(audio) / rate


fast = ours(student, 1, 0.0, learned)
texts = Path("eval/sentences.txt").read_text().splitlines()
texts = [texts[k] for k in range(len(texts)) if 3 <= fast(k) <= 5][:12]
rtf = text_to_sound_rtf({
    "student@1": fast, **{f"student@{n}": ours(student, n, 0.0, learned) for n in (2, 4)},
    "teacher@10": ours(teacher, 10, teacher.contract["cfg"], learned),
    "student@1, Griffin-Lim from the pseudo-inverse": ours(student, 1, 0.0, plain),
    "Kokoro-82M": theirs}, len(texts), torch.device("cpu"))
write_csv(Path("results/speed.csv"), [
    dict(system=name, **{f"RTF p{p}": float(np.percentile(values, p)) for p in (50, 95)})
    for name, values in rtf.items()])
print(f"{len(texts)} sentences of 3 to 5 s, {processor(torch.device('cpu'))}: results/speed.csv")
