"""Speak the sentences of this folder and of ../eval by Kokoro-82M, on the CPU; or those of another file.

    pip install "kokoro-onnx>=0.6" soundfile soxr tqdm
    python corpus/make.py --model kokoro-v1.0.int8.onnx --voices voices-v1.0.bin
    python corpus/make.py --more FILE --hours 6 --out DIR

Both files come from kokoro-onnx's release page (github.com/thewh1teagle/kokoro-onnx, model-files-v1.0); model
and voices are Apache-2.0. corpus: each line is spoken by one voice, the one that is furthest behind its
minutes. eval/main: both main voices speak every line of eval/sentences.txt; eval/unseen: each of four other
voices speaks every fifth; eval/prompts: one line of eval/prompts.txt each, as voice prompt. Writes
VOICE/wavs/ID.opus (16 kHz mono) and VOICE/metadata.csv; what exists is not spoken again.

--more: FILE has a first line "number|voice|text" and such lines below; they are spoken in their order, up to
about so many hours, at 32 kbit/s. DIR may be a copy of this folder: what is in it stays.
"""
import argparse
import importlib
import multiprocessing
import re
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import soxr
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
MAIN_MINUTES, FURTHER_MINUTES = 36, 3.25
# voice: letters it speaks in a second. af, am: American women and men; bf, bm: British.
MAIN = {"af_heart": 20.3, "am_michael": 18.5}
FURTHER = {"af_alloy": 18.1, "af_aoede": 21.0, "af_bella": 19.2, "af_nova": 19.4, "af_river": 20.7,
           "af_sarah": 20.4, "bf_emma": 20.4, "bf_lily": 17.9, "am_echo": 18.4, "am_eric": 21.2,
           "am_fenrir": 20.4, "am_liam": 20.7, "am_onyx": 16.7, "bm_daniel": 19.0, "bm_george": 16.1,
           "bm_lewis": 17.6}
UNSEEN = ("af_kore", "bf_isabella", "am_puck", "bm_fable")      # only in eval/


def plan():
    """(path, voice, text) of every recording, in the order in which they are made."""
    share = {voice: MAIN_MINUTES * rate for voice, rate in MAIN.items()}
    share |= {voice: FURTHER_MINUTES * rate for voice, rate in FURTHER.items()}
    letters, corpus = dict.fromkeys(share, 0), []
    lines = (ROOT / "corpus/sentences.txt").read_text().splitlines()
    for number, line in enumerate(lines, 1):
        voice = min(share, key=lambda v: letters[v] / share[v])
        letters[voice] += len(line)
        corpus.append(("corpus", voice, f"{number:04d}", line))
    first = [task for voice in MAIN for task in [t for t in corpus if t[1] == voice][:100]]
    corpus = sorted(first, key=lambda t: t[2]) + [task for task in corpus if task not in first]
    lines = list(enumerate((ROOT / "eval/sentences.txt").read_text().splitlines(), 1))
    heard = [("eval/main", voice, f"{number:04d}", line) for number, line in lines for voice in MAIN]
    prompts = (ROOT / "eval/prompts.txt").read_text().splitlines()
    for turn, (voice, prompt) in enumerate(zip(UNSEEN, prompts)):
        heard.append(("eval/prompts", voice, "prompt", prompt))
        heard += [("eval/unseen", voice, f"{number:04d}", line) for number, line in lines[turn::5]]
    return [(ROOT / folder / voice / "wavs" / f"{voice}_{name}.opus", voice, line)
            for folder, voice, name, line in corpus + heard]


def plan_more(file, hours, out):
    """As plan(), of FILE's lines, until their letters make so many hours at the pace of most voices."""
    tasks, letters = {}, 0
    try:
        title, *lines = file.read_text(encoding="utf-8").splitlines() or [""]
    except UnicodeDecodeError:
        raise ValueError(f"--more {file}: not UTF-8") from None
    if title != "number|voice|text":
        raise ValueError(f"--more {file}: begins {title[:60]!r}; expected a first line number|voice|text")
    for line in lines:
        number, voice, text = (line.split("|") if line.count("|") == 2 else ("", "", ""))
        path = out / voice / "wavs" / f"{voice}_{number}.opus"
        if not (number.isalnum() and voice and text) or path in tasks:
            raise ValueError(f"--more {file}: {line[:60]!r}: expected number|voice|text, each pair once")
        letters += len(text)
        if letters / 18.5 > hours * 3600:
            break
        tasks[path] = (path, voice, text)
    return list(tasks.values())


def load(model, voices):
    """In each worker: the synthesiser, on one thread."""
    global kokoro
    import onnxruntime
    from kokoro_onnx import Kokoro
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    kokoro = Kokoro.from_session(session, voices)


def speak(task, compression):
    """One recording: silence at both ends cut to .15 s, 16 kHz, Ogg Opus."""
    path, voice, text = task
    path.parent.mkdir(parents=True, exist_ok=True)
    text = re.sub(r"\b(Mr|Mrs|Dr)\.", r"\1", text)         # espeak makes a pause of the full stop
    wav, rate = kokoro.create(text, voice, lang="en-gb" if voice[0] == "b" else "en-us", trim=False)
    hop = rate // 100
    power = np.square(wav[:len(wav) // hop * hop].reshape(-1, hop)).mean(1)
    loud = np.flatnonzero(power > power.max() * 10 ** -5.5)
    wav = np.pad(wav, 15 * hop)[loud[0] * hop:(loud[-1] + 31) * hop]
    wav = soxr.resample(wav, rate, 16000)
    part = path.with_suffix(".part")
    with soundfile.SoundFile(part, "w", 16000, 1, "OPUS", format="OGG", compression_level=compression) as f:
        f.write(wav * min(1, 0.95 / np.abs(wav).max()))
    part.rename(path)


def weed(tasks):
    """Remove recordings whose length is far from what their voice needs for so many letters: garbled ones."""
    for voice in sorted({voice for _, voice, _ in tasks}):
        paths, letters = zip(*[(path, len(text)) for path, v, text in tasks if v == voice])
        if len(paths) < 10:
            continue                                       # too few to tell the voice's pace
        seconds = [soundfile.info(path).duration for path in paths]
        for path, found, due in zip(paths, seconds, np.polyval(np.polyfit(letters, seconds, 1), letters)):
            if not 0.6 * due - 0.3 < found < 1.65 * due + 0.3:
                print(f"removed {path.name}: {found:.1f} s, expected {due:.1f}")
                path.unlink()


def write_metadata(tasks):
    """What is there, in each voice's metadata.csv (LJSpeech: id|text|text); others' rows stay."""
    rows = {}
    for path, _, text in tasks:
        rows.setdefault(path.parent.parent, {})[path.stem] = f"{path.stem}|{text}|{text}\n"
    for folder, lines in rows.items():
        table = folder / "metadata.csv"
        before = table.read_text(encoding="utf-8").splitlines(keepends=True) if table.exists() else []
        lines = {line.split("|", 1)[0]: line for line in before} | lines
        there = [line for name, line in sorted(lines.items()) if (folder / "wavs" / f"{name}.opus").exists()]
        if there:
            table.with_suffix(".part").write_text("".join(there), encoding="utf-8")
            table.with_suffix(".part").rename(table)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="kokoro-v1.0.int8.onnx")
    parser.add_argument("--voices", default="voices-v1.0.bin")
    parser.add_argument("--workers", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--more", type=Path, metavar="FILE", help="speak its lines, number|voice|text")
    parser.add_argument("--hours", type=float, help="with --more: about so much of it (default 6)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="with --more: where to")
    parser.print_usage = lambda *_: None        # an error is one line
    args = parser.parse_args()
    if (args.more is None) != (args.out is None) or args.more is None and args.hours is not None:
        parser.error("--more, --out and --hours: expected together: a file of sentences, where to, how much")
    if args.workers < 1:
        parser.error(f"--workers {args.workers}: expected 1 or more")
    hours = 6.0 if args.hours is None else args.hours
    if not 0 < hours < 1000:
        parser.error(f"--hours {hours:g}: expected hours of speech, like 6")
    for flag, file in (("--more", args.more), ("--model", args.model), ("--voices", args.voices)):
        if file is not None and not Path(file).is_file():
            parser.error(f"{flag} {file}: no such file; see above where it comes from")
    try:
        tasks = plan_more(args.more, hours, args.out) if args.more else plan()
    except ValueError as problem:
        parser.error(str(problem))
    try:
        importlib.import_module("kokoro_onnx")  # here once, or every process would fail for ever
        unknown = {voice for _, voice, _ in tasks} - set(np.load(args.voices).files)
    except ImportError as problem:
        parser.error(f"{problem.name} is missing: pip install kokoro-onnx")
    except (OSError, ValueError, AttributeError):
        parser.error(f"--voices {args.voices}: is no file of voices; see above where it comes from")
    if unknown:
        parser.error(f"--more {args.more}: {args.voices} has no voice {', '.join(sorted(unknown))}")
    speaker = partial(speak, compression=0.91 if args.more else 0.95)             # about 32 or 20 kbit/s
    missing = [task for task in tasks if not task[0].exists()]
    with multiprocessing.get_context("spawn").Pool(args.workers, load, (args.model, args.voices)) as pool:
        spoken = pool.imap(speaker, missing)
        for number, _ in enumerate(tqdm(spoken, initial=len(tasks) - len(missing), total=len(tasks)), 1):
            if number % 50 == 0:
                write_metadata(tasks)
    weed(tasks)
    write_metadata(tasks)


if __name__ == "__main__":
    main()
