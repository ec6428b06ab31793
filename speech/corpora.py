r"""A folder of recordings as people have them -> which says what, who speaks, what was left out and why.

Tables, texts beside the audio, and the layouts of well-known corpora. prepare.py turns what is found here
into a corpus, and checks there that sound and text fit.
"""
import codecs
import collections
import csv
import os
import re
import unicodedata
from pathlib import Path

import numpy as np
import soundfile

from common.cli import BadInput

# -------------------------------------------------------------------------------------------------- read text

BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u2060\ufeff"))                  # soft hyphen, zero width
SPACES = "[\r\f\v\x1c-\x1f\x85\u2028\u2029]"
WRECKED = re.compile("[\ufffd\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]|ðŸ|â[€‚„†ˆ‰]"      # by a wrong decoding
                     "|[ÃÂ][\xa1-\xba\xbc-\xbfƒˆ‰Š‹ŒŽ€†‡™šœžŸ]")                      # cafÃ©, donâ€™t


def read_lines(path):
    r"""A text file -> its lines [str], NFC, without empty ones. They end at \n and \r\n, at \r where there is
    no other; what else separates lines is a space. A bad byte is U+FFFD, for which its row is skipped.
    BadInput: a quarter of the lines are not UTF-8, and no byte order mark says what.
    """
    raw = path.read_bytes()
    content = raw.decode(next((name for bom, name in BOMS if raw.startswith(bom)), "utf-8"), "replace")
    content = unicodedata.normalize("NFC", content.translate(INVISIBLE))
    lines = re.split("\r*\n" if "\n" in content else "\r", content)
    bad = [n for n, line in enumerate(lines, 1) if "\ufffd" in line or line.count("\0") > len(line) / 4]
    if len(bad) > len(lines) / 4:               # also UTF-16 without its mark
        raise BadInput(f"{path.name} is not UTF-8 text; save it as UTF-8 (the first such line is {bad[0]})")
    return [line for line in (re.sub(SPACES, " ", line) for line in lines) if line.strip()]


# --------------------------------------------------------------------------------------------- walk and match

READABLE = {f".{name.lower()}" for name in soundfile.available_formats()} - {".mat4", ".mat5", ".raw", ".xi"}
AUDIO = READABLE | set(".opus .oga .spx .aif .aifc .snd .sph .mp1 .mp2 .mpga .m4a .m4b .mp4 .aac .wma .webm "
                       ".mka .amr .3gp .ape .wv .ac3 .alac .tta .ra .mpc .dsf .dff .shn".split())
SIDE = re.compile(r"(\.normalized\.txt|\.txt|\.lab)$", re.I)
TABLES = (".csv", ".tsv", ".psv")
PLACE = re.compile(r"(wavs?|audios?|clips?|mp3s?|flacs?|ogg|opus|txts?|texts?|labs?|labels|transcripts?|etc"
                   r"|metadata|transcriptions?|recordings?|sounds?|samples?|data|files)([_-]?\d+\w*)?", re.I)


def walk(folder):
    """Paths of all files below a folder: links are followed, each folder is seen once, hidden ones never."""
    def refuse(problem):
        raise problem
    seen = set()
    for root, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        place = os.stat(root)
        if (place.st_dev, place.st_ino) in seen:
            folders.clear()
            continue
        seen.add((place.st_dev, place.st_ino))
        folders[:] = sorted((f for f in folders if f[0] != "." and f != "__MACOSX"),
                            key=lambda f: (os.path.islink(os.path.join(root, f)), f))
        yield from (os.path.join(root, name) for name in sorted(names))


def stem(name):
    """A name without its suffix, where that is one of audio."""
    base, end = os.path.splitext(name)
    return base if end.lower() in AUDIO else name


def survey(folder):
    """-> recordings and sidecars, each {stem: [(folders, path)]} with the names of its folders below
    `folder`; tables [path]; what was skipped. Names are NFC, as texts are: a disk may have them otherwise.
    """
    takes, sides, tables, skipped, recordings = {}, {}, [], [], {}
    for path in walk(folder):
        shown = unicodedata.normalize("NFC", os.path.relpath(path, folder)).replace(os.sep, "/")
        *folders, name = shown.split("/")
        kind = os.path.splitext(name)[1].lower()
        if kind in AUDIO and (name[0] == "." or not os.path.isfile(path)):
            skipped.append((shown, "hidden file" if name[0] == "." else "broken link"))
        elif kind in AUDIO:
            take = kind not in READABLE, kind != ".wav", path, shown             # the best sorts first
            takes.setdefault((*folders, stem(name)), []).append(take)
        elif name[0] != "." and (kind in TABLES or name.lower().endswith(".trans.txt")):
            tables.append(Path(path))
        elif name[0] != "." and SIDE.search(name) and not name.lower().endswith(".original.txt"):  # LibriTTS
            sides.setdefault(SIDE.sub("", name), []).append((folders, Path(path)))
    for (*folders, base), files in takes.items():
        (*_, path, _), *others = sorted(files)
        skipped += [(shown, "another format of a recording that is there") for *_, shown in others]
        mic = re.fullmatch(r"(.+)_mic([12])", base)                               # VCTK: two microphones
        if mic and mic[2] == "2" and (*folders, mic[1] + "_mic1") in takes:
            skipped.append(("/".join([*folders, base]), "second microphone of a recording that is there"))
        else:
            recordings.setdefault(mic[1] if mic else base, []).append((folders, Path(path)))
    return recordings, sides, tables, skipped


def match(name, folders, files):
    """Which of files {stem: [(folders, path)]} a name in some folders means -> [(folders, path)], several
    where none is nearest.

    wavs/u1 may lie in audio/, or deeper; but anna's u1 is never ben's: of the folders that could be a
    speaker's, one side has all that the other has.
    """
    *more, base = name.replace("\\", "/").split("/")
    ours = {f for f in (*folders, *more) if f not in ("", ".", "..") and not PLACE.fullmatch(f)}
    best, found = None, []
    for file in files.get(base, ()):
        theirs = {f for f in file[0] if not PLACE.fullmatch(f)}
        score = (len(ours & theirs), -len(theirs - ours), file[0] == list(folders))
        if (ours <= theirs or theirs <= ours) and (best is None or score >= best):
            best, found = score, [file] if score != best else [*found, file]
    return found


def speaker_of(path, folders):
    """Who speaks, by where a recording lies: M-AILABS's by_book/female/NAME, LibriSpeech's and LibriTTS's
    NAME/CHAPTER/NAME-CHAPTER-..., else the last of its folders that is not wavs/ or the like.
    """
    parts = path.absolute().parts
    if "by_book" in parts[:-3]:
        kind, name = parts[parts.index("by_book") + 1:][:2]
        return name if kind in ("female", "male") else kind
    if len(parts) > 3 and re.match(f"{re.escape(parts[-3])}[-_]{re.escape(parts[-2])}[-_]", parts[-1]):
        return parts[-3]
    return next((f for f in reversed(folders) if not PLACE.fullmatch(f)), "")


# ----------------------------------------------------------------------------------------------------- tables

HEADER = dict(text="text sentence transcript transcription raw_text original_text raw_transcription phrase",
              normal="normalized_text normalised_text normalized normalised normalized_transcription",
              speaker="speaker speaker_id speaker_name spk spkr client_id voice reader")
NO_SPEAKER = set("train dev test val valid validation female male f m".split())
UNCHECKED = set("invalidated other reported clip_durations unvalidated_sentences validated_sentences".split())


def split_rows(lines, mark):
    """Lines of a table -> rows of cells. Quotes count where each line, or all lines together, keeps csv's
    rules; in LJSpeech's |, they are part of the text.
    """
    if mark == " ":
        return [line.split(maxsplit=1) for line in lines]
    for parts in [[line] for line in lines], *[[[line + "\n" for line in lines]]] * (mark in ",;"):
        try:
            return [[cell.strip() for cell in row] for part in parts
                    for row in csv.reader(part, delimiter=mark, strict=True, skipinitialspace=True)]
        except csv.Error:
            continue
    return [[cell.strip() for cell in line.split(mark)] for line in lines]


def words_of(cell):
    """Words without digits [str]; of scripts without spaces, characters."""
    return re.findall(r"[\u2e80-\uffff]|[^\W\d_\u2e80-\uffff]+", cell.casefold())


def alike(a, b):
    """Do two columns of cells hold the same texts, numbers aside: most of the words, and as much of it?"""
    words = [(set(words_of(x)), set(words_of(y))) for x, y in zip(a, b)]
    shares = [len(x & y) / min(len(x), len(y)) for x, y in words if x and y]
    plain = [(len(x), len(y)) for x, y in zip(a, b) if y and not re.search(r"\d", x + y)]
    x, y = np.sum(plain, axis=0) if plain else (1, 1)
    return bool(shares) and np.median(shares) >= 0.5 and 0.7 < y / max(x, 1) < 1.5


def names_speakers(cells, texts):
    """Does a column name speakers: few values that come again, and neither lengths nor parts of a split?"""
    values = set(cells) - {""}
    if not 1 <= len(values) <= max(1, 2 * len(cells) / 3) or {v.lower() for v in values} <= NO_SPEAKER:
        return False
    if not all(re.fullmatch(r"[\d.,:]+", v) for v in values):
        return True
    return len(values) > 1 and all(v.isdecimal() for v in values) and np.corrcoef(
        [int(c or 0) for c in cells], [len(t) for t in texts])[0, 1] < 0.8


def roles(rows, key, header):
    """What the columns of a table are, without its ids', `key` -> {"text", "normal", "speaker": column or
    None}. header: the first row may be one. BadInput: no text, or two that differ.
    """
    titles = [re.sub(r"[\W_]+", "_", cell.strip().lower()) for cell in rows[0]] if header else []
    role = {kind: next((titles.index(t) for t in known.split() if t in titles), None)
            for kind, known in HEADER.items()}
    columns = {c: cells for c, cells in enumerate(zip(*rows[role["text"] is not None:])) if c != key}
    if role["text"] is not None:
        if role["normal"] is not None and not alike(columns[role["text"]], columns[role["normal"]]):
            role["normal"] = None
        return role
    if not columns:
        raise BadInput("one column; expected id|text")
    text = max(columns, key=lambda c: (2 * sum(" " in cell for cell in columns[c]) > len(rows),
                                       sum(len("".join(words_of(cell))) for cell in columns[c])))
    role, speakers = dict(text=text, normal=None, speaker=None), {}
    for c, cells in columns.items():
        if c != text and alike(columns[text], cells):
            role["text"], role["normal"] = sorted((text, c))
        elif c != text and names_speakers(cells, columns[text]):
            speakers[c] = len(set(cells))
        elif c != text and sum(len(words_of(cell)) for cell in cells) >= 3 * len(rows):
            first, second = sorted((text + 1, c + 1))
            raise BadInput(f"columns {first} and {second} hold different texts; keep one, "
                           "or add a header row that says which is id and which is text")
    return role | dict(speaker=max(speakers, key=speakers.get, default=None))


def read_table(path, folders, recordings):
    """Rows of a table -> [(id, [(folders, recording)], text, speaker or "", why it cannot be used or "")]. A
    .txt may be none: [].

    The mark between columns, and the column of ids, are those by which most recordings are named.
    """
    lines, best, plain = read_lines(path), (0, "|", 0), path.suffix.lower() == ".txt"
    for mark in ("|", "\t", ";", ",", *[" "] * (plain and "trans" in path.name.lower())):
        some = split_rows(lines[:500], mark)
        for c in range(max(map(len, some), default=0)):
            named = [match(stem(row[c]), folders, recordings) for row in some if len(row) > max(c, 1)]
            best = max(best, (len({f[0][1] for f in named if f}), mark, c), key=lambda b: b[0])
    hits, mark, key = best
    if hits <= (plain and len(lines[:500]) // 2):
        if plain:
            return []
        raise BadInput(f"no row has a recording's name and text; expected {[*recordings, 'u1'][0]}|text")
    rows = split_rows(lines, mark)
    width = collections.Counter(map(len, rows)).most_common(1)[0][0]
    if mark in ",;" and sum(len(row) != width for row in rows) > 0.1 * len(rows):
        raise BadInput(f"rows differ in their columns; put texts that hold {mark} in quotes, or use | for it")
    header = key < len(rows[0]) and not match(stem(rows[0][key]), folders, recordings)
    role = roles([row for row in rows if len(row) == width][:1000], key, header and len(rows[0]) == width)
    known = set(" ".join(HEADER.values()).split())
    titled = header and known & {re.sub(r"[\W_]+", "_", cell.lower()) for cell in rows[0]}
    made = []
    for n, row in enumerate(rows[bool(titled):], 1):
        name, why = stem(row[key]) if key < len(row) else f"{path.name} row {n}", ""
        files = match(name, folders, recordings)
        if not role["text"] < len(row) <= width:
            why = f"{len(row)} columns, expected {width}"
        elif len(files) != 1:
            why = f"{len(files)} recordings of this name" if files else "no audio of this name"
        cells = row + [""] * width
        text, normal, speaker = ("" if role[kind] is None else cells[role[kind]] for kind in HEADER)
        meant, said = set(words_of(text)), set(words_of(normal))
        if len(meant) > 2 and said and not said & meant:
            why = why or "its two texts differ"
        made.append((name, files, normal or text, speaker, why))
    return made


# ------------------------------------------------------------------------------------------------------- find


def read_sidecar(base, folders, sides):
    """The text of a recording without a row -> (its path, text). BadInput: none, or not the words alone."""
    files = match(base, folders, sides)
    if not files:
        raise BadInput("no text, neither a row in a table nor a .txt of its name")
    if len({path.parent for _, path in files}) > 1:
        raise BadInput(f"{len(files)} texts of its name")
    _, path = max(files, key=lambda file: (SIDE.search(file[1].name)[1].lower() == ".normalized.txt",
                                           file[1].suffix.lower() == ".txt"))
    lines = read_lines(path)
    times = [re.match(r"\s*(\d+(?:\.\d+)?)\s+(\d+(?:\.\d+)?)\s+\S", line) for line in lines]
    subtitles = any(re.search(r"-->|^\s*(\[\d+:\d\d|\d+:\d\d(:\d\d|[.,]\d))", line) for line in lines)
    if subtitles or lines and all(m and float(m[1]) < float(m[2]) for m in times):
        raise BadInput("its text is a list of times and labels, expected the words alone")
    return path, " ".join(lines)


def find_utterances(folder):
    """Recordings and texts in a folder -> [(id, path, text, speaker)], [(what was skipped, why)].

    Tables of any name (id|text, with normalised text, speakers, a header row or not; | tab ; or , between)
    and LibriSpeech's .trans.txt; for recordings without a row a .txt or .lab of the same name, beside them or
    in a folder of texts (LibriTTS, VCTK).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BadInput(f"--data {folder}: no such folder; give a folder of recordings, for example corpus")
    recordings, sides, tables, skipped = survey(folder)
    tables.sort(key=lambda p: (not p.name.lower().startswith("metadata"), p))
    loose = [path for base, files in sides.items() if base not in recordings for _, path in files]
    found, taken, used = [], {}, False          # taken: {recording: its text}
    for table in [*tables, *(p for p in loose if p.suffix.lower() == ".txt")]:
        shown = table.relative_to(folder)
        try:
            if table.stem.lower() in UNCHECKED:
                raise BadInput("Common Voice's lists of unchecked clips are not used")
            rows = read_table(table, shown.parent.parts, recordings)
        except BadInput as problem:
            skipped.insert(0, (str(shown), str(problem)))
            continue
        loose = [path for path in loose if path != table or not rows]
        for name, files, words, who, why in rows:
            path = files[0][1] if len(files) == 1 else None
            if not why and taken.get(path, words) != words:
                why = "duplicate id with another text"
            if why:
                skipped.append((name, why))
            elif path not in taken:
                found.append((name, path, words, who or speaker_of(path, files[0][0])))
            taken.setdefault(path, words)
    for base, (folders, path) in ((base, file) for base, files in recordings.items() for file in files):
        if path not in taken:
            name = "/".join([*folders, base])
            try:
                _, words = read_sidecar(base, folders, sides)
                found.append((name, path, words, speaker_of(path, folders)))
                used = True
            except BadInput as problem:
                skipped.append((name, str(problem)))
    if used or not found:                       # else a .txt is as likely a note on the corpus
        skipped += [(str(path.relative_to(folder)), "no audio of this name") for path in loose]
    whole = [(name, path, " ".join(words.split()), who) for name, path, words, who in found]
    found = [row for row in whole if not WRECKED.search(row[2])]
    wrecked = [(row[0], WRECKED.search(row[2])) for row in whole]
    skipped += [(name, f"text decoded wrongly (it holds {ascii(m[0])})") for name, m in wrecked if m]
    if not found:
        first = f" (skipped: {counted(skipped)}; {skipped[0][0]}: {skipped[0][1]})" if skipped else ""
        raise BadInput(f"--data {folder}: no usable recordings{first}; expected metadata.csv (id|text) and "
                       f"wavs/, or audio files, each with a .txt of the same name")
    return found, skipped


def counted(skipped):
    """What was skipped, by reason -> "3 x duplicate id, 1 x no audio of this name"."""
    kinds = (re.sub(r"\d[\d.]*", "...", re.split(r" \(|[;:,] ", why)[0]) for _, why in skipped)
    kinds = collections.Counter(kinds)
    return ", ".join(f"{n} x {kind}" for kind, n in kinds.most_common())
