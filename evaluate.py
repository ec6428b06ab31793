"""Intelligibility and voice of checkpoints on sentences they have not seen: word error rate and speaker
similarity.

    pip install pocketsphinx resemblyzer webrtcvad-wheels
    python evaluate.py                                       the shipped checkpoints on 40 unseen sentences
    python evaluate.py --ckpt teacher.pt --data DIR --held   on the held-out part of DIR

Each sentence is spoken with the ready voice of its recording's speaker and with predicted durations. The
recogniser is weak, so its figure means something only beside that of copy synthesis (recording -> mel ->
audio, the same vocoder).
"""
import argparse
import importlib.util
import multiprocessing
import re
from pathlib import Path

import numpy as np
import soundfile
import torch
from tqdm import tqdm

from data import (BadInput, check_numbers, cli, encode, find_utterances, griffin_lim, load_audio, normalise,
                  prepare)
from sample import check_steps, load_checkpoint, pick_device, speak


def word_errors(said, heard):
    """Levenshtein distance between two word lists: substitutions, insertions and deletions."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(said, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1]


def words(text):
    """Spoken words of a text, without punctuation."""
    return re.findall(r"[a-z']+", normalise(text))


def start_recogniser():
    """One thread and one decoder per worker process; pocketsphinx carries its English model."""
    global decoder
    torch.set_num_threads(1)
    from pocketsphinx import Decoder
    decoder = Decoder(samprate=16000, loglevel="FATAL")


def recognise(wav):
    """Audio (samples,) at 16 kHz -> the words that pocketsphinx hears."""
    decoder.start_utt()
    decoder.process_raw((np.clip(wav, -1, 1) * 32767).astype(np.int16).tobytes(), full_utt=True)
    decoder.end_utt()
    return words(decoder.hyp().hypstr) if decoder.hyp() else []


def decode(job):
    """(mel, settings) -> audio; a function of its own so that workers can run it."""
    return griffin_lim(*job)


def score(pool, mels, s, texts):
    """Mels -> (word error rate over all words, audio of each)."""
    wavs = list(tqdm(pool.imap(decode, [(m, s) for m in mels]), total=len(mels), leave=False, disable=None))
    heard = pool.map(recognise, wavs)
    errors = sum(word_errors(words(t), h) for t, h in zip(texts, heard))
    return errors / sum(len(words(t)) for t in texts), wavs


def nearest_voice(encoder, wavs, speakers, anchors):
    """Audio of each -> (share nearest to its own speaker's anchor, mean cosine to own, and to the others).

    Speakers without an anchor are left out; None: nothing is left to compare.
    """
    names, known = list(anchors), [k for k, speaker in enumerate(speakers) if speaker in anchors]
    if len(names) < 2 or not known:
        return None
    wavs, speakers = [wavs[k] for k in known], [speakers[k] for k in known]
    cosines = np.array([[encoder.embed_utterance(w) @ anchors[n] for n in names] for w in wavs])
    own = np.array([[n == s for n in names] for s in speakers])
    nearest = np.array(names)[cosines.argmax(1)] == np.array(speakers)
    return nearest.mean(), cosines[own].mean(), cosines[~own].mean()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--ckpt", nargs="+", default=["checkpoints/teacher.pt", "checkpoints/student.pt"],
                   help="checkpoints")
    p.add_argument("--data", default="eval", help="recordings of the sentences to speak (default eval)")
    p.add_argument("--held", action="store_true", help="use only the held-out part of --data")
    p.add_argument("--count", type=int, default=40, help="sentences (default 40)")
    p.add_argument("--steps", type=int, nargs="+",
                   help="steps (default: 10 for a teacher, all of a student's)")
    p.add_argument("--cfg", type=float, nargs="+",
                   help="guidance (default: the teacher's own, 0 for a student)")
    p.add_argument("--cache", default="cache", help="where mels and alignments are kept (default cache)")
    p.add_argument("--out", default="out/evaluate", help="table and audio (default %(default)s)")
    p.add_argument("--seed", type=int, default=0,
                   help="noise of sentence i is drawn from (seed, i) (default 0)")
    p.add_argument("--device", default="auto", help="auto, cuda, mps or cpu (default auto)")
    a = p.parse_args()
    check_numbers(a)
    if importlib.util.find_spec("pocketsphinx") is None:
        raise BadInput("evaluate.py needs the package pocketsphinx: pip install pocketsphinx")
    device, out = pick_device(a.device), Path(a.out)
    bundles = [load_checkpoint(path, device) for path in a.ckpt]
    s, vocab = bundles[0].s, bundles[0].vocab
    if any(b.s != s for b in bundles):
        raise BadInput("--ckpt: these checkpoints have different mel settings and cannot share a table")
    plan = [(path, b, *check_steps(b, n, w)) for path, b in zip(a.ckpt, bundles)
            for n in a.steps or b.contract["steps"] or [10]
            for w in (a.cfg if a.cfg and b.contract["kind"] == "teacher" else [None])]
    corpus = prepare(a.data, s, vocab, a.cache)
    paths = {(speaker, name): path for name, path, _, speaker in find_utterances(a.data)[0]}
    chosen, seen = [], {}
    for i in (corpus.held if a.held else range(len(corpus.names))):  # each sentence once, voices in turn
        seen.setdefault(corpus.texts[i], []).append(i)
    for k, takes in enumerate(seen.values()):
        chosen.append(takes[k % len(takes)])
    chosen = chosen[:a.count]
    texts, speakers = [corpus.texts[i] for i in chosen], [corpus.speakers[i] or "voice" for i in chosen]
    out.mkdir(parents=True, exist_ok=True)

    encoder, anchors = None, {}
    voices = bundles[0].voices
    try:
        from resemblyzer import VoiceEncoder
        encoder = VoiceEncoder("cpu", verbose=False)
        anchors = {n: encoder.embed_utterance(griffin_lim(v["mel"].float(), s)) for n, v in voices.items()}
    except ImportError:
        print("speaker similarity left out: it needs the packages resemblyzer and webrtcvad-wheels")
    rows = ["| system | word error rate | nearest to own voice | cosine own / other |\n|---|---|---|---|"]
    with multiprocessing.get_context("spawn").Pool(2, start_recogniser) as pool:
        def report(name, mels, wavs=None):
            """One row of the table; wavs: the recordings themselves, else mels go through Griffin-Lim."""
            if wavs is None:
                wer, wavs = score(pool, mels, s, texts)
            else:
                heard = pool.map(recognise, wavs)
                wer = sum(map(word_errors, map(words, texts), heard)) / sum(len(words(t)) for t in texts)
            told = nearest_voice(encoder, wavs, speakers, anchors)
            rows.append(f"| {name} | {wer:.3f} | "
                        + ("{:.0%} | {:.2f} / {:.2f} |".format(*told) if told else "- | - |"))
            print(rows[-1])
            for k in range(min(3, len(wavs))):
                soundfile.write(out / f"{re.sub('[^a-z0-9]+', '_', name.lower())}_{k}.wav",
                                np.clip(wavs[k], -1, 1), s.rate)

        print(rows[0])
        report("recording", None, [load_audio(paths[corpus.speakers[i], corpus.names[i]], s) for i in chosen])
        report("copy synthesis", [corpus.mel(i) for i in chosen])
        for path, b, n, w in plan:
            ids, mels = [encode(t, b.vocab)[0] for t in texts], [None] * len(texts)
            for name in dict.fromkeys(speakers):                                  # one voice at a time
                mine = [k for k, sp in enumerate(speakers) if sp == name]
                voice = b.voices.get(name) or next(iter(b.voices.values()))
                for k, m in zip(mine, speak(b, [ids[k] for k in mine], voice, n, w, a.seed)):
                    mels[k] = m
            report(f"{Path(path).stem}@{n}, w = {w:g}", mels)
    (out / "table.md").write_text("\n".join(rows) + "\n")
    total = sum(len(words(t)) for t in texts)
    print(f"{len(chosen)} sentences of {a.data}, {total} words, seed {a.seed}; wrote {out}")


if __name__ == "__main__":
    cli(main)
