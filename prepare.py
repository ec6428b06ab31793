"""A folder of recordings and their texts -> a prepared corpus: found, turned to mels, aligned, cached.

    python prepare.py --data corpus              what is in there, what was skipped and why, a picture
    python prepare.py --download ljspeech        fetch and unpack a real corpus (24 h, one voice, 2.6 GB)

A corpus becomes one memory-mapped array of mel frames plus, for every utterance, its symbols and how many
frames each of them lasts. Mels stay on disk; memory holds an index, 480 to 610 bytes an utterance of about 50
symbols. 50,000 utterances open in 2 seconds once cached. The aligner learns from 4,000 of them at most.
"""
import errno
import hashlib
import json
import os
import shutil
import tarfile
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pooch
import torch
from tqdm import tqdm

import text as reader
from align import align_corpus, cepstra
from common import BadInput, Parser, cli, pyplot, whole
from data import Corpus, MelSettings, load_audio, mel_spectrogram

# ---------------------------------------------------------------------------------------------------- find

AUDIO = (".wav", ".flac", ".ogg", ".opus", ".mp3")
MAX_SECONDS = 20.0          # longer recordings are skipped: they would set the memory of every batch


def find_utterances(folder):
    """Recordings and texts in a folder -> [(id, path, text, speaker)], [(what was skipped, why)].

    LJSpeech (metadata.csv with id|text|normalised text beside wavs/), also one such folder per speaker;
    LibriTTS (speaker/chapter/*.normalized.txt beside the audio); any tree of audio with a .txt or .lab of the
    same name.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BadInput(f"--data {folder}: no such folder; give a folder of recordings, for example corpus")
    found, skipped = [], []
    tables = sorted(folder.glob("metadata.csv")) or sorted(folder.glob("*/metadata.csv"))
    for table in tables:
        rows, bad = read_metadata(table, speaker="" if table.parent == folder else table.parent.name)
        found, skipped = found + rows, skipped + bad
    if not tables:
        for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in AUDIO):
            sides = [path.with_suffix(end) for end in (".normalized.txt", ".txt", ".lab")]
            side = next((p for p in sides if p.is_file()), None)
            name = str(path.relative_to(folder).with_suffix(""))
            if side is None:
                skipped.append((name, "no .normalized.txt, .txt or .lab beside it"))
                continue
            libritts = side.name.endswith(".normalized.txt")                      # speaker/chapter/file
            home = path.parents[1] if libritts else path.parent
            speaker = home.name if home.is_relative_to(folder) and home != folder else ""
            text = side.read_text(encoding="utf-8-sig", errors="replace").strip()
            found.append((name, path, text, speaker))
    if not found:
        reason = f" ({len(skipped)} skipped, the first: {skipped[0][0]}: {skipped[0][1]})" if skipped else ""
        raise BadInput(f"--data {folder}: no usable recordings{reason}; expected metadata.csv (id|text) and "
                       f"wavs/, or audio files, each with a .txt of the same name")
    return found, skipped


def read_metadata(table, speaker):
    """One LJSpeech table -> rows as find_utterances gives them, and what was skipped. BOM, CRLF are fine."""
    rows, skipped, seen = [], [], set()
    files = {p.stem: p for p in sorted((table.parent / "wavs").glob("*")) if p.suffix.lower() in AUDIO}
    lines = table.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    for line_number, line in enumerate(lines, 1):
        columns = [c.strip() for c in line.split("|")]
        name = columns[0] if len(columns) in (2, 3) else f"{table.name} line {line_number}"
        if not line.strip():
            continue
        if len(columns) not in (2, 3):
            skipped.append((name, f"{len(columns)} columns, expected id|text or id|text|normalised text"))
        elif name in seen:
            skipped.append((name, "duplicate id"))
        elif name not in files:
            skipped.append((name, f"no audio {table.parent / 'wavs' / name}.*"))
        else:
            seen.add(name)
            rows.append((name, files[name], columns[-1] or columns[1], speaker))
    return rows, skipped


# --------------------------------------------------------------------------------------------------- prepare

CACHE_VERSION = 6         # count it up when anything here, in data.py or align.py changes what an entry holds


def prepare(folder, settings=MelSettings(), lang="letters", vocab=None, cache="cache"):
    """Corpus folder -> Corpus, computed once and cached under cache/NAME-KEY.

    lang, vocab: how a checkpoint reads text and its symbols (None: those of the corpus). KEY is a hash of the
    settings, those two and every recording's name, text, speaker, size and time, so that any change makes a
    new entry. The entry is built in a temporary folder and renamed into place: two processes that start at
    once both succeed, and a killed one leaves nothing that looks complete.
    """
    found, skipped = find_utterances(folder)
    stamp = [(n, str(p), t, who, p.stat().st_size, p.stat().st_mtime_ns) for n, p, t, who in found]
    key = json.dumps([asdict(settings), lang, vocab, stamp, skipped, CACHE_VERSION]).encode()
    target = Path(cache) / f"{Path(folder).resolve().name}-{hashlib.sha256(key).hexdigest()[:16]}"
    if not (target / "index.json").is_file():
        Path(cache).mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix="partial-", dir=cache))
        try:
            build(found, skipped, settings, lang, vocab, partial, folder)
            os.rename(partial, target)
        except OSError as problem:
            if problem.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # lost the race: the other's is as good
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return Corpus(target)


def build(found, skipped, settings, lang, vocab, out, folder):
    """Mels of all usable recordings into out/mel.f16, then alignment, then the index; adds to skipped."""
    vocab = vocab or "".join(sorted({symbol for _, _, words, _ in found for symbol in reader.symbols(words,
                                                                                                     lang)}))
    rows, ids, frames, unknown = [], [], [], set()
    with open(out / "mel.f16", "wb") as file:
        for name, path, words, speaker in tqdm(found, desc="mel", leave=False, disable=None):
            try:
                mel = mel_spectrogram(load_audio(path, settings, longest=MAX_SECONDS), settings)   # (T, M)
            except BadInput as problem:
                skipped.append((name, str(problem)))
                continue
            i, dropped = reader.encode(words, vocab, lang)
            unknown |= dropped
            if len(i) <= 2 or len(i) > len(mel):
                skipped.append((name, f"{len(mel)} frames of audio cannot hold its {len(i)} symbols"
                                if len(i) > 2 else "no text"))
            else:
                file.write(mel.numpy().astype(np.float16).tobytes())
                rows.append((name, speaker, words if lang == "f5" else reader.normalise(words)))
                ids.append(i)
                frames.append(len(mel))
    if unknown:
        print(f"symbols that the vocabulary lacks: {' '.join(sorted(unknown))}")
    if not rows:
        raise BadInput(f"--data {folder}: none of its {len(found)} recordings can be used, for example "
                       f"{skipped[0][0]}: {skipped[0][1]}")
    durations, gauss = durations_of(out / "mel.f16", frames, ids, settings, lang, len(vocab))
    np.savez(out / "arrays.npz", frames=np.array(frames), counts=np.array([len(i) for i in ids]),
             ids=torch.cat(ids).short().numpy(), durations=torch.cat(durations).short().numpy(),
             mean=gauss["mean"].numpy(), var=gauss["var"].numpy())
    names, speakers, texts = (list(column) for column in zip(*rows))
    (out / "index.json").write_text(json.dumps(dict(mel=asdict(settings), vocab=vocab, skipped=skipped,
                                                    names=names,
                                                    speakers=speakers, texts=texts)), encoding="utf-8")


def durations_of(path, frames, ids, settings, lang, vocab_size):
    """Align the mels in one file of frames -> durations [(L,)], the Gaussians. F5-TTS's attention aligns by
    itself: all its frames are filed under the first symbol.
    """
    if lang == "f5":
        none = torch.zeros(0)
        return [torch.cat([torch.tensor([T]), torch.zeros_like(i)[1:]]) for T, i in zip(frames, ids)], \
            {"mean": none, "var": none}
    memory = np.memmap(path, np.float16, "r", shape=(sum(frames), settings.n_mels))
    start = np.cumsum(frames) - frames

    def features(i):
        return cepstra(torch.from_numpy(memory[start[i]:start[i] + frames[i]].astype(np.float32)))
    return align_corpus(features, frames, ids, vocab_size)


# --------------------------------------------------------------------------------------------------- command

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
    add("--data", default="corpus", help="folder of recordings: LJSpeech or LibriTTS layout, or audio + .txt")
    add("--cache", default="cache", help="where mels and alignments are kept (default %(default)s)")
    add("--out", type=Path, default=Path("out/prepare"),
        help="where the alignment picture goes (default %(default)s)")
    add("--download", choices=sorted(DOWNLOADS), help="fetch this corpus first, into --data (default data)")
    flags = p.parse_args()
    if flags.download:
        url, sha256, inner = DOWNLOADS[flags.download]
        flags.data = download(url, sha256, "data" if flags.data == "corpus" else flags.data) / inner
    corpus = prepare(flags.data, cache=flags.cache)
    print(f"{flags.data}: {len(corpus.names)} recordings, {corpus.hours():.2f} h, "
          f"{len(corpus.train)} to train on, {len(corpus.held)} held out")
    for speaker in sorted(set(corpus.speakers)):
        mine = [i for i, who in enumerate(corpus.speakers) if who == speaker]
        minutes = 60 * corpus.hours(mine)
        print(f"  speaker {speaker or 'not known'}: {len(mine)} recordings, {minutes:.1f} min")
    print(f"  symbols ({len(corpus.vocab)}): {' '.join(corpus.vocab)}")
    print(f"  skipped: {len(corpus.skipped)}")
    for name, reason in corpus.skipped[:20]:
        print(f"    {name}: {reason}")
    flags.out.mkdir(parents=True, exist_ok=True)
    plot_alignment(corpus, corpus.held[0], flags.out / "alignment.png")
    print(f"  alignment of {corpus.names[corpus.held[0]]}: {flags.out / 'alignment.png'}")


if __name__ == "__main__":
    cli(main)
