"""Files that are whole or not there: text, audio, tables, weights. And what of theirs does not fit."""
import contextlib
import csv
import glob
import hashlib
import io
import math
import os
import statistics
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import soundfile
import torch

from common.cli import BadInput

# ------------------------------------------------------------------------------------------------ whole files


def gone(process):
    """Has a process of this machine ended? Without POSIX nobody knows."""
    try:
        os.kill(process, 0) if os.name == "posix" else None
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:                             # another user's
        pass
    return False


@contextlib.contextmanager
def whole(path):
    """A path to write to, in place of `path`: that gets the whole file at the end, or stays as it was. What
    processes left that were killed as they wrote this file is removed.

    Raises BadInput, naming the file, when it cannot be written.
    """
    path = Path(path)
    for left in path.parent.glob(f"partial-*-{glob.escape(path.name)}"):
        process = left.name.split("-")[1]
        if process.isdecimal() and left.name == f"partial-{process}-{path.name}" and gone(int(process)):
            left.unlink(missing_ok=True)
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


def full_scale(peak):
    """The gain that brings audio of this peak under full scale: 1 where it does not exceed it."""
    return 0.99 / peak if peak > 1 else 1.0


@contextlib.contextmanager
def audio_file(path, rate):
    """A function that appends audio (samples,) float to a .wav or .flac, which is whole when this ends.

    Memory stays flat: the audio waits in a file of its own, until its peak is known and one gain brings all
    of it under full scale. On Ctrl-C the file keeps what was appended, if anything was.
    """
    peak, interrupt = 0.0, None
    with whole(path) as partial, tempfile.TemporaryFile(dir=partial.parent) as spoken:
        def append(wav):
            nonlocal peak
            peak = max(peak, float(np.abs(wav).max(initial=0.0)))
            spoken.write(np.asarray(wav, np.float32).tobytes())
        try:
            yield append
        except KeyboardInterrupt as problem:
            interrupt = problem
        if interrupt and not spoken.tell():
            raise interrupt
        spoken.seek(0)
        with soundfile.SoundFile(partial, "w", rate, 1) as file:
            while block := spoken.read(4 * 2**18):                                # of float32
                file.write((np.frombuffer(block, np.float32) * full_scale(peak)).clip(-1, 1))
    if peak > 1:
        print(f"made {20 * math.log10(peak / 0.99):.1f} dB quieter: its peak was over full scale")
    if interrupt:
        print(f"interrupted: {path} has what was spoken until now")
        raise interrupt


def read_text(path, flag):
    """A text file in UTF-8, or - for standard input -> its text; flag: what asked for it."""
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        return data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as problem:
        raise BadInput(f"{flag} {path}: {problem}; expected a text file in UTF-8, or -") from None


def digest(path, flag="a file"):
    """What a file holds, as 16 hexadecimal digits. flag: which names it, for the error."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as problem:
        raise BadInput(f"{flag} {path}: {problem.strerror}") from None


def save_torch(path, content, before=lambda: None):
    """torch.save to a file, whole or not at all. before(): called when all is written but for its name."""
    buffer = io.BytesIO()                       # serialise first: a full disk then is a plain OSError
    torch.save(content, buffer)
    with whole(path) as partial, open(partial, "wb") as file:
        file.write(buffer.getbuffer())
        file.flush()
        os.fsync(file.fileno())
        before()


def load_torch(path, kind, hint):
    """torch.load of tensors and plain values only (no code can run) -> a dict whose "format" is kind.

    Raises BadInput, with the hint at what is expected, for anything else; torch itself does not look at the
    archive's checksums, so that a flipped bit would be another weight.
    """
    if not Path(path).is_file():
        what = "no file but a folder or pipe" if Path(path).exists() else "no such file"
        raise BadInput(f"{path}: {what}; expected {hint}")
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
