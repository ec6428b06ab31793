"""What every command needs and a reader of the method does not: bad input, flags, whole files, the device,
logs, tables and pictures. Imports nothing local.

Commands import this file first: from then on Ctrl-C ends them without a traceback, also while torch loads.
"""
import sys


def without_interrupts(kind, problem, trace, show=sys.excepthook):
    """An excepthook that shows no traceback of Ctrl-C; who imports this file still gets KeyboardInterrupt."""
    if not issubclass(kind, KeyboardInterrupt):
        show(kind, problem, trace)


sys.excepthook = without_interrupts

import argparse
import contextlib
import csv
import hashlib
import io
import math
import os
import statistics
import time as clock
import warnings
import zipfile
from pathlib import Path

import soundfile
import torch
from tqdm import tqdm

# -------------------------------------------------------------------------------------------------- bad input


class BadInput(Exception):
    """Something the user gave cannot be used. The message is one line: what, where, what would be right."""


def cli(main):
    """Run a command's main(): bad input becomes one line on stderr and exit status 2."""
    if hasattr(sys.stdout, "reconfigure"):      # a terminal that lacks a character shows its code
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main()
    except (BadInput, soundfile.LibsndfileError) as problem:
        complain(problem)
    except OSError as problem:                  # no space, no permission, no such folder
        complain(f"cannot use {problem.filename or 'a file'}: {problem.strerror or problem}")
    except KeyboardInterrupt:
        sys.exit(130)


def complain(problem):
    """One line on stderr, then exit status 2."""
    print(f"error: {problem}", file=sys.stderr)
    sys.exit(2)


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line like all others, and whose --help begins with a file's docstring.

    idle: [(flag, other)]: the first does nothing beside the second, so giving both is refused. given: the
    flags that were on the command line.
    """

    def __init__(self, description, idle=()):
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter,
                         allow_abbrev=False)
        self.idle, self.given = idle, set()

    def parse_args(self, words=None):
        words = sys.argv[1:] if words is None else words
        flags = super().parse_args(words)
        self.given = {word.split("=")[0] for word in words} & set(self._option_string_actions)
        for flag, other in self.idle:
            if {flag, other} <= self.given:
                raise BadInput(f"{flag}: does nothing beside {other}; leave one of them out")
        return flags

    def error(self, message):
        if "expected one argument" in message:
            message += ' (one that begins with - is written with a =, like --text="-5 degrees")'
        raise BadInput(message.removeprefix("argument ") + f"; see python {self.prog} --help")


def number(low, high, kind=float):
    """A flag's type: a number from low to high (nan is none), whole where kind is int."""
    def convert(word):
        try:
            value = kind(word)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            whole = "whole " if kind is int else ""
            raise argparse.ArgumentTypeError(f"{word}: expected a {whole}number from {low:g} to {high:g}")
        return value
    return convert


def count(low=1, high=10**9):
    """A flag's type: a whole number from low on."""
    return number(low, high, int)


def need(package, flag, install=None):
    """Import an optional package -> module; BadInput that names it where it is missing."""
    try:
        return __import__(package)
    except ImportError:
        name = install or package
        raise BadInput(f"{flag} needs the package {name}: pip install {name}") from None


def pick_device(name):
    """--device auto|cuda|mps|cpu -> torch.device, announced. Asking for what is absent is an error."""
    available = dict(cuda=torch.cuda.is_available(), mps=torch.backends.mps.is_available(), cpu=True)
    kinds = [kind for kind, there in available.items() if there]
    picked = kinds[0] if name == "auto" else name
    try:
        if picked.split(":")[0] not in kinds:
            raise RuntimeError
        torch.empty(0, device=picked)                                             # an index may be absent
    except RuntimeError:
        raise BadInput(f"--device {name}: not available here; use {' or '.join(kinds)}") from None
    detail = f"{torch.get_num_threads()} threads"
    print(f"device: {picked} ({torch.cuda.get_device_name(picked) if 'cuda' in picked else detail})")
    return torch.device(picked)


def synchronise(device):
    """Wait until the device has done what it was asked, so that a clock tells the truth."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_turn(jobs, rounds, device):
    """{name: function} -> {name: seconds of each round}. A turn is a call to warm up and one that counts."""
    times = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            job()
            synchronise(device)
            start = clock.perf_counter()
            job()
            synchronise(device)
            times[name].append(clock.perf_counter() - start)
    return times


# ------------------------------------------------------------------------------------------------ whole files


@contextlib.contextmanager
def whole(path):
    """A path to write to, in place of `path`: that gets the whole file at the end, or stays as it was.

    Raises BadInput, naming the file, when it cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f"partial-{os.getpid()}-{path.name}")                # keeps the suffix
    try:
        yield partial
        os.replace(partial, path)
    except (soundfile.LibsndfileError, OSError) as problem:
        reason = getattr(problem, "strerror", None) or str(problem).split(": ")[-1]
        raise BadInput(f"{path}: cannot be written ({reason}); it is as it was before") from None
    finally:
        partial.unlink(missing_ok=True)


def write_text(path, text):
    """Text to a file, whole or not at all."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="")


def write_audio(path, wav, rate):
    """Audio (samples,) float, clipped to [-1, 1], to a .wav or .flac."""
    with whole(path) as partial:
        soundfile.write(partial, wav.clip(-1, 1), rate)


@contextlib.contextmanager
def audio_file(path, rate):
    """A function that appends audio (samples,) float to a .wav or .flac, which is whole when this ends.

    Memory stays flat. On Ctrl-C the file keeps what was appended, if anything was.
    """
    interrupt = None
    with whole(path) as partial:
        with soundfile.SoundFile(partial, "w", rate, 1) as file:
            try:
                yield lambda wav: file.write(wav.clip(-1, 1))
            except KeyboardInterrupt as problem:
                interrupt = problem
            if interrupt and not file.tell():
                raise interrupt
    if interrupt:
        print(f"interrupted: {path} has what was spoken until now")
        raise interrupt


def digest(path):
    """What a file holds, as 16 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def save_torch(path, content):
    """torch.save to a file, whole or not at all."""
    buffer = io.BytesIO()                       # serialise first: a full disk then is a plain OSError
    torch.save(content, buffer)
    with whole(path) as partial, open(partial, "wb") as file:
        file.write(buffer.getbuffer())
        file.flush()
        os.fsync(file.fileno())


def load_torch(path, kind, hint):
    """torch.load of tensors and plain values only (no code can run) -> a dict whose "format" is kind.

    Raises BadInput, with the hint at what is expected, for anything else; torch itself does not look at the
    archive's checksums, so that a flipped bit would be another weight.
    """
    if not Path(path).is_file():
        raise BadInput(f"{path}: no such file; expected {hint}")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise BadInput(f"{path}: damaged, {damaged} fails its checksum; get or make the file again")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except BadInput:
        raise
    except Exception as problem:                                                  # torch raises many types
        refused = "weights_only" in str(problem).lower()                          # it holds a call
        reason = "holds more than tensors and values, refused" if refused else "truncated or not a checkpoint"
        raise BadInput(f"{path}: {reason}; expected {hint}") from None
    if not isinstance(content, dict) or content.get("format") != kind:
        raise BadInput(f"{path}: a file of another kind; expected {hint}")
    return content


def fit_weights(net, weights, name):
    """Load a state dict into a network. ValueError names the first tensor that is missing, extra, of another
    shape or not finite.
    """
    if not isinstance(weights, dict):
        raise ValueError(f"{name} is no dictionary of tensors")
    own = net.state_dict()
    for key in [*own, *(key for key in weights if key not in own)]:
        if key not in own or not torch.is_tensor(weights.get(key)):
            raise ValueError(f"{name}: tensor {key} is {'missing' if key in own else 'not known'}")
        if weights[key].shape != own[key].shape:
            raise ValueError(f"{name}: {key} is {tuple(weights[key].shape)}, not {tuple(own[key].shape)}")
        if not weights[key].is_floating_point() or not weights[key].isfinite().all():
            raise ValueError(f"{name}: {key} has values that are not finite")
    empty = any(value.is_meta for value in own.values())  # else an optimiser holds the tensors that are there
    net.load_state_dict({key: value.float() for key, value in weights.items()}, assign=empty)
    return net


# ------------------------------------------------------------------------------------------- tables and logs


def as_cell(value):
    """A number or word as it stands in a CSV."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def read_csv(path):
    """Rows of a CSV as dicts of strings, [] where there is no file."""
    if not Path(path).is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_csv(path, rows):
    """Rows, dicts with any columns, as a CSV; columns in the order in which they first appear."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(k for row in rows for k in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: as_cell(v) for k, v in row.items()} for row in rows)
    write_text(path, text.getvalue())


def markdown(columns, rows):
    """A Markdown table: column titles, and rows of cells (words)."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in lines)


def mean_and_spread(values, form="{:.4f}"):
    """Numbers -> "mean ± standard deviation" in words; of one number only itself, of none nothing."""
    values = [float(v) for v in values if v not in ("", None) and math.isfinite(float(v))]
    if not values:
        return ""
    spread = f" ± {form.format(statistics.stdev(values))}" if len(values) > 1 else ""
    return form.format(statistics.mean(values)) + spread


class Log:
    """A CSV with one row a report, a picture of its curves beside it, and the same on the screen.

    Resuming at `step` drops the rows that will come again.
    """

    def __init__(self, path, step):
        self.path = Path(path)
        self.rows = [r for r in read_csv(path) if int(r["step"]) <= step] if step else []

    def report(self, **row):
        """Add one row of numbers; those that are nan stay empty."""
        self.rows.append({k: as_cell(v) for k, v in row.items() if v == v})
        write_csv(self.path, self.rows)
        plot_curves(self.rows, self.path.with_suffix(".png"))
        tqdm.write("  ".join(f"{k} {v}" for k, v in self.rows[-1].items() if "/" not in k))


# --------------------------------------------------------------------------------------------------- pictures


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
