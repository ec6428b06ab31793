"""Written text -> symbols that the network speaks. The one place that reads text. Imports F5-TTS's reader
where a checkpoint asks for it, nothing else.

A language says how text is read: "letters" is spoken English in lower-case characters, "f5" the tokens of
F5-TTS (f5.py). Checkpoints carry it beside their vocabulary.
"""
import re

import torch
from num2words import num2words

ABBREVIATIONS = {"mr": "mister", "mrs": "missus", "ms": "miz", "dr": "doctor", "st": "saint",
                 "prof": "professor", "capt": "captain", "col": "colonel", "gen": "general",
                 "lt": "lieutenant", "rev": "reverend", "hon": "honorable", "jr": "junior", "co": "company",
                 "vs": "versus", "etc": "et cetera"}
SYMBOLS = {"&": " and ", "%": " percent ", "+": " plus ", "=": " equals ", "@": " at ",
           "\u2019": "'", "\u2018": "'", "\u201c": '"', "\u201d": '"', "\u2014": ", ", "\u2013": ", ",
           "\u2026": "."}
NUMBER = r"\d+(?:,\d{3}(?!\d))*(?:\.\d+)?"     # a comma is part of it only before three digits


def normalise(text):
    """Written English -> lower-case spoken English: numbers, amounts and common abbreviations spelled out."""
    text = text.lower()
    for symbol, spoken in SYMBOLS.items():
        text = text.replace(symbol, spoken)
    text = re.sub(r"\b(" + "|".join(ABBREVIATIONS) + r")\.", lambda m: ABBREVIATIONS[m[1]], text)
    text = re.sub(rf"\$({NUMBER})", lambda m: f"{m[1]} dollar{'s' * (m[1] != '1')}", text)
    text = re.sub(NUMBER + r"(?:st|nd|rd|th)?", lambda m: " " + _spoken_number(m[0]) + " ", text)
    return re.sub(r"\s+([,.;:!?])", r"\1", " ".join(text.split()))


def _spoken_number(token):
    digits = token.rstrip("stndrh").replace(",", "")
    if len(digits) > 15:                                                          # a serial number
        return " ".join(num2words(int(d)) for d in digits if d.isdigit())
    if "." in digits:
        return num2words(float(digits)).replace("-", " ")
    year = "," not in token and 1100 <= int(digits) <= 1999
    kind = "ordinal" if token[-1].isalpha() else "year" if year else "cardinal"
    return num2words(int(digits), to=kind).replace(" and ", " ").replace("-", " ").replace(",", "")


def symbols(text, lang):
    """Text -> its symbols [str]. A space at each end gives the silence around a sentence its own."""
    if lang == "f5":
        import f5
        return f5.tokens(text)
    return list(" " + normalise(text) + " ")


def encode(text, vocab, lang):
    """Text -> ids (L,) int64 in 1 ... V, the places of its symbols in vocab (0 is the filler), and the set of
    symbols that vocab lacks: they are dropped, or for F5-TTS become its first one, the space, as there.
    """
    found = symbols(text, lang)
    place = {symbol: i for i, symbol in enumerate(vocab, 1)}
    ids = [place.get(symbol, 1) for symbol in found if lang == "f5" or symbol in place]
    return torch.tensor(ids, dtype=torch.long), set(found) - set(place)


def sentences(text, longest=160):
    """Text -> chunks of whole sentences up to `longest` characters; or cut at a comma or space."""
    chunks = []
    for sentence in re.findall(r"\S.*?(?:[.!?;:]+(?=\s)|$)", text):
        while len(sentence) > longest:
            cut = sentence.rfind(", ", 1, longest) + 1 or sentence.rfind(" ", 1, longest) + 1 or longest
            chunks.append(sentence[:cut].strip())
            sentence = sentence[cut:].strip()
        if chunks and len(chunks[-1]) + len(sentence) < longest // 2:
            chunks[-1] += " " + sentence
        else:
            chunks.append(sentence)
    return chunks
