"""Written text -> sentences of symbols that the network speaks. The one place that reads text.

    python -c 'from speech import text; print(text.spoken("Dr. Smith paid $5 million."))'     how it is read

A language code: gruut looks words up, or guesses them, and a symbol is a phoneme (a vowel with its stress is
one) or a pause: " " before the first word, "," within a sentence, and . ! ? at its end, whatever was written.
There is none between words; where a recording pauses there, align.py hears it and puts one in. Three codes
have no phonemes: "none", characters as they are written; "letters", those of the spoken English words; "f5",
the tokens of F5-TTS (f5_text.py).

English is first rewritten where gruut reads it wrong, see english.py.
"""
import collections
import functools
import html
import itertools
import logging
import re
import sqlite3
import unicodedata

import torch
from babel.numbers import NumberFormatError, parse_decimal
from num2words import num2words

from speech import f5_text
from common.cli import BadInput
from speech import markdown
from speech.english import ENDERS, STARTERS, TITLES, UNIT, english, fort, groups, street

FINAL, CLOSING = ".!?。！？؟।…", "\"')]}»”’"
INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]")
TAG = re.compile(r"</?(?:(br|p|div|li|h\d)|[A-Za-z][\w:-]*)(?:\s[^<>=]*=[^<>]*|\s*/?)>", re.I)   # not a < b
PAUSE = re.compile(r"\s+[-–—]+\s+(?!\d)|(?<!\d)\s+[-–—]+\s+|\s*(?:—|--+)\s*"      # dashes
                   r"|(?<![\d°%])(?<!\d[ap]m)(?<!\.m\.)(?<!°[CF])(?<!illion)–|–(?![$€£¥]?\d)"
                   r"|\.{2,}|…|(?:^|(?<=\s))[([]|[)\]](?=[\s.,;:!?]|$)|[;:](?=[^\w/]|$)"
                   r"|[、，；：،]")
FOOTNOTE = re.compile(r"(?<=[.,;:!?”])[¹²³⁰⁴-⁹]+|(?<=[^\W\d_]{4})(?:¹|[⁴-⁹])[⁰¹²³⁴-⁹]*(?!\w)"
                      r"|(?:(?<=[^\W\d_]{3})|(?<=[.,;:!?”]))(?<!array)(?<!list)(?<!arg[sv])"
                      r"(?!\[0)(?:\[\d{1,3}\])+")                               # tea.¹ tea[1], not list[1]
BROKEN = re.compile(r"([^\W_]+)[-‐]\n{1,2}(?=([^\W_]+))")                       # exam-\nining
ENDINGS = set("ing ings ed er ers ly ness ment ments tion tions sion able ible ful less est ist ism ity ous "
              "ive al ally ish es en ance ence".split())                       # no words of their own
SILENT = " \"'(){}[]<>«»“”‘’„‚`´*_|\\/~^•·¿¡;:-–—\u200c\u200d\ufe0e\ufe0f"       # nothing is lost without
SIGNS = {"en": {"%": "percent", "&": "and", "+": "plus", "=": "equals", "@": "at", "°": "degrees",
                "×": "times", "÷": "divided by", "±": "plus or minus", "<": "less than", ">": "greater than",
                "§": "section", "€": "euros", "$": "dollars", "£": "pounds", "¥": "yen", "¢": "cents"},
         "de": {"%": "Prozent", "&": "und", "+": "plus", "=": "gleich", "°": "Grad", "€": "Euro"},
         "fr": {"%": "pour cent", "&": "et", "+": "plus", "=": "égale", "°": "degrés", "€": "euros"},
         "es": {"%": "por ciento", "&": "y", "+": "más", "=": "igual a", "°": "grados", "€": "euros"}}

# -------------------------------------------------------------------------------------------------- languages


@functools.lru_cache
def reader(lang):
    """gruut's TextProcessor for a language; known(word): is it in the lexicon; its letters. Else BadInput."""
    from gruut.const import KNOWN_LANGS, LANG_ALIASES                                 # a second to import
    from gruut.lang import get_settings
    from gruut.phonemize import SqlitePhonemizer
    from gruut.text_processor import TextProcessor
    from gruut.utils import find_lang_dir, remove_non_word_chars, resolve_lang
    if lang not in {*KNOWN_LANGS, *LANG_ALIASES}:
        raise BadInput(f"--lang {lang}: expected none or one of {', '.join(sorted(KNOWN_LANGS))}")
    code = resolve_lang(lang)
    folder = find_lang_dir(code)
    if folder is None or not (folder / "lexicon.db").is_file():
        raise BadInput(f"--lang {lang}: its words are not here: pip install 'gruut[{code.split('-')[0]}]'")
    logging.getLogger("gruut").setLevel(logging.CRITICAL)                             # it logs tracebacks
    # gruut's file has no index, 11 ms a look-up and three of them a word: a copy in memory has one.
    lexicon = sqlite3.connect(":memory:", check_same_thread=False)
    with sqlite3.connect(folder / "lexicon.db") as file:
        file.backup(lexicon)
    lexicon.execute("CREATE INDEX word ON word_phonemes (word)")
    look = SqlitePhonemizer(lexicon, word_transform_funcs=[
        str.lower, remove_non_word_chars, lambda word: remove_non_word_chars(word.lower())])
    count = collections.Counter("".join(word for word, in lexicon.execute("SELECT word FROM word_phonemes")))
    letters = {c for c, n in count.items() if n > count.total() / 20_000}             # not the é of "josé"
    gruut = TextProcessor(default_lang=code, settings={code: get_settings(code, lookup_phonemes=look)})
    return gruut, lambda word: bool(look(word, do_transforms=False)), letters


def base(text):
    """Accents off: ï -> i, ß -> ss."""
    for letter, plain in zip("ßøØłŁđĐæÆœŒ", "ss o O l L d D ae Ae oe Oe".split()):
        text = text.replace(letter, plain)
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))


def read_number(written, settings):
    """Digits as a language writes them, 1.000,5, -> its words; where it has none: ""."""
    def words(value):
        kind = "year" if 1100 <= value < 2000 else "cardinal"
        return num2words(value, lang=settings.num2words_lang, to=kind)
    try:
        return words(parse_decimal(written, locale=settings.babel_locale, strict=True))
    except NotImplementedError:
        return ""
    except NumberFormatError:                   # 24.12.2024: three numbers
        return " ".join(words(int(part)) for part in re.findall(r"\d+", written))


def tokens(sentence, lang):
    """A written sentence -> [what gruut can read: words and the marks , ! ?], [tokens that it cannot]."""
    gruut, known, letters = reader(lang)
    text = re.sub("[‘’´`]", "'", re.sub(r"\S{100}", r"\g<0> ", sentence))             # no endless word
    text = PAUSE.sub(", ", groups(text) if lang.startswith("en") else text)
    text = unicodedata.normalize("NFKC", english(text, known) if lang.startswith("en") else text)
    text = re.sub(r"([€$£¥])(\d[\d.,]*)", r"\2 \1", text)
    for sign, word in SIGNS.get(lang[:2], {}).items():
        text = text.replace(sign, f" {word} ")
    text = re.sub(r"(?<!\w)−(?=\d)", "-", re.sub(r"\d{16,}", lambda m: " ".join(m[0]), text))
    words, unread = [], []
    for token in re.findall(r"(?:(?<!\w)-)?\d+(?:[.,]\d+)*|\b[A-Z]\.(?!\w)|[^\W\d_]+(?:'[^\W\d_]+)*|[.,!?]+|"
                            r"(?:[^\w\s.,!?]|_)+|\w", text):
        if token[-1].isdecimal():
            read = read_number(token, gruut.get_settings()).split()
            words, unread = words + read, unread + [token] * (not read)
        elif token[0].isalpha():
            if not known(token.lower()) and known(base(token).lower()):
                token = base(token)
            elif not known(token.lower()):
                token = "".join(c if c.lower() in letters else base(c) for c in token)
            readable = known(token.lower()) or set(token.lower()) <= letters | set(".'")
            words += [token[i:i + 40] for i in range(0, len(token), 40)] if readable else []
            unread += [] if readable else [token]
        elif token[0] in ".,!?":
            words += [mark for mark in "?!," if mark in token][:1]
        elif token.strip(SILENT):
            unread.append(token.strip(SILENT))
    return words if lang.startswith("en") else [word.strip(".") for word in words], unread


WORDS_ONLY = dict(detect_numbers=False, detect_dates=False, detect_times=False, detect_currency=False)


@functools.lru_cache(4096)
def pronounce(sentence, lang):
    """One written sentence -> (symbols with a final mark, words and marks said, tokens without a sound)."""
    tail = sentence[len(sentence.rstrip(FINAL + CLOSING + " ")):].strip(CLOSING + " …")
    mark = next((c for c in tail if c in "?？؟"), tail[-1:] or ".")
    if lang == "none":
        body = sentence.rstrip(CLOSING + FINAL + " ,;:-–—")
        lost = [c for c in body if c == "\ufffd" or unicodedata.category(c) in ("Cn", "Co", "Cs")]
        found = [c for c in body if c not in lost]
        return (*found, mark) if any(map(str.isalnum, found)) else (), (body,), tuple(lost)
    if lang == "letters":
        found, said, lost = pronounce(sentence, "en-us")
        letters = re.sub(" (?=[,.!?])", "", " ".join(said)).lower() + " "             # and a silence
        return tuple(letters) if found else (), said, lost
    words, unread = tokens(sentence, lang)
    gruut, found, said = reader(lang)[0], [], []
    graph, root = gruut(re.sub(" (?=[,!?])", "", " ".join(words)), lang=gruut.default_lang, **WORDS_ONLY)
    for word in itertools.chain.from_iterable(s.words for s in gruut.sentences(graph, root)):
        if word.is_break:
            pause = word.text[0] if word.text[0] in "!?" else ","
            pause = [pause] * (len(found) > 0 and found[-1] not in ",!?")
            found, said = found + pause, said + pause
        elif word.phonemes:
            found += word.phonemes
            said.append(word.text.strip("."))
        elif word.is_spoken:
            unread.append(word.text)
    while found and found[-1] in ",!?":
        found.pop(), said.pop()
    mark = "?" if mark in "?？؟" else "!" if mark in "!！" else "."
    return (*found, mark) if found else (), (*said, mark), tuple(unread)


COMMON = set("the of and to that with for it you this his from they which not are by there would about said "
             "has have were when who if out up than been can could them some into then its only these two "
             "such she we at be but all what where how your my our their".split())      # hardly one is German


def not_english(text, lang):
    """Where an English reader is given a text of another language: what a line says of it. Else "".

    A quarter of its words is in no lexicon, and hardly one is of the commonest. Words with a capital do not
    count, so English with foreign names is English, and so is a text of under four words in small letters.
    """
    if not (lang.startswith("en") or lang == "letters"):
        return ""
    words = re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)*", text.replace("’", "'"))
    counted = collections.Counter(word.lower() for word in words if word[0].islower() or text.isupper())
    known, n = reader("en-us" if lang == "letters" else lang)[1], counted.total()
    lacking = sum(times for word, times in counted.items() if not known(word))
    common = sum(word.lower() in COMMON for word in words)
    if n < 4 or lacking < max(3, 0.25 * n) or common > 0.08 * len(words):
        return ""
    return f"{lacking:,} of {n:,} words in small letters are not in the English lexicon; is it English?"


def tell(flag, text, lang, dropped):
    """Say of a text to speak what has no sound, and that it may be of another language."""
    if dropped:
        print(f"{flag}: cannot be spoken and is left out: {' '.join(sorted(dropped))}")
    if doubt := not_english(text, lang):
        print(f"{flag}: {doubt} It is read as if it were")


# -------------------------------------------------------------------------------------------------- sentences


def clean(text):
    """NFC, no markup, no footnote marks, no invisible characters; lines end in \\n, every other space is a
    space, a control character U+FFFD, which nothing speaks.
    """
    text = re.sub("\u00ad[^\\S\n]*\n\\s*", "", re.sub(r"\r\n?", "\n", text))                 # a soft hyphen
    text = TAG.sub(lambda m: "\n" if m[1] else "", markdown.plain(text))
    text = FOOTNOTE.sub("", text)
    text = re.sub(r"&#?\w{1,30};", lambda m: html.unescape(m[0]), text)
    text = INVISIBLE.sub("", unicodedata.normalize("NFC", text))
    text = re.sub(r"[\x00-\x08\x0e-\x1b\x7f-\x9f]", "\ufffd", re.sub(r"[^\S\n]", " ", text))
    text = re.sub(" *\n *", "\n", re.sub(" +", " ", text))
    return re.sub(r"(?m)^[-*•–#>]+ +", "", text).strip()                              # bullets


def ends(before, mark, after, lang):
    """Does a sentence end at this mark (. or "?!" or '."') between these texts?"""
    follows = after.lstrip("\"'([“‘«¿¡")
    if mark[0] != "." or ".." in mark:                                                # '"No!" he cried.'
        return not (follows[:1].islower() and (mark[0] in ".…" or mark[-1] in CLOSING))
    word = re.search(r"[^\s(\"'“]*$", before)[0]
    initials = re.fullmatch(r"(?:[^\W\d_]{1,2}\.)*[^\W\d_]", word)          # U.S., Ph.D.
    if not lang.startswith("en"):                                                     # z. B., Dr., 20. Mai
        return not (initials or re.fullmatch("[b-df-hj-np-tv-xz]{1,4}|[0-9]{1,2}", word.lower()))
    if initials and word != "I":
        return follows[:1].isupper() and re.match(r"\w*", follows)[0].lower() in STARTERS
    if word.lower() in ENDERS:
        saint = word.lower() == "st" and not street(before[:-2], follows)
        return follows[:1].isupper() and not (saint or word == "Ft" and fort(before[:-2], follows))
    if follows[:1].islower() and re.search(rf"\d ?(?:fl|sq|in|{UNIT})$", before):     # 6 lb. of
        return False
    if word == "Dr" and street(before[:-2], follows, "dr"):                           # on Elm Dr. She
        return follows[:1].isupper()
    if word == "ms" and re.search(r"\d ?ms$", before):
        return True
    return word.lower() not in TITLES and not (word.lower() in ("no", "est") and follows[:1].isdigit())


# Marks, then a space, or nothing: 。 and "end.Next".
MARK = re.compile(rf"(?<![{FINAL}])[{FINAL}]+[{re.escape(CLOSING)}]*"
                  r"(?:\s+|(?<=[。！？])|(?<=\w\w[.!?])(?=[A-Z][a-z]))")


def mend(text, lang):
    """Words broken at a line's end are one again: exam-\\nining; well-\\nknown keeps its hyphen."""
    known = (lambda word: False) if lang in ("none", "f5") else reader(lang)[1]

    def mended(m):
        left, right = m[1].lower(), m[2].lower()
        before = text[m.start() - 1:m.start()]
        parts = known(left) and known(right) and right not in ENDINGS
        compound = m[2][0].isupper() and not m[1].isupper() or not (m[1] + m[2]).isalpha()
        compound = compound or before == "-" and (parts or not known(left))
        return m[1] + "-" * (compound or parts and not known(left + right))
    return BROKEN.sub(mended, text)


def split(text, lang):
    """Text -> written sentences. A line's end ends one, or is a pause where the text goes on in lower case.

    A line of 60 characters or more was wrapped, and one as long as those that end within a word: its end is a
    space.
    """
    lang, text = "en-us" if lang == "letters" else lang, clean(text)
    broken = [len(line) for line in re.findall(r"(?m)^.*[^\W_][-‐]$", text)]
    width = max(20, min([60, *(0.8 * n for n in broken)]))
    lines = (mend(text, lang) if broken else text).split("\n")
    for i, line in enumerate(lines[:-1]):
        wrapped = len(line) >= width and lines[i + 1]
        pause = "," * (lines[i + 1][:1].islower() and line[-1:] not in FINAL + ",;:-–—")
        lines[i] = line if wrapped else line + (pause or "\n" * (not lines[i + 1][:1].islower()))
    out = []
    for line in " ".join(lines).split("\n"):
        start = 0
        for m in MARK.finditer(line):
            if ends(line[max(start, m.start() - 80):m.start()], m[0].strip(), line[m.end():][:80], lang):
                out.append(line[start:m.end()].strip())
                start = m.end()
        out.append(line[start:].strip())
    return [sentence for sentence in out if sentence]


def pieces(sentence, lang, longest):
    """A written sentence, cut near its middle (at a mark, else a space) until no piece has more symbols."""
    if len(sentence) < 2 or len(sentence) < 4 * longest and len(pronounce(sentence, lang)[0]) <= longest:
        return [sentence]
    middle = len(sentence) // 2
    for pattern in (r"[,;:–—、，]\s+", r"\s", ""):
        cuts = [m.end() for m in re.finditer(pattern, sentence) if abs(m.end() - middle) <= middle // 2]
        if cuts:
            break
    cut = min(cuts, key=lambda cut: abs(cut - middle))
    return [p for half in (sentence[:cut], sentence[cut:]) for p in pieces(half.strip(), lang, longest) if p]


def read_text(text, lang="en-us", longest=200):
    """Text -> [(sentence as written, [its symbols])], [tokens without a sound]. Nothing to say: [].

    A sentence of more than longest symbols comes in pieces, each with a final mark.
    """
    cut = [piece for sentence in split(text, lang) for piece in pieces(sentence, lang, longest)]
    found = [(piece, *pronounce(piece, lang)) for piece in cut]
    return [(piece, list(s)) for piece, s, *_ in found if s], [token for *_, lost in found for token in lost]


def chunks(text, lang="en-us", longest=160):
    """Text -> [(written, [symbols from " " to a final mark])] to speak one by one, short sentences joined;
    and [tokens without a sound].
    """
    out, (sentences, unread) = [], read_text(text, lang, longest)
    for written, found in sentences:
        if out and len(out[-1][1]) + len(found) < longest // 2:
            out[-1] = (out[-1][0] + " " + written, out[-1][1] + found)
        else:
            out.append((written, [" "] + found))
    return out, unread


def symbols(text, lang="en-us"):
    """Text -> its symbols as one utterance, from " " to a final mark, or []; and [tokens without a sound]."""
    if lang == "f5":
        return f5_text.tokens(text), []
    found = [pronounce(sentence, lang) for sentence in split(text, lang)]
    out = [symbol for s, _, _ in found for symbol in s]
    return [" "] * bool(out) + out, [token for *_, lost in found for token in lost]


def pauses(vocab, lang):
    """Ids of the symbols that are silence, a pause's first; [] if those between words are symbols."""
    phonemes = lang not in ("none", "letters", "f5")
    has = phonemes and "," in vocab
    return [vocab.index(mark) + 1 for mark in ", .!?" if mark in vocab] if has else []


def spoken(text, lang="en-us"):
    """Text -> the words that are spoken, to show how it was read."""
    said = [word for sentence in split(text, lang) for word in pronounce(sentence, lang)[1]]
    return " ".join(word for word in said if word not in (*FINAL, ","))


def to_ids(found, vocab):
    """Symbols -> ids (L,) int64 in 1 ... V (0 is the filler), and the set of those that vocab lacks.

    A vowel that vocab has only with another stress is that one, a mark that it lacks a full stop.
    """
    ids, unknown, place = [], set(), {symbol: i for i, symbol in enumerate(vocab, 1)}
    for symbol in found:
        bare = symbol.lstrip("ˈˌ")
        near = [s for s in [symbol, bare, "ˌ" + bare, "ˈ" + bare] + ["."] * (symbol in FINAL) if s in place]
        ids += [place[s] for s in near[:1]]
        unknown |= set() if near else {symbol}
    return torch.tensor(ids, dtype=torch.long), unknown


def encode(text, vocab, lang="en-us"):
    """Text -> ids (L,) int64 in 1 ... V, one utterance; and the set of symbols and tokens that have none."""
    found, unread = symbols(text, lang)
    if lang == "f5":                            # what it does not know is its first token, the space
        return f5_text.encode(text, vocab), set(found) - set(vocab)
    ids, unknown = to_ids(found, vocab)
    return ids, unknown | set(unread)

