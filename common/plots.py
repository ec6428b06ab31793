"""Pictures of mels and of a run's curves, written whole."""
import math
import warnings

import torch

from common.files import whole

FONTS = ["DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei",
         "PingFang SC", "Hiragino Sans", "Microsoft YaHei", "SimHei", "Malgun Gothic", "Noto Sans Devanagari"]


def pyplot():
    """matplotlib's pyplot, drawing to files; titles in any script for which the machine has a font."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import font_manager, pyplot as plt
    known = {font.name for font in font_manager.fontManager.ttflist}
    plt.rcParams["font.family"] = [name for name in FONTS if name in known]
    warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)      # a box says it as well
    return plt


def plot_mels(rows, path):
    """Pictures of mels [(title, (T, M))], one under the other on the colour scale of the first."""
    plt = pyplot()
    fig, axes = plt.subplots(len(rows), 1, figsize=(11, 2.1 * len(rows)), squeeze=False,
                             constrained_layout=True)
    some = rows[0][1].float().flatten()
    some = some[:: math.ceil(len(some) / 1_000_000)]                              # a quantile takes no more
    low, high = some.quantile(torch.tensor([0.02, 0.999], device=some.device)).tolist()
    for ax, (title, mel) in zip(axes[:, 0], rows):
        ax.imshow(mel.float().cpu().numpy().T, origin="lower", aspect="auto", interpolation="nearest",
                  vmin=low, vmax=high)
        ax.set_title(title, fontsize=9, loc="left", parse_math=False)             # "$" is a dollar
        ax.set_ylabel("mel band", fontsize=8)
    axes[-1, 0].set_xlabel("frame")
    with whole(path) as partial:
        fig.savefig(partial, dpi=80)
    plt.close(fig)


def plot_curves(rows, path):
    """A log's losses and distances over its updates, on a logarithmic scale."""
    plt = pyplot()
    fig, ax = plt.subplots(figsize=(8, 4), constrained_layout=True)
    names = dict.fromkeys(k for row in rows for k in row if "loss" in k or "mse" in k or "/" in k)
    for name in names:
        points = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
        ax.plot(*zip(*points), label=name, lw=0.7 if "/" in name else 1.6, marker="." if len(points) < 3
                else "")
    ax.set(xlabel="update", yscale="log")
    ax.legend(fontsize=7, ncols=2)
    with whole(path) as partial:
        fig.savefig(partial, dpi=80)
    plt.close(fig)
