"""A page to listen to: sentences one under the other, systems side by side, each with its sound and its mel.

    python -m measure.page                                  docs/index.html, of the shipped checkpoints
    python -m measure.page --also endpoint@1=out/endpoint/student.pt intmeanflow@1=out/imf/student.pt

The page is a file and a folder of sounds and pictures beside it. It needs no server and no framework. With
the package distillmos it also shows each sound's predicted quality. evaluate.py makes its page here too.
"""
from common.cli import BadInput, Parser, cli, count, number, pick_device
from common.files import whole, write_text

import html
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from matplotlib import image

from speech import text as reader
from speech.audio import load_audio
from speech.corpora import find_utterances
from speech.judges import at_16_khz, load_judges, mean
from speech.vocoder import load_vocoder
from networks.checkpoint import load_checkpoint, load_student, load_teacher
from data import mel_spectrogram
from sample import check_steps, front_end, speak

# -------------------------------------------------------------------------------------------------- the page

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5b6470; --line: #d9dde2; --ground: #ffffff }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --soft: #a0a8b2; --line: #3a3f46; --ground: #15171a }
}
body { margin: 0 auto; padding: 1rem; max-width: 80rem; color: var(--ink); background: var(--ground);
       font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.6rem; line-height: 1.2 } h2 { font-size: 1.1rem; margin: 2.2rem 0 0 }
p, figure { max-width: 46rem } figure { margin: 1.5rem 0 } figure img { width: 100%; height: auto }
a { color: inherit } small, .soft, figcaption { color: var(--soft); font-size: .85rem }
table { border-collapse: collapse } th, td { text-align: left; padding: .25rem 1rem .25rem 0 }
tr { border-bottom: 1px solid var(--line) }
td.figure, th.figure { text-align: right; font-variant-numeric: tabular-nums }
.row { display: grid; gap: .8rem .6rem; margin-top: .6rem; grid-template-columns: repeat(2, minmax(0, 1fr)) }
.row img { width: 100%; height: 5rem; display: block; border-radius: 4px; margin: .3rem 0 }
.row audio { width: 100%; height: 2.4rem; display: block } .row small { display: block; line-height: 1.3 }
@media (max-width: 40rem) { table { font-size: .75rem } th, td { padding-right: .4rem } }
@media (min-width: 40rem) { .row { grid-template-columns: repeat(4, minmax(0, 1fr)) } }
@media (min-width: 70rem) { .row { grid-template-columns: repeat(var(--columns), minmax(0, 1fr)) } }
"""
ONE_AT_A_TIME = """
document.addEventListener("play", event => document.querySelectorAll("audio").forEach(
  player => player === event.target || player.pause()), true)
"""
SUFFIX = ".mp3" if "MP3" in soundfile.available_formats() else ".wav"            # an old libsndfile


@dataclass
class System:
    """A column of the page. Lists have an item for each sentence."""
    name: str
    mels: list                  # (T, M) each
    wavs: list                  # (samples,) each
    calls: int | None = None    # network calls that a sentence takes
    quality: list | None = None  # predicted, where something predicts it
    titles: list | None = None  # what stands above a cell, where that is not the name


def write_sound(path, wav, rate):
    """Audio (samples,) to a file that every browser plays: MP3 at 64 kbit/s, or WAV, by the name's suffix.
    What is over full scale comes down as a whole, so that nothing is clipped.
    """
    small = dict(bitrate_mode="CONSTANT", compression_level=0.65) if path.suffix == ".mp3" else {}
    with whole(path) as partial:
        soundfile.write(partial, wav / max(1.0, float(np.abs(wav).max())), rate, **small)


def write_mel(path, mel, low, high):
    """A picture of a mel (T, M), a pixel for each frame and band, dark at `low` and bright at `high`."""
    with whole(path) as partial:
        image.imsave(partial, mel.float().cpu().numpy().T, vmin=low, vmax=high, cmap="magma", origin="lower",
                     pil_kwargs=dict(quality=60))


def cell(system, k, sound, picture):
    """HTML of one system's take of sentence k: its name, mel, player and figures."""
    name = html.escape(system.titles[k] if system.titles else system.name)
    figures = [f"{system.calls} network call{'s' * (system.calls > 1)}"] if system.calls else []
    figures += [f"quality {system.quality[k]:.1f}"] if system.quality else []
    return (f'<div><b>{name}</b><img src="{picture.as_posix()}" alt="mel spectrogram" loading="lazy">'
            f'<audio controls preload="none" src="{sound.as_posix()}" aria-label="{name}"></audio>'
            f'<small>{"<br>".join(figures)}</small></div>')


def write_page(path, title, head, sentences, systems, rate):
    """The page at `path`, its sounds and pictures in a folder beside it.

    head: HTML that stands above the sentences [(text, whose voice or "")]; systems: [System], a column each.
    """
    folder = path.with_name(f"{path.stem}_files")
    folder.mkdir(parents=True, exist_ok=True)
    made, body = set(), []
    for k, (sentence, voice) in enumerate(sentences):
        low, high = np.quantile(systems[0].mels[k].float().cpu().numpy(), [0.02, 0.999])
        cells = []
        for n, system in enumerate(systems):    # n keeps two apart whose names differ by punctuation only
            stem = f"{k}_{n}_{re.sub('[^a-z0-9]+', '_', system.name.lower()).strip('_')}"
            sound, picture = folder / f"{stem}{SUFFIX}", folder / f"{stem}.webp"
            write_sound(sound, system.wavs[k], rate)
            write_mel(picture, system.mels[k], low, high)
            made |= {sound, picture}
            cells.append(cell(system, k, sound.relative_to(path.parent), picture.relative_to(path.parent)))
        body += [f"<h2>{html.escape(sentence)}</h2>"]
        body += [f'<span class="soft">{html.escape(voice)}</span>'] if voice else []
        body += ['<div class="row">', *cells, "</div>"]
    lines = "\n".join(body)
    write_text(path, f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{STYLE}.row {{ --columns: {len(systems)} }}
</style></head>
<body>
<h1>{html.escape(title)}</h1>
{head}
{lines}
<script>{ONE_AT_A_TIME}</script>
</body></html>
""")
    for old in folder.iterdir():                # what an earlier page had and this one has not
        if re.fullmatch(r"\d+_\d+_\w*\.(mp3|wav|webp)", old.name) and old not in made:
            old.unlink()


# --------------------------------------------------------------------------------------------- what it says

INTRODUCTION = """
<p>A flow-matching teacher takes twenty network calls for a sentence: ten steps, each with guidance.
<a href="https://arxiv.org/abs/2602.09041">DSFlow</a> makes of it a student that takes one. Hear both, on
sentences that neither was trained on, from the same noise.</p>
"""
CAPTION = """The teacher follows the curve in many small steps. The student learns to go from one of its
states straight to a later one, and to know the mean velocity between the two."""


def drawing(folder):
    """The method's drawing for light and dark pages, copied beside the page -> HTML, "" where none is."""
    assets = Path(__file__).resolve().parents[1] / "assets"
    light, dark = assets / "method_light.svg", assets / "method_dark.svg"
    if not (light.is_file() and dark.is_file()):
        return ""
    folder.mkdir(parents=True, exist_ok=True)
    for path in (light, dark):
        shutil.copyfile(path, folder / path.name)
    return f"""<figure><picture>
<source srcset="{folder.name}/{dark.name}" media="(prefers-color-scheme: dark)">
<img src="{folder.name}/{light.name}" alt="a curve from noise to data; a straight step between two states">
</picture><figcaption>{CAPTION}</figcaption></figure>
"""


def training(b):
    """How a checkpoint was trained, in words, as far as it tells."""
    if b.contract["kind"] == "teacher":
        return "flow matching"
    start = f" after {Path(b.config['init']).stem}" if b.config.get("init") else ""
    return f"{b.config.get('method', 'not known')}, {b.config.get('max_iters', 0):,} updates{start}"


def summary(systems, bundles):
    """A table of systems: training, network calls, predicted quality (mean over the sentences)."""
    heard = any(system.quality for system in systems)
    title = '<th class="figure">predicted quality</th>' if heard else ""
    lines = [f'<tr><th>system</th><th>training</th><th class="figure">network calls</th>{title}</tr>']
    for system, b in zip(systems, bundles):
        cells = f"<td>{html.escape(system.name)}</td><td>{html.escape(training(b)) if b else ''}</td>"
        cells += f'<td class="figure">{system.calls or ""}</td>'
        cells += f'<td class="figure">{mean(system.quality):.2f}</td>' if heard else ""
        lines.append(f"<tr>{cells}</tr>")
    return "\n".join(["<table>", *lines, "</table>"])


def notes(flags, heard, students):
    """What a listener should know of how the sounds were made."""
    said = ["Everything but recordings and prompts goes through the same vocoder. The noise has a standard "
            f"deviation of {flags.temperature:g}."]
    if flags.data == "eval/main":
        said.append("The recordings, as all that the networks were trained on, are another synthesiser's, "
                    "Kokoro.")
    if flags.prompted:
        said.append("A voice without training is known to the networks by its prompt only, a few seconds.")
    if heard:
        said.append("Predicted quality is Distill-MOS, a network's guess of what listeners would say, from 1 "
                    "to 5. No listener was asked.")
    if len({b.config.get("max_iters") for b in students}) > 1:
        said.append("The students were not trained for equally long, so this page does not say which method "
                    "is better.")
    return f'<p class="soft">{" ".join(said)}</p>'


# --------------------------------------------------------------------------------------------------- command


def load_columns(flags, device):
    """The checkpoints -> columns [(name, Bundle, steps, w)], the teacher's first."""
    teacher = load_teacher(flags.teacher, "--teacher", device)
    b = load_student(flags.student, "--student", teacher, None, device)
    w = b.contract["cfg"]                       # the teacher has the guidance that the student has learned
    columns = [("teacher@10", teacher, 10, w), ("teacher@1", teacher, 1, w)]
    columns += [(f"student@{n}", b, n, 0.0) for n in b.contract["steps"] or [1, 2, 4]]
    for word in flags.also:
        name, _, path = word.partition("=")
        if not (name and path):
            raise BadInput(f"--also {word}: expected NAME=PATH, like endpoint@1=out/endpoint/student.pt")
        b, steps = load_checkpoint(path, device), re.search(r"@(\d+)$", name)
        if b.contract["kind"] != "student":
            raise BadInput(f"--also {word}: holds a teacher; expected a student.pt of distill.py")
        columns.append((name, b, *check_steps(b, int(steps[1]) if steps else None, None)))
    for name, b, *_ in columns:
        if not b.duration or b.settings != teacher.settings:
            raise BadInput(f"{name}: other mel settings than the teacher's, or no durations of its own")
    return columns


def find_takes(flags, voices):
    """--ids and --prompted -> [(words, recording or prompt, speaker, words of the prompt or None)]."""
    found = {name: (words, path, speaker) for name, path, words, speaker in find_utterances(flags.data)[0]}
    prompts = [(path, words) for _, path, words, speaker in find_utterances(flags.prompts)[0]
               if speaker == flags.prompt_voice]
    if flags.prompted and not prompts:
        raise BadInput(f"--prompt_voice {flags.prompt_voice}: no recording of that name in {flags.prompts}")
    takes = []
    for k, name in enumerate(flags.ids):
        if name not in found:
            raise BadInput(f"--ids {name}: no recording of that name in {flags.data}")
        words, path, speaker = found[name]
        if k >= len(flags.ids) - flags.prompted:
            takes.append((words, prompts[0][0], flags.prompt_voice, prompts[0][1]))
        elif speaker in voices:
            takes.append((words, path, speaker, None))
        else:
            raise BadInput(f"--ids {name}: {speaker} is not among the voices {', '.join(voices)}")
    return takes


def say(b, takes, steps, w, temperature):
    """The words of all takes by one checkpoint, each in its voice -> mels [(T, M)]."""
    mels = []
    for k, (words, path, speaker, prompt) in enumerate(takes):
        voice = front_end(b).make_voice(path, prompt) if prompt else b.voices[speaker]
        ids = reader.encode(words, b.vocab, b.lang)[0]
        mels += speak(b, [ids], voice, steps, w, start=k, temperature=temperature)
    return mels


def arguments():
    """Command-line flags with their reasons."""
    p = Parser(__doc__)
    add = p.add_argument
    add("--teacher", default="checkpoints/teacher.pt", help="(default %(default)s)")
    add("--student", default="checkpoints/student.pt", help="of that teacher (default %(default)s)")
    add("--also", nargs="+", default=[], metavar="NAME=PATH", help="further students; NAME@4 takes 4 steps")
    add("--data", default="eval/main", help="recordings of the sentences (default %(default)s)")
    add("--ids", nargs="+", default=IDS, help="which, by id: each in its speaker's voice (default: six)")
    add("--prompted", type=count(0), default=2, help="so many of them, the last, speak in the voice of a "
        "prompt instead (default %(default)s)")
    add("--prompts", default="eval/prompts", help="recordings of voices without training (%(default)s)")
    add("--prompt_voice", default="am_puck", help="whose prompt it is (default %(default)s)")
    add("--temperature", type=number(0, 2), default=0.0, help="of the noise, as in sample.py (default 0)")
    add("--vocoder", help="as in sample.py (default: the same)")
    add("--device", default="auto", help="auto, cuda, mps or cpu (default auto)")
    add("--out", type=Path, default=Path("docs/index.html"), help="the page (default %(default)s)")
    flags = p.parse_args()
    if flags.out.suffix != ".html":
        raise BadInput(f"--out {flags.out}: expected the name of an .html file")
    return flags


IDS = ["af_heart_0055", "af_heart_0025", "am_michael_0056", "am_michael_0028", "af_heart_0042",
       "af_heart_0088"]


def main():
    flags = arguments()
    device = pick_device(flags.device)
    columns = load_columns(flags, device)
    bundles, settings = [b for _, b, *_ in columns], columns[0][1].settings
    takes = find_takes(flags, set.intersection(*(set(b.voices) for b in bundles)))
    vocoder, mos = load_vocoder(flags.vocoder, settings, device), load_judges(("mos",)).get("mos")

    def system(name, mels, wavs, calls=None, titles=None):
        quality = [mos(at_16_khz(wav, settings.rate)) for wav in wavs] if mos else None
        print(name + (f": predicted quality {mean(quality):.2f}" if mos else ""))
        return System(name, mels, wavs, calls, quality, titles)
    recorded = [load_audio(path, settings) for _, path, *_ in takes]
    systems = [system("recording or prompt", [mel_spectrogram(wav, settings) for wav in recorded], recorded,
                      titles=["prompt" if prompt else "recording" for *_, prompt in takes])]
    for name, b, steps, w in columns:
        mels = say(b, takes, steps, w, flags.temperature)
        systems.append(system(name, mels, [vocoder(mel, settings) for mel in mels], steps * (2 if w else 1)))
    sentences = [(words, f"a voice without training, from its prompt: {speaker}" if prompt else
                  f"voice: {speaker}") for words, _, speaker, prompt in takes]
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    head = [INTRODUCTION, drawing(flags.out.with_name(f"{flags.out.stem}_files")),
            summary(systems, [None, *bundles]), notes(flags, mos, bundles[2:])]
    write_page(flags.out, "Speech in one network call: DSFlow", "".join(head), sentences, systems,
               settings.rate)
    print(f"wrote {flags.out}")


if __name__ == "__main__":
    cli(main)
