"""Corpora as people have them, and their faults by kind: python -m pytest -q tests/test_prepare.py"""
import codecs
import os
import socket
import subprocess
import sys
import threading
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import soundfile

from speech import audio
from speech import prepare
from common.cli import BadInput
from conftest import ROOT
from data import MelSettings
from speech.corpora import find_utterances

CASES = ROOT.parent / "shared" / "cases"
LINES = ("The kettle boiled before the rain began.", "We carried four chairs into the garden.",
         "Nobody answered the door this morning.", "Please leave the green parcel on the step.",
         "She reads the paper after lunch.", "Turn left at the bakery and keep walking.",
         "A thick fog rolled across the valley.", "My brother sneezed twice.")


def sound(text, seconds=None, level=0.1, seed=0):
    """Noise that swells and falls 4 times a second, 14 letters a second of it, 0.15 s of silence at its ends."""
    n = int(16000 * (seconds or len(text) / 14))
    wav = np.random.default_rng(seed).normal(0, level, n) * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * np.arange(n) / 16000))
    return np.pad(wav, 2400).clip(-1, 1)


def say(path, text, write=None, seconds=None, **options):
    """A recording of a text at path; write: its .txt too (True), or what that says instead."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound(text, seconds), 16000, **options)
    if write:
        path.with_suffix(".txt").write_text(text if write is True else write, encoding="utf-8")
    return path


def make(folder, form="wavs/{}.wav", table="metadata.csv", rows="u{i}|{text}", lines=LINES, head=""):
    """A corpus of the lines with a table whose rows look like this."""
    for i, text in enumerate(lines):
        say(folder / form.format(f"u{i}"), text)
    text = head + "".join(rows.format(i=i, text=t, n=len(t), who=("anna", "ben")[i % 2]) + "\n"
                          for i, t in enumerate(lines))
    (folder / table).parent.mkdir(parents=True, exist_ok=True)
    (folder / table).write_bytes(text.encode())
    return folder


def texts(folder):
    """What is found -> {id: text}, and the reasons of what is not, {name: reason}."""
    found, skipped = find_utterances(folder)
    return {name: text for name, _, text, _ in found}, dict(skipped)


# ------------------------------------------------------------------------------------------------ plausibility


@pytest.mark.parametrize("bad, many", [(b, n) for n in (3, 8) for b in ("...", "[noise]", "a", "0 25 sil 25 250 kettle",
                                                                       "1\n00:00:00,000 --> 00:00:04,000\nA kettle boiled.",
                                                                       "[00:00.00] A kettle boiled before the rain")]
                         + [("?!", 3), ("<laughter>", 3), ("uh", 8), ("Nobody answered the do", 8), (LINES[1] * 2, 8)])
def test_a_text_that_is_not_the_sounds_is_skipped_and_kept_on_demand(tmp_path, bad, many):
    lines = LINES[:many]
    for i, text in enumerate(lines):
        say(tmp_path / "c" / f"u{i}.wav", text, True)
    say(tmp_path / "c" / "bad.wav", "x" * 46, bad)
    corpus = prepare.prepare(tmp_path / "c", cache=tmp_path / "cache")
    assert corpus.names == [f"u{i}" for i in range(len(lines))]
    (name, reason), = corpus.skipped
    assert name == "bad" and any(why in reason for why in ("do not fit", "times and labels", "cannot", "no text",
                                                  "more than the words"))
    assert sum(corpus.frames) == len(corpus.memory) and corpus.mel(many - 1).isfinite().all()
    if "do not fit" in reason and len(bad) > 2:
        kept = prepare.prepare(tmp_path / "c", cache=tmp_path / "cache", keep_outliers=True)
        assert "bad" in kept.names and not kept.skipped and kept.key != corpus.key


def test_a_corpus_of_nothing_but_faults_is_refused_with_the_way_out(tmp_path):
    for i in range(7):
        say(tmp_path / f"u{i}.wav", LINES[0], "a b")
    with pytest.raises(BadInput, match="none of its 7 recordings.*7 x text and sound do not fit.*--keep_outliers"):
        prepare.prepare(tmp_path, cache=tmp_path / "cache")


@pytest.mark.parametrize("kind, options", [("wav", {}), ("aiff", {}), ("au", {}), ("caf", {}), ("flac", {}), ("mp3", {}),
                                           ("ogg", {}), ("opus", dict(format="OGG", subtype="OPUS"))])
def test_a_file_cut_short_is_skipped_and_a_whole_one_is_not(tmp_path, kind, options):
    path = say(tmp_path / f"a.{kind}", "x" * 60, **options)
    whole = audio.load_audio(path, MelSettings())
    assert abs(len(whole) / 16000 - 60 / 14 - 0.3) < 0.15
    path.write_bytes(path.read_bytes()[:int(0.6 * path.stat().st_size)])
    with pytest.raises(BadInput, match="cut short|unreadable"):
        audio.load_audio(path, MelSettings())


def test_the_sound_cut_and_written_anew_is_an_outlier(tmp_path):
    for i, text in enumerate(LINES):
        say(tmp_path / "c" / f"u{i}.wav", text, True)
    wav, rate = soundfile.read(tmp_path / "c" / "u3.wav")
    soundfile.write(tmp_path / "c" / "u3.wav", wav[:int(0.6 * len(wav))], rate)
    assert [name for name, _ in prepare.prepare(tmp_path / "c", cache=tmp_path / "cache").skipped] == ["u3"]


# ------------------------------------------------------------------------------------------------------ tables


@pytest.mark.parametrize("rows, speakers", [
    ("u{i}|{text}|{n}", False), ("u{i}|{text}|2.61", False), ("u{i}|{n}|{text}", False), ("u{i}|{text}", False),
    ("u{i}|{text}|{text}", False), ("u{i}|{text}|", False), ("u{i}|{text}|train", False),
    ("u{i}|{text}|{who}", True), ("u{i}|{who}|{text}", True), ("{who}|u{i}|{text}|{text}", True),
    ("wavs/u{i}.wav|{who}|{n}|{text}", True), ("u{i}\t{text}\t{who}", True), ('"u{i}","{text}","{who}"', True),
    ("u{i};{who};{text}", True), ("u{i}.wav,\"{text}\",{who}", True), ("audio/u{i}|{text}|{who}", True),
    ("/home/me/wav/u{i}.flac|{text}|{who}", True), ("wavs\\u{i}.wav|{text}|{who}", True), ("{text}\twavs/u{i}.wav", False),
    ('"{text}",wavs/u{i}.wav,{who}', True)])
@pytest.mark.parametrize("form", ["wavs/{}.wav", "clips/{}.flac", "{}.WAV"])
def test_columns_are_known_by_what_they_hold(tmp_path, rows, speakers, form):
    found, skipped = find_utterances(make(tmp_path, form, rows=rows))
    assert [text for _, _, text, _ in found] == list(LINES) and not skipped
    assert [who for *_, who in found] == ([("anna", "ben")[i % 2] if speakers else "" for i in range(8)])


@pytest.mark.parametrize("head, rows, table, speakers", [
    ("id|text|speaker\n", "u{i}|{text}|{who}", "metadata.txt", True), ("file_name,transcription\n", "u{i}.wav,\"{text}\"",
                                                                      "metadata.csv", False),
    ("client_id\tpath\tsentence\tup_votes\n", "{who}\tu{i}.wav\t{text}\t{n}", "validated.tsv", True),
    ("audio_filepath,duration,text\n", "wavs/u{i}.wav,2.5,\"{text}\"", "list.csv", False),
    ("Speaker ID;File;Sentence\n", "{who};u{i};{text}", "x.csv", True),
    ("text\tpath\n", "{text}\twavs/u{i}.wav", "x.tsv", False)])
def test_header_rows(tmp_path, head, rows, table, speakers):
    found, skipped = find_utterances(make(tmp_path, head=head, rows=rows, table=table))
    assert [text for _, _, text, _ in found] == list(LINES) and not skipped
    assert {who for *_, who in found} == ({"anna", "ben"} if speakers else {""})


def test_normalised_text_is_used_where_it_resembles_and_quotes_stay_in_ljspeechs_table(tmp_path):
    rows = ('u0|"It cost $20," he said.|"It cost twenty dollars," he said.\nu1|In 1984 we ran.|In nineteen eighty '
            'four we ran.\nu2|42|forty two\nu3|Plain words, as ever.|Plain words, as ever.\n')
    folder = make(tmp_path)
    (folder / "metadata.csv").write_text(rows)
    found, skipped = texts(folder)
    assert found == {"u0": '"It cost twenty dollars," he said.', "u1": "In nineteen eighty four we ran.",
                     "u2": "forty two", "u3": "Plain words, as ever."}
    assert [why.split(",")[0] for why in skipped.values()] == ["no text"] * 4


@pytest.mark.parametrize("rows, words", [
    ("u{i}|{text}|Heute koche ich {i} Suppen und esse sie.", "different texts"),
    ("u{i}", "no row has a recording's name and text"), ("x{i}|{text}", "no row has .*; expected u0|text"),
    ("u{i},{text}, and so, on", "different|differ in their columns|no usable")])
def test_a_table_that_cannot_be_known_is_refused_in_one_line(tmp_path, rows, words):
    lines = [text if i % 2 else text.replace(" the ", ", the ") for i, text in enumerate(LINES)]
    with pytest.raises(BadInput, match=words) as problem:
        find_utterances(make(tmp_path, rows=rows, lines=lines))
    assert "\n" not in str(problem.value)


def test_layouts_of_well_known_corpora(tmp_path):
    say(tmp_path / "ls" / "84" / "121" / "84-121-0000.flac", LINES[0])
    (tmp_path / "ls" / "84" / "121" / "84-121.trans.txt").write_text(f"84-121-0000 {LINES[0].upper()}\n")
    for who in ("p225", "p226"):
        for mic in ("mic1", "mic2"):
            say(tmp_path / "vctk" / "wav48_silence_trimmed" / who / f"{who}_001_{mic}.flac", LINES[1])
        (tmp_path / "vctk" / "txt" / who).mkdir(parents=True)
        (tmp_path / "vctk" / "txt" / who / f"{who}_001.txt").write_text(f"{LINES[1]} {who}")
    book = tmp_path / "ma" / "en_US" / "by_book" / "female" / "mary_ann" / "emma"
    make(book, rows="u{i}|{text}|{text}")
    make(tmp_path / "ma" / "en_US" / "by_book" / "male" / "elliot" / "emma")
    say(tmp_path / "tts" / "7" / "9" / "7_9_0.wav", LINES[2])
    (tmp_path / "tts" / "7" / "9" / "7_9_0.normalized.txt").write_text(LINES[2])
    (tmp_path / "tts" / "7" / "9" / "7_9_0.original.txt").write_text("other")
    make(tmp_path / "cv", "clips/{}.mp3", "train.tsv", "{who}\tu{i}.mp3\t{text}", head="client_id\tpath\tsentence\n")
    (tmp_path / "cv" / "invalidated.tsv").write_text("client_id\tpath\tsentence\nx\tu1.mp3\twrong\n")
    make(tmp_path / "vits", "wavs/{}.wav", "filelists/train.txt", "DUMMY/u{i}.wav|{who}|{text}")
    seen = {name: find_utterances(tmp_path / name) for name in ("ls", "vctk", "ma", "tts", "cv", "vits")}
    who = {name: sorted({row[3] for row in found}) for name, (found, _) in seen.items()}
    assert who == dict(ls=["84"], vctk=["p225", "p226"], ma=["elliot", "mary_ann"], tts=["7"], cv=["anna", "ben"],
                       vits=["anna", "ben"])
    assert [len(found) for found, _ in seen.values()] == [1, 2, 16, 1, 8, 8]
    assert all(row[2].endswith(row[3]) for row in seen["vctk"][0])
    assert [why for _, why in seen["vctk"][1]] == ["second microphone of a recording that is there"] * 2
    assert "unchecked" in seen["cv"][1][0][1] and "wrong" not in " ".join(row[2] for row in seen["cv"][0])


def test_one_speakers_id_is_never_anothers_recording(tmp_path):
    make(tmp_path / "anna", lines=LINES[:2])
    make(tmp_path / "ben", lines=LINES[2:5])
    (tmp_path / "anna" / "metadata.csv").write_text(f"u0|{LINES[0]}\nu1|{LINES[1]}\nu2|not there\n")
    found, skipped = find_utterances(tmp_path)
    assert sorted((name, who) for name, _, _, who in found) == [("u0", "anna"), ("u0", "ben"), ("u1", "anna"),
                                                                ("u1", "ben"), ("u2", "ben")]
    assert skipped == [("u2", "no audio of this name")]
    assert all(f"/{who}/" in str(path) for _, path, _, who in found)


@pytest.mark.parametrize("form, rows, who", [
    ("wavs/{}.wav", "u{i}|{text}|angry", ""), ("wavs/{}.wav", "u{i}|de_DE|{text}", ""),
    ("wavs/{}.wav", "u{i}|{text}|dev-other", ""), ("wavs/{}.wav", "u{i}|{text}|British", ""),
    ("wavs/{}.wav", "u{i}|{text}|no", ""), ("wavs/{}.wav", "u{i}|{text}|2021-03-04", ""),
    ("wavs/{}.wav", "u{i}|{text}|{who}|whispered", "anna ben"), ("wavs/{}.wav", "u{i}|{text}|male_{who}", "male_anna male_ben"),
    ("eval/{}.wav", "u{i}|{text}", ""), ("p7/Surprise/wav/{}.wav", "u{i}|{text}", "p7"), ("fr/mia/cd2/{}.wav", "u{i}|{text}", "mia"),
    ("holdout/p7/{}.wav", "u{i}|{text}", "p7"), ("sad/{}.wav", "u{i}|{text}", ""), ("female/{}.wav", "u{i}|{text}", "female"),
    ("7/9/7_9_{}.wav", "7/9/7_9_u{i}\t{text}\t{text}\ttrue", "7")])
def test_moods_languages_and_parts_are_nobody(tmp_path, form, rows, who):
    found, skipped = find_utterances(make(tmp_path, form, rows=rows, table="x.book.tsv"))
    assert [text for _, _, text, _ in found] == list(LINES) and not skipped
    assert {speaker for *_, speaker in found} == set(who.split() or [""])


@pytest.mark.parametrize("rows", ["u{i}|calm", "u{i}\ten-GB", "u{i},{who}", "u{i}|test"])
def test_a_table_of_labels_is_no_table_of_texts(tmp_path, rows):
    make(tmp_path, rows=rows)
    for i, text in enumerate(LINES):
        (tmp_path / "wavs" / f"u{i}.txt").write_text(text)
    found, skipped = texts(tmp_path)
    assert list(found.values()) == list(LINES) and "labels" in skipped["metadata.csv"]


@pytest.mark.parametrize("content", [
    "pau 0 31\nh 31 40\niy 40 52", "0.00 0.31 pau\n0.31 0.40 h", "u1 B 3.00 7.25 <o,f1,female> he left",
    "u1 1 0.10 0.22 he 0.99\nu1 1 0.32 0.30 left 0.91", "HH IY1 L EH1 F T", "pau\nhh\niy\nl\neh\nf\nt", "0 4000 h#\n4000 5100 hv",
    "SPEAKER u1 1 0.10 3.20 <NA> <NA> ann <NA> <NA>", '{"text": "he left"}', "Spk 2: He left.", "Speaker A: Hi.\nSpeaker B: Oh.",
    "TRANSCRIPTION: he left", "He left [door slams] early.", "He (coughing) left.", "*chuckles* He left.", "<breath> he left",
    "S07: he left", "[SPEAKER_3] he left", "go to http://a.org/b now", "{cough} he left", "u1 he left early", "sil",
    ";; a comment\nhe left", "# lang: en\nhe left", "he left &=coughs early"])
def test_what_is_no_speech_is_not_trained_on(tmp_path, content):
    say(tmp_path / "u0.wav", LINES[0], True)
    say(tmp_path / "u1.wav", LINES[1], content)
    found, skipped = texts(tmp_path)
    assert list(found) == ["u0"] and "expected the words alone" in skipped["u1"]


@pytest.mark.parametrize("content", [
    "He said (as you know) that it rains.", "the words [in italics] are mine", "*really* good", "Note: bring a coat.",
    "In 1914 and in 1918 we ran.", "ah, er, well", "the\nkettle\nboiled", "Psalm 23: the Lord", "Call 555 1234 now.", "a b c d e"])
def test_what_only_looks_like_a_note_is_kept(tmp_path, content):
    say(tmp_path / "u1.wav", LINES[1], content)
    assert texts(tmp_path)[0] == {"u1": " ".join(content.split())}


def test_dead_links_pipes_and_odd_names_cost_only_themselves(tmp_path):
    say(tmp_path / "u0.wav", LINES[0], True)
    for name in ("u1.txt", "metadata.csv"):
        (tmp_path / name).symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "list.tsv")
    os.mkfifo(tmp_path / "me.wav")
    odd = os.path.join(os.fsencode(tmp_path), b"caf\xe9")
    os.rename(say(tmp_path / "cafe.wav", LINES[1], True), odd + b".wav")
    os.rename(tmp_path / "cafe.txt", odd + b".txt")
    found, skipped = texts(tmp_path)
    assert found == {"u0": LINES[0], "caf%E9": LINES[1]} and set(skipped) == {"u1.txt", "metadata.csv", "list.tsv", "me.wav"}
    assert prepare.prepare(tmp_path, cache=tmp_path.with_name("cache")).names == ["caf%E9", "u0"]
    with pytest.raises(BadInput, match="no file of audio"):
        audio.load_audio(tmp_path / "me.wav", MelSettings())
    with pytest.raises(BadInput, match="an empty name"):
        find_utterances("")


# ------------------------------------------------------------------------------------------------------- text


@pytest.mark.parametrize("raw, want", [
    ("It’s the café — yes.".encode("utf-8-sig"), "It’s the café — yes."),
    ("It’s the café.".encode("utf-16"), "It’s the café."), (codecs.BOM_UTF16_BE + "Über".encode("utf-16-be"), "Über"),
    ("café".encode("utf-32"), "café"), (unicodedata.normalize("NFD", "naïve café").encode(), "naïve café"),
    ("two\rlines\rhere".encode(), "two lines here"), ("a\u2028b\x85c\fd\ve\r\n\r\n".encode(), "a b c d e"),
    ("zero\u200bwidth\ufeff".encode(), "zerowidth"), ("It’s the café".encode("cp1252"), None),
    ("no mark".encode("utf-16-le"), None), ("It\ufffds gone".encode(), None), (b"It\xc2\x92s gone", None),
    (b"nul\0here", None), ("donâ€™t".encode(), None), ("the cafÃ© here".encode(), None),
    ("IRMÃ, Â, âge, ESPAÑA".encode(), "IRMÃ, Â, âge, ESPAÑA"), ("Привет".encode("cp1251"), None)])
def test_texts_are_decoded_or_named(tmp_path, raw, want):
    say(tmp_path / "a.wav", LINES[0])
    say(tmp_path / "b.wav", LINES[0], True)
    (tmp_path / "a.txt").write_bytes(raw)
    found, skipped = texts(tmp_path)
    assert found["b"] == LINES[0] and found.get("a") == want
    assert ("a" in skipped) == (want is None)
    assert want or "UTF-8" in skipped["a"] or "decoded wrongly" in skipped["a"]


@pytest.mark.parametrize("byte", [b"\0", b"\xe9"])
def test_a_bad_byte_in_a_table_costs_its_row(tmp_path, byte):
    table = make(tmp_path) / "metadata.csv"
    table.write_bytes(table.read_bytes().replace(b"chairs", b"ch" + byte + b"rs"))
    found, skipped = texts(tmp_path)
    assert len(found) == 7 and list(skipped) == ["u1"] and "decoded wrongly" in skipped["u1"]


@pytest.mark.parametrize("space", ["\u2028", "\x85", "\f", "\v", "\u2029", "\x1c"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_tables_lines_end_at_line_ends_only(tmp_path, space, end):
    make(tmp_path)
    rows = [f"u{i}|{text.replace(' ', space, 1)}" for i, text in enumerate(LINES)]
    (tmp_path / "metadata.csv").write_bytes(end.join(rows).encode())
    assert texts(tmp_path) == ({f"u{i}": text for i, text in enumerate(LINES)}, {})


@pytest.mark.parametrize("disk, table", [("NFD", "NFC"), ("NFC", "NFD"), ("NFD", "NFD")])
def test_names_are_matched_as_nfc(tmp_path, disk, table):
    for name in ("Gäste", "été", "ñu"):
        say(tmp_path / "wavs" / (unicodedata.normalize(disk, name) + ".wav"), LINES[0])
    (tmp_path / "metadata.csv").write_text(unicodedata.normalize(table, f"Gäste|{LINES[0]}\nété|{LINES[1]}\nñu|x\n"))
    found, skipped = texts(tmp_path)
    assert list(found) == ["Gäste", "été", "ñu"] and not skipped


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16-le", "cp437"])
def test_a_table_that_is_not_utf_8_is_refused_by_name(tmp_path, encoding):
    make(tmp_path)
    (tmp_path / "metadata.csv").write_bytes("u0|Das Café über der Straße.\n".encode(encoding))
    with pytest.raises(BadInput, match="metadata.csv is not UTF-8 text; save it as UTF-8"):
        find_utterances(tmp_path)


# ------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("suffix", [".m4a", ".aac", ".wma", ".mp4", ".amr"])
def test_audio_that_libsndfile_does_not_read_is_named(tmp_path, suffix):
    say(tmp_path / "c" / "a.wav", LINES[0], True)
    (tmp_path / "c" / f"b{suffix}").write_bytes(b"\0\0\0\x20ftypM4A " * 99)
    (tmp_path / "c" / "b.txt").write_text(LINES[1])
    corpus = prepare.prepare(tmp_path / "c", cache=tmp_path / "cache")
    (name, reason), = corpus.skipped
    assert corpus.names == ["a"] and name == "b" and "unreadable" in reason and "convert it" in reason


def test_everything_that_looks_like_a_recording_is_used_or_named(tmp_path):
    for suffix in (".wav", ".aiff", ".au", ".caf", ".FLAC", ".Mp3", ".ogg", ".w64", ".rf64"):
        say(tmp_path / "c" / f"in{suffix[1:]}{suffix}", LINES[0], True)
    say(tmp_path / "c" / "sub" / "x.wav", LINES[0])
    say(tmp_path / "c" / "inwav.flac", LINES[0])
    (tmp_path / "c" / "._inwav.wav").write_bytes(b"\0\5\x16\7 mac")
    (tmp_path / "c" / "lost.txt").write_text("no recording of this")
    (tmp_path / "c" / "lost2.lab").write_text("nor of this")
    (tmp_path / "c" / "dead.wav").symlink_to(tmp_path / "nowhere.wav")
    (tmp_path / "c" / "loop").symlink_to(tmp_path / "c")
    say(tmp_path / "elsewhere" / "far.wav", LINES[0], True)
    (tmp_path / "c" / "linked").symlink_to(tmp_path / "elsewhere")
    found, skipped = texts(tmp_path / "c")
    assert sorted(found) == sorted(["inwav", "inaiff", "inau", "incaf", "inFLAC", "inMp3", "inogg", "inw64", "inrf64",
                                    "linked/far"])
    assert {name: why.split(",")[0] for name, why in skipped.items()} == {
        "._inwav.wav": "hidden file", "dead.wav": "broken link", "inwav.flac": "another format of a recording that is "
        "there", "sub/x": "no text", "lost.txt": "no audio of this name", "lost2.lab": "no audio of this name"}
    corpus = prepare.prepare(tmp_path / "c", cache=tmp_path / "cache")
    assert len(corpus.names) == 10                                                # all of them are read


# ------------------------------------------------------------------------------------------------------- level


def active(wav, start, length):
    """RMS of a part, in dB."""
    return 20 * np.log10(np.sqrt(np.mean(wav[start:start + length] ** 2)))


@pytest.mark.parametrize("pad, offset, click", [((0, 15), 0, 0), ((8, 8), 0, 0), ((0, 0), 0.3, 0), ((2, 2), -0.2, 0),
                                                ((5, 5), 0, 0.9)])
def test_level_is_that_of_speech_and_silence_is_cut(tmp_path, pad, offset, click):
    s, plain = MelSettings(), sound("x" * 40, level=0.05)
    noise = np.random.default_rng(1).normal(0, 3e-5, len(plain) + 16000 * sum(pad))
    wav = np.pad(plain, (16000 * pad[0], 16000 * pad[1])) + noise + offset
    wav[200:210] += click
    for name, content in (("plain", plain), ("odd", wav)):
        soundfile.write(tmp_path / f"{name}.wav", content, 16000, subtype="FLOAT")
    a, b = (audio.load_audio(tmp_path / f"{name}.wav", s) for name in ("plain", "odd"))
    assert abs(len(a) - len(b)) < 0.5 * 16000 and abs(b.mean()) < 1e-3
    x, y = (np.flatnonzero(np.abs(w) > 0.01)[0] for w in (a, b))
    assert abs(active(a, x, 30000) - active(b, y, 30000)) < 0.3
    assert y < 0.32 * 16000 and len(b) - np.flatnonzero(np.abs(b) > 0.01)[-1] < 0.32 * 16000
    raw = audio.load_audio(tmp_path / "odd.wav", s, level=0)                       # as it is
    assert len(raw) == len(wav) and np.abs(raw - wav.clip(-1, 1)).max() < 1e-5


def disturbances(n, rng):
    """Name -> what may be heard in n samples before or after speech whose RMS is 1; loud and faint."""
    t = np.arange(n) / 16000

    def short(tau):
        return np.exp(-(t - 0.1) / tau) * (t > 0.1)
    return {"beep": np.sin(2 * np.pi * 880 * t) * (abs(t - 0.4) < 0.2), "long beep": 0.3 * np.sin(2 * np.pi * 2100 * t) * (t < n / 20000),
            "two tones": 0.5 * (np.sin(2 * np.pi * 697 * t) + np.sin(2 * np.pi * 1209 * t)) * (abs(t - 0.3) < 0.12),
            "knock": 3 * short(0.01) * rng.normal(size=n), "thump": 4 * short(0.025) * np.sin(2 * np.pi * 120 * t),
            "hum of 50 Hz": 0.2 * sum(np.sin(2 * np.pi * f * t) / f * 50 for f in (50, 100, 150)),
            "hum of 60 Hz": 0.03 * sum(np.sin(2 * np.pi * f * t) for f in (60, 120, 180, 300)),
            "hiss": 0.05 * rng.normal(size=n), "faint hiss": 0.015 * rng.normal(size=n),
            "drift": np.sin(2 * np.pi * t), "slope": 0.5 * t / t[-1], "wind": 0.2 * np.sin(2 * np.pi * 6 * t),
            "two knocks": 2 * (short(0.012) + np.roll(short(0.012), 9000)) * rng.normal(size=n)}


@pytest.mark.parametrize("where", ["before", "after", "both"])
@pytest.mark.parametrize("name", disturbances(16000, np.random.default_rng(0)))
def test_what_is_heard_before_and_after_speech_is_none_of_it(tmp_path, where, name):
    s, rng, n = MelSettings(), np.random.default_rng(len(name)), 16000
    for path in sorted((ROOT / "corpus").glob("*/wavs/*.opus"))[::200]:
        plain = audio.load_audio(path, s)
        odd, room = np.pad(plain, (n, n)), 0.108 * disturbances(n, rng)[name]
        odd[:n] += (room[::-1] if name == "slope" else room) * (where != "after")
        odd[-n:] += room * (where != "before")
        soundfile.write(tmp_path / "odd.wav", 0.5 * odd, 16000, subtype="FLOAT")
        found = audio.load_audio(tmp_path / "odd.wav", s)
        lag = int(np.argmax(scipy.signal.correlate(found, plain))) - len(plain) + 1                # where speech is in it
        assert abs(lag) < 0.3 * 16000 and abs(lag + len(plain) - len(found)) < 0.3 * 16000, path
        both = slice(max(0, lag), min(len(found), lag + len(plain)))
        gain = np.dot(found[both], plain[both.start - lag:both.stop - lag]) / np.dot(*2 * [plain[both.start - lag:both.stop - lag]])
        assert abs(20 * np.log10(gain)) < 0.5, (path, gain)


@pytest.mark.parametrize("level", [0.3, 0.2, 0.01])
def test_what_is_loud_stays_so_where_the_settings_say(tmp_path, level):
    plain = sound("x" * 40, level=level)
    soundfile.write(tmp_path / "a.wav", plain, 24000, subtype="FLOAT")
    wav = audio.load_audio(tmp_path / "a.wav", audio.VOCOS)
    gain = np.abs(wav).max() / np.abs(plain).max()
    assert gain == pytest.approx(1, abs=0.02) if level > 0.12 else gain > 5


def test_silence_offsets_and_clicks_are_no_speech(tmp_path):
    click = np.zeros(32000)
    click[9000:9010] = 0.9
    for content in (np.zeros(32000), np.full(32000, 0.5), click):
        soundfile.write(tmp_path / "a.wav", content, 16000, subtype="FLOAT")
        with pytest.raises(BadInput, match="silent or not audio"):
            audio.load_audio(tmp_path / "a.wav", MelSettings())


# ----------------------------------------------------------------------------------- vocabularies and the cache


@pytest.mark.parametrize("letter, stops", [("ä", True), ("ж", True), ("猫", True), (";", False)])
def test_letters_that_a_checkpoint_lacks_stop_it(tmp_path, capsys, letter, stops):
    lines = [text.replace("e", "e" + letter, 1) for text in LINES]
    folder, cache = make(tmp_path / "c", lines=lines), tmp_path / "cache"
    vocab = "".join(sorted({*" .", *"".join(LINES)} - {letter}))
    if stops:
        with pytest.raises(BadInput, match="cannot be spoken: .*8 of 8 texts lose letters.*--keep_unknown"):
            prepare.prepare(folder, lang="none", vocab=vocab, cache=cache, keep_unknown=False)
        with pytest.raises(BadInput, match="texts lose letters, the first: .*; the checkpoint reads none$"):
            prepare.prepare(folder, lang="none", vocab=vocab, cache=cache)            # no such flag: no such advice
        assert not list(cache.iterdir())
    corpus = prepare.prepare(folder, lang="none", vocab=vocab, cache=cache, keep_unknown=stops)
    assert corpus.vocab == vocab and len(corpus.names) == 8
    assert "of 8 texts lose letters" in capsys.readouterr().out


def patched(path, place, content):
    """Other bytes at a place of a file, of the same length."""
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(content)


OTHERS = {"de": "Der Bäcker bringt heute neun warme Brote und will dafür nichts haben.",
          "es": "Mi vecina riega las plantas cada noche cuando vuelve del trabajo.",
          "pl": "Moja sąsiadka podlewa kwiaty każdego wieczoru, kiedy wraca do domu.",
          "it": "La mia vicina annaffia i fiori ogni sera quando torna dal lavoro."}


@pytest.mark.parametrize("other", OTHERS)
def test_a_corpus_of_another_language_is_not_read_as_english(tmp_path, capsys, other):
    folder, cache = make(tmp_path / "c", lines=[OTHERS[other]] * 5), tmp_path / "cache"
    with pytest.raises(BadInput, match="words in small letters are not in the English.*is --lang en-us right[?]; --keep"):
        prepare.prepare(folder, cache=cache, keep_unknown=False)
    with pytest.raises(BadInput, match="the checkpoint reads en-us$"):
        prepare.prepare(folder, vocab=list(" .a"), cache=cache)
    assert len(prepare.prepare(folder, cache=cache, keep_unknown=True).names) == 5
    assert "is it English?" in capsys.readouterr().out
    prepare.prepare(folder, lang="none", cache=cache)


def entry(cache):
    """The one entry of a cache."""
    folder, = Path(cache).iterdir()
    return folder


@pytest.mark.parametrize("harm", [
    lambda e: patched(e / "mel.f16", 4321, bytes([(e / "mel.f16").read_bytes()[4321] ^ 1])),
    lambda e: patched(e / "mel.f16", 0, np.full(1, np.nan, np.float16).tobytes()),
    lambda e: patched(e / "mel.f16", 2048, bytes(4096)),
    lambda e: os.truncate(e / "mel.f16", 1000), lambda e: os.truncate(e / "arrays.npz", 300),
    lambda e: (e / "index.json").write_text("{"), lambda e: (e / "mel.f16").write_bytes(b"0" * 10**6),
    lambda e: (e / "arrays.npz").unlink(), lambda e: (e / "key").unlink(), lambda e: (e / "index.json").write_bytes(b""),
    lambda e: (e / "index.json").write_text((e / "index.json").read_text().replace("kettle", "bottle"))])
def test_a_damaged_entry_is_made_anew_once(tmp_path, monkeypatch, harm):
    folder, cache, build, built = make(tmp_path / "c", lines=LINES[:2]), tmp_path / "cache", prepare.build, []
    first = prepare.prepare(folder, cache=cache)
    monkeypatch.setattr(prepare, "build", lambda *a: (built.append(1), build(*a)))
    harm(entry(cache))
    again = [prepare.prepare(folder, cache=cache) for _ in range(2)]
    assert len(built) == 1 and {c.key for c in again} == {first.key} and again[0].texts == first.texts
    assert sorted(p.name for p in entry(cache).iterdir()) == ["arrays.npz", "index.json", "key", "mel.f16"]


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path):
    cache, host = tmp_path / "cache", socket.gethostname()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    names = dict(dead=f"partial-{host}-{ended.pid}-x", alive=f"partial-{host}-{os.getpid()}-y",
                 far="partial-other-host-1-z", old="partial-other-host-1-w", former="partial-abc")
    for name in names.values():
        (cache / name).mkdir(parents=True)
        (cache / name / "mel.f16").write_bytes(b"1")
    os.utime(cache / names["old"], (0, 0))
    prepare.prepare(make(tmp_path / "c", lines=LINES[:2]), cache=cache)
    assert {p.name for p in cache.glob("partial-*")} == {names["alive"], names["far"]}


def test_the_key_is_of_the_content_and_many_at_once_succeed(tmp_path):
    folder, made = make(tmp_path / "c", lines=LINES[:2]), []
    workers = [threading.Thread(target=lambda: made.append(prepare.prepare(folder, cache=tmp_path / "k")))
               for _ in range(3)]
    [w.start() for w in workers], [w.join() for w in workers]
    assert len(made) == 3 and len(list((tmp_path / "k").iterdir())) == 1
    os.utime(folder / "wavs" / "u0.wav", (1, 1))                                  # as a copy of the folder has
    assert prepare.prepare(folder, cache=tmp_path / "k").key == made[0].key
    say(folder / "wavs" / "u9.wav", LINES[3])
    with open(folder / "metadata.csv", "a") as table:
        table.write(f"u9|{LINES[3]}\n")
    assert prepare.prepare(folder, cache=tmp_path / "k").key != made[0].key


def test_what_was_skipped_is_counted_by_reason_and_named(tmp_path, capsys, monkeypatch):
    folder = make(tmp_path / "c")
    for i in range(30):
        say(folder / "wavs" / f"more{i}.wav", "a")
    monkeypatch.setattr(sys, "argv", ["prepare.py", "--data", str(folder), "--cache", str(tmp_path / "cache"),
                                      "--out", str(tmp_path / "out")])
    prepare.main()
    told = capsys.readouterr().out
    assert "skipped: 30\n" in told and "30 x no text" in told and "more0:" in told
    assert sum("neither a row" in line for line in told.splitlines()) == 20


# ------------------------------------------------------------------------------------------------ shared cases


WANT = {"01-third-column-is-length/c": ("u0 u1 u2", ""), "02-speaker-column/c": ("u0 u1 u2 u3", ""),
        "03-encodings/cp1252": ("u1", "u0 u2"), "03-encodings/utf16": ("u0 u1 u2", ""),
        "04-line-separator-in-text/c": ("u0 u1 u2", ""), "06-other-suffixes/mixed": ("u0 u3", "u1"),
        "10-empty-speech/c": ("u5", "u0 u1 u2 u3 u4"), "16-htk-lab/c": ("", "times and labels"),
        "18-truncated/c": ("", "4 x cut short, 1 x unreadable")}


@pytest.mark.parametrize("case", WANT)
def test_shared_cases(tmp_path, case):
    if not (CASES / case).is_dir():
        pytest.skip(f"needs {CASES / case}")
    used, left = WANT[case]
    if not used:
        with pytest.raises(BadInput, match=left):
            prepare.prepare(CASES / case, cache=tmp_path)
        return
    corpus = prepare.prepare(CASES / case, cache=tmp_path)
    assert corpus.names == used.split() and sorted(name for name, _ in corpus.skipped) == left.split()
    assert all(len(text.split()) > 4 and "\ufffd" not in text for text in corpus.texts)
    assert set(corpus.speakers) == ({"rms", "slt"} if case.startswith("02") else {""})
