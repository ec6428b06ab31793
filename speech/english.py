"""Written English -> English that gruut reads right: numbers, signs, abbreviations, capitals.

english() is the one entry, for text.py; RULES are applied in their order.
"""
import datetime
import re
import unicodedata

from num2words import num2words

MONTHS = "January February March April May June July August September October November December".split()
TITLES = {"mr": "mister", "mrs": "missus", "ms": "miz", "dr": "doctor", "prof": "professor", "vs": "versus",
          "gen": "general", "col": "colonel", "capt": "captain", "lt": "lieutenant", "sgt": "sergeant",
          "rev": "reverend", "hon": "honorable", "gov": "governor", "sen": "senator", "mt": "mount",
          "fig": "figure", "vol": "volume", "approx": "approximately", "dept": "department",
          "apt": "apartment",
          **{month[:3].lower(): month for month in MONTHS if month != "May"}, "sept": "September"}
# These end a sentence where a capital follows. "St." is a saint unless a name stands before it.
ENDERS = {"st": "street", "ave": "avenue", "rd": "road", "blvd": "boulevard", "jr": "junior", "sr": "senior",
          "co": "company", "inc": "incorporated", "corp": "corporation", "ltd": "limited",
          "etc": "et cetera", "ft": "feet", "al": "al"}
STARTERS = set("the a an it its he she they we you i this that these those there then but and so or if when "
               "while after before as at in on for from with my our his her their your no nobody everyone "
               "what who why how where yes however now some all one most many".split())    # after "U.S."
UNITS = {"km/h": "kilometers per hour", "mph": "miles per hour", "m/s": "meters per second", "g": "grams",
         "kg": "kilograms", "mg": "milligrams", "km": "kilometers", "m": "meters", "cm": "centimeters",
         "mm": "millimeters", "mi": "miles", "ft": "feet", "lb": "pounds", "lbs": "pounds", "oz": "ounces",
         "m/s²": "meters per second squared", "fl. oz": "fluid ounces", "sq. feet": "square feet",
         "l": "liters", "L": "liters", "ml": "milliliters", "mL": "milliliters", "Hz": "hertz",
         "kHz": "kilohertz", "MHz": "megahertz", "GHz": "gigahertz", "KB": "kilobytes", "MB": "megabytes",
         "GB": "gigabytes", "TB": "terabytes", "W": "watts", "kW": "kilowatts", "V": "volts", "hr": "hours",
         "hrs": "hours", "tsp": "teaspoons", "tbsp": "tablespoons",
         "ms": "milliseconds", "min": "minutes", "°C": "degrees Celsius", "°F": "degrees Fahrenheit"}
UNIT = "|".join(sorted(map(re.escape, UNITS), key=len, reverse=True))
PER = {"s": "seconds", "h": "hours", **{w: w for w in "second minute hour day night week month year".split()}}
POWERS = {"": "", "²": "square ", "³": "cubic "}
SCALES = {"k": "thousand", "m": "million", "b": "billion", "bn": "billion"}
COINS = {"$": ("dollars", "cents"), "€": ("euros", "cents"), "£": ("pounds", "pence"), "¥": ("yen", "sen"),
         "¢": ("cents", "")}
ROMAN = "I II III IV V VI VII VIII IX X XI XII XIII XIV XV XVI XVII XVIII XIX XX XXI".split()
RULERS = "Henry|Louis|George|Edward|Charles|Elizabeth|James|William|Richard|John|Paul|Pius|Leo|Philip"
NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?"


def say(number, to="cardinal"):
    """A whole number -> words; to: cardinal, ordinal or year."""
    return re.sub(r"-|,| and ", " ", num2words(int(number), to=to))


def digits(text):
    """007 -> zero zero seven."""
    return " ".join(say(c) for c in text if c.isdecimal())


def number(written):
    """1,234 or 3.10 or 02139 or 1999 (a year) or 1.2.3 -> words."""
    whole, *parts = written.replace(",", "").split(".")
    if not whole or len(whole) > 15 or whole[0] == "0" and len(whole) > 1:
        words = digits(whole)
    else:
        words = say(whole, "year" if written == whole and 1100 <= int(whole) <= 2099 else "cardinal")
    return " point ".join([words, *map(digits, parts)])


def of(amount, plural):
    """5, kilograms -> 5 kilograms; 1, kilograms -> 1 kilogram; 2024 is no year here."""
    amount = re.sub(r"^(\d)(\d{3})$", r"\1,\2", amount)
    single = {"feet": "foot", "pence": "penny"}.get(plural) or re.sub(r"s\b", "", plural, count=1)
    return f"{amount} {single if amount == '1' else plural}"


def money(m):
    """$5 million, $1.00, $3.50, $10-15."""
    (coins, cents), amount, scale = COINS[m[1]], m[2].replace(",", ""), m[3]
    whole, _, part = amount.partition(".")
    if scale or not re.fullmatch(r"\d+\.\d\d", amount):
        scale = SCALES.get(scale and scale.lower(), scale)
        return f" {amount} {scale} {coins} " if scale else f" {of(amount, coins)} "
    cents = [of(str(int(part)), cents)] * (part != "00")
    return f" {' and '.join([of(whole, coins)] * (int(whole) > 0 or not cents) + cents)} "


def date(m):
    """2024-11-25 or 11/25/2024; no such day: three numbers."""
    year, month, day = map(int, re.split("[-/]", re.sub("(.*)/(.*)", r"\2/\1", m[0])))
    month, day = (day, month) if month > 12 else (month, day)
    try:
        datetime.date(year, month, day)
    except ValueError:
        return re.sub(r"\D", " ", m[0])
    return f" {MONTHS[month - 1]} {say(day, 'ordinal')} {number(str(year))} "


def clock(m):
    """8:00, 8:05, 10:30 pm, 14:00."""
    hour, minute, half = int(m[1]), m[2], m[3]
    if minute == "00":
        minute = "" if half else "o'clock" if hour <= 12 else "hundred"
    return f" {hour} {re.sub('^0', 'oh ', minute)} {half.upper() + 'M' if half else ''} "


def decade(m):
    """1990s, '90s, 1800s."""
    words = say(m[1], "year" if len(m[1]) == 4 and m[1] != "2000" else "cardinal")
    return f" {words[:-1]}ies " if words.endswith("y") else f" {words}s "


def fraction(m):
    """1/2, 3/4, 2 1/2, 1/20th; else two numbers: 24/7."""
    part = {"2": "half", "4": "quarter"}.get(m[3]) or say(m[3], "ordinal")
    if not m[4] and not 0 < int(m[2]) < int(m[3]) <= 10 and m[3] not in ("16", "32", "64", "100"):
        return f" {m[1] or ''} {m[2]} {m[3]} "
    several = "halves" if part == "half" else part + "s"
    return f" {m[1] + ' and' if m[1] else ''} {m[2]} {part if m[2] == '1' else several} "


def per(m):
    """/s, /month, /m³ behind an amount."""
    return f" per {POWERS[m[2]]}{of('1', PER.get(m[1]) or UNITS[m[1]])[2:]} "


def address(m):
    """A mail or web address: its signs have names."""
    names = {".": " dot ", "@": " at ", "/": " slash ", "-": " dash ", "_": " underscore ", "+": " plus ",
             "?": " question mark ", "=": " equals ", "&": " and "}
    return "".join(names.get(c, c if c.isalnum() else " ") for c in re.sub("^https?://|/$", "", m[0]))


def roman(m):
    """Henry VIII, Chapter IV."""
    if m[2] not in ROMAN:
        return m[0]
    value = ROMAN.index(m[2]) + 1
    return f"{m[1]} the {say(value, 'ordinal')}" if m[1] else str(value)


RULES = [(re.compile(pattern), spoken) for pattern, spoken in [
    (r"\bhttps?://[^\s,;)>\"]*[\w/]|[\w.+-]+@[\w-]+(?:\.\w+)+", address),
    (r"\b(?:[\w-]+\.)+(?:com|org|net|edu|gov|io)\b(?:/(?:[\w/?=&-]*[\w/])?)?", address),
    (rf"(?<![\d.,:/-])(?<!\d )[1-9]\d?\d?(?:(?: \d{{3}}){{2,}}(?! ?\d)| \d{{3}}(?= ?(?:{UNIT}|[€£¥])(?!\w)))",
     lambda m: m[0].replace(" ", ",")),         # 1 000 000, 10 000 km
    (r"([$€£¥])\.(?=\d)", r"\g<1>0."), (r"([$€£¥])[-−](?=\d)", r"-\1"),
    (r"\^2\b", "²"), (r"\^3\b", "³"), (r"\^(?=[-−]?\d)", " to the power of "), (r"!=|≠", " is not equal to "),
    (r"(?<=\d)[eE](?:\+|(?=[-−]))(?=[-−\d])", " times 10 to the power of "),
    (r"(?<=\d) ?\* ?(?=\d)", " times "), (r"(?<=\d) ?/ ?(?=\d+ *=)", " divided by "),
    (r"(?<![\d.])(\d+\.\d+)/(?=\d)", r"\1 out of "), (r"\b(\d\d?)\.(\d\d)(?=\s?[aApP]\.?[mM]\b)", r"\1:\2"),
    (r"(?<!')\best\.\s*(?=\d{4}\b)", "established "),
    (r"\be\.g\.,?", " for example "), (r"\bi\.e\.,?", " that is "), (r"\bvs\b", "versus"),
    (r"\bPh\.?D\b\.?", "PHD"), (r"\bWW(?=II?\b)", "World War "),
    (r"(?<=\d)[-–](?=\d\d?:\d\d)|(?:(?<=[%°])|(?<=°[CF])|(?<=\d[ap]m)|(?<=\d [ap]m)|(?<=[ap]\.m\.)"
     r"|(?<=illion))[-–](?=[$€£¥]?\d)", " to "),
    (r"(?i)\bno\.\s*(?=\d)|#(?=\d)", " number "), (r"#(?=\w)", " hashtag "),
    (rf"\b({RULERS}) ([IVX]+)\b(?!')", roman), (r"\b(?<!\b[Aa]n )()(?=[IVX]{2})([IVX]+)\b(?! chromo)", roman),
    (r"\b(\d{4}-\d\d-\d\d|\d\d?/\d\d?/\d{4})\b", date),
    (r"\b(\d\d?):(\d\d)(?![:\d])(?:\s?([aApP])\.?[mM]\b\.?)?", clock), (r"(?<=\d):(?=\d)", " "),
    (r"(?<=\d)\s?([aApP])\.?[mM]\b\.?", lambda m: f" {m[1].upper()}M "),
    (r"\b(\d{3}),?[- ]+(\d{3})-(\d{4})\b", lambda m: f" {digits(m[1])}, {digits(m[2])}, {digits(m[3])} "),
    (r"(?<![\d-])(\d{3})-(\d{4})(?![\d-])", lambda m: f" {digits(m[1])}, {digits(m[2])} "),
    (r"\b(\d+)'\s?(\d+)(?:\"|'')", r" \1 feet \2 inches "), (r"'?\b(\d0|\d{3}0)'?s\b", decade),
    (r"(?<=\d)[-–](?=[$€£¥])", " to "), (r"~\s?(?=\d)", "about "),
    (r"(?<=\d)\s+[-−]\s+(?=\d)|(?<![\w.)])[-−](?=[$€£¥]?\.?\d)", " minus "),
    (rf"([$€£¥])\s?({NUMBER}(?:[-–]{NUMBER})?)"
     r"(?:\s?(k|m|b|bn|K|M|B|thousand|million|billion|trillion)\b)?", money),
    (rf"({NUMBER})\s?([€£¥¢])", lambda m: f" {of(m[1], COINS[m[2]][0])} "),
    (r"(?:\b(\d+) )?(?<![\d/])(?<!\d\.)(\d+)/(\d+)(?:(nd|rd|th)s?\b)?(?![\d/]|\.\d)", fraction),
    (r"(?<![\d-])(\d[\d,.]*)[-–](\d[\d,.]*)(?![\d-])", r" \1 to \2"),
    (rf"({NUMBER})\s?({UNIT})([²³]?)(?!\w)", lambda m: f" {of(m[1], POWERS[m[3]] + UNITS[m[2]])} "),
    (rf"(?: |(?<=\d))/({'|'.join(PER)}|{UNIT})([²³]?)(?!\w)", per),
    (r"²", " squared "), (r"³", " cubed "),
    (rf"\b({'|'.join(MONTHS)}) (\d\d?)\b(?![:,.]\d| to\b)", lambda m: f"{m[1]} {say(m[2], 'ordinal')}"),
    (r"\b(\d[\d,]*)(?i:st|nd|rd|th)\b", lambda m: f" {say(m[1].replace(',', ''), 'ordinal')} "),
    (r"\d+(?:,\d{3}(?!\d))+(?:\.\d+)?|\d*(?:\.\d+)+|\d+", lambda m: f" {number(m[0])} "),
    (r"\b((?:[A-Za-z]\.){2,})(?!\w)", lambda m: m[1].replace(".", "").upper()),       # U.S.
    (r"\b([A-Z]+)([A-Z])'?s\b", r"\1 \2's"), (r"(?<=\w)\.(?=\w)", " dot "),           # CDs, main.py
    (r"\b([a-z]+) A\b(?!')|\b(\w+) A(?=\W*$)", lambda m: f"{m[1] or m[2]} A."),       # vitamin A, the letter
]]


MONTH = "|".join(month[:3] for month in MONTHS if month != "May") + "|Sept"
SHORT = re.compile(rf"\b(?i:{'|'.join([*TITLES, *ENDERS])})\.(?!\w)|\b(?:Mr|Mrs|Ms|Dr|Prof)(?= [A-Z])"
                   rf"|\b(?:{MONTH})(?= \d)|(?<=\d )(?:{MONTH})\b")


def street(before):
    """Is a "St." after this text a street?"""
    return bool(re.search(r"\b(?:[A-Z]\w+|\d+\w+) $", before))


def english(text, known):
    """A written English sentence -> one that gruut reads right. known(word): gruut's lexicon has it."""
    shout = text.upper() == text or re.search(r"(?:\b[A-Z']{2,}\W+){3}", text + " ")

    def whole(m):                               # Mr.
        word = m[0].strip(".").lower()
        return "Saint" if word == "st" and not street(text[:m.start()]) else TITLES.get(word) or ENDERS[word]

    def capitals(m):                            # a word, or letters: gruut spells what stays in capitals
        word = m[0].lower()
        if m[0] not in ROMAN and (len(word) > 4 and re.search("[aeiouy]", word)
                                  or known(word) and (shout or len(word) > 3)):
            return word
        return m[0]
    text = re.sub(" ?([½⅓⅔¼¾⅕⅛⅜⅝⅞])", lambda m: " " + unicodedata.normalize("NFKC", m[1]), text)
    text = text.replace("\u2044", "/")
    text = SHORT.sub(whole, text)
    text = re.sub(r"(?<![\w&])[A-Z]{2,}(?:'[A-Z]+)?\b(?!&)", capitals, text)
    for pattern, spoken in RULES:
        text = pattern.sub(spoken, text)
    return re.sub(r"(?<!')\b[b-df-hj-np-tv-xz]{2,4}\b", lambda m: m[0] if known(m[0]) else m[0].upper(), text)
