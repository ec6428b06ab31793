"""Make the recordings again: sentences.txt of this folder and of ../eval, spoken by flite (Debian package flite).

    python corpus/make.py

corpus: the voices take turns line by line, and every third line is spoken by both. eval: both speak every line.
What flite reads is data.normalise()'s spelled-out text, so that sound and characters agree. Writes
SPEAKER/wavs/*.opus and SPEAKER/metadata.csv beside each sentences.txt.
"""
import subprocess
import sys
import tempfile
from pathlib import Path

import soundfile

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from data import normalise  # noqa: E402

VOICES = ("slt", "rms")     # a woman and a man, both US English


def main():
    for folder in (ROOT / "corpus", ROOT / "eval"):
        lines = (folder / "sentences.txt").read_text().splitlines()
        for turn, voice in enumerate(VOICES):
            wavs, rows = folder / voice / "wavs", []
            wavs.mkdir(parents=True, exist_ok=True)
            for number, line in enumerate(lines):
                if folder.name == "eval" or number % 2 == turn or number % 3 == 0:
                    speak(voice, normalise(line), wavs / f"{voice}_{number:04d}.opus")
                    rows.append(f"{voice}_{number:04d}|{line}|{normalise(line)}\n")
            (folder / voice / "metadata.csv").write_text("".join(rows))


def speak(voice, text, path):
    """flite's wave as Ogg Opus at about 18 kbit/s, 16 kHz mono."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as spoken:
        subprocess.run(["flite", "-voice", voice, "-t", text, "-o", spoken.name], check=True)
        wav, rate = soundfile.read(spoken.name, dtype="float32")
    with soundfile.SoundFile(path, "w", rate, 1, "OPUS", format="OGG", compression_level=0.96) as file:
        file.write(wav)


if __name__ == "__main__":
    main()
