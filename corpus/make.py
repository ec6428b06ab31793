"""Make the recordings of this folder and of ../eval again, by flite (Debian package flite).

    python corpus/make.py

What flite reads is the third column of each SPEAKER/metadata.csv, the sentence as spoken, so that sound and
characters agree. The voices take turns over sentences.txt, and every third line is spoken by both; in eval/
both speak every line. Writes SPEAKER/wavs/*.opus.
"""
import subprocess
import tempfile
from pathlib import Path

import soundfile

ROOT = Path(__file__).resolve().parent.parent


def main():
    """Speak every row of every table."""
    for table in sorted(ROOT.glob("corpus/*/metadata.csv")) + sorted(ROOT.glob("eval/*/metadata.csv")):
        (table.parent / "wavs").mkdir(exist_ok=True)
        for line in table.read_text(encoding="utf-8").splitlines():
            name, _, spoken = line.split("|")
            speak(table.parent.name, spoken, table.parent / "wavs" / f"{name}.opus")


def speak(voice, text, path):
    """flite's wave as Ogg Opus at about 18 kbit/s, 16 kHz mono. voice: slt (a woman) or rms (a man)."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as spoken:
        subprocess.run(["flite", "-voice", voice, "-t", text, "-o", spoken.name], check=True)
        wav, rate = soundfile.read(spoken.name, dtype="float32")
    with soundfile.SoundFile(path, "w", rate, 1, "OPUS", format="OGG", compression_level=0.96) as file:
        file.write(wav)


if __name__ == "__main__":
    main()
