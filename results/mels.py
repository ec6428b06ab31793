"""assets/mels.png: a sentence by the teacher and by the student, all from the same noise.

    PYTHONPATH=. python results/mels.py
"""
from pathlib import Path

from common.plots import plot_mels
from networks.checkpoint import load_checkpoint
from sample import front_end, speak

TEXT = "The old clock in the hall struck seven."
SYSTEMS = {"the teacher in ten steps: 20 network calls": ("teacher", 10, 0.7),
           "the teacher in one step: 1 call": ("teacher", 1, 0.0),
           "the student in one step: 1 call": ("student", 1, 0.0)}
ROOT, rows = Path(__file__).parents[1], []
for title, (name, steps, w) in SYSTEMS.items():
    b = load_checkpoint(ROOT / f"checkpoints/{name}.pt")
    front = front_end(b)
    voice = front.pick_voice("af_heart")
    rows += [(title, speak(b, front.chunks(TEXT), voice, steps, w)[0])]
plot_mels(rows, ROOT / "assets/mels.png")
