"""Checkpoints on the same sentences, noise and voices: words, a predicted ear, voice, distance, speed.

    python -m measure.evaluate   teacher.pt and student.pt of checkpoints/ on sentences of eval/main
    python -m measure.evaluate --ckpt teacher.pt student.pt --data DIR --held --seeds 0 1 2
    python -m measure.evaluate --asr large-v3 --audio kokoro=DIR      other synthesisers' audio, as rows
    python -m measure.evaluate --data eval/unseen --prompts eval/prompts   in the voices of recordings

A measure whose package is missing is left out, and a line says so:
    pip install faster-whisper whisper-normalizer       word errors by Whisper (or pocketsphinx, far weaker)
    pip install distillmos                              Distill-MOS, predicts listening tests (1 to 5); beside
        a CPU-only torch, remove _torchaudio.abi3.so from the lib folder of its torchaudio
    pip install resemblyzer webrtcvad-wheels            cosine of speaker embeddings, to the prompt
    pip install praat-parselmouth                       pitch and voice quality
Writes table.md, table.csv (a row a system and seed), utterances.csv (for paired tests), page.html to listen
(page.py makes it).
"""
from common.cli import BadInput, Parser, cli, count, number, pick_device, processor
from common.files import markdown, write_csv, write_text

import math
import statistics
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from speech import text as reader
from networks.checkpoint import load_checkpoint, load_teacher
from data import collate, mel_spectrogram
from speech.audio import load_audio
from speech.corpora import AUDIO
from speech.judges import all_judges, listen, mean
from model import count_parameters
from speech.prepare import find_utterances, prepare
from sample import check_steps, cosine_grid, front_end, speak
from distill import flow_rtf
from measure.page import System, write_page
from measure.speed import text_to_sound_rtf
from speech.vocoder import load_vocoder


# ---------------------------------------------------------------------------------------------------- figures

MAIN = {"network calls": ".0f", "parameters": ",.0f", "flow RTF": ".4f", "text-to-sound RTF p50": ".4f",
        "text-to-sound RTF p95": ".4f", "mel MSE": ".4f", "variance": ".2f", "word error rate": ".3f",
        "corpus word error rate": ".3f", "Distill-MOS": ".2f", "own voice": ".0%", "cosine own": ".2f",
        "cosine other": ".2f"}
PROSODY = {"log F0 correlation": ".2f", "log F0 RMSE": ".3f", "pitch correlation": ".2f",
           "hnr correlation": ".2f", "jitter correlation": ".2f", "shimmer correlation": ".2f",
           "pitch Hz": ".0f", "HNR dB": ".1f", "jitter": ".2%", "shimmer": ".1%", "voiced": ".0%"}

INTERVALS = ("mel MSE", "word error rate", "Distill-MOS")


def bootstrap(top, bottom=None, resamples=1000):
    """95 % bootstrap interval over sentences of sum(top) / sum(bottom), or of the mean: (low, high)."""
    top = np.asarray(top, float)
    bottom = np.ones_like(top) if bottom is None else np.asarray(bottom, float)
    pick = np.random.default_rng(0).integers(len(top), size=(resamples, len(top)))
    return tuple(np.percentile(top[pick].sum(1) / bottom[pick].sum(1), [2.5, 97.5]))


def summary(heard):
    """What listen() gave -> means, corpus word error rate, and 95 % intervals "... low", "... high"."""
    row = {name: mean(values) for name, values in heard.items() if name in MAIN or name in PROSODY}
    ends = {name: bootstrap(heard[name]) for name in INTERVALS if name in heard}
    if "words" in heard:
        row["corpus word error rate"] = sum(heard["word errors"]) / sum(heard["words"])
        ends["corpus word error rate"] = bootstrap(heard["word errors"], heard["words"])
    return row | {f"{name} {end}": x for name, pair in ends.items() for end, x in zip(("low", "high"), pair)}


def correlation(x, y):
    """Pearson correlation of two lists, nan where fewer than three pairs are finite."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    fine = np.isfinite(x) & np.isfinite(y)
    return float(np.corrcoef(x[fine], y[fine])[0, 1]) if fine.sum() > 2 else math.nan


def against(mine, theirs):
    """What listen() gave of a system and of the yardstick -> correlations over frames and over sentences."""
    pairs = [(x[:len(y)], y[:len(x)]) for x, y in zip(mine["f0"], theirs["f0"])]
    x, y = (np.concatenate(tracks) for tracks in zip(*pairs))
    x, y = (np.log(track[(x > 0) & (y > 0)]) for track in (x, y))
    row = {"log F0 correlation": correlation(x, y), "log F0 RMSE": math.sqrt(mean((x - y) ** 2))}
    return row | {f"{name} correlation": correlation(mine[key], theirs[key]) for name, key in (
        ("pitch", "pitch Hz"), ("hnr", "HNR dB"), ("jitter", "jitter"), ("shimmer", "shimmer"))}


def nearest_voice(embeddings, speakers, anchors):
    """Share of takes nearest to their own speaker's prompt, mean cosine to that one and to the others'.

    anchors {speaker: embedding of the prompt}; takes of speakers without one do not count; {}: none do.
    """
    known = [k for k, speaker in enumerate(speakers) if speaker in anchors]
    if len(anchors) < 2 or not known:
        return {}
    cosines = np.array([[embeddings[k] @ anchor for anchor in anchors.values()] for k in known])
    own = np.array([[name == speakers[k] for name in anchors] for k in known])
    return {"own voice": float(own[np.arange(len(known)), cosines.argmax(1)].mean()),
            "cosine own": float(cosines[own].mean()), "cosine other": float(cosines[~own].mean())}


def table(rows, columns, recogniser=""):
    """Rows of all seeds -> a Markdown table: means over seeds, the first's intervals; no empty columns."""
    columns = {key: form for key, form in columns.items()
               if any(math.isfinite(r.get(key, math.nan)) for r in rows)}
    lines = []
    for name in dict.fromkeys(r["system"] for r in rows):
        mine, cells = [r for r in rows if r["system"] == name], [name]
        for key, form in columns.items():
            value = mean(r.get(key, math.nan) for r in mine)
            ends = [f"{mine[0][k]:{form}}" for k in (f"{key} low", f"{key} high") if k in mine[0]]
            interval = f" ({' to '.join(ends)})" if ends else ""
            cells.append("" if math.isnan(value) else f"{value:{form}}{interval}")
        lines.append(cells)
    titles = [f"{key} ({recogniser})" if "word" in key else key for key in columns]
    return markdown(["system", *titles], lines)


# --------------------------------------------------------------------------------------------------- speaking


def short_names(paths):
    """Checkpoints' files -> their names, with as many of their folders as it takes to tell them apart."""
    whole = [Path(path).resolve().with_suffix("").parts for path in paths]
    for depth in range(1, max(map(len, whole)) + 1):
        names = ["-".join(parts[-depth:]) for parts in whole]
        if len(set(names)) == len(names):
            return names
    raise BadInput(f"--ckpt {' '.join(paths)}: one of them is there twice")


def load_all(flags, device):
    """The checkpoints -> teacher's Bundle, and systems {name: (Bundle, steps, w)}."""
    names = ["recording", "copy synthesis", "", *(word.partition("=")[0] for word in flags.audio)]
    if len(set(names)) < len(names):
        raise BadInput(f"--audio {' '.join(flags.audio)}: expected NAME=FOLDER, each with a name of its own")
    bundles = [load_checkpoint(path, device) for path in flags.ckpt]
    teachers = [b for b in bundles if b.contract["kind"] == "teacher"]
    if not teachers and not flags.teacher:
        raise BadInput("--teacher: no checkpoint in --ckpt is a teacher; give one to measure against")
    teacher = load_teacher(flags.teacher, "--teacher", device) if flags.teacher else teachers[0]
    for path, b in zip(flags.ckpt, bundles):
        if not (b.duration and teacher.duration):
            raise BadInput(f"--ckpt {path}: F5-TTS has no voices and durations of its own to compare with")
        if b.settings != teacher.settings:
            raise BadInput(f"--ckpt {path}: other mel settings than the teacher's, they cannot share a table")
    taken = [(name, b, *check_steps(b, n, w)) for name, b in zip(short_names(flags.ckpt), bundles)
             for n in flags.steps or b.contract["steps"] or [b.contract.get("default", 10)]
             for w in (flags.cfg if b.contract["kind"] == "teacher" else flags.student_cfg) or [None]]
    return teacher, {f"{name}@{n}, w = {w:g}": (b, n, w) for name, b, n, w in taken}


def say(b, texts, speakers, voices, steps, w, seed, grid=None, temperature=1.0):
    """Ids of texts [(L,)] -> mels [(T, M)], each in its speaker's voice or the first."""
    mels = {}
    for name in dict.fromkeys(speakers):                                          # one voice at a time
        mine = [k for k, speaker in enumerate(speakers) if speaker == name]
        voice = voices.get(name) or next(iter(voices.values()), None)
        mels |= zip(mine, speak(b, [texts[k] for k in mine], voice, steps, w, seed, 1.0, grid,
                                temperature=temperature))
    return [mels[k] for k in range(len(texts))]


def spread_over_noises(b, texts, speakers, voices, steps, w, noises=4):
    """Variance of the mel over noises, mean over all values: far lower than the teacher's is a collapse."""
    takes = [torch.cat(say(b, texts, speakers, voices, steps, w, 1000 + k)) for k in range(noises)]
    return float(torch.stack(takes).var(0).mean())


def speeds(systems, speakers, batch, vocoder, settings):
    """Flow RTF of a batch and text-to-sound RTF of eight sentences, systems in turn -> {name: its columns}.

    systems {name: (Bundle, ids of texts, voices, steps, w)}; batch: one utterance, as collate() makes it.
    """
    device = next(next(iter(systems.values()))[0].model.parameters()).device
    known = min(len(b.vocab) for b, *_ in systems.values())                       # other symbols take as long
    batch = dict(text=batch["text"].clamp(max=known), align=batch["align"], x0=torch.randn_like(batch["mel"]))
    batch = {k: v.to(device) for k, v in batch.items()} | {"mask": None}
    flow = flow_rtf({name: (b.model, n, w) for name, (b, _, _, n, w) in systems.items()}, batch, settings)

    def seconds(b, texts, voices, n, w, k):
        return len(vocoder(say(b, [texts[k]], [speakers[k]], voices, n, w, 0)[0], settings)) / settings.rate
    jobs = {name: partial(seconds, *system) for name, system in systems.items()}
    sound = text_to_sound_rtf(jobs, min(8, len(speakers)), device)
    return {name: {"flow RTF": statistics.median(flow[name]),
                   **{f"text-to-sound RTF p{p}": float(np.percentile(sound[name], p)) for p in (50, 95)}}
            for name in systems}


def choose(flags, corpus):
    """Each sentence of --data once, its voices in turn -> utterance numbers, their names, their recordings.

    A name is the recording's id; its path where another one has the same id.
    """
    takes = {}
    for i in (corpus.held if flags.held else range(len(corpus.names))):
        takes.setdefault(corpus.texts[i], []).append(i)
    items = [same[k % len(same)] for k, same in enumerate(takes.values())][:flags.count]
    ids, paths = ([of[i] for i in items] for of in (corpus.names, corpus.paths))
    names = [name if ids.count(name) == 1 else path for name, path in zip(ids, paths)]
    return items, names, [load_audio(Path(flags.data) / path, corpus.settings) for path in paths]


def other_audio(word, names, settings):
    """--audio NAME=FOLDER: audio of the sentences, from files named by recording or by number from 0."""
    name, _, folder = word.partition("=")
    inside = sorted(Path(folder or "?").glob("*.*"))
    files = {path.stem: path for path in inside if path.suffix.lower() in AUDIO}
    for k, sentence in enumerate(names):
        if sentence not in files and str(k) not in files:
            raise BadInput(f"--audio {word}: expected NAME=FOLDER with a file named {sentence} or {k} there")
    found = [files.get(sentence) or files[str(k)] for k, sentence in enumerate(names)]
    return name, [load_audio(path, settings) for path in found]


def prompted(folder, bundles, vocoder):
    """Voices of each Bundle by its id, and the audio of the first one's by name: of --prompts, or ready."""
    found = find_utterances(folder)[0] if folder else []
    prompts = {name or "voice": (path, words) for _, path, words, name in reversed(found)}    # its first
    voices = {id(b): {name: front_end(b).make_voice(*prompts[name]) for name in sorted(prompts)}
              or b.voices for b in bundles}
    settings, ready = bundles[0].settings, voices[id(bundles[0])]
    return voices, {name: load_audio(prompts[name][0], settings) if name in prompts else
                    vocoder(voice["mel"].float(), settings) for name, voice in ready.items()}


def noted(speakers, voices):
    """speakers, after a line on those whose voice a checkpoint lacks. voices: of the Bundles by their id."""
    unknown = set(speakers) - set.intersection(*map(set, voices.values()))
    if unknown and any(voices.values()):
        print(f"{', '.join(sorted(unknown))}: spoken in a checkpoint's first voice; --prompts gives its own")
    return speakers


def evaluate(flags, teacher, systems, device):
    """Run what load_all() gave -> rows, a row each of their sentences, texts, the page's columns, ASR."""
    settings, first, rows, sentences, columns, targets = teacher.settings, flags.seeds[0], [], [], [], {}
    vocoder, judges = load_vocoder(flags.vocoder, settings, device), all_judges(flags.asr, teacher.lang)
    corpus = prepare(flags.data, settings, teacher.lang, teacher.vocab, flags.cache)
    items, names, recordings = choose(flags, corpus)
    texts, recorded = [corpus.texts[i] for i in items], [corpus.speakers[i] or "voice" for i in items]
    others = [other_audio(word, names, settings) for word in flags.audio]
    voices, prompts = prompted(flags.prompts, [teacher, *(b for b, _, _ in systems.values())], vocoder)
    speakers = ([list(prompts)[k % len(prompts)] for k in range(len(items))] if flags.prompts else
                noted(recorded, voices))
    said = listen(prompts.values(), prompts, settings.rate, {"speaker": judges.get("speaker")})

    def sound(mels):
        return [vocoder(mel, settings) for mel in mels]

    def spoken(b):
        return b, [reader.encode(text, b.vocab, b.lang)[0] for text in texts], voices[id(b)]

    def report(name, seed, mels, wavs, speakers, known=None, target=None):
        heard = listen(wavs, texts, settings.rate, judges)
        row = dict(system=name, seed=seed, **known or {})
        row |= nearest_voice(heard.get("embedding"), speakers, dict(zip(prompts, said.get("embedding", []))))
        if target:
            heard["mel MSE"] = [float(((x - y) ** 2).mean()) for x, y in zip(mels, target[0])]
            row |= against(heard, target[1]) if "f0" in heard else {}
        rows.append(row | summary(heard))
        sentences.extend(dict(system=name, seed=seed, sentence=names[k], speaker=speakers[k], **{
            key: values[k] for key, values in heard.items() if np.isscalar(values[k])})
            for k in range(len(texts)))
        if seed == first:
            columns.append(System(name, mels, wavs, row.get("network calls"), heard.get("Distill-MOS")))
        tqdm.write(f"seed {seed} " + table(rows[-1:], MAIN).splitlines()[-1])
    mels = [corpus.mel(i) for i in items]
    report("recording", first, mels, recordings, recorded)
    report("copy synthesis", first, mels, sound(mels), recorded)
    for name, wavs in others:
        report(name, first, [mel_spectrogram(wav, settings) for wav in wavs], wavs, recorded)
    systems = {name: (*spoken(b), n, w) for name, (b, n, w) in systems.items()}
    fast = speeds(systems, speakers, collate(corpus, items[:1]), vocoder, settings)
    _, ids, teacher_voices = spoken(teacher)
    for name, (b, mine, ready, n, w) in systems.items():
        inside = b.contract["cfg"] if b.contract["kind"] == "student" else w      # guidance in the yardstick
        known = fast[name] | {"network calls": n * (2 if w else 1)}
        known["parameters"] = count_parameters(b.model)[0]
        known["variance"] = (spread_over_noises(b, mine[:4], speakers[:4], ready, n, w)
                             / spread_over_noises(teacher, ids[:4], speakers[:4], teacher_voices, 10, inside))
        for seed in flags.seeds:
            if (inside, seed) not in targets:
                target = say(teacher, ids, speakers, teacher_voices, 32, inside, seed, cosine_grid(32),
                             flags.temperature)
                praat = listen(sound(target), texts, settings.rate, {"prosody": judges.get("prosody")})
                targets[inside, seed] = target, praat
            mels = say(b, mine, speakers, ready, n, w, seed, None, flags.temperature)
            target = targets[inside, seed]
            if [len(x) for x in mels] != [len(x) for x in target[0]]:
                tqdm.write(f"{name}: other durations than the teacher's, no distance and correlations")
                target = None
            report(name, seed, mels, sound(mels), speakers, known, target)
    return rows, sentences, texts, columns, judges.get("recogniser", "")


# ---------------------------------------------------------------------------------------------------- command


def arguments():
    """Command-line flags with their reasons."""
    p = Parser(__doc__)
    add = p.add_argument
    add("--ckpt", nargs="+", default=["checkpoints/teacher.pt", "checkpoints/student.pt"], help="checkpoints")
    add("--teacher", help="whose 32 steps are the yardstick (default: the first teacher in --ckpt)")
    add("--data", default="eval/main", help="recordings of the sentences to speak (default %(default)s)")
    add("--held", action="store_true", help="use only the held-out part of --data")
    add("--count", type=count(), default=40, help="sentences (default 40)")
    add("--steps", type=count(1, 1000), nargs="+", help="default: 10 of a teacher, those a student is for")
    add("--cfg", type=number(0, 20), nargs="+", help="guidance of teachers (default: the checkpoint's own)")
    add("--student_cfg", type=number(0, 20), nargs="+", help="guidance of students (default 0)")
    add("--seeds", type=count(0), nargs="+", default=[0], help="of the noise (default 0)")
    add("--temperature", type=number(0, 2), default=1.0, help="as in sample.py (default 1, as in training)")
    add("--prompts", help="a folder like --data: speak as its speakers in turn, after each one's first take")
    add("--audio", nargs="+", default=[], metavar="NAME=FOLDER", help="others' audio of the sentences, files "
        "named by the recording's id in --data, or by the sentence's number from 0")
    add("--vocoder", help="as in sample.py (default: the same)")
    add("--asr", help="Whisper's base, small, large-v3, a CTranslate2 folder (default: $DSFLOW_ASR, or base)")
    add("--page", type=count(0), default=6, help="sentences on the page (default %(default)s, 0: none)")
    add("--cache", default="cache", help="where mels and alignments are kept (default cache)")
    add("--out", type=Path, default=Path("out/evaluate"), help="tables, audio, page (default %(default)s)")
    add("--device", default="auto", help="auto, cuda, mps or cpu (default auto)")
    return p.parse_args()


def main():
    flags = arguments()
    device, out = pick_device(flags.device), flags.out
    teacher, systems = load_all(flags, device)
    out.mkdir(parents=True, exist_ok=True)
    rows, utterances, texts, columns, recogniser = evaluate(flags, teacher, systems, device)
    protocol = (
        f"{len(texts)} sentences of {flags.data}, seeds {' '.join(map(str, flags.seeds))}; in brackets 95 % "
        "bootstrap over sentences. Mel MSE, correlations: to the teacher's 32 steps, same noise. Variance of "
        "4 noises, to teacher@10's. Flow RTF: symbols with durations to mel, no prompt; text-to-sound: "
        "symbols to audio; one sentence at a time, systems in turn. Copy synthesis: recording -> mel -> the "
        f"same vocoder ({flags.vocoder or 'default'}). {processor(device)}.")
    prosody = [table(rows, PROSODY)] if "pitch Hz" in rows[0] else []
    text = "\n\n".join([table(rows, MAIN, recogniser), *prosody, protocol])
    write_text(out / "table.md", text + "\n")
    write_csv(out / "table.csv", rows)
    write_csv(out / "utterances.csv", utterances)
    if flags.page:
        sentences = [(text, "") for text in texts[:flags.page]]
        write_page(out / "page.html", "Listen", "", sentences, columns, teacher.settings.rate)
    print(f"\n{text}\nwrote {out / 'table.md'}, table.csv, utterances.csv" + ", page.html" * bool(flags.page))


if __name__ == "__main__":
    cli(main)
