"""assets/method_light.svg, method_dark.svg: the method in one drawing, for a light and a dark page.

    PYTHONPATH=. python results/drawing.py

Time runs to the right. The height stands for all the values of a mel: the curve is a made-up one.
"""
from pathlib import Path

import numpy as np

from common.files import whole
from common.plots import pyplot

ASSETS = Path(__file__).parents[1] / "assets"
INKS = {"light": dict(text="#1f2328", teacher="#57606a", chord="#0969da", student="#bc4c00"),
        "dark": dict(text="#e6edf3", teacher="#9198a1", chord="#58a6ff", student="#ff9d57")}
S, E, TAU = 0.25, 0.75, 0.5     # the interval, and where on its chord the student is asked


def teacher(t):
    """The height of the teacher's trajectory at time t."""
    return 0.1 + 0.55 * t + 0.75 * np.sin(np.pi * t) ** 2


def draw(plt, ink):
    """One interval of the method -> figure."""
    fig, ax = plt.subplots(figsize=(8.4, 3.9), layout="constrained")
    t = np.linspace(0, 1, 200)
    ax.plot(t, teacher(t), color=ink["teacher"], linewidth=1.6)
    steps = np.linspace(0, 1, 13)
    ax.plot(steps, teacher(steps), "o", color=ink["teacher"], markersize=3.5)
    X_s, X_e = np.array([S, teacher(S)]), np.array([E, teacher(E)])
    x_mf, landed = (1 - TAU) * X_s + TAU * X_e, X_e + [0, -0.24]

    def arrow(start, end, color, width):
        style = dict(arrowstyle="-|>,head_width=0.3,head_length=0.6", shrinkA=0, shrinkB=0)
        ax.annotate("", end, start, arrowprops=dict(style, color=color, linewidth=width))

    def say(words, at, offset, color="text", size=12, align="left"):
        ax.annotate(words, at, offset, textcoords="offset points", color=ink[color], fontsize=size, ha=align)

    ax.plot(*zip(X_s, X_e), color=ink["chord"], linewidth=1.2, linestyle=(0, (5, 3)))
    arrow(x_mf, x_mf + 0.3 * (X_e - X_s), ink["chord"], 2.4)
    arrow(X_s, landed, ink["student"], 2.4)
    ax.plot(*zip(landed, X_e), color=ink["student"], linewidth=1.2, linestyle=":")
    for point, color in (((0, teacher(0)), "text"), (X_s, "text"), (X_e, "text"), ((1, teacher(1)), "text"),
                         (x_mf, "chord")):
        ax.plot(*point, "o", color=ink[color], markersize=8)
    say("noise", (0, teacher(0)), (0, -20), align="center")
    say("data", (1, teacher(1)), (0, 12), align="center")
    say("$X_s$", X_s, (-10, 8), size=14, align="right")
    say("$X_e$", X_e, (10, 8), size=14)
    say("the teacher's trajectory, many calls", (0.5, teacher(0.5)), (0, 12), "teacher", align="center")
    say("$x_{mf}$, a point\non the chord", x_mf, (-12, 9), "chord", 11, "right")
    say(r"$\bar{v}$, the mean velocity", x_mf + 0.15 * (X_e - X_s), (-44, 19), "chord", 11)
    say(r"one call of the student, to $X_s + \Delta\,v$", X_s, (40, -32), "student", 11)
    say("endpoint's error", landed, (6, -24), "student", 11)
    ax.set(xlim=(-0.04, 1.06), ylim=(-0.06, 1.32), xticks=[0, S, E, 1], yticks=[])
    ax.set_xticklabels(["t = 0", "s", "e", "t = 1"], color=ink["text"], fontsize=12)
    ax.tick_params(axis="x", color=ink["teacher"])
    for side, spine in ax.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(ink["teacher"])
    return fig


if __name__ == "__main__":
    plt = pyplot()
    plt.rcParams["svg.hashsalt"] = "method"     # the same file every time
    for page, ink in INKS.items():
        with whole(ASSETS / f"method_{page}.svg") as partial:
            draw(plt, ink).savefig(partial, transparent=True, format="svg", metadata=dict(Date=None))
