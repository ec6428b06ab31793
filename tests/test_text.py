"""How text is read: a table of written and spoken English, sentence ends, languages, what must not crash."""
import importlib.util
import random
import re
import time

import pytest

from speech import text
from common.cli import BadInput
from conftest import ROOT

SPOKEN = """
It was -5 degrees. | it was minus five degrees
and/or | and or
€50 | fifty euros
50 € | fifty euros
$5 million | five million dollars
$1.5 billion | one point five billion dollars
$1.00 | one dollar
$3.50 | three dollars and fifty cents
$0.99 | ninety nine cents
$0.00 | zero dollars
$1,250 | one thousand two hundred fifty dollars
-$5 | minus five dollars
$10-15 | ten to fifteen dollars
$10-$15 | ten dollars to fifteen dollars
£1.01 | one pound and one penny
a naïve café | a naive cafe
I don't know; it’s John’s. | I don't know it's John's
3.10 | three point one zero
0.5 and .25 | zero point five and point two five
3.14159265358979 | three point one four one five nine two six five three five eight nine seven nine
version 2.0.1 | version two point zero point one
1,234,567 | one million two hundred thirty four thousand five hundred sixty seven
12345678901234567 | one two three four five six seven eight nine zero one two three four five six seven
02139 | zero two one three nine
007 | zero zero seven
at 8:00 | at eight o'clock
8:05 | eight oh five
10:30 pm | ten thirty P M
8:00 a.m. | eight A M
5pm | five P M
14:00 and 17:45 | fourteen hundred and seventeen forty five
9 a.m. on Monday | nine A M on Monday
555-0100 | five five five zero one zero zero
(617) 555-0123 | six one seven five five five zero one two three
1/2 | one half
3/4 cup | three quarters cup
2 1/2 | two and one half
2½ | two and one half
24/7 | twenty four seven
10-15 people | ten to fifteen people
pp. 10–15 | pages ten to fifteen
1990-1995 | nineteen ninety to nineteen ninety five
the 1990s | the nineteen nineties
the '90s | the nineties
the 1800s | the eighteen hundreds
the 2000s | the two thousands
1999 | nineteen ninety nine
1905 | nineteen oh five
2005 | two thousand five
2024 | twenty twenty four
2024-11-25 | November twenty fifth twenty twenty four
11/25/2024 | November twenty fifth twenty twenty four
Jan. 5, 2020 | January fifth twenty twenty
May 1 | May first
1st, 2nd, 23rd, 100th | first second twenty third one hundredth
180°C | one hundred eighty degrees Celsius
20 °F | twenty degrees Fahrenheit
90° | ninety degrees
5 kg | five kilograms
1 kg | one kilogram
60 km/h | sixty kilometers per hour
3.5 m | three point five meters
20 m² | twenty square meters
16GB | sixteen gigabytes
6 ft. tall | six feet tall
5'10" | five feet ten inches
50% | fifty percent
5-10% | five to ten percent
2 + 2 = 4 | two plus two equals four
5 - 3 = 2 | five minus three equals two
3 × 4 | three times four
x² | x squared
a & b | a and b
AT&T called. | A T and T called
AT&T | A T and T
~5 | about five
#5 | number five
#tag | hashtag tag
No. 5 | number five
No. 5 and no. 6 | number five and number six
Main St. | Main street
St. Mary | Saint Mary
at 5th Ave. | at fifth avenue
Dr. Smith, Mr. Jones vs. Mrs. Lee | doctor Smith mister Jones versus missus Lee
Dr Smith and Mr Jones | doctor Smith and mister Jones
Prof. Ray, Capt. Lee, Sgt. Hill | professor Ray captain Lee sergeant Hill
e.g. this, i.e. that, etc. | for example this that is that et cetera
Smith & Co. | Smith and company
Henry VIII | Henry the eighth
Louis XIV | Louis the fourteenth
World War II, Chapter IV | World War two Chapter four
me@example.com | me at example dot com
https://www.example.com/a-b_c | W W W dot example dot com slash a dash b underscore c
See example.org. | See example dot org
main.py | main dot py
THE QUICK BROWN FOX | the quick brown fox
I said STOP! | I said stop
NASA, the FBI and the USA | nasa the F B I and the U S A
the U.S. Army | the U S Army
The IT crowd told US | The I T crowd told U S
MEET AT 9 AM | meet at nine A M
two CDs, the FBI's | two C D's the F B I's
J. R. R. Tolkien | J R R Tolkien
vitamin A | vitamin A
A1 and B2 | A one and B two
COVID-19, H2O | covid nineteen H two O
mother-in-law | mother in law
well—no – yes -- ok... | well no yes ok
“Hello,” ‘she’ said (twice). | Hello she said twice
wait… what | wait what
a\u2028b\u0085c\fd\u00a0e | a b c d e
so\u00adft zero\u200bwidth | soft zerowidth
ﬁne ｆｕｌｌ 𝐛𝐨𝐥𝐝 | fine full bold
Łódź, Straße, jalapeño, Zoë | Lodz Strasse jalapeno Zoë
*really* _so_ `it` | really so it
Dec 25 and 3 Nov 2021 | December twenty fifth and the third of November twenty twenty one
8:00–9:30 | eight o'clock to nine thirty
$1.2M or €3bn | one point two million dollars or three billion euros
WWII, a Ph.D. in Apt. 4B | World War two a P H D in apartment four B
9/11 | nine eleven
50-60 kg, 5–10 km | fifty to sixty kilograms five to ten kilometers
20-25°C, 20°-25° | twenty to twenty five degrees Celsius twenty degrees to twenty five degrees
7am-9am, 9:00am–5:00pm | seven A M to nine A M nine A M to five P M
$1.5 billion-$2 billion | one point five billion dollars to two billion dollars
4.5/5 and 2.5/10 | four point five out of five and two point five out of ten
10 000 km, 1 000 000 | ten thousand kilometers one million
in 1999 200 came | in nineteen ninety nine two hundred came
10 m/s², 5 kg/m³ | ten meters per second squared five kilograms per cubic meter
$5/month, 1GB/s, 20/day | five dollars per month one gigabyte per second twenty per day
8 fl. oz. of milk, 100 sq. ft. of it | eight fluid ounces of milk one hundred square feet of it
est. 1990 | established nineteen ninety
x != y, 10^6, x^2, 2*3 | X is not equal to Y ten to the power of six X squared two times three
6/2 = 3, 1.5e-3 | six divided by two equals three one point five times ten to the power of minus three
ON THE 1ST OF MAY | on the first of may
2/3rds, 1/20th, a 1 ½ cup | two thirds one twentieth a one and one half cup
$.50, $-5, 1¢ | fifty cents minus five dollars one cent
10.30am, don'ts | ten thirty A M don'ts
a+b@x.org | a plus b at X dot org
https://x.org/a?b=1&c=2 | X dot org slash a question mark B equals one and C equals two
XX chromosomes, an IV line | X X chromosomes an I V line
<p class="x">AT&amp;T&#39;s <b>hi</b><br/>ho</p> | A T and T's hi ho
a < b, x <3 and y<z or z>1 | a less than b x less than three and Y less than Z or Z greater than one
It's 5'4"; 1 tbsp | It's five feet four inches one tablespoon
"""


@pytest.mark.parametrize("pair", SPOKEN.strip().split("\n"))
def test_spoken(pair):
    written, expected = pair.encode("latin-1", "backslashreplace").decode("unicode_escape").split(" | ")
    assert text.spoken(written).lower() == expected.lower()
    assert text.read_text(written)[1] == []


@pytest.mark.parametrize("written, count", [
    ("At 9 a.m. on Monday.", 1), ("At 9 a.m. Monday we left.", 1), ("Use e.g. Paris.", 1),
    ("Take No. 5 now.", 1),
    ("She lives on Main St. She left.", 2), ("St. Mary sang.", 1), ("Mr. A. B. Smith came.", 1),
    ("In the U.S. Army.", 1), ("He left the U.S. He returned.", 2), ("It costs $3.50. Yes.", 2),
    ("Bread, milk, etc. are gone.", 1), ("Bread, etc. Then we left.", 2),
    ('"No!" he cried. "Go?" she asked.', 2),
    ("Wait... what? Really?!", 2), ("No. I won't.", 2), ("So am I. Then go.", 2), ("One.Two.", 2),
    ("Title\n\nText goes on.", 2), ("Roses are red\nViolets are blue", 2), ("He came\nand went.", 1),
    ("He said yes.\nand went.", 2), ("hello. how are you? fine.", 3), ("Jan. 5 was cold. Feb. 6 too.", 2),
    ("Add 6 lb. of flour.", 1), ("Open a 12 oz. can. Pour it.", 2), ("A firm, est. 1990, grew.", 1),
    ("He weighs 60 kg. She left.", 2), ("- eggs\n- milk", 1), ("# Title\n* Eggs", 2), ("She has a Ph.D. in physics.", 1),
    ("", 0), ("... !", 0), (" \n\t ", 0), ("😀", 0)])
def test_sentence_ends(written, count):
    assert len(text.read_text(written)[0]) == count


@pytest.mark.parametrize("written, mark", [
    ("Hello", "."), ("Hello.", "."), ("Hello!", "!"), ("Hello?", "?"), ("Hello?!", "?"), ("Hello,", "."),
    ("Hello:", "."), ("(Hello)", "."), ('"Hello?"', "?"), ("Hello -", "."), ("Hello…", "."), ("Hello;", "."),
    ("Hello 😀", "."), ("Hello！", "!")])
def test_every_utterance_ends_with_a_mark(written, mark):
    for lang in ("en-us", "none"):
        found = text.symbols(written, lang)[0]
        assert found[0] == " " and found[-1].replace("！", "!") == mark
        assert found[-2] not in ",.!? "


def test_pauses():
    assert text.symbols("Yes, no; so (he said) - go: now.")[0].count(",") == 5
    assert text.symbols("He came\nand went")[0].count(",") == 1
    assert text.symbols("word " * 13 + "\nand went")[0].count(",") == 0               # a wrapped line
    assert text.symbols("Stop! Go, go. 1,234")[0].count(",") == 1
    assert text.symbols("Hi. Oh?")[0] == [" ", "h", "ˈaɪ", ".", "ˈoʊ", "?"]


def test_pieces_and_chunks():
    long = "The clock struck seven, and nobody in the house had moved since then; " * 30
    for written, found in [*text.read_text(long)[0], *text.chunks(long)[0]]:
        assert len(found) <= 201 and found[-1] == "." and written in long
    assert text.spoken(" ".join(w for w, _ in text.read_text(long)[0])) == text.spoken(long)
    assert [w for w, _ in text.chunks("Yes. No. Go!")[0]] == ["Yes. No. Go!"]
    assert text.chunks("Yes. No.")[0][0][1] == text.symbols("Yes. No.")[0]
    assert text.read_text("Yes? No.")[0][0] == ("Yes?", ["j", "ˈɛ", "s", "?"])


def test_letters_are_those_of_the_words_with_marks_and_a_silence_after_each_sentence():
    assert "".join(text.symbols("Dr. Smith paid $20; why? No", "letters")[0]) == \
        " doctor smith paid twenty dollars, why? no. "
    ids, dropped = text.encode("Abba, C", " abc.", "letters")
    assert ids.tolist() == [1, 2, 3, 3, 2, 1, 4, 5, 1] and dropped == {","}


PAIRS = (ROOT / "tests" / "english_pairs.tsv").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("pair", PAIRS)
def test_pairs_of_written_and_spoken_english(pair):
    written, expected = pair.replace("\\n", "\n").split("\t")
    assert text.spoken(written).lower() == expected.lower()
    assert text.read_text(written)[1] == []


def test_unread_is_named():
    assert text.chunks("Hi \u2603")[1] == ["\u2603"]
    assert text.read_text("Hi 😀👍🏽 there → Привет 你好 \ufffd\0.")[1] == ["😀👍🏽", "→", "Привет", "你好", "\ufffd\ufffd"]
    ids, unknown = text.encode("Hi 😀!", [" ", "h", "aɪ", "."])
    assert ids.tolist() == [1, 2, 3, 4] and unknown == {"😀"}                         # no "ˈaɪ", no "!"
    assert text.encode("Hi", "hi")[1] == {" ", "ˈaɪ", "."}
    assert text.encode("", "ab")[0].dtype == text.torch.long


def test_none():
    assert text.symbols("Ab, e\u0301\0 c", "none")[0] == list(" Ab, é c.")
    assert [w for w, _ in text.read_text("你好。再见！Да? Нет", "none")[0]] == ["你好。", "再见！", "Да?", "Нет"]
    assert text.symbols("a\ufffdb", "none") == ([" ", "a", "b", "."], ["\ufffd"])
    assert text.encode("ba", "ab .", "none")[0].tolist() == [3, 2, 1, 4]


def test_languages():
    with pytest.raises(BadInput, match="en-us"):
        text.read_text("a", "xx")
    for lang in [lang for lang in ("lb", "sw") if not importlib.util.find_spec(f"gruut_lang_{lang}")]:
        with pytest.raises(BadInput, match=rf"pip install 'gruut\[{lang}\]'"):
            text.read_text("a", lang)


@pytest.mark.parametrize("written", [
    "Krzysztof Wojciechowski and Guðrún Sigurðardóttir met Xiuying Ouyang in Szczecin.", "Hi Jürgen.", "",
    "ok",
    "Tchaikovsky, Rachmaninoff, Szymanowski, Lutosławski, Penderecki", "THE QUICK FOX", "hmm hm brr",
    "We ordered gnocchi, tagliatelle and prosciutto, then sauerkraut with knödel for the children.",
    "The old zorbs did glimp and snarkle in the wabe, and all of them were frumious."])
def test_english_with_names_is_english(written):
    assert not text.not_english(written, "en-us") and not text.not_english(written, "letters")


@pytest.mark.parametrize("written", [
    "Meine Schwester wohnt seit drei Jahren in einer kleinen Wohnung und sucht jetzt ein Haus.",
    "Mi hermana vive desde hace tres años en un piso pequeño y ahora busca una casa.",
    "Moja siostra od trzech lat mieszka w małym mieszkaniu i teraz szuka domu.",
    "Mia sorella abita da tre anni in un piccolo appartamento e adesso cerca una casa.",
    "Ma sœur habite depuis trois ans dans un petit appartement et cherche maintenant une maison.",
    "MI HERMANA VIVE DESDE HACE TRES AÑOS EN UN PISO PEQUEÑO"])
def test_another_language_read_as_english_is_told(written, capsys):
    text.tell("--text", written, "en-us", set())
    told = capsys.readouterr().out
    assert re.fullmatch(r"--text: \d+ of \d+ words.*is it English[?] It is read as if it were\n", told)
    assert not text.not_english(written, "none") and not text.not_english(written, "f5")


@pytest.mark.parametrize("lang, written, expected", [
    ("de", "20 Gäste, 50%, -5 °C, 3,5 und 1.000 €.",
     "zwanzig Gäste fünfzig Prozent minus fünf Grad C drei Komma fünf und eintausend Euro"),
    ("fr", "80 ans, 2,50€.", "quatre-vingts ans deux virgule cinq euros")])
def test_other_languages_read_their_own_numbers(lang, written, expected):
    pytest.importorskip(f"gruut_lang_{lang}")
    assert text.spoken(written, lang) == expected
    assert text.read_text(written, lang)[1] == [] and text.symbols(written, lang)[0][-1] in ".?"


PAGE = """# Packing list #
> Take **two** pairs of [warm socks](https://shop.example.net/socks?id=77&size=(m)).[^warm]
* one ![a red flask](photos/flask-2.jpg "flask") of tea
* [x] *a map*, ~~a compass~~ and `3 m` of rope

Item | Weight
--- | ---:
tent | 2 kg
Stove | 300 g

~~~bash
make tea
~~~
See [the note][1] \\* and <https://example.com/a>.
***
[1]: https://example.net/long/path "Title"
[^warm]: Wool is best.
"""


def test_markdown_is_read_as_its_page_shows_it():
    assert text.split(PAGE, "en-us") == [
        "Packing list.", "Take two pairs of warm socks.", "one a red flask of tea, a map, and 3 m of rope",
        "Item, Weight.", "tent, 2 kg.", "Stove, 300 g.", "make tea",
        "See the note * and <https://example.com/a>.",
        "Wool is best."]
    for plain in ("Add [noise] here.", "a_b and c_d", "We saw #5 there.", "a | b", "It is *not a list",
                  "5 * 3 * 2 = 30"):
        assert text.clean(plain) == plain
    assert text.spoken("2*3*4") == "two times three times four"
    assert text.spoken("Tea is old.[3][4] It grows here.\u00b9 So it does[12] say.") == \
        "Tea is old It grows here So it does say"


@pytest.mark.parametrize("written, joined", [
    ("The gar-\ndener was remark-\nably quiet.", "The gardener was remarkably quiet."),
    ("a full-\nlength coat", "a full-length coat"), ("her mother-in-\nlaw came", "her mother-in-law came"),
    ("the Anglo-\nSaxon kings", "the Anglo-Saxon kings"), ("THE GAR-\nDENER", "THE GARDENER"),
    ("He zorb-\ned twice.", "He zorbed twice."), ("under\u00ad\nneath it", "underneath it"),
    ("a win\u2010\ndow", "a window"),
    ("Wait -\nand see", "Wait - and see"), ("from 5-\n6 of", "from 5-6 of"),
    ("a 20-\nyear-\nold", "a 20-year-old")])
def test_words_broken_at_a_lines_end_are_whole(written, joined):
    assert " ".join(text.split(written, "en-us")).replace(" ,", ",") == joined


def test_lines_as_long_as_broken_ones_go_on_without_a_pause():
    page = "The gardener had been remark-\nably quiet about all of his\n" \
        "plans for the coming winter\nand its long nights."
    assert text.split(page, "en-us") == [
        "The gardener had been remarkably quiet about all of his "
        "plans for the coming winter and its long nights."]
    assert text.split("Er ging lang-\nsam nach Hause.", "none") == ["Er ging langsam nach Hause."]


def test_fuzz():
    draw = random.Random(0)
    parts = ["a", "B", "7", "0", ".", ",", "$", "%", "-", "/", ":", "'", "\n", " ", " ", "é", "½", "²", "°C",
             "€", "th", "St.", "No.", "XIV", "a.m.", "s", "(", ")", "…", "😀", "Ж", "中", "\0", "\u0301",
             "\u200d",
             "٣", "Ⅷ", "①"]
    for i in range(5000):
        letters = parts if i % 2 else [chr(draw.randrange(0x20, 0xd7ff)) for _ in range(4)] + ["a", " "]
        written = "".join(draw.choices(letters, k=draw.randrange(12)))
        found, unread = text.symbols(written, "none" if i % 5 == 0 else "en-us")
        assert not found or found[0] == " " and found[-1] in text.FINAL
        assert not set(found) & set("\0\ufffd\n")
        assert all(unread)


@pytest.mark.parametrize("written", ["a" * 100_000, "." * 100_000, "-" * 100_000, "ab " * 30_000,
                                     "7" * 20_000, "a.b" * 5_000, "$1,1" * 3_000, "A'" * 5_000,
                                     "a. b. " * 3_000])
def test_a_lot_of_text_is_read_in_time(written):
    start = time.time()
    assert all(len(found) <= 201 for _, found in text.read_text(written)[0])
    assert time.time() - start < 10


def test_the_inventory_is_small():
    found = set(text.symbols("The quick brown fox jumps over a lazy dog, or does it? Yes! We saw 20.")[0])
    assert all(re.fullmatch(r"[ˈˌ]?\w[\w͡ʊɪ]*|[ ,.!?]", symbol) for symbol in found)
