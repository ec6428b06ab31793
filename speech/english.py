"""Written English -> English that gruut reads right: numbers, signs, abbreviations, capitals.

Two entries, for text.py: groups() before it finds pauses, english() after. RULES are applied in their order.
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
          "apt": "apartment", "hwy": "highway", "pp": "pages",
          "maj": "major", "pres": "president", "ch": "chapter", "eq": "equation", "ext": "extension",
          **{month[:3].lower(): month for month in MONTHS if month != "May"}, "sept": "September"}
# These end a sentence where a capital follows. "St." is a saint unless a name stands before it.
ENDERS = {"st": "street", "ave": "avenue", "rd": "road", "blvd": "boulevard", "jr": "junior", "sr": "senior",
          "co": "company", "inc": "incorporated", "corp": "corporation", "ltd": "limited",
          "ln": "lane", "ct": "court", "pkwy": "parkway", "etc": "et cetera", "ft": "feet", "al": "al",
          "mon": "Monday", "tues": "Tuesday", "thurs": "Thursday", "fri": "Friday"}
# "St." before one of these is a saint, whatever stands before it.
SAINTS = set("andrew andrews anne anthony augustine bernard catherine clair david francis george helena "
             "helens james john joseph lawrence louis lucia lucie luke mark martin mary matthew michael "
             "nicholas patrick paul peter petersburg philip stephen theresa thomas tropez vincent".split())
STARTERS = set("the a an it its he she they we you i this that these those there then but and so or if when "
               "while after before as at in on for from with my our his her their your no nobody everyone "
               "what who why how where yes however now some all one most many".split())    # after "U.S."
VERBS = "am|have|think|know|agree|want|do|guess|mean|see|love"      # after these words' "I" somebody speaks
UNITS = {"km/h": "kilometers per hour", "mph": "miles per hour", "m/s": "meters per second", "g": "grams",
         "kg": "kilograms", "mg": "milligrams", "km": "kilometers", "m": "meters", "cm": "centimeters",
         "mm": "millimeters", "mi": "miles", "ft": "feet", "lb": "pounds", "lbs": "pounds", "oz": "ounces",
         "m/s²": "meters per second squared", "fl. oz": "fluid ounces", "sq. ft": "square feet",
         "sq ft": "square feet", "sq. in": "square inches", "sq. mi": "square miles", "in.": "inches",
         "l": "liters", "L": "liters", "ml": "milliliters", "mL": "milliliters", "Hz": "hertz",
         "kHz": "kilohertz", "MHz": "megahertz", "GHz": "gigahertz", "KB": "kilobytes", "MB": "megabytes",
         "GB": "gigabytes", "TB": "terabytes", "W": "watts", "kW": "kilowatts", "V": "volts", "hr": "hours",
         "hrs": "hours", "tsp": "teaspoons", "tbsp": "tablespoons", "MW": "megawatts", "GW": "gigawatts",
         "kWh": "kilowatt hours", "mAh": "milliamp hours", "mA": "milliamps", "kV": "kilovolts",
         "dB": "decibels", "rpm": "revolutions per minute", "psi": "pounds per square inch",
         "kcal": "kilocalories", "Mbps": "megabits per second", "Gbps": "gigabits per second",
         "hp": "horsepower", "kPa": "kilopascals", "nm": "nanometers", "µm": "micrometers",
         "μm": "micrometers", "mcg": "micrograms", "µg": "micrograms", "μg": "micrograms", "ha": "hectares",
         "cl": "centiliters", "dl": "deciliters", "gal": "gallons", "qt": "quarts", "yd": "yards",
         "yds": "yards", "sec": "seconds", "secs": "seconds", "mins": "minutes", "yr": "years",
         "yrs": "years", "wk": "weeks", "wks": "weeks", "mos": "months",
         "ms": "milliseconds", "min": "minutes", "°C": "degrees Celsius", "°F": "degrees Fahrenheit"}
UNIT = "|".join(sorted(map(re.escape, UNITS), key=len, reverse=True))
PER = {"s": "seconds", "h": "hours", **{w: w for w in "second minute hour day night week month year".split()}}
POWERS = {"": "", "²": "square ", "³": "cubic "}
SCALES = {"k": "thousand", "m": "million", "mn": "million", "b": "billion", "bn": "billion", "tn": "trillion"}
COINS = {"$": ("dollars", "cents"), "€": ("euros", "cents"), "£": ("pounds", "pence"), "¥": ("yen", "sen"),
         "¢": ("cents", "")}
DOLLARS = {"US": "U S", "C": "Canadian", "CA": "Canadian", "A": "Australian", "AU": "Australian",
           "NZ": "New Zealand", "HK": "Hong Kong", "S": "Singapore"}
CODES = {"USD": "US$", "CAD": "CA$", "AUD": "AU$", "NZD": "NZ$", "HKD": "HK$", "EUR": "€", "GBP": "£",
         "JPY": "¥"}
CODE = "|".join(CODES)
PRICED = ("bill|note|banknote|coin|fine|ticket|fee|check|cheque|prize|budget|deal|gift card|voucher|coupon|"
          "deposit|discount|donation|bonus|reward|loan|tip|bet|stamp|price tag")         # the $20 bill
SUPER = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789"))
ROMAN = dict(M=1000, CM=900, D=500, CD=400, C=100, XC=90, L=50, XL=40, X=10, IX=9, V=5, IV=4, I=1)
LETTERS = r"M{0,3}(?:CM|CD|D?C{0,3})(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3})(?<=[IVXLCDM])"        # to MMMCMXCIX
ALONE = rf"(?!XXX\b)(?=[IVX]{{2}}[IVX]*\b|[IVXLCDM]{{4}}){LETTERS}\b"         # no MIX, CV, XL, MD
RULERS = ("Henry|Louis|George|Edward|Charles|Elizabeth|James|William|Richard|John|Paul|Pius|Leo|Philip|"
          "Alexander|Nicholas|Catherine|Peter|Ivan|Frederick|Napoleon|Wilhelm|Ferdinand|Benedict|Clement|"
          "Gregory|Innocent|Urban|Julius|Leopold|Francis|Mary|Otto|Constantine|Victor|Umberto|Ramses|Ptolemy|"
          "Darius|Mehmed|"
          "(?:King|Queen|Pope|Emperor|Empress|Tsar|Czar|Prince|Sultan|Pharaoh) [A-Z]\\w+")
NAMES = (f"(?:{RULERS}|Albert|Andrew|Arthur|Benjamin|Daniel|David|Donald|Ernest|Frank|Harold|Harry|Joseph|"
         "Martin|Michael|Patrick|Robert|Ronald|Samuel|Thomas|Thurston|Walter) (?:[A-Z]\\.? )?[A-Z][a-z]\\w+")
PARTS = ("[Cc]hapter|[Bb]ook|[Pp]art|[Aa]ct|[Ss]cene|[Vv]olume|[Ss]ection|[Aa]rticle|[Aa]ppendix|[Cc]anto|"
         "Psalm|Bowl|War|Title|Type|Phase|Stage|Level|Grade|Class|[Tt]able|[Ff]igure|Episode|Season|Lesson|"
         "Apollo")
NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?"


def say(number, to="cardinal"):
    """A whole number -> words; to: cardinal, ordinal or year."""
    return re.sub(r"-|,| and ", " ", num2words(int(number), to=to))


def digits(text):
    """007 -> zero zero seven."""
    return " ".join(say(c) for c in text if c.isdecimal())


def number(written):
    """1,234 or 3.10 or 02139 or 1999 (a year) or 1.2.3 -> words.

    Seven or more digits that nothing groups are no amount but a name, digit by digit: but for 3000000.
    """
    whole, *parts = written.replace(",", "").split(".")
    longest = 15 if "," in written or parts or whole.endswith("000000") else 6
    if not whole or len(whole) > longest or whole[0] == "0" and len(whole) > 1:
        words = digits(whole)
    else:
        words = say(whole, "year" if written == whole and 1100 <= int(whole) <= 2099 else "cardinal")
    return " point ".join([words, *map(digits, parts)])


def single(plural):
    """kilograms -> kilogram."""
    for several, one in (("feet", "foot"), ("inches", "inch"), ("pence", "penny")):
        if plural.endswith(several):
            return plural.removesuffix(several) + one
    return re.sub(r"s\b", "", plural, count=1)


def of(amount, plural, one=False):
    """5, kilograms -> 5 kilograms; 1, kilograms -> 1 kilogram; one: as in a 5 kilogram bag. 2024: no year."""
    amount = f"{int(amount):,}" if re.fullmatch(r"[1-9]\d{3,14}", amount) else amount
    return f"{amount} {single(plural) if one or amount == '1' else plural}"


def money(m):
    """$5 million, $1.00, $3.50, $10-15, US$5, a $20 bill."""
    article, country, coin, amount, scale, noun = m.groups()
    (coins, cents), amount, one = COINS[coin], amount.replace(",", ""), bool(article or noun)
    coins = f"{DOLLARS[country]} {coins}" if country else coins
    whole, _, part = amount.partition(".")
    if scale or not re.fullmatch(r"\d+\.\d\d", amount):
        scale = SCALES.get(scale and scale.lower(), scale)
        said = f"{amount} {scale} {single(coins) if one else coins}" if scale else of(amount, coins, one)
    else:
        cents = [of(str(int(part)), cents, one)] * (part != "00")
        said = " and ".join([of(whole, coins, one)] * (int(whole) > 0 or not cents) + cents)
    return f"{article or ''} {said} "


def grouped(m):
    """A number of a telephone, card or book, +44 20 7946 0958: digit by digit, a pause between its groups.

    What has under seven digits, is a date or years in a row stays.
    """
    parts = re.findall(r"\d+|X$", m[0])
    years = all(re.fullmatch("1[5-9]..|20..", part) for part in parts)
    if sum(map(len, parts)) < 7 or years or re.fullmatch(DATE, m[0]):
        return m[0]
    return f"{' plus' * ('+' in m[0])} {', '.join(digits(part) or part for part in parts)} "


def date(m):
    """2024-11-25, 11/25/2024 or 25.11.2024; no such day: three numbers."""
    year, month, day = map(int, re.split("[-/.]", re.sub("(.*)[-/.](....)$", r"\2-\1", m[0])))
    month, day = (day, month) if month > 12 or "." in m[0] and day <= 12 else (month, day)
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


def inches(m):
    """27", unless that ends what a mark before it began."""
    opened = len(re.findall(r'(?<!\d)"', m.string[:m.start()])) % 2
    of = " inches" if re.search(r"\d $", m.string[:m.start()]) else " inch"
    return m[0] if opened else m[1] + (of if "/" in m[1] else " in.")


def ratio(m):
    """3:1, 1:500; John 3:1 is a verse."""
    verse = re.search(r"(?:^|\s)(?:[A-Z]\w+) $", m.string[:m.start()])
    return f" {m[1]} {m[2]} " if verse else f" {m[1]} to {m[2]} "


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
    plain = re.sub(r"(?<=\.)(?:uk|us|tv|eu|de)(?=/|$)", lambda m: m[0].upper(),
                   re.sub("^https?://|/$", "", m[0]))
    return "".join(names.get(c, c if c.isalnum() else " ") for c in plain)


def value(roman):
    """XIV -> 14."""
    return sum(ROMAN[part] for part in re.findall("CM|CD|XC|XL|IX|IV|.", roman))


def ruler(m):
    """Henry VIII."""
    return f"{m[1]} the {say(value(m[2]), 'ordinal')}"


def roman(m):
    """World War II's, MCMXCIX: words before 's, else digits, which may go on as a range."""
    return m[1] + (number(str(value(m[2]))) + m[3] if m[3] else str(value(m[2])))


def power(m):
    """x⁻¹⁰; ² and ³ alone have names of their own."""
    exponent = "".join(SUPER.get(c, "") for c in m[0])
    if m[0] in ("²", "³"):
        return m[0]
    space = " " * m.string[m.end():m.end() + 1].isalnum()                         # one before a unit: 10⁻³ m
    return f" to the power of {'minus ' * ('⁻' in m[0])}{exponent}{space}"


DATE = r"\d{4}-\d\d-\d\d|\d\d?([-/.])\d\d?\1\d{4}"
# What has its own pauses, or none where text.py would hear one.
GROUPS = [(re.compile(pattern), spoken) for pattern, spoken in [
    (r"(?<![\w+])\+\d{1,15}\)?(?:[ ./-]?\(?\d{1,14}\)?)*", grouped),             # +44 (0)20 7946 0958
    (r"(?<![\w.+/=-])\d{4,6}(?: \d{4,6}){2,}(?: \d{1,4})?(?![\w-]|\.\d)|\b\d{5}-\d{4}\b", grouped),
    (r"(?<![\w.+/=-])(?:1[ .-])?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}(?![\w-]|\.\d)", grouped),
    (r"(?<![\w.+/=:-])\(?0\d{0,4}\)?(?:(?: |-|/| - )\d{1,8})+(?![\w-]|[.:/]\d)", grouped),   # 020 7946 0958
    (r"(?<![\w.+/=-])\d+(?:-\d+){2,}(?:-X)?(?![\w-]|\.\d)|(?<![\w.+/=-])97[89](?: \d+){3,4}\b", grouped),
    (r"(?i)\b((?:call|dial|phone|ring)\w*) (911|999|112|988)\b", lambda m: f"{m[1]} {digits(m[2])}"),
    (rf"(?<=\d)( ?(?:{UNIT}|[kKM]|bn|tn))(?:[-–—](?=\d)| [-–—] (?=\d[\d.,]* ?(?:{UNIT})(?!\w)))", r"\1 to "),
]]
RULES = [(re.compile(pattern), spoken) for pattern, spoken in [
    (r"\bhttps?://[^\s,;)>\"]*[\w/]|[\w.+-]+@[\w-]+(?:\.\w+)+", address),
    (r"\b(?:[\w-]+\.)+(?:com|org|net|edu|gov|io|co\.uk)\b(?:/(?:[\w/?=&-]*[\w/])?)?", address),
    (rf"(?<![\d.,:/-])(?<!\d )[1-9]\d?\d?(?:(?: \d{{3}}){{2,}}(?! ?\d)| \d{{3}}(?= ?(?:{UNIT}|[€£¥])(?!\w)))",
     lambda m: m[0].replace(" ", ",")),         # 1 000 000, 10 000 km
    (r"([$€£¥])\.(?=\d)", r"\g<1>0."), (r"([$€£¥])[-−](?=\d)", r"-\1"),
    (rf"\b({UNIT})[ ·]({UNIT}|s|h)⁻(?:¹|(?=[²³]))", r"\1/\2"), (r"[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+", power),     # m s⁻²
    (r"\^2\b", "²"), (r"\^3\b", "³"), (r"\^(?=[-−]?\d)", " to the power of "), (r"!=|≠", " is not equal to "),
    (r"(?<=\d)[eE](?:\+|(?=[-−]))(?=[-−\d])", " times 10 to the power of "),
    (r"(?<=\d) ?\* ?(?=\d)", " times "), (r"(?<=\d) ?/ ?(?=\d+ *=)", " divided by "),
    (r"(?<![\d.])(\d+\.\d+)/(?=\d)", r"\1 out of "), (r"\b(\d\d?)\.(\d\d)(?=\s?[aApP]\.?[mM]\b)", r"\1:\2"),
    (r"(?<=\d)′", "'"), (r"(?<=\d)″", '"'), (r"(?<=\d)x\b(?! ?[-+=*/^])", " times"),
    (r"(?<=\d) x (?=\d)|(?<!\b0)(?<=\d)x(?=\d)", " by "), (r"(?<=\d) s\b(?!')", " sec"),
    (r"\b(\d+) ?h ?(\d+) ?m(?:in)?\b", r"\1 hr \2 min"), (r"\bm\.p\.h\b\.?", "mph"),
    (r"(\d [a-z]+)/(?=(?:second|minute|hour|day|week|month|year)\b)", r"\1 per "),
    (r"\b50[-–/]50\b", "50 50"), (r"(?<=\d°) ?N\b", " north"),
    (rf"(?<![\w.,$€£¥])(?!4 |8 )({NUMBER}) K\b(?! (?:run|race))", r"\1 kelvin "),
    (r"(?i)\b911(?= (?:call|operator|dispatch|emergency|system|line))", "9 1 1"),
    (r"(?<=, [A-Z]{2} )\d{5}\b(?![,.]\d)", lambda m: digits(m[0])), (r"\bp\. ?(?=\d)", "page "),
    (r"\bc\. ?(?=\d{3,4}\b)", "circa "),
    (rf"\b({CODE}) ?({NUMBER})(?!\w)", lambda m: CODES[m[1]] + m[2]),
    (rf"(?<![\w.,])[$€£¥]?({NUMBER}(?: (?:thousand|million|billion|trillion))?) ?({CODE})\b",
     lambda m: CODES[m[2]] + m[1]),
    (r"(?<!')\best\.\s*(?=\d{4}\b)", "established "),
    (r"\be\.g\.,?", " for example "), (r"\bi\.e\.,?", " that is "), (r"\bvs\b", "versus"),
    (r"\bPh\.?D\b\.?", "PHD"), (r"\bWW(?=II?\b)", "World War "),
    (r"(?<=\d)[-–](?=\d\d?:\d\d)|(?:(?<=\d:\d)|(?<=\d:\d\d))[-–](?=\d)|"
     r"(?:(?<=[%°])|(?<=°[CF])|(?<=\d[ap]m)|(?<=\d [ap]m)|(?<=[ap]\.m\.)"
     r"|(?<=illion))[-–](?=[$€£¥]?\d)", " to "),
    (r"(?i)(?:\bno\.|№|\bn[º°]\.?)\s*(?=\d)|#(?=\d)", " number "), (r"#(?=\w)", " hashtag "),
    (r"(?i)\bnos\.\s*(?=\d)", " numbers "),
    (rf"\b({RULERS}) (?!I (?:{VERBS})\b)(?![LCDM]\b|[IVX]\. ?[A-Z])({LETTERS})\b(?!'(?!s\b))", ruler),
    (rf"\b({NAMES}),? (II|III|IV)\b(?!'(?!s\b))", ruler),
    (rf"\b({ALONE})(?=(?: |-)[Cc]entur| Olympi)|\b({LETTERS})(?:st|nd|rd|th)\b",
     lambda m: say(value(m[1] or m[2]), "ordinal")),
    (rf"\b((?:{PARTS}) )(?!I (?:{VERBS})\b)(?![LCDM]\b)({LETTERS})\b(?!'(?!s\b))('s\b)?", roman),
    (rf"\b(?<!\b[Aa]n )()({ALONE})(?! chromo)('s\b)?", roman),
    (rf"\b(?:{DATE})\b(?!\.\d)", date),
    (r"\b(\d\d?):(\d\d)(?![:\d])(?:\s?([aApP])\.?[mM]\b\.?)?", clock),
    (r"(?<![\d:.])(\d{1,3}):(\d|\d{3,})\b(?![:.]\d)", ratio), (r"(?<=\d):(?=\d)", " "),
    (r"(?<=\d)\s?([aApP])\.?[mM]\b\.?", lambda m: f" {m[1].upper()}M "),
    (r"(?<![\d-])(\d{3})-(\d{4})(?![\d-])", lambda m: f" {digits(m[1])}, {digits(m[2])} "),
    (r"\b(\d+)'\s?(\d+)(?:\"|'')", r" \1 feet \2 inches "),
    (r"(\d)'? (?:ft )?x (\d+)'", r"\1 feet by \2 feet"),
    (r"(\d)'(?=[ -](?:tall|high|wide|long|deep)\b)", r"\1 ft"), (r"(?<=\d)in\b\.?", " in."),
    (r"((?:ft|feet)\.? \d+) in\b(?!\.| the\b| an?\b)", r"\1 in."), (r'\b(\d[\d.,/]*)"', inches),
    (r"'?\b(\d0|\d{3}0)'?s\b", decade),
    (r"(?<=\d)([kKmMbB]|[mbt]n)?[-–](?=[$€£¥])", r"\1 to "), (r"~\s?(?=\d)", "about "),
    (r"(?<=\d)\s+[-−]\s+(?=\d)|(?<![\w.)])[-−](?=[$€£¥]?\.?\d)", " minus "),
    (rf"(\b(?:[Aa]n?|[Aa]nother) )?(?:\b({'|'.join(DOLLARS)})(?=\$))?([$€£¥])\s?({NUMBER}(?:[-–]{NUMBER})?)"
     r"(?:[\s-]?(k|m|b|bn|mn|tn|K|M|B|thousand|million|billion|trillion)\b)?"
     rf"(?=( (?:{PRICED})s?\b)?)", money),
    (rf"(?<![\w.,])({NUMBER})(?: ?(mn|bn|tn)|(?<!\b4)(?<!\b8)([kK])|(?<!(?<![.\d])3)(M)|(?<=\.\d)(B))\b"
     "(?! (?:run|race)\\b)", lambda m: f" {m[1]} {SCALES[m[m.lastindex].lower()]} "),  # 3M: a company
    (rf"({NUMBER})\s?([€£¥¢])", lambda m: f" {of(m[1], COINS[m[2]][0])} "),
    (r"(?:\b(\d+) )?(?<![\d/])(?<!\d\.)(\d+)/(\d+)(?:(nd|rd|th)s?\b)?(?![\d/]|\.\d)", fraction),
    (r"(?<![\d-])(\d[\d,.]*)[-–](\d[\d,.]*)(?![\d-])", r" \1 to \2"),
    (rf"(\b[Aa]n? )?({NUMBER})(\s|-(?!in\.))?({UNIT})([²³]?)(?!\w)",
     lambda m: f"{m[1] or ''} {of(m[2], POWERS[m[5]] + UNITS[m[4]], m[1] or m[3] == '-')} "),
    (rf"(?: |(?<=\d))/({'|'.join(PER)}|{UNIT})([²³]?)(?!\w)", per),
    (r"²", " squared "), (r"³", " cubed "),
    (rf"(?<![\w.,:/$-])(?<!\d to )(?:[Tt]he )?([1-9]|[12]\d|3[01]) ({'|'.join(MONTHS)})\b(?! \d\d?\b)",
     lambda m: f"the {say(m[1], 'ordinal')} of {m[2]}"),
    (rf"\b({'|'.join(MONTHS)}) (\d\d?)\b(?![:,.]\d| to\b)", lambda m: f"{m[1]} {say(m[2], 'ordinal')}"),
    (r"\b(\d[\d,]*)(?i:st|nd|rd|th)\b", lambda m: f" {say(m[1].replace(',', ''), 'ordinal')} "),
    (r"\d+(?:,\d{3}(?!\d))+(?:\.\d+)?|\d*(?:\.\d+)+|\d+", lambda m: f" {number(m[0])} "),
    (r"\b((?:[A-Za-z]\.){2,})(?!\w)", lambda m: m[1].replace(".", "").upper()),       # U.S.
    (r"\b([A-Z]+)([A-Z])'?s\b", r"\1 \2's"), (r"(?<=\w)\.(?=\w)", " dot "),           # CDs, main.py
    (r"\b([a-z]+) A\b(?!')|\b(\w+) A(?=\W*$)", lambda m: f"{m[1] or m[2]} A."),       # vitamin A, the letter
]]


MONTH = "|".join(month[:3] for month in MONTHS if month != "May") + "|Sept"
SHORT = re.compile(rf"\b(?i:{'|'.join([*TITLES, *ENDERS])})\.(?!\w)|\b(?:Mr|Mrs|Ms|Dr|Prof)(?= [A-Z])"
                   rf"|(?<=[a-z] )Dr(?=[,.!?]|$)"
                   rf"|\b(?:{MONTH})(?= \d)|(?<=\d )(?:{MONTH})\b")


def street(before, after, short="st"):
    """Is a "St." or "Dr." between these texts a street or drive? Then a name is before it, and none after."""
    name = re.search(r"(?:^|\s)(?:([A-Z][\w']*\w)|\d+\w+) $", before)
    follows = re.match(r"\s*([A-Z][\w']*)", after)
    if not name or name[1] and name[1].lower() in STARTERS:
        return False
    if not follows or follows[1].lower() in STARTERS or re.search(r"\d (?:[A-Z]\w* ){1,3}$", before):
        return True
    return short == "st" and follows[1].lower() not in SAINTS and name.start() > 0


def fort(before, after):
    """Is a "Ft." between these texts a fort?"""
    return bool(re.match(r"\s*[A-Z]", after) and not re.search(r"\d[ -]?$", before))


def groups(text):
    """Numbers of telephones and cards, digit by digit, and ranges with units, before pauses are found."""
    for pattern, spoken in GROUPS:
        text = pattern.sub(spoken, text)
    return text


def english(text, known):
    """A written English sentence -> one that gruut reads right. known(word): gruut's lexicon has it."""
    shout = text.upper() == text or re.search(r"(?:\b[A-Z']{2,}\W+){3}", text + " ")

    def whole(m):                               # Mr.
        word, before, after = m[0].strip("."), text[:m.start()], text[m.end():]
        if word.lower() in ("st", "dr") and street(before, after, word.lower()):
            return "street" if word.lower() == "st" else "drive"
        if word == "ms" and re.search(r"\d ?$", before):
            return word
        if word.lower() == "ft":                # "ft" is a unit after a number
            feet = "ft" if re.search(r"(?:\d|sq\.?) $", before) else "feet"
            return "Fort" if word == "Ft" and fort(before, after) else feet
        return "Saint" if word.lower() == "st" else TITLES.get(word.lower()) or ENDERS[word.lower()]

    def capitals(m):                            # a word, or letters: gruut spells what stays in capitals
        word = m[0].lower()
        if not re.fullmatch(ALONE, m[0]) and (len(word) > 4 and re.search("[aeiouy]", word)
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
