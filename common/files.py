"""Files that are whole or not there: text, audio, tables, weights. And what of theirs does not fit."""
import contextlib
import csv
import hashlib
import io
import math
import os
import statistics
import zipfile
from pathlib import Path

import soundfile
import torch

from common.cli import BadInput

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
