"""Any set of checkpoints on the same sentences, noise and durations: speed, distance, prosody, words, voices.

    pip install pocketsphinx resemblyzer webrtcvad-wheels        optional: word errors, speaker similarity
    python evaluate.py                                           shipped checkpoints on 40 unseen sentences
    python evaluate.py --ckpt teacher.pt student.pt --data DIR --held --seeds 0 1 2
    python evaluate.py --ablation                                the same as ablation.py
    python evaluate.py --bench                                   the same as bench.py

Writes table.md, table.csv (a row a system and seed), audio, and page.html to listen to. Each sentence is
spoken with the ready voice of its recording's speaker and with predicted durations. The yardstick of a
checkpoint is the teacher's 32-step solution from the same noise. Word errors come from a weak recogniser and
mean something only beside those of copy synthesis (recording -> mel -> audio, the same vocoder).

Shapes: T mel frames, M mel bands, U utterances.
"""
import argparse
import csv
import html
import importlib.util
import multiprocessing
import platform
import re
import signal
import statistics
import sys
import time as clock
from pathlib import Path

import numpy as np
import soundfile
import torch
from tqdm import tqdm

import ablation
import bench
from data import (BadInput, check_numbers, cli, encode, find_utterances, griffin_lim, load_audio, normalise,
                  prepare)
from model import count_parameters
from sample import (check_steps, cosine_grid, load_checkpoint, load_teacher, own_grid, pick_device, plot_mels,
                    speak)

# ---------------------------------------------------------------------------------------------------- words


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


def start_worker():
    """One recogniser per worker process, if there is one; pocketsphinx carries its English model."""
    global decoder
    torch.set_num_threads(1)                    # as many workers as cores
    signal.signal(signal.SIGINT, signal.SIG_IGN)                                  # Ctrl-C ends the parent
    decoder = None
    if importlib.util.find_spec("pocketsphinx"):
        from pocketsphinx import Decoder
        decoder = Decoder(samprate=16000, loglevel="FATAL")


def listen(job):
    """(mel or audio, settings, text) -> (audio, its prosody, word errors or nan, seconds in the vocoder)."""
    sound, s, text = job
    start = clock.perf_counter()
    wav = griffin_lim(sound, s) if torch.is_tensor(sound) else sound
    seconds = clock.perf_counter() - start
    errors = float("nan")
    if decoder is not None and s.rate == 16000:
        decoder.start_utt()
        decoder.process_raw((np.clip(wav, -1, 1) * 32767).astype(np.int16).tobytes(), full_utt=True)
        decoder.end_utt()
        errors = word_errors(words(text), words(decoder.hyp().hypstr) if decoder.hyp() else [])
    return wav, prosody(wav, s), errors, seconds


# --------------------------------------------------------------------------------------------------- prosody


def framed(wav, hop, window=1024):
    """Audio -> frames around every hop-th sample, (T, window)."""
    return np.lib.stride_tricks.sliding_window_view(np.pad(wav, window // 2), window)[::hop]


def pitch(wav, s, low=60.0, high=400.0, window=1024):
    """Audio -> F0 in Hz and strength r, each (T,), a value a mel frame: Boersma (1993), without path search.

    r is the highest normalised autocorrelation in the range of lags, of the windowed frame divided by that of
    the window itself; the periodic share of the frame's energy.
    """
    frames = framed(wav, s.hop, window)                                           # (T, window)
    hann = np.hanning(window)

    def autocorrelation(x):
        power = np.abs(np.fft.rfft(x, 2 * window, axis=-1)) ** 2
        r = np.fft.irfft(power, axis=-1)[..., :window]
        return r / np.maximum(r[..., :1], 1e-9)
    r = autocorrelation((frames - frames.mean(1, keepdims=True)) * hann) / autocorrelation(hann)
    first, last = int(s.rate / high), int(s.rate / low)
    cost = 0.01 * np.log2(np.arange(first, last))                                 # multiples of a period lose
    lag = (r[:, first:last] - cost).argmax(1) + first                             # (T,)
    rows = np.arange(len(r))
    a, b, c = r[rows, lag - 1], r[rows, lag], r[rows, lag + 1]
    shift = np.clip((a - c) / np.where(a - 2 * b + c == 0, 1, 2 * (a - 2 * b + c)), -0.5, 0.5)
    return s.rate / (lag + shift), np.clip(b, 0, 0.9999)                          # a parabola's peak


def prosody(wav, s, voiced_at=0.5):
    """Audio -> its F0 and voicing (T,), and one figure each of what listeners hear as voice quality.

    hnr: 10 log10 (r / (1 - r)) dB, Boersma (1993). jitter, shimmer: mean absolute difference of neighbouring
    periods (levels) over their mean, as Praat's "local" ones, but of frames 16 ms apart, not single periods.
    """
    f0, r = pitch(wav, s)
    level = np.sqrt(np.mean(framed(wav, s.hop) ** 2, axis=1))                     # (T,)
    voiced = (r > voiced_at) & (level > 0.05 * level.max())
    both = voiced[1:] & voiced[:-1]
    period = 1 / f0

    def local(x):
        return np.abs(np.diff(x))[both].mean() / x[voiced].mean() if both.any() else np.nan
    power = np.abs(np.fft.rfft(wav)) ** 2
    top = power[int(len(power) * 4000 / (s.rate / 2)):].sum() / max(power.sum(), 1e-12)
    some, sure = voiced.any(), r[voiced]
    return dict(f0=f0, voiced=voiced, pitch=np.log(f0[voiced]).mean() if some else np.nan,
                periodicity=sure.mean() if some else np.nan, jitter=local(period), shimmer=local(level),
                hnr=10 * np.log10(sure / (1 - sure)).mean() if some else np.nan, share_voiced=voiced.mean(),
                high_db=10 * np.log10(max(top, 1e-12)), level_db=20 * np.log10(max(wav.std(), 1e-9)))


def correlation(x, y):
    """Pearson correlation of two lists, nan where fewer than three pairs are finite."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    fine = np.isfinite(x) & np.isfinite(y)
    return float(np.corrcoef(x[fine], y[fine])[0, 1]) if fine.sum() > 2 else float("nan")


def against(mine, theirs):
    """Prosodies of U utterances and of the yardstick's -> correlations and differences by name."""
    pairs = [(m, t, m["voiced"][:n] & t["voiced"][:n], n) for m, t in zip(mine, theirs)
             for n in [min(len(m["f0"]), len(t["f0"]))]]
    x, y = (np.log(np.concatenate([p[k]["f0"][:p[3]][p[2]] for p in pairs])) for k in (0, 1))
    row = {"log F0 correlation": correlation(x, y), "log F0 RMSE": float(np.sqrt(np.mean((x - y) ** 2)))}
    for key in ("pitch", "hnr", "jitter", "shimmer"):
        row[f"{key} correlation"] = correlation([m[key] for m in mine], [t[key] for t in theirs])
    row["high band dB"] = float(np.mean([m["high_db"] - t["high_db"] for m, t in zip(mine, theirs)]))
    return row


# -------------------------------------------------------------------------------------------------- figures


def bootstrap(top, bottom=None, resamples=1000):
    """95 % bootstrap interval over utterances of sum(top) / sum(bottom), or of the mean: (low, high)."""
    top = np.asarray(top, float)
    bottom = np.ones_like(top) if bottom is None else np.asarray(bottom, float)
    pick = np.random.default_rng(0).integers(len(top), size=(resamples, len(top)))
    return tuple(np.percentile(top[pick].sum(1) / bottom[pick].sum(1), [2.5, 97.5]))


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


def say(b, texts, speakers, steps, w, seed, grid=None):
    """Mels [(T, M)] of texts, each with its speaker's ready voice; a sentence's noise follows from seed."""
    mels = [None] * len(texts)
    for name in dict.fromkeys(speakers):                                          # one voice at a time
        mine = [k for k, speaker in enumerate(speakers) if speaker == name]
        voice = b.voices.get(name) or next(iter(b.voices.values()), None)
        ids = [encode(texts[k], b.vocab)[0] for k in mine]
        for k, mel in zip(mine, speak(b, ids, voice, steps, w, seed, 1.0, grid)):
            mels[k] = mel
    return mels


def spread_over_noises(b, texts, speakers, steps, w, noises=4):
    """Variance of the mel over noises, mean over all values: far lower than the teacher's is a collapse."""
    takes = [torch.cat(say(b, texts, speakers, steps, w, 1000 + k)) for k in range(noises)]   # (sum of T, M)
    return float(torch.stack(takes).var(0).mean())


def flow_rtf(b, text, speaker, steps, w, repeats=5):
    """Seconds to speak one sentence at batch 1, without vocoder, per second of speech; the first warms up."""
    times = []
    for _ in range(repeats + 1):
        start = clock.perf_counter()
        mel, = say(b, [text], [speaker], steps, w, 0)
        times.append(clock.perf_counter() - start)
    return statistics.median(times[1:]) / (len(mel) * b.s.hop / b.s.rate)


# -------------------------------------------------------------------------------------------- listening page


def write_page(out, texts, columns, s):
    """page.html: a row a sentence, a column a system [(name, mels, wavs)], with a player and the mel."""
    rows = []
    for k, text in enumerate(texts):
        cells = []
        for name, mels, wavs in columns:
            file = f"{re.sub('[^a-z0-9.]+', '_', name.lower())}_{k}"
            soundfile.write(out / f"{file}.wav", np.clip(wavs[k], -1, 1), s.rate)
            plot_mels([(name, mels[k])], out / f"{file}.png")
            cells.append(f'<td><audio controls preload="none" src="{file}.wav"></audio>'
                         f'<img src="{file}.png" alt="mel of {html.escape(name)}"></td>')
        rows.append(f'<tr><th colspan="{len(columns)}">{html.escape(text)}</th></tr>'
                    f'<tr>{"".join(cells)}</tr>')
    head = "".join(f"<td>{html.escape(name)}</td>" for name, _, _ in columns)
    style = ("body{font:15px sans-serif;margin:2em}td{vertical-align:top;padding:4px}th{text-align:left;"
             "padding-top:1.2em}img{width:300px;display:block}audio{width:300px}thead td{font-weight:bold}")
    (out / "page.html").write_text(f'<!doctype html><meta charset="utf-8"><title>Listen</title><style>{style}'
                                   f"</style><h1>Listen</h1><table><thead><tr>{head}</tr></thead><tbody>"
                                   f"{''.join(rows)}</tbody></table>\n")


# ---------------------------------------------------------------------------------------------------- command

SPEED = {"network calls": "{:.0f}", "parameters": "{:,.0f}", "flow RTF": "{:.4f}",
         "RTF with vocoder": "{:.3f}", "mel MSE": "{:.4f}", "mel MAE": "{:.3f}", "variance": "{:.2f}",
         "word error rate": "{:.3f}", "word errors over copy": "{:.2f}", "own voice": "{:.0%}",
         "cosine own": "{:.2f}", "cosine other": "{:.2f}"}
PROSODY = {"log F0 correlation": "{:.2f}", "log F0 RMSE": "{:.3f}", "pitch correlation": "{:.2f}",
           "hnr correlation": "{:.2f}", "jitter correlation": "{:.2f}", "shimmer correlation": "{:.2f}",
           "periodicity": "{:.2f}", "HNR dB": "{:.1f}", "voiced": "{:.0%}", "high band dB": "{:+.1f}",
           "level dB": "{:.1f}"}


def markdown(rows, columns):
    """Rows of all seeds -> a Markdown table: means over seeds, and the first seed's 95 % intervals."""
    lines = [f"| system | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name in dict.fromkeys(r["system"] for r in rows):
        mine, cells = [r for r in rows if r["system"] == name], []
        for key, form in columns.items():
            values = [r[key] for r in mine if np.isfinite(r.get(key, np.nan))]
            ends = [form.format(mine[0][k]) for k in (f"{key} low", f"{key} high") if k in mine[0]]
            cells.append(form.format(statistics.mean(values)) + f" ({' to '.join(ends)})" * bool(ends)
                         if values else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def arguments(words):
    """Command-line flags with their reasons."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = p.add_argument
    add("--ckpt", nargs="+", default=["checkpoints/teacher.pt", "checkpoints/student.pt"], help="checkpoints")
    add("--teacher", help="whose 32 steps are the yardstick (default: the first teacher in --ckpt)")
    add("--data", default="eval", help="recordings of the sentences to speak (default eval)")
    add("--held", action="store_true", help="use only the held-out part of --data")
    add("--count", type=int, default=40, help="sentences (default 40)")
    add("--steps", type=int, nargs="+", help="steps (default: 10 for a teacher, all of a student's)")
    add("--cfg", type=float, nargs="+", help="guidance of teachers (default: the checkpoint's own)")
    add("--seeds", type=int, nargs="+", default=[0], help="of the noise (default 0)")
    add("--page", type=int, default=6, help="sentences on the listening page (default %(default)s, 0: none)")
    add("--cache", default="cache", help="where mels and alignments are kept (default cache)")
    add("--out", default="out/evaluate", help="tables, audio, page (default %(default)s)")
    add("--device", default="auto", help="auto, cuda, mps or cpu (default auto)")
    a = p.parse_args(words)
    check_numbers(a)
    return a


def short_names(paths):
    """Checkpoints' files -> their names, with as many of their folders as it takes to tell them apart."""
    whole = [Path(path).resolve().with_suffix("").parts for path in paths]
    for depth in range(1, max(map(len, whole)) + 1):
        names = ["-".join(parts[-depth:]) for parts in whole]
        if len(set(names)) == len(names):
            return names
    raise BadInput(f"--ckpt {' '.join(paths)}: one of them is there twice")


def load_all(a, device):
    """The checkpoints -> teacher's Bundle, and what to run: [(name, Bundle, steps, w)]."""
    bundles = [load_checkpoint(path, device) for path in a.ckpt]
    teachers = [b for b in bundles if b.contract["kind"] == "teacher"]
    if not teachers and not a.teacher:
        raise BadInput("--teacher: no checkpoint in --ckpt is a teacher; give one to measure against")
    teacher = load_teacher(a.teacher, "--teacher", device) if a.teacher else teachers[0]
    for path, b in zip(a.ckpt, bundles):
        if not (b.model.config.aligned and teacher.model.config.aligned):
            raise BadInput(f"--ckpt {path}: F5-TTS has no voices and durations of its own to compare with")
        if b.s != teacher.s:
            raise BadInput(f"--ckpt {path}: other mel settings than the teacher's, they cannot share a table")
    plan = [(name, b, *check_steps(b, n, w)) for name, b in zip(short_names(a.ckpt), bundles)
            for n in a.steps or b.contract["steps"] or [b.contract.get("default", 10)]
            for w in (a.cfg if a.cfg and b.contract["kind"] == "teacher" else [None])]
    return teacher, [(f"{name}@{n}, w = {w:g}", b, n, w) for name, b, n, w in plan]


def choose(corpus, a):
    """Utterance numbers: each sentence of --data once, its voices in turn."""
    seen = {}
    for i in (corpus.held if a.held else range(len(corpus.names))):
        seen.setdefault(corpus.texts[i], []).append(i)
    return [takes[k % len(takes)] for k, takes in enumerate(seen.values())][:a.count]


def load_encoder(voices, s):
    """Resemblyzer and its embedding of each ready voice, or (None, {}) and a line on what is missing."""
    try:
        from resemblyzer import VoiceEncoder
    except ImportError:
        print("speaker similarity left out: it needs the packages resemblyzer and webrtcvad-wheels")
        return None, {}
    encoder = VoiceEncoder("cpu", verbose=False)
    return encoder, {n: encoder.embed_utterance(griffin_lim(v["mel"].float(), s)) for n, v in voices.items()}


def describe(listened, sounds, texts, goals=None, theirs=None, copy=None):
    """One row's figures from what listen() returned; goals, theirs: the yardstick's mels and prosodies."""
    wavs, voices, errors, seconds = listened
    row, length = {}, [len(words(t)) for t in texts]
    if goals is not None:
        mse = [float(((x - y) ** 2).mean()) for x, y in zip(sounds, goals)]
        mae = [float((x - y).abs().mean()) for x, y in zip(sounds, goals)]
        row |= {"mel MSE": statistics.mean(mse), "mel MAE": statistics.mean(mae)}
        row |= dict(zip(("mel MSE low", "mel MSE high"), bootstrap(mse)), **against(voices, theirs))
    if np.isfinite(errors).all() and sum(length):
        row["word error rate"] = sum(errors) / sum(length)
        row |= dict(zip(("word error rate low", "word error rate high"), bootstrap(errors, length)))
        row |= {"word errors over copy": row["word error rate"] / copy} if copy else {}
    for column, key in (("periodicity", "periodicity"), ("HNR dB", "hnr"), ("voiced", "share_voiced"),
                        ("level dB", "level_db")):
        finite = [v[key] for v in voices if np.isfinite(v[key])]                  # a take may have no voice
        row |= {column: float(np.mean(finite))} if finite else {}
    return row


def evaluate(a, teacher, plan, pool):
    """Run what load_all() gave -> rows, and for the page its texts and columns [(name, mels, wavs)]."""
    s, rows, columns, yardsticks = teacher.s, [], [], {}
    corpus = prepare(a.data, s, teacher.vocab, a.cache)
    paths = {(speaker, name): path for name, path, _, speaker in find_utterances(a.data)[0]}
    chosen = choose(corpus, a)
    texts, speakers = [corpus.texts[i] for i in chosen], [corpus.speakers[i] or "voice" for i in chosen]
    encoder, anchors = load_encoder(teacher.voices, s)

    def heard(sounds):
        jobs = [(x, s, t) for x, t in zip(sounds, texts)]
        return list(zip(*tqdm(pool.imap(listen, jobs), total=len(jobs), leave=False, disable=None)))

    def report(name, seed, sounds, known, goals=None, theirs=None):
        listened = heard(sounds)
        copy = next((r.get("word error rate") for r in rows if r["system"] == "copy synthesis"), None)
        row = dict(system=name, seed=seed, **known, **describe(listened, sounds, texts, goals, theirs, copy))
        told = nearest_voice(encoder, listened[0], speakers, anchors)
        row |= dict(zip(("own voice", "cosine own", "cosine other"), map(float, told or ())))
        if "flow RTF" in row:
            row["RTF with vocoder"] = row["flow RTF"] + sum(listened[3]) * s.rate / sum(map(len, listened[0]))
        rows.append(row)
        tqdm.write(f"{name}, seed {seed}: " + ", ".join(f"{k} {form.format(row[k])}" for k, form
                                                        in SPEED.items() if k in row))
        if seed == a.seeds[0]:
            columns.append((name, sounds, listened[0]))

    recordings = [load_audio(paths[corpus.speakers[i], corpus.names[i]], s) for i in chosen]
    mels = [corpus.mel(i) for i in chosen]
    report("recording", a.seeds[0], recordings, {})
    columns[-1] = ("recording", mels, recordings)
    report("copy synthesis", a.seeds[0], mels, {})
    for name, b, n, w in plan:
        inside = b.contract["cfg"] if b.contract["kind"] == "student" else w      # guidance in the yardstick
        some = texts[:4], speakers[:4]
        known = {"network calls": n * (2 if w else 1), "parameters": count_parameters(b.model)[0],
                 "flow RTF": flow_rtf(b, texts[0], speakers[0], n, w),
                 "variance": (spread_over_noises(b, *some, n, w)
                              / spread_over_noises(teacher, *some, 10, inside))}
        for seed in a.seeds:
            if (inside, seed) not in yardsticks:
                goals = say(teacher, texts, speakers, 32, inside, seed, cosine_grid(32))
                yardsticks[inside, seed] = goals, heard(goals)[1]
            goals, theirs = yardsticks[inside, seed]
            sounds = say(b, texts, speakers, n, w, seed, own_grid(b, n))
            if [len(x) for x in sounds] != [len(g) for g in goals]:
                raise BadInput(f"--ckpt {name}: its durations are not the teacher's, so that mels cannot be "
                               "compared; measure it with its own --teacher")
            report(name, seed, sounds, known, goals, theirs)
    print(f"{len(texts)} sentences of {a.data}, {sum(len(words(t)) for t in texts)} words")
    return rows, texts, columns, s


def main(given=None):
    given = sys.argv[1:] if given is None else given
    for flag, other in (("--ablation", ablation), ("--bench", bench)):
        if flag in given:
            return other.main([word for word in given if word != flag])
    a = arguments(given)
    device, out = pick_device(a.device), Path(a.out)
    if importlib.util.find_spec("pocketsphinx") is None:
        print("word errors left out: they need the package pocketsphinx")
    teacher, plan = load_all(a, device)
    out.mkdir(parents=True, exist_ok=True)
    with multiprocessing.get_context("spawn").Pool(2, start_worker) as pool:
        rows, texts, columns, s = evaluate(a, teacher, plan, pool)
    protocol = (
        f"{len(texts)} sentences of {a.data}, seeds {' '.join(map(str, a.seeds))}. Mel distance, F0, "
        "correlations and high band: against the teacher's 32 steps from the same noise. Variance: over 4 "
        "noises, relative to teacher@10. Flow RTF: text, durations and network, batch 1, median of 5 after a "
        f"warm-up. In brackets: 95 % bootstrap over sentences. {device.type}, {platform.machine()}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, Griffin-Lim.")
    compared = [r for r in rows if "mel MSE" in r]
    text = "\n\n".join([markdown(rows, SPEED), markdown(compared, PROSODY), protocol])
    (out / "table.md").write_text(text + "\n")
    with open(out / "table.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(k for r in rows for k in r)))
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in r.items()} for r in rows)
    if a.page:
        write_page(out, texts[:a.page], columns, s)
    print(f"\n{text}\nwrote {out / 'table.md'}, table.csv" + " and page.html" * bool(a.page))


if __name__ == "__main__":
    cli(main)
