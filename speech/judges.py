"""What hears audio: words, Distill-MOS, speaker, prosody, each by an optional package; see evaluate.py."""
import contextlib
import io
import math
import os
import re
import statistics
from pathlib import Path

import librosa
import numpy as np
import torch
from tqdm import tqdm

from common.cli import BadInput, ask_hub
from common.files import markdown, write_audio, write_text
from common.plots import plot_mels
from speech.vocoder import load_vocoder


def first_line(problem):
    """An exception's words, as far as a line goes."""
    return (str(problem).splitlines() or [""])[0]


def mean(values):
    """Mean of those among numbers that are finite, nan where none is."""
    values = [float(v) for v in values if math.isfinite(v)]
    return statistics.mean(values) if values else math.nan


def word_errors(said, heard):
    """Levenshtein distance between two word lists: substitutions, insertions and deletions."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(said, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1]


def load_asr(name, lang):
    """--asr -> {"asr": function(audio at 16 kHz) -> what it heard, "recogniser": its name}.

    lang: a checkpoint's. name None: DSFLOW_ASR from the environment, or Whisper base; where that cannot be
    had pocketsphinx, or {}, after a line on what is missing.
    """
    wanted = name or os.environ.get("DSFLOW_ASR") or "base"
    language = {"letters": "en", "f5": "en", "none": None}.get(lang, lang.split("-")[0])   # None: it detects
    ask_hub(wanted)
    try:
        from faster_whisper import WhisperModel
        model = WhisperModel(wanted, device="cpu", compute_type="int8", cpu_threads=torch.get_num_threads())
        title = "whisper-" + Path(wanted).name.removeprefix("whisper-")
        return dict(recogniser=title, asr=lambda wav: " ".join(
            part.text for part in model.transcribe(wav, beam_size=5, language=language)[0]))
    except ImportError:
        reason = "needs packages: pip install faster-whisper whisper-normalizer"
    except Exception as problem:                # no internet, no such model: of many types
        reason = f"cannot be had ({first_line(problem):.99}); a CTranslate2 folder would do"
    if name:
        raise BadInput(f"--asr {name}: {reason}")
    try:
        from pocketsphinx import Decoder
    except ImportError:
        print(f"word errors left out: Whisper {wanted} {reason}")
        return {}
    print(f"word errors by pocketsphinx, which is weak and English: Whisper {wanted} {reason}")
    decoder = Decoder(samprate=16000, loglevel="FATAL")

    def sphinx(wav):
        decoder.start_utt()
        decoder.process_raw((wav.clip(-1, 1) * 32767).astype(np.int16).tobytes(), full_utt=True)
        decoder.end_utt()
        return decoder.hyp().hypstr if decoder.hyp() else ""
    return dict(recogniser="pocketsphinx", asr=sphinx)


def load_words(lang):
    """Function(text) -> the words that count, by Whisper's normaliser where installed, else lower case."""
    try:
        from whisper_normalizer import basic, english
    except ImportError:
        return lambda text: re.findall(r"[\w']+", text.lower())
    own = lang.startswith(("en", "letters", "f5"))
    clean = english.EnglishTextNormalizer() if own else basic.BasicTextNormalizer()
    return lambda text: clean(text).split()


def load_mos():
    """Function(audio at 16 kHz) -> Distill-MOS."""
    import distillmos
    net = distillmos.ConvTransformerSQAModel().eval()
    return lambda wav: float(torch.no_grad()(net)(torch.from_numpy(wav)[None]))


def load_encoder():
    """Function(audio at 16 kHz) -> Resemblyzer's speaker embedding, of length 1."""
    import resemblyzer
    return resemblyzer.VoiceEncoder("cpu", verbose=False).embed_utterance


def load_praat():
    """Function(audio at 16 kHz) -> F0 every 16 ms in Hz, 0 where unvoiced, and Praat's figures of it all."""
    import parselmouth

    def prosody(wav):
        wav = np.pad(wav, (0, max(0, 4000 - len(wav)))).astype(float)             # it wants some periods
        sound, call = parselmouth.Sound(wav, 16000), parselmouth.praat.call
        f0 = sound.to_pitch(0.016, 60, 500).selected_array["frequency"]
        hnr = sound.to_harmonicity_cc(minimum_pitch=60).values                    # -200 where unvoiced
        pulses = call(sound, "To PointProcess (periodic, cc)", 60, 500)
        return {"f0": f0, "pitch Hz": mean(f0[f0 > 0]), "voiced": mean(f0 > 0),
                "HNR dB": mean(hnr[hnr > -200]),
                "jitter": call(pulses, "Get jitter (local)", 0, 0, 1e-4, 0.02, 1.3),
                "shimmer": call([sound, pulses], "Get shimmer (local)", 0, 0, 1e-4, 0.02, 1.3, 1.6)}
    return prosody


JUDGES = {"mos": (load_mos, "Distill-MOS", "distillmos"),
          "speaker": (load_encoder, "speaker cosine", "resemblyzer webrtcvad-wheels"),
          "prosody": (load_praat, "pitch and voice quality", "praat-parselmouth")}


def load_judges(names=tuple(JUDGES)):
    """Those of JUDGES that can be had here, by name; a line says which packages are missing."""
    judges = {}
    for name in names:
        load, measure, packages = JUDGES[name]
        try:
            with contextlib.redirect_stdout(io.StringIO()):                       # some talk
                judges[name] = load()
        except (ImportError, OSError, RuntimeError) as problem:
            print(f"{measure} left out: pip install {packages} ({first_line(problem):.99})")
    return judges


def all_judges(asr, lang):
    """What can judge audio here, by name: "asr" with its "recogniser", "words", and those of JUDGES."""
    return load_asr(asr, lang) | {"words": load_words(lang)} | load_judges()


def at_16_khz(wav, rate):
    """Audio (samples,) at any rate -> as everything here wants it."""
    return librosa.resample(wav, orig_sr=rate, target_sr=16000)


def listen(wavs, texts, rate, judges):
    """Audio of sentences -> {figure: its value of each sentence}; figures without a judge are absent."""
    heard = {}
    for wav, text in zip(tqdm(wavs, desc="listen", leave=False, disable=None), texts):
        wav, figures = at_16_khz(wav, rate), {}
        if judges.get("asr"):
            said, found = judges["words"](text), judges["words"](judges["asr"](wav))
            errors, length = word_errors(said, found), max(1, len(said))
            figures |= {"word errors": errors, "words": length, "word error rate": errors / length}
        if judges.get("mos"):
            figures["Distill-MOS"] = judges["mos"](wav)
        if judges.get("speaker"):
            figures["embedding"] = judges["speaker"](wav)
        if judges.get("prosody"):
            figures |= judges["prosody"](wav)
        for name, value in figures.items():
            heard.setdefault(name, []).append(value)
    return heard


def present(rows, note, mels, lengths, settings, out):
    """Print and write table.md, write pictures of the first two sentences and audio of the first.

    rows {name: {column: cell}}; note: what stands under the table; mels {name: (B, T, M)} with so many frames
    each, of the rows and of the "recording". Where Distill-MOS is installed, its mean over all sentences is
    the last column, and the recording, by the vocoder, the first row.
    """
    vocoder = load_vocoder(None, settings, mels["recording"].device)
    mos = load_judges(["mos"]).get("mos")
    if mos:
        rows = {"recording": dict.fromkeys(next(iter(rows.values())), "")} | rows
        note += " Distill-MOS: predicted quality, 1 to 5; the first quarter of each sentence is recorded."
    for name, mel in mels.items():
        wavs = [vocoder(x[:T], settings) for x, T in zip(mel[:None if mos else 1], lengths)]
        write_audio(out / f"{name.replace(', w = ', '_w').replace('@', '_at_')}.wav", wavs[0], settings.rate)
        if mos:
            rows[name]["Distill-MOS"] = f"{mean(mos(at_16_khz(wav, settings.rate)) for wav in wavs):.2f}"
    for i in range(min(2, len(lengths))):
        plot_mels([(name, mel[i, :lengths[i]]) for name, mel in mels.items()], out / f"mels_{i}.png")
    titles = {"recording": "recording -> mel -> vocoder"}
    table = markdown(["model", *next(iter(rows.values()))],
                     [[titles.get(name, name), *cells.values()] for name, cells in rows.items()])
    print(f"\n{table}\n\n{note}")
    write_text(out / "table.md", f"{table}\n\n{note}\n")
