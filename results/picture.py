"""assets/quality.png: Distill-MOS and words against the time from text to sound, from the CSVs here.

    PYTHONPATH=. python results/picture.py
"""
from pathlib import Path

from common.files import read_csv, whole
from common.plots import pyplot

HERE = Path(__file__).parent
judged = {row["system"].split(",")[0]: row for row in read_csv(HERE / "natural.csv")}
judged["Kokoro-82M"] = judged["recording"]      # it spoke the recordings
plt = pyplot()
fig, ax = plt.subplots(figsize=(8, 3), constrained_layout=True)
for k, row in enumerate(read_csv(HERE / "speed.csv")):
    for name, file, colour in (("mean", "intmeanflow.py", "tab:orange"),
                               ("one", "own_steps.py", "tab:green")):
        further = row["system"].replace("student", f"student_{name}")             # as fast
        if further != row["system"] and further in judged:
            ax.plot(float(row["RTF p50"]), float(judged[further]["Distill-MOS"]), "o", color=colour,
                    label=file)
    if row["system"] in judged:
        heard = judged[row["system"]]
        x, y = float(row["RTF p50"]), float(heard["Distill-MOS"])
        ax.plot(x, y, "o", color="tab:blue")
        ax.annotate(f"{row['system']}\nwords {float(heard['corpus word error rate']):.3f}", (x, y),
                    (6, -14), textcoords="offset points", fontsize=7)
ax.set(xscale="log", xlim=(0.008, 1.2), ylim=(2.3, 4.8), ylabel="Distill-MOS",
       xlabel="seconds of work per second of speech, text to sound, two cores")
ax.legend(loc="lower right", fontsize=7)
with whole(HERE.parent / "assets/quality.png") as partial:
    fig.savefig(partial, dpi=80)
