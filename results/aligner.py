"""How far align.py's word starts are from those that Kokoro-82M itself gave the words of corpus/.

    pip install "kokoro-onnx>=0.6" onnx
    PYTHONPATH=. python results/aligner.py kokoro-v1.0.int8.onnx voices-v1.0.bin    (see corpus/make.py)

Kokoro speaks the recordings again, with its predicted durations as a second output. Sentences that espeak and
gruut divide into other words are left out; each voice's median difference is taken out, since Kokoro's
decoder is late by a constant.
"""
import re
import sys

import numpy as np

from common.cli import complain
from speech import text as reader
from speech.prepare import prepare

DURATIONS = "/encoder/Clip_output_0"            # frames of 25 ms of every token, in the graph of version 1.0
try:
    import onnx
    import onnxruntime
    from kokoro_onnx import Kokoro
except ImportError as problem:
    complain(f'aligner.py needs the package {problem.name}: pip install "kokoro-onnx>=0.6" onnx')
if len(sys.argv) != 3:
    complain("expected the files of Kokoro-82M's model and of its voices, see corpus/make.py")
VOICES = {"af_heart": 30, "am_michael": 30, "af_bella": 8, "bf_emma": 8, "am_onyx": 8, "bm_lewis": 8}


class Session:
    """An onnxruntime session that keeps what it was given and the durations that it made of it."""

    def __init__(self, path):
        graph = onnx.load(path)
        graph.graph.output.append(onnx.helper.make_empty_tensor_value_info(DURATIONS))
        self.inner = onnxruntime.InferenceSession(graph.SerializeToString(),
                                                  providers=["CPUExecutionProvider"])
        self.runs = []

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def run(self, names, inputs, *more):
        """As onnxruntime's, the audio alone."""
        audio, durations = self.inner.run(None, inputs)
        self.runs.append((inputs["tokens"][0], durations.ravel()))
        return [audio]


def word_starts(kokoro, words, voice):
    """Starts of the words in seconds of the recording as corpus/make.py cut it, by Kokoro; or None."""
    kokoro.sess.runs.clear()
    words = re.sub(r"\b(Mr|Mrs|Dr)\.", r"\1", words)
    wav, rate = kokoro.create(words, voice, lang="en-gb" if voice[0] == "b" else "en-us", trim=False)
    if len(kokoro.sess.runs) != 1:
        return None
    hop = rate // 100
    power = np.square(wav[:len(wav) // hop * hop].reshape(-1, hop)).mean(1)
    first = (np.flatnonzero(power > power.max() * 10 ** -5.5)[0] - 15) * hop / rate
    name = {number: phoneme for phoneme, number in kokoro.tokenizer.vocab.items()}
    starts, end, between = [], 0, True
    for token, frames in zip(*kokoro.sess.runs[0]):
        phoneme = name.get(token, "")
        if not between and phoneme in ' ;:,.!?—…"“”()':
            between = True
        elif between and phoneme not in ' ;:,.!?—…"“”()':
            starts.append(end * 0.025 - first)
            between = False
        end += frames
    return np.array(starts)


def heard(corpus, i):
    """Starts of the words in seconds, by the aligner."""
    written, ids = reader.encode(corpus.texts[i], corpus.vocab)[0].tolist(), corpus.ids[i].tolist()
    first, at = [], 1                           # place of each word's first symbol in what is written
    for sentence in reader.split(corpus.texts[i], "en-us"):
        for word in reader.pronounce(sentence, "en-us")[1]:
            if word not in ",.!?":
                first.append(at)
            at += len(reader.pronounce(word, "en-us")[0]) - 1 if word not in ",.!?" else 1
    if at != len(written):                      # a word is read otherwise alone
        return None
    place = []                                  # of what is written, in what is heard
    for k, symbol in enumerate(ids):
        if len(place) < len(written) and symbol == written[len(place)]:
            place.append(k)
    ends = np.concatenate([[0], np.cumsum(corpus.durations[i].numpy())])
    return ends[[place[k] for k in first]] * corpus.settings.hop / corpus.settings.rate


kokoro = Kokoro(*sys.argv[1:])
kokoro.sess = Session(sys.argv[1])
corpus, errors, recordings = prepare("corpus"), [], 0
for voice, count in VOICES.items():
    mine = [i for i, who in enumerate(corpus.speakers) if who == voice]
    off = []
    for i in mine[::len(mine) // count][:count]:
        ours, theirs = heard(corpus, i), word_starts(kokoro, corpus.texts[i], voice)
        if ours is not None and theirs is not None and len(ours) == len(theirs):
            off += [1000 * (ours - theirs)]
    errors += list(np.concatenate(off) - np.median(np.concatenate(off)))
    recordings += len(off)
errors = np.abs(errors)
pauses = sum(len(corpus.ids[i]) - len(reader.encode(corpus.texts[i], corpus.vocab)[0])
             for i in range(len(corpus.texts)))
print(f"{len(errors)} words of {recordings} recordings: median {np.median(errors):.0f} ms, 90th and 97th "
      f"percentile {np.percentile(errors, 90):.0f} and {np.percentile(errors, 97):.0f} ms, over 50 ms "
      f"{np.mean(errors > 50):.1%}, over 100 ms {np.mean(errors > 100):.1%}; pauses found: {pauses}")
