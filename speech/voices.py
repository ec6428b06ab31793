"""What stands before the network: a text becomes chunks of symbols, a recording a voice, symbols last.

FrontEnd is for our checkpoints, that of speech/f5_text.py for F5-TTS's; both have the same methods. They take
a Bundle of networks/checkpoint.py. Shapes: P frames of the prompt, T of prompt and text, L symbols, M bands.
"""
import torch

from common.cli import BadInput
from data import frame_to_symbol, mel_spectrogram
from speech import text as reader
from speech.align import align, cepstra
from speech.audio import load_audio
from speech.prepare import letters, outliers, speech_seconds


class FrontEnd:
    """Reads texts and prompts for one checkpoint, and gives its symbols their durations."""
    fade = 0.0                  # seconds in which chunks cross over; ours begin and end in silence
    temperature = 0.0           # the noise's usual standard deviation: its mean alone sounds clearest
    varied = 0.5                # the same where takes should differ; training has 1

    def __init__(self, bundle):
        self.bundle = bundle

    def pick_voice(self, name=None, prompt=None, prompt_text=None):
        """A voice made of a prompt and its words, else a ready one by its name, None for name "none".

        Without a name it is the one that the checkpoint's contract calls its voice, or else its first.
        """
        b = self.bundle
        if prompt:
            return self.make_voice(prompt, prompt_text)
        if name not in (None, "none", *b.voices):
            raise BadInput(f"--voice {name}: this checkpoint has {', '.join(b.voices)}, or use --prompt")
        if name == "none" or not b.voices:
            return None
        return b.voices[name or b.contract.get("voice") or next(iter(b.voices))]

    def make_voice(self, path, words):
        """A recording and its words -> {"mel" (P, M), "text" (L,), "durations" (L,)}, aligned."""
        b, settings = self.bundle, self.bundle.settings
        mel = mel_spectrogram(load_audio(path, settings, longest=15), settings)
        ids, dropped = reader.encode(words, b.vocab, b.lang)
        self.check(words, "--prompt_text", dropped, self.says_a_word(ids))
        odd = outliers([sum(letters(b.vocab[i - 1]) for i in ids)], [speech_seconds(mel, settings)])
        if odd or len(ids) >= len(mel):
            raise BadInput(f"--prompt {path}, --prompt_text {words[:30]!r}: {odd.get(0, 'too many symbols')}")
        ids, durations = align(cepstra(mel), ids, b.gauss, reader.pauses(b.vocab, b.lang))
        return dict(mel=mel, text=ids, durations=durations)

    def says_a_word(self, ids):
        """Whether ids (L,) are more than spaces and marks."""
        return any(self.bundle.vocab[i - 1].strip(reader.FINAL + ", ") for i in ids.tolist())

    def check(self, words, flag, dropped, spoken):
        """Says what of a user's text is dropped or in doubt; BadInput when nothing of it is spoken."""
        lang = self.bundle.lang
        reader.tell(flag, words, lang, dropped)
        if not spoken:
            raise BadInput(f"{flag} {words[:30]!r}: nothing to say; expected words of language {lang}")

    def chunks(self, words, voice=None, speed=1.0, flag="--text"):
        """A text -> its sentences as speak() takes them, (L,) ids each; those with nothing to say are left
        out. voice and speed count for F5-TTS alone, where they decide how much fits into a chunk.
        """
        found, unread = reader.chunks(words, self.bundle.lang)
        read = [reader.to_ids(symbols, self.bundle.vocab) for _, symbols in found]
        said = [ids for ids, _ in read if self.says_a_word(ids)]
        self.check(words, flag, set(unread).union(*(unknown for _, unknown in read)), said)
        return said

    def predict(self, texts, speed):
        """Durations in frames (B, L), padding 0, of texts [(L,)]."""
        ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
        return self.bundle.duration.predict(ids.to(next(self.bundle.model.parameters()).device), speed).cpu()

    def plan(self, texts, voice=None, speed=1.0):
        """Ids of each text [(L,)] -> prompt and text as one, [(ids (L,), align (T,))]."""
        none = torch.zeros(0, dtype=torch.long)
        text, durations = (none, none) if voice is None else (voice["text"], voice["durations"])
        if len(text):                           # a slow speaker is continued slowly
            rate = durations.sum() / self.predict([text], 1.0).sum()
            speed = speed / float(rate.clamp(0.6, 1.6))
        return [(torch.cat([text, ids]), frame_to_symbol(torch.cat([durations, d[:len(ids)]])))
                for ids, d in zip(texts, self.predict(texts, speed))]
