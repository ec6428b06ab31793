"""How F5-TTS reads text, takes a prompt, and finds how long a text will last.

Chinese needs pip install pypinyin rjieba. Shapes: P frames of the prompt, T of prompt and text, L tokens.
"""
import re

import librosa
import numpy as np
import torch

from common.cli import BadInput, need
from data import mel_spectrogram
from speech.audio import load_audio

# ------------------------------------------------------------------------------------------------------- text

CHINESE = re.compile("[\u3100-\u9fff]+")
# Words as the segmenter rjieba finds them in English: "re-use" and "3.14" are one, "don't" is three.
ENGLISH = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*%?|[._-]{2,}|.", re.S)


def segment(text):
    """Text -> its words, spaces and marks [str]."""
    chinese = CHINESE.search(text)
    return need("rjieba", "Chinese text", "rjieba pypinyin").cut(text) if chinese else ENGLISH.findall(text)


def tokens(text):
    """Text -> F5-TTS's tokens: its characters, and for Chinese a space and pinyin with the tone, like "dui4".

    As there, a word of Latin letters gets a space before it unless the text has one ("Hello,world").
    """
    found = []
    for word in segment(text.translate(str.maketrans(";“”‘’", ",\"\"''"))):
        sounds = word
        if word.isascii() and len(word) > 1 and found and found[-1] not in " :'\"":
            found.append(" ")
        elif CHINESE.search(word):
            pinyin = need("pypinyin", "Chinese text", "rjieba pypinyin")
            sounds = pinyin.lazy_pinyin(word, style=pinyin.Style.TONE3, tone_sandhi=True, errors=list)
        for char, sound in zip(word, sounds):
            found += [" ", sound] if CHINESE.match(char) else [sound]
    return found


def encode(text, vocab):
    """Text -> ids (L,) int64 in 1 ... V; as there, what vocab lacks becomes its first token, the space."""
    place = {token: i for i, token in enumerate(vocab, 1)}
    return torch.tensor([place.get(token, 1) for token in tokens(text)], dtype=torch.long)


def speakable(words, b):
    """Whether a text has any token that the checkpoint knows and that is no mark."""
    return any(token.isalnum() for token in set(tokens(words)) & set(b.vocab))


def checked(words, b, flag):
    """A user's text, a terminal's broken bytes replaced; names what b lacks. BadInput: nothing to say."""
    words = " ".join(words.encode(errors="replace").decode().split())
    unknown = set(tokens(words)) - set(b.vocab)
    if unknown:
        print(f"{flag}: not known to the checkpoint, read as spaces: {' '.join(sorted(unknown))}")
    if not speakable(words, b):
        raise BadInput(f"{flag} {words[:30]!r}: nothing to say; this checkpoint knows {str(b.vocab)[:99]}")
    return words


LONGEST = 22.0                  # seconds of prompt and chunk together


def size(text):
    """UTF-8 bytes, which is what F5-TTS counts: a Chinese character lasts as long as three letters."""
    return len(text.encode())


# ------------------------------------------------------------------------------------------------- long text


def after(spaced, marks):
    """Pattern of pieces that end after marks and closing quotes; `spaced` ones not as in "3.14", "1,000"."""
    close = "[\"'’”」』）)\\]]*"
    return re.compile(rf".+?(?:[{spaced}]+{close}(?=\s|$|[^\x00-\x7f])\s*|[{marks}]+{close}\s*|$)")


LATIN = r"[^\W\u3100-\u9fff]+"                # or of another script that is not Chinese
WORD = rf"{LATIN}(?:['’-]{LATIN}|[.,]\d+)*"    # "don't", "re-use" and "3.14" are one


def split_words(text):
    """Text without spaces -> its words [str], Latin and Chinese ones whole, each with the marks after it."""
    pieces = []
    for run in re.findall(rf"{WORD}|{CHINESE.pattern}|.", text):
        for word in segment(run) if CHINESE.match(run) else [run]:
            if pieces and not any(map(str.isalnum, word)):
                pieces[-1] += word
            else:
                pieces.append(word)
    return pieces


CUTS = (after(".!?…", "。！？।؟۔").findall,      # sentences, then
        after(",;:", "，；：、—،؛").findall,     # clauses,
        re.compile(r"\S+\s*").findall,         # what spaces part,
        split_words, list)                      # words without spaces, at last characters


def cut(text, most, level=0):
    """Text -> pieces [str] of at most `most` bytes, each cut no finer than needed, neighbours joined."""
    pieces = []
    for part in CUTS[level](text):
        if pieces and size(pieces[-1] + part.rstrip()) <= most:
            pieces[-1] += part
        elif size(part.rstrip()) <= most or level == len(CUTS) - 1:
            pieces.append(part)
        else:
            pieces += cut(part, most, level + 1)
    return pieces


# ------------------------------------------------------------------------------------------------- front end


class FrontEnd:
    """Reads texts and prompts for F5-TTS; the methods of speech/voices.py."""
    fade = 0.15                 # seconds in which chunks cross over: they do not begin and end in silence
    temperature = varied = 1.0  # standard deviation of the noise, which is what its training knows

    def __init__(self, bundle):
        self.bundle = bundle

    def pick_voice(self, name=None, prompt=None, prompt_text=None):
        """A voice made of a prompt and its words; the checkpoint has none of its own."""
        if not prompt:
            raise BadInput("this checkpoint continues a recording: give one as --prompt, and its words as "
                           "--prompt_text")
        return self.make_voice(prompt, prompt_text)

    def make_voice(self, path, words):
        """A recording and its words -> voice prompt {"mel" (P, M), "words", "frames", "gain"}.

        words: with the ending that F5-TTS gives them; frames: where the sound is cut; gain: from the level
        that the network hears back to the recording's. BadInput: no speech, or not the words'.
        """
        b, settings = self.bundle, self.bundle.settings
        words = checked(words, b, "--prompt_text")
        wav = load_audio(path, settings, level=0, longest=12)
        wav = librosa.effects.trim(wav, top_db=42, ref=1.0)[0]                    # under -42 dB full scale
        if not len(wav):
            raise BadInput(f"--prompt {path}: nothing in it is louder than -42 dB; expected speech")
        wav = np.append(wav, np.zeros(settings.rate // 20, np.float32))
        gain = min(1.0, float(np.sqrt(np.mean(wav ** 2))) / 0.1)                  # made louder, never quieter
        words += " " if words.endswith(".") else "" if words.endswith("。") else ". "
        words += " " if words[-1].isascii() else ""
        frames = len(wav) // settings.hop
        voice = dict(mel=mel_spectrogram(wav / gain, settings), words=words, frames=frames, gain=gain)
        # Then a text under ten bytes, which plan() slows down, keeps to LONGEST as well.
        if len(tokens(words)) > frames or self.longest(voice, 1.0) < 30:
            raise BadInput(f"--prompt {path}: {len(wav) / settings.rate:.1f} s cannot be --prompt_text "
                           f"{words[:30].strip()!r}, {size(words)} bytes; give all its words and no others")
        return voice

    def chunks(self, words, voice, speed=1.0, flag="--text"):
        """--text -> [str] as plan() takes them, LONGEST with the prompt; without those that have no sound."""
        pieces = cut(checked(words, self.bundle, flag), self.longest(voice, speed))
        return [piece.strip() for piece in pieces if speakable(piece, self.bundle)]

    def longest(self, voice, speed):
        """Bytes of a chunk that by plan()'s rule lasts LONGEST with its prompt, or a little less."""
        most = int(LONGEST * self.bundle.settings.rate / self.bundle.settings.hop)    # frames
        by_pace = (most - voice["frames"]) * size(voice["words"]) / voice["frames"] * speed
        by_tokens = (most - 2 - len(tokens(voice["words"]))) / 1.5                # spaces may be inserted
        return int(min(by_pace, by_tokens))

    def plan(self, texts, voice, speed=1.0):
        """Each text [str] -> prompt and text as one, [(ids (L,), align (T,))], align zeros: attention aligns.

        T is F5-TTS's rule: a byte of text lasts as long as in the prompt; under ten bytes are spoken slowly.
        """
        made = []
        for text in texts:
            ids, slow = encode(voice["words"] + text, self.bundle.vocab), speed if size(text) >= 10 else 0.3
            T = voice["frames"] + int(voice["frames"] / size(voice["words"]) * size(text) / slow)
            T = min(max(T, len(ids) + 1, len(voice["mel"]) + 1), 65536)
            made.append((ids, torch.zeros(T, dtype=torch.long)))
        return made
