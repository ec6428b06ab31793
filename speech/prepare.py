"""A folder of recordings and their texts -> a prepared corpus: checked, turned to mels, aligned, cached.

    python -m speech.prepare --data corpus   what is in there, what is skipped and why, an alignment
    python -m speech.prepare --download ljspeech   fetch and unpack a real corpus (24 h, one voice, 2.6 GB)

A corpus becomes one memory-mapped array of mel frames plus, for every utterance, its symbols and how many
frames each of them lasts. Mels stay on disk; memory holds an index, 480 to 610 bytes an utterance of about 50
symbols. The aligner learns from 4,000 utterances at most. What is in a folder is found by corpora.py.
"""
from common.cli import BadInput, Parser, cli
from common.files import gone, whole
from common.plots import pyplot

import collections
import errno
import functools
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import socket
import tarfile
import time
import unicodedata
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pooch
import torch
from tqdm import tqdm

from speech import text as reader
from speech.align import align_corpus, cepstra
from data import Corpus, MelSettings, log_mel, mel_spectrogram
from speech.audio import load_audio, speech_frames
from speech.corpora import counted, find_utterances

# ----------------------------------------------------------------------------------------------- plausibility

PLAUSIBLE = 5, 30           # letters a second of speech, of which only 1 to 5 recordings are measured by


def letters(symbol):
    """How many letters a symbol counts for: an ideograph or syllable sign lasts as long as three."""
    return sum(3 if c >= "\u2e80" else 1 for c in symbol if c.isalnum() and unicodedata.category(c) != "Lm")


def speech_seconds(mel, settings):
    """Normalised log mel (T, M) -> seconds of speech in it, without its pauses."""
    log = log_mel(mel, settings).numpy()
    power = (10 ** (2 * log) if settings.log == "log10" else np.exp(2 * log)).sum(1)               # (T,)
    return speech_frames(power).sum() * settings.hop / settings.rate


def outliers(counts, seconds):
    """Letters and seconds of speech of every recording -> {number: why its text cannot be its own, or whole}.

    The measure is letters a second against the corpus's median. Three letters are added, so that short texts
    spread no more than long ones. The limits grow with the spread, but never so far that half a text, or a
    recording cut to 60 %, is usual: 0.55 to 0.62 of the median at the low end, 1.4 to 1.65 at the high.
    """
    counts, seconds = np.array(counts), np.maximum(seconds, 0.01)
    pace = np.log((counts + 3) / seconds)
    low, high = np.log(PLAUSIBLE)
    if len(pace) > 5:
        middle = np.median(pace)
        spread = 1.4826 * np.median(np.abs(pace - middle))
        low = max(low, middle - np.clip(4.2 * spread, 0.48, 0.6))
        high = min(high, middle + np.clip(3.3 * spread, 0.34, 0.5))
    usual = f"usual here are {np.exp(low):.0f} to {np.exp(high):.0f} a second"
    return {i: f"text and sound do not fit ({counts[i]} letters in {seconds[i]:.1f} s of speech; {usual})"
            for i in np.flatnonzero((counts == 0) | (pace < low) | (pace > high)).tolist()}


# ---------------------------------------------------------------------------------------------------- prepare

MAX_SECONDS = 20.0          # longer recordings are skipped: they would set the memory of every batch
CACHE_VERSION = 14          # count it up when this, find, data, text or align changes what an entry holds


def prepare(folder, settings=MelSettings(), lang="en-us", vocab=None, cache="cache", keep_outliers=False,
            keep_unknown=None):
    """Corpus folder -> Corpus, computed once and cached under cache/NAME-KEY.

    lang, vocab: how a checkpoint reads text and its symbols (None: those of the corpus). keep_outliers: also
    recordings whose text does not fit; keep_unknown: also where vocab damages over 1 % of the texts, or they
    are not of lang, English; None where the command has no such flag. KEY is a hash of the settings, those
    four and every recording's name, text, speaker, size and time, so that any change makes a new entry. The
    entry is built in a temporary folder and renamed into place: two processes that start at once both
    succeed. What a killed one leaves, or an entry that was damaged, is made anew.
    """
    found, skipped = find_utterances(folder)
    stamp = [(n, str(p), t, who, p.stat().st_size, p.stat().st_mtime_ns) for n, p, t, who in found]
    key = json.dumps([asdict(settings), lang, vocab, stamp, skipped, keep_outliers, bool(keep_unknown),
                      CACHE_VERSION])
    target = Path(cache) / f"{Path(folder).resolve().name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    Path(cache).mkdir(parents=True, exist_ok=True)
    remove_leftovers(cache)
    corpus = open_entry(target)
    if corpus is None:
        partial = Path(cache) / f"partial-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        partial.mkdir()                         # by the umask: a group may share a cache
        try:
            build(found, list(skipped), settings, lang, vocab, partial, folder, keep_outliers, keep_unknown)
            if target.exists() and open_entry(target) is None:
                os.rename(target, partial / "damaged")
            os.rename(partial, target)
            shutil.rmtree(target / "damaged", ignore_errors=True)
        except OSError as problem:
            if problem.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # lost the race: the other's is as good
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        corpus = Corpus(target)
    return corpus


def open_entry(target):
    """A cache entry -> Corpus, None where there is none, or it is not what build() wrote."""
    try:
        corpus, file = Corpus(target), target / "mel.f16"
        size, status = int(corpus.frames.sum()) * corpus.settings.n_mels * 2, file.stat()
        index = json.loads((target / "index.json").read_text(encoding="utf-8"))
        whole_entry = corpus.key == entry_key(target) and status.st_size == size and (
            mels_digest(str(file.resolve()), size, status.st_mtime_ns) == index["sha256"])
        return corpus if whole_entry else None
    except PermissionError as problem:
        raise BadInput(f"{problem.filename}: cannot be read, it is another user's; "
                       "choose another --cache") from None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):                # damage
        return None


@functools.lru_cache
def mels_digest(path, size, changed):
    """SHA-256 of a file of mels, read once a process while its size and time stay: 0.5 to 2 s for each GB."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def entry_key(folder):
    """The hash of a cache entry, of what it holds and not of where: its index has that of its mels."""
    parts = [(folder / name).read_bytes() for name in ("index.json", "arrays.npz")]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def remove_leftovers(cache):
    """Remove what killed preparations left: of processes of this machine that are gone, or a week old."""
    for path in Path(cache).glob("partial-*"):
        try:
            _, *host, pid, _ = path.name.split("-")
            dead = "-".join(host) == socket.gethostname() and gone(int(pid))
            if not dead and time.time() - path.stat().st_mtime < 7 * 86400:
                continue
        except ValueError:                      # a name of older versions
            pass
        except OSError:                         # just removed
            continue
        shutil.rmtree(path, ignore_errors=True)


def refuse_unknown(found, coded, lang, of_checkpoint, keep_unknown, folder):
    """Say what of the texts no symbol stands for, by language or a checkpoint's vocabulary, and how many
    texts lose letters. BadInput where those are over 1 %, and for texts that are not English where lang is,
    unless keep_unknown. None: the command has no such flag, so it is not advised.
    """
    why = f"the checkpoint reads {lang}" if of_checkpoint else f"is --lang {lang} right?"
    way_out = f"{why}; --keep_unknown takes them" if keep_unknown is not None else why
    if doubt := reader.not_english("\n".join(words for _, _, words, _ in found[:2000]), lang):
        if not keep_unknown and len(found) > 3:
            raise BadInput(f"--data {folder}: {doubt} {way_out}")
        print(doubt)
    lacking = set().union(*(dropped for _, dropped in coded))
    damaged = [row[0] for row, (_, dropped) in zip(found, coded) if any(map(letters, dropped))]
    if lacking:
        first = f", the first: {damaged[0]}" if damaged else ""
        lost = (f"cannot be spoken: {' '.join(sorted(lacking))}: {len(damaged)} of {len(found)} texts lose "
                f"letters{first}")
        if len(damaged) > 0.01 * len(found) and not keep_unknown:
            raise BadInput(f"--data {folder}: {lost}; {way_out}")
        print(lost)


def build(found, skipped, settings, lang, vocab, out, folder, keep_outliers, keep_unknown):
    """Mels of all usable recordings into out/mel.f16, then alignment, then the index; adds to skipped."""
    of_checkpoint = vocab is not None
    vocab = vocab or sorted({symbol for _, _, words, _ in found for symbol in reader.symbols(words, lang)[0]})
    coded = [reader.encode(words, vocab, lang) for _, _, words, _ in found]
    refuse_unknown(found, coded, lang, of_checkpoint, keep_unknown, folder)
    rows, ids, frames, counts, seconds = [], [], [], [], []
    size = np.array([letters(symbol) for symbol in vocab])
    with open(out / "mel.f16", "wb") as file:
        for row, (i, _) in zip(tqdm(found, desc="mel", leave=False, disable=None), coded):
            name, path, words, speaker = row
            try:
                mel = mel_spectrogram(load_audio(path, settings, longest=MAX_SECONDS), settings)   # (T, M)
            except BadInput as problem:
                skipped.append((name, str(problem).removeprefix(f"{path}: ")))
                continue
            if len(i) <= 2 or len(i) >= len(mel):
                skipped.append((name, f"too short for its text ({len(mel)} frames of audio, {len(i)} symbols)"
                                if len(i) > 2 else "no text"))
            else:
                file.write(mel.numpy().astype(np.float16).tobytes())
                rows.append((name, os.path.relpath(path, folder), speaker, words))
                ids.append(i)
                frames.append(len(mel))
                seconds.append(speech_seconds(mel, settings))
                spoken = letters(re.sub(r"\[.*?\]|<.*?>|\{.*?\}|\*.*?\*", "", words))     # [noise] is no word
                counts.append(int(size[i.numpy() - 1].sum()) * (spoken > 0))
    odd = {} if keep_outliers or not rows else outliers(counts, seconds)
    skipped += [(rows[i][0], reason) for i, reason in odd.items()]
    if len(odd) == len(rows):
        advice = "; --keep_outliers takes those" if odd else ""
        raise BadInput(f"--data {folder}: none of its {len(found)} recordings can be used: "
                       f"{counted(skipped)}; for example {skipped[-1][0]}: {skipped[-1][1]}{advice}")
    keep_rows(out / "mel.f16", frames, odd, settings.n_mels)
    rows, ids, frames = ([x for i, x in enumerate(of) if i not in odd] for of in (rows, ids, frames))
    ids, durations, gauss = durations_of(out / "mel.f16", frames, ids, settings, lang, vocab)
    np.savez(out / "arrays.npz", frames=np.array(frames), counts=np.array([len(i) for i in ids]),
             ids=torch.cat(ids).short().numpy(), durations=torch.cat(durations).short().numpy(),
             mean=gauss["mean"].numpy(), var=gauss["var"].numpy())
    names, paths, speakers, texts = (list(column) for column in zip(*rows))
    file = out / "mel.f16"
    digest = mels_digest(str(file), file.stat().st_size, file.stat().st_mtime_ns)
    index = dict(mel=asdict(settings), vocab=vocab, skipped=skipped, names=names, paths=paths,
                 speakers=speakers, texts=texts, sha256=digest)
    (out / "index.json").write_text(json.dumps(index), encoding="utf-8")
    (out / "key").write_text(entry_key(out))


def keep_rows(path, frames, odd, n_mels):
    """Leave the mels of utterances `odd` out of a file of them, which has frames[i] each."""
    if odd:
        everything, end = np.memmap(path, np.float16, "r").reshape(-1, n_mels), np.cumsum(frames)
        with open(path.with_suffix(".kept"), "wb") as file:
            for i in (i for i in range(len(frames)) if i not in odd):
                file.write(everything[end[i] - frames[i]:end[i]].tobytes())
        os.replace(path.with_suffix(".kept"), path)


def durations_of(path, frames, ids, settings, lang, vocab):
    """Align the mels in one file of frames -> ids with the pauses heard [(L,)], durations, the Gaussians.
    F5-TTS's attention aligns by itself: all its frames are filed under the first symbol.
    """
    if lang == "f5":
        none = torch.zeros(0)
        first = [torch.cat([torch.tensor([T]), torch.zeros_like(i)[1:]]) for T, i in zip(frames, ids)]
        return ids, first, {"mean": none, "var": none}
    memory = np.memmap(path, np.float16, "r", shape=(sum(frames), settings.n_mels))
    start = np.cumsum(frames) - frames

    def features(i):
        return cepstra(torch.from_numpy(memory[start[i]:start[i] + frames[i]].astype(np.float32)))
    return align_corpus(features, frames, ids, len(vocab), reader.pauses(vocab, lang))


def pick_voices(corpus, seconds=3.0, most=16):
    """One training recording of each speaker, nearest to `seconds` long -> ready voice prompts by name, those
    with most recordings first; of at most so many, since they travel in every checkpoint.
    """
    best = {}                                   # speaker -> (distance to that length, utterance)
    for i in corpus.train:
        off = abs(3600 * corpus.hours([i]) - seconds)
        best[corpus.speakers[i]] = min(best.get(corpus.speakers[i], (math.inf, i)), (off, i))
    heard = collections.Counter(corpus.speakers[i] for i in corpus.train).most_common(most)
    if len(best) > most:
        print(f"voices: {', '.join(who for who, _ in heard)}, who have the most recordings; "
              f"{len(best) - most} more speakers are learned from, but become none")
    return {speaker or "voice": dict(mel=corpus.mel(i).half(), text=corpus.ids[i].clone(),
                                     durations=corpus.durations[i].clone())
            for speaker, i in ((speaker, best[speaker][1]) for speaker, _ in heard)}


# ---------------------------------------------------------------------------------------------------- command

# address, SHA-256, folder inside
DOWNLOADS = {"ljspeech": ("https://data.keithito.com/data/speech/LJSpeech-1.1.tar.bz2",
                          "be1a30453f28eb8dd26af4101ae40cbf2c50413b1bb21936cbcdc6fae3de8aa5", "LJSpeech-1.1")}


def download(url, sha256, folder):
    """Fetch an archive into folder, check its SHA-256, unpack it -> folder. One cut short starts over."""
    try:
        archive = pooch.retrieve(url, sha256, path=folder, fname=url.rsplit("/", 1)[-1],
                                 downloader=pooch.HTTPDownloader(progressbar=True, timeout=60))
    except Exception as problem:                # requests and pooch raise many types
        raise BadInput(f"{url}: download failed ({str(problem)[:120]}); run it again") from None
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")                                     # no path leaves folder
    return Path(folder)


def plot_alignment(corpus, i, path):
    """Mel picture of utterance i with each symbol where the aligner put it."""
    plt, durations = pyplot(), corpus.durations[i]
    fig, ax = plt.subplots(figsize=(14, 3.5), constrained_layout=True)
    ax.imshow(corpus.mel(i).numpy().T, origin="lower", aspect="auto", interpolation="nearest")
    for symbol, end, length in zip(corpus.ids[i].tolist(), durations.cumsum(0).tolist(), durations.tolist()):
        ax.axvline(end - 0.5, color="white", lw=0.4)
        ax.text(end - length / 2 - 0.5, corpus.settings.n_mels + 1, corpus.vocab[symbol - 1], ha="center",
                fontsize=8)
    ax.set(xlabel="frame", ylabel="mel band")
    with whole(path) as partial:
        fig.savefig(partial, dpi=90)
    plt.close(fig)


def main():
    p = Parser(__doc__)
    add = p.add_argument
    add("--data", default="corpus", help="folder of recordings with tables or texts")
    add("--cache", default="cache", help="where mels and alignments are kept (default %(default)s)")
    add("--out", type=Path, default=Path("out/prepare"),
        help="where the alignment picture goes (default %(default)s)")
    add("--lang", default="en-us", help="how its texts are read, see text.py (default %(default)s)")
    add("--keep_outliers", action="store_true", help="take recordings whose text and sound do not fit")
    add("--keep_unknown", action="store_true", help="take texts that lose letters or are of another language")
    add("--download", choices=sorted(DOWNLOADS), help="fetch this corpus first, into --data (default data)")
    flags = p.parse_args()
    if flags.download:
        url, sha256, inner = DOWNLOADS[flags.download]
        flags.data = download(url, sha256, "data" if flags.data == "corpus" else flags.data) / inner
    corpus = prepare(flags.data, lang=flags.lang, cache=flags.cache, keep_outliers=flags.keep_outliers,
                     keep_unknown=flags.keep_unknown)
    print(f"{flags.data}: {len(corpus.names)} recordings, {corpus.hours():.2f} h, "
          f"{len(corpus.train)} to train on, {len(corpus.held)} held out")
    for speaker in sorted(set(corpus.speakers)):
        mine = [i for i, who in enumerate(corpus.speakers) if who == speaker]
        minutes = 60 * corpus.hours(mine)
        print(f"  speaker {speaker or 'not known'}: {len(mine)} recordings, {minutes:.1f} min")
    print(f"  symbols ({len(corpus.vocab)}): {' '.join(corpus.vocab)}")
    print(f"  skipped: {len(corpus.skipped)}")
    for line in counted(corpus.skipped).split(", ") if corpus.skipped else ():
        print(f"    {line}")
    for name, reason in corpus.skipped[:20]:
        print(f"    {name}: {reason}")
    flags.out.mkdir(parents=True, exist_ok=True)
    plot_alignment(corpus, corpus.held[0], flags.out / "alignment.png")
    print(f"  alignment of {corpus.names[corpus.held[0]]}: {flags.out / 'alignment.png'}")


if __name__ == "__main__":
    cli(main)
