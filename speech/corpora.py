r"""A folder of recordings as people have them -> which says what, who speaks, what was left out and why.

Tables, texts beside the audio, and the layouts of well-known corpora. prepare.py turns what is found here
into a corpus, and checks there that sound and text fit.
"""
import codecs
import collections
import csv
import itertools
import os
import re
import unicodedata
from pathlib import Path

import numpy as np
import soundfile

from common.cli import BadInput
from speech.labels import GENDERS, is_sort, no_plain_words, unspoken

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
    BadInput: a quarter of the lines are not UTF-8, and no byte order mark says what; or it cannot be read.
    """
    try:
        raw = path.read_bytes()
    except OSError as problem:
        raise BadInput(f"{path.name} cannot be read ({problem.strerror})") from None
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
    """-> recordings and sidecars, as file() keeps them; tables [path]; what was skipped. Names are NFC, as
    texts are: a disk may have them otherwise. A byte of a name that is no UTF-8 is shown as %E9.
    """
    takes, sides, tables, skipped, recordings = {}, {}, [], [], {}
    for path in walk(folder):
        shown = unicodedata.normalize("NFC", os.path.relpath(path, folder)).replace(os.sep, "/")
        shown = re.sub("[\udc80-\udcff]", lambda byte: f"%{ord(byte[0]) - 0xdc00:X}", shown)
        *folders, name = shown.split("/")
        kind = os.path.splitext(name)[1].lower()
        table, side = kind in TABLES or name.lower().endswith(".trans.txt"), SIDE.search(name)
        if kind not in AUDIO and (name[0] == "." or not (table or side)):
            continue
        if name[0] == "." or not os.path.isfile(path):
            link = "broken link" if os.path.islink(path) else "no file but a pipe or a device"
            skipped.append((shown, "hidden file" if name[0] == "." else link))
        elif kind in AUDIO:
            take = kind not in READABLE, kind != ".wav", path, shown             # the best sorts first
            takes.setdefault((*folders, stem(name)), []).append(take)
        elif table:
            tables.append(Path(path))
        elif not name.lower().endswith(".original.txt"):                          # LibriTTS
            file(sides, SIDE.sub("", name), folders, Path(path))
    for (*folders, base), files in takes.items():
        (*_, path, _), *others = sorted(files)
        skipped += [(shown, "another format of a recording that is there") for *_, shown in others]
        mic = re.fullmatch(r"(.+)_mic([12])", base)                               # VCTK: two microphones
        if mic and mic[2] == "2" and (*folders, mic[1] + "_mic1") in takes:
            skipped.append(("/".join([*folders, base]), "second microphone of a recording that is there"))
        else:
            file(recordings, mic[1] if mic else base, folders, Path(path))
    return recordings, sides, tables, skipped


def those_that_count(folders):
    """The names of folders that may be a speaker's: not wavs/ or the like."""
    return frozenset(f for f in folders if f not in ("", ".", "..") and not PLACE.fullmatch(f))


def file(files, base, folders, path):
    """Keep a path in files {stem: ({its folders that count: [(folders, path)]}, {folder: [those sets]})}: of
    a thousand files of one name the one that is meant is found without looking at all.
    """
    groups, within = files.setdefault(base, ({}, {}))
    theirs = those_that_count(folders)
    if theirs not in groups:
        for folder in theirs:
            within.setdefault(folder, []).append(theirs)
    groups.setdefault(theirs, []).append((folders, path))


def everything(files):
    """All that file() has kept -> (stem, folders, path), one after the other."""
    return ((base, *kept) for base, (groups, _) in files.items()
            for group in groups.values() for kept in group)


def match(name, folders, files):
    """Which of file()'s files a name in some folders means -> [(folders, path)], several where none is
    nearest.

    wavs/u1 may lie in audio/, or deeper; but anna's u1 is never ben's: of the folders that could be a
    speaker's, one side has all that the other has. The nearest has the same, else few more, else few less.
    """
    *more, base = name.replace("\\", "/").split("/")
    ours, (groups, within) = those_that_count((*folders, *more)), files.get(base, ({}, {}))
    near = [ours] if ours in groups else []
    if groups and not near:
        rarest = min((within.get(f, []) for f in ours), key=len, default=groups)
        wider = [theirs for theirs in rarest if ours < theirs]
        near = [theirs for theirs in wider if len(theirs) == min(map(len, wider))]
    for size in range(min(len(ours), 12) - 1, -1, -1) if groups and not near else ():
        near = near or [theirs for theirs in map(frozenset, itertools.combinations(ours, size))
                        if theirs in groups]
    found = [kept for theirs in near for kept in groups[theirs]]
    return [kept for kept in found if kept[0] == list(folders)] or found


def known_reader(path):
    """Who speaks in the layouts of well-known corpora: M-AILABS's by_book/female/NAME, LibriSpeech's and
    LibriTTS's NAME/CHAPTER/NAME-CHAPTER-...; elsewhere "".
    """
    parts = path.absolute().parts
    if "by_book" in parts[:-3]:
        kind, name = parts[parts.index("by_book") + 1:][:2]
        return name if kind in ("female", "male") else kind
    return parts[-3] if len(parts) > 3 and re.match(
        f"{re.escape(parts[-3])}[-_]{re.escape(parts[-2])}[-_]", parts[-1]) else ""


def speaker_of(path, folders):
    """Who speaks, by where a recording lies: the last of its folders that is not wavs/ or the like, nor a
    mood, a language, a part; if only male/ or female/ is there, that.
    """
    names = [f for f in reversed(folders) if not PLACE.fullmatch(f)]
    people = [f for f in names if not is_sort(f)] + [f for f in names if f.casefold() in GENDERS]
    return known_reader(path) or next(iter(people), "")


# ----------------------------------------------------------------------------------------------------- tables

HEADER = dict(text="text sentence transcript transcription raw_text original_text raw_transcription phrase",
              normal="normalized_text normalised_text normalized normalised normalized_transcription",
              speaker="speaker speaker_id speaker_name speakerid spk spk_id spkid spkr "
                      "client_id voice voice_id reader reader_id narrator actor actor_id person "
                      "talker singer artist user_id participant subject")
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
    """Does a column without a title name speakers: few values that come again, and neither moods, languages,
    parts and the like, nor lengths, paths or titles?
    """
    values = set(cells) - {""}
    odd = sum(is_sort(v) or len(v) > 40 or "/" in v or bool(re.fullmatch(r"[\d.,:]+ ?[a-zµ%]{1,3}", v, re.I))
              for v in values)
    if not 1 <= len(values) <= max(1, 2 * len(cells) / 3) or 2 * odd >= len(values):
        return False
    if not all(re.fullmatch(r"[\d.,:]+", v) for v in values):
        return True
    return len(values) > 1 and all(v.isdecimal() for v in values) and np.corrcoef(
        [int(c or 0) for c in cells], [len(t) for t in texts])[0, 1] < 0.8


def title(cell):
    """A column's title as HEADER has it."""
    return re.sub(r"[\W_]+", "_", cell.strip().lower())


def roles(rows, key, header):
    """What the columns of a table are, without its ids', `key` -> {"text", "normal", "speaker": column or
    None}. header: the first row may be one. BadInput: no text, or two that differ.
    """
    titles = [title(cell) for cell in rows[0]] if header else []
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
        elif c != text and titles and titles[c] not in {title(cell) for cell in cells[1:]}:
            speakers |= {c: len(rows) + 1} if titles[c] in HEADER["speaker"].split() else {}
        elif (c != text and names_speakers(cells, columns[text])
              and not (c > text and set(cells) <= {"0", "1"})):
            speakers[c] = len(set(cells))
        elif c != text and sum(len(words_of(cell)) for cell in cells) >= 3 * len(rows):
            first, second = sorted((text + 1, c + 1))
            raise BadInput(f"columns {first} and {second} hold different texts; keep one, "
                           "or add a header row that says which is id and which is text")
    return role | dict(speaker=max(speakers, key=speakers.get, default=None))


def read_table(path, folders, recordings):
    """Rows of a table -> [(id, [(folders, recording)], text, speaker or "", why it cannot be used, or "")],
    and
    whether titles say which of its columns is the text. A .txt may be none: [].

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
            return [], False
        raise BadInput(f"no row has a recording's name and text; expected {[*recordings, 'u1'][0]}|text")
    rows = split_rows(lines, mark)
    width = collections.Counter(map(len, rows)).most_common(1)[0][0]
    if mark in ",;" and sum(len(row) != width for row in rows) > 0.1 * len(rows):
        raise BadInput(f"rows differ in their columns; put texts that hold {mark} in quotes, or use | for it")
    header = key < len(rows[0]) and not match(stem(rows[0][key]), folders, recordings)
    titles = {title(cell) for cell in rows[0]} if header else set()
    role = roles([row for row in rows if len(row) == width][:1000], key,
                 header and len(rows[0]) == width and not re.search(r"\d", rows[0][key]))
    titled = titles & set(" ".join(HEADER.values()).split())
    sure = {kind for kind, known in HEADER.items() if titles & set(known.split())}
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
        if "speaker" not in sure and len(files) == 1:                             # where it lies is no guess
            speaker = known_reader(files[0][1]) or speaker
        made.append((name, files, normal or text, speaker, why))
    return made, "text" in sure


# ------------------------------------------------------------------------------------------------------- find


def labels_only(rows):
    """Are a table's texts a few short labels that come again, like happy or train?"""
    cells = [words for _, _, words, *_ in rows if words]
    return bool(cells) and 2 * len(set(cells)) <= max(2, len(cells)) and (
        sum(len(words.split()) for words in cells) <= 2 * len(cells))


TURN = re.compile(r"\W*\w[\w.' -]{0,24}:\s")


def turn_of(texts):
    """Whose turn it is, like "ANNA: ", where that opens half of the texts or more -> TURN, else None."""
    opened = [bool(TURN.match(text)) for text in texts]
    return TURN if sum(opened) > max(2, len(opened) / 2) else None


def check_spoken(line, turns=None):
    """BadInput where a line of a text has more than what is said."""
    odd = unspoken(line) or turns and turns.match(line)
    if odd:
        shown = odd if isinstance(odd, str) else odd[0].strip()
        raise BadInput(f"its text has more than the words ({ascii(shown)[1:-1]}), expected the words alone")


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
    why = no_plain_words(lines)
    if why:
        raise BadInput(why)
    if lines and stem(re.split(r"[\s|;,]", lines[0].strip())[0]) == base and re.search(r"[\d_]", base):
        raise BadInput("its text begins with its own name, expected the words alone")
    for line in lines:
        check_spoken(line)
    return path, " ".join(lines)


def only_spoken(found, skipped):
    """The recordings whose texts are words and nothing else, spaces in order; adds the others to skipped."""
    usable, turns = [], turn_of(words for _, _, words, _ in found)
    for name, path, words, who in found:
        try:
            wrecked = WRECKED.search(words)
            if wrecked:
                raise BadInput(f"text decoded wrongly (it holds {ascii(wrecked[0])})")
            check_spoken(words, turns)
            usable.append((name, path, " ".join(words.split()), who))
        except BadInput as problem:
            skipped.append((name, str(problem)))
    return usable


def find_utterances(folder):
    """Recordings and texts in a folder -> [(id, path, text, speaker)], [(what was skipped, why)].

    Tables of any name (id|text, with normalised text, speakers, a header row or not; | tab ; or , between)
    and LibriSpeech's .trans.txt; for recordings without a row a .txt or .lab of the same name, beside them or
    in a folder of texts (LibriTTS, VCTK).
    """
    if not str(folder):
        raise BadInput("--data: an empty name; give a folder of recordings, for example corpus")
    folder = Path(folder)
    if not folder.is_dir():
        raise BadInput(f"--data {folder}: no such folder; give a folder of recordings, for example corpus")
    recordings, sides, tables, skipped = survey(folder)
    tables.sort(key=lambda p: (not p.name.lower().startswith("metadata"), p))
    loose = [path for base, _, path in everything(sides) if base not in recordings]
    found, taken, used, lists = [], {}, False, []  # taken: {recording: its text}
    for table in [*tables, *(p for p in loose if p.suffix.lower() == ".txt")]:
        shown = table.relative_to(folder)
        try:
            if table.stem.lower() in UNCHECKED:
                raise BadInput("Common Voice's lists of unchecked clips are not used")
            rows, sure = read_table(table, shown.parent.parts, recordings)
        except BadInput as problem:
            skipped.insert(0, (str(shown), str(problem)))
            continue
        loose = [path for path in loose if path != table or not rows]
        lists.append((not sure and labels_only(rows), len(lists), shown, rows))
    for labels, _, shown, rows in sorted(lists, key=lambda table: table[:2]):     # those of sentences first
        known = sum(len(files) == 1 and (files[0][1] in taken or bool(
            match(stem(files[0][1].name), files[0][0], sides))) for _, files, *_ in rows) if labels else 0
        if 2 * known > len(rows) or labels and all(is_sort(words) for _, _, words, *_ in rows if words):
            skipped.insert(0, (str(shown), "labels, no texts; a header row id|text says otherwise"))
            continue
        for name, files, words, who, why in rows:
            path = files[0][1] if len(files) == 1 else None
            if not why and taken.get(path, words) != words:
                why = "duplicate id with another text"
            if why:
                skipped.append((name, why))
            elif path not in taken:
                found.append((name, path, words, who or speaker_of(path, files[0][0])))
            taken.setdefault(path, words)
    for base, folders, path in everything(recordings):
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
    found = only_spoken(found, skipped)
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
