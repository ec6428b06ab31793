r"""Words that stand in a corpus and are neither spoken nor anybody's name.

Tables and folders sort recordings by mood, language or part; texts carry times, phones, notes on noises and
the names of speakers. corpora.py asks here before it takes a column or a folder for the speaker, and before
it takes a text for what is said.
"""
import re

# -------------------------------------------------------------------------------- neither name nor speaker

GENDERS = set("male female m f man woman men women masculine feminine boy girl boys girls".split())
SORTS = GENDERS | set("""
    train training dev development test testing val valid validation eval evaluation holdout heldout split
    subset true false yes no y n t none null nan na unknown undefined unspecified other others misc
    various happy happiness sad sadness angry anger neutral fear fearful scared afraid disgust disgusted
    disgusting surprise surprised calm excited excitement bored boredom amused amusement sleepy sleepiness
    tired joy joyful anxious contempt sarcastic confused proud awe desire emotion emotional serious
    cheerful friendly empathetic depressed frustrated frustration concerned assertive encouraging
    apologetic default relaxed tense worried read reading spontaneous conversational conversation
    narration narrative narrator whisper whispered whispering whispers shout shouted shouting sung singing
    song loud soft quiet slow fast normal regular formal informal casual news newsreader audiobook
    audiobooks story stories dialogue dialog monologue chat assistant speech laughing projected expressive
    style styles enunciated longform essentials animal statement statements question questions exclamation
    command commands declarative interrogative imperative sentence sentences word words phrase phrases
    paragraph paragraphs digits digit numbers number fiction nonfiction poetry poem prose drama novel
    essay lecture interview podcast radio tv web book books clean noisy good bad ok okay poor fair
    excellent high low medium mid quality raw original processed enhanced denoised trimmed normalized
    normalised augmented synthetic real human done todo pending approved rejected verified validated
    accepted checked unchecked reviewed complete incomplete easy hard difficult short long left right mono
    stereo channel studio headset phone telephone close far near room office kitchen street car home
    indoor indoors outdoor outdoors microphone mic talk wav mp3 flac ogg opus audio pcm cc cc0 by public
    domain mit child children kid kids teen teens teenager teenagers adult adults young old elderly senior
    seniors twenties thirties forties fourties fifties sixties seventies eighties nineties monday tuesday
    wednesday thursday friday saturday sunday morning afternoon evening night en eng english de deu ger
    german fr fra fre french es spa spanish it ita italian pt por portuguese nl nld dutch pl pol polish ru
    rus russian uk ukr ukrainian cs ces cze czech sk slovak sv swe swedish no nb nn norwegian da danish fi
    fin finnish el greek hu hungarian ro romanian bg bulgarian hr croatian sr serbian sl slovenian tr
    turkish ar ara arabic he hebrew fa persian farsi hi hin hindi bn bengali ta tamil te telugu ur urdu id
    indonesian ms malay vi vietnamese th thai ko kor korean ja jpn japanese zh zho chi chinese mandarin
    cantonese ca catalan eu basque gl galician cy welsh ga irish et estonian lv latvian lt lithuanian is
    icelandic la latin us usa gb au au nz american british scottish australian canadian indian african
    european native nonnative
    """.split())
# folders that part the recordings of one speaker: chapter_3, cd1, 2021-05-03
PART = re.compile(r"(chapters?|chap|ch|session|sess|day|book|part|disc|disk|cd|batch|set|split|take|section"
                  r"|sec|volume|vol|week|round|run|shard|chunk|scene|episode|ep|lesson|unit|page|story|poem"
                  r"|channel|mic|microphone|rate|block|task|prompt|sentences?|utterances?|utts?)"
                  r"[ _.-]*(\d+|[a-z]|[ivx]+)"
                  r"|(19|20)\d\d([-_.]?\d\d([-_.]?\d\d)?)?([-_T ]\d\d[-_.:]?\d\d([-_.:]?\d\d)?)?", re.I)


def is_sort(value):
    """Is a value of a column, or a folder's name, a mood, a language, a part of a split, ..., and nobody?

    male is a sort of people, but male_2 is one of them.
    """
    words = re.findall(r"[^\W\d_]+", value.casefold())
    someone = set(words) & GENDERS and re.search(r"\d", value)
    return bool(PART.fullmatch(value)) or bool(words) and set(words) <= SORTS and not someone


# -------------------------------------------------------------------------------------- neither nor spoken

# what an [event], (event), *event* or <event> is made of: stems, so that laughs and laughter are one
EVENTS = (r"noises?|nois[ey]\w*|laugh\w*|giggl\w*|chuckl\w*|snicker\w*|sigh\w*|cough\w*|sneez\w*|sniff\w*"
          r"|breath\w*|inhal\w*|exhal\w*|gasp\w*|groan\w*|moan\w*|cry|cries|crying|sob\w*|weep\w*|yawn\w*"
          r"|whistl\w*|applau\w*|clap|claps|clapping|cheer\w*|music\w*|sing|sings|singing|hum|hums|humming"
          r"|silen\w*|pause[sd]?|bee+p\w*|bleep\w*|click\w*|knock\w*|bang\w*|slam\w*|thud\w*|ring|rings"
          r"|ringing|buzz\w*|static|hiss\w*|rustl\w*|crosstalk|overlap\w*|inaudible|unintelligible"
          r"|indistinct|unclear|incomprehensible|foreign|garbage|unk|unknown|sil|spn|nsn|sp|lipsmack"
          r"|smack\w*|lip|lips|swallow\w*|gulp\w*|grunt\w*|scream\w*|shout\w*|whisper\w*|mumbl\w*|murmur\w*"
          r"|mutter\w*|background|footsteps|tone|vocali[sz]\w*|hesitat\w*|stutter\w*|redacted|censored"
          r"|blank|burp\w*|hiccup\w*|snor\w*|bark\w*|chirp\w*|thunder\w*|chatter\w*|babble|clear(s|ing|ed)"
          r"|throat|snap\w*|tsk|shush\w*|squeal\w*|shriek\w*|pant|pants|panting|honk\w*|siren\w*|alarm\w*"
          r"|tick\w*|creak\w*")
BESIDE = (r"loud(ly)?|soft(ly)?|quiet(ly)?|light(ly)?|heav(y|ily)|deep(ly)?|nervous(ly)?|short|long|the|a"
          r"|in|of|and|his|her|their|s?he|they|audience|crowd|speaker|phone|door|dog|speech|speaking"
          r"|language|playing|audio|sound|end|begin|start|human|vocal|non|non-speech|off|mic|text|voice"
          r"|voices|word|words|x+|\d+")
EVENT = re.compile(rf"(?:(?:{BESIDE})[\s_-]+)*(?:{EVENTS})(?:[\s_-]+(?:{EVENTS}|{BESIDE}))*[.!…]*", re.I)
BRACKETS = re.compile(r"\[([^\]]{1,40})\]|\(([^)]{1,40})\)|\*([^*]{1,40})\*|<(/?[^<>]{1,40})>"
                      r"|\{([^}]{1,40})\}|~([^~]{1,20})~|\+\+([^+]{1,20})\+\+|♪([^♪]*)")
TAGS = set("a b i u s p em br div span strong sub sup".split())  # of web pages: text.py skips them
LABEL = re.compile(r"\W*(?:(?:speaker|spkr?|voice|person|participant|interviewe[re]|host|guest|caller|agent)"
                   r"[ _-]*(?:\d+|[a-z]|[ivx]+)?|transcript(?:ion)?|text|sentence|utterance|prompt|subtitles?"
                   r"|caption|audio|file(?:name)?|id|lang(?:uage)?|duration|speaker ?id|name"
                   r"|normali[sz]ed(?:[ _]text)?|[a-z]+_?\d+)\W{0,2}:(?!\d)", re.I)
NOTE = re.compile(r"^\s*(?:;;|//|#+ ?(?:speaker|spk|lang\w*|id|file\w*|source|text|transcri\w*|audio"
                  r"|comment|licen[cs]e|version|date|duration)\b)|&[=~+-][a-z]+", re.I)  # &=laughs: CHAT
ADDRESS = re.compile(r"\b(?:https?|ftp|file)://|\bwww\.\w", re.I)
# the phones of English by the letters of ARPABET; of them, words of their own are only a few, like "ah er"
PHONES = set("""
    aa ae ah ao aw ax axr ay b bcl ch d dcl dh dx eh el em en eng epi er ey f g gcl h h# hh hv ih ix iy jh
    k kcl l m n ng nx ow oy p pau pcl q r s sh t tcl th uh uw ux v w y z zh sil sp spn brth #
    """.split())
SILENCES = {"sil", "sp", "spn", "pau", "h#", "#"}
NUMBER = r"[+-]?\d+(?:[.,]\d+)?"
POINT = r"\d+\.\d+"
TIMED = re.compile(rf"\s*{NUMBER}\s+{NUMBER}(\s+\S|\s*$)"                          # 0 25 sil: HTK, Audacity
                   rf"|.*\S\s+{NUMBER}[\s,;|]+{NUMBER}\s*$"                        # sil 0 25
                   rf"|(.*\s)?{POINT}[\s,;|]+{POINT}(\s|$)"                        # STM, CTM, RTTM
                   rf"|\s*{POINT}\s+\S+\s*$"                                       # 0.25 sil: a phone's end
                   rf"|\s*{POINT}\s+\d+\s+\S+\s*$"                                 # 0.25 121 sil: ESPS
                   r"|\s*\d+\s+\S{1,4}\s*$|\s*\S{1,4}\s+\d+\s*$")                   # 2400 h#, h# 2400
ROWS = re.compile(rf"\s*({NUMBER}\s+{NUMBER}\s+\S+\s*){{2,}}|\s*(\S+\s+{NUMBER}\s+{NUMBER}\s*){{2,}}"
                  rf"|\s*(sil|sp|pau|#|h#)\s+{NUMBER}\s+{NUMBER}\s*")             # in one line
CLOCKS = re.compile(r"-->|^\s*(\[\d+:\d\d|\d+:\d\d(:\d\d|[.,]\d))|\d:\d\d:\d\d[.,]\d")
MARKUP = re.compile(r"\s*([{\[]\s*[\"{\[]|<\?xml|<(!|html|text|trans|annotation)|#!MLF!#"  # JSON, XML, HTK
                    r"|(File type|Object class|xmin|xmax|intervals)\b.*[=:?]"                   # Praat
                    r"|\d+\s+\d+\s+\S*[-^]\S*\+\S*|\S*\^\S*-\S+\+\S+)", re.I)                   # full context


def no_plain_words(lines):
    """Why the lines of a text beside a recording are a list and not the words, or "".

    A line in a good text may look like a row, but not most of them. A single line has to be one row after the
    other, or to hold two times in seconds.
    """
    if not lines:
        return ""
    rows = [line for line in lines if not line.lstrip().startswith(("#", ";;", "//"))] or lines
    whole, tokens = " ".join(rows), " ".join(rows).split()
    pair = re.match(r"\s*(\d+)\s+(\d+)\s+\S", whole)
    timed = sum(bool(TIMED.match(row)) for row in rows) > len(rows) / 2 if len(rows) > 1 else (
        re.search(rf"(^|\s){POINT}\s+{POINT}(\s|$)", whole) or pair and int(pair[1]) < int(pair[2]))
    if timed or ROWS.fullmatch(whole) or any(CLOCKS.search(line) for line in lines):
        return "its text is a list of times and labels, expected the words alone"
    if "#!MLF!#" in lines or sum(bool(MARKUP.match(line)) for line in lines) > len(lines) / 3:
        return "its text is markup, expected the words alone"
    phones = [token.lower().rstrip("012") or token for token in tokens]
    arpabet = len(phones) > 3 and sum(phone in PHONES for phone in phones) > 0.9 * len(phones)
    short = max(map(len, tokens)) < 3           # "a b c" are letters, not phones
    sampa = len(tokens) > 5 and short and {"@", "{"} & set(tokens)
    if arpabet and max(map(len, tokens)) > 1 or sampa or set(phones) <= SILENCES:
        return "its text is a list of phones, expected the words alone"
    return ""


def unspoken(text):
    """What in a line of text nobody speaks: a note on a noise, whose turn it is, an address; or "".

    Brackets alone prove nothing: audiobooks read them. What they hold has to be a noise, or be written like
    a symbol: <unk>, [SPEAKER_01], {breath}.
    """
    for mark in BRACKETS.finditer(text):
        inner, kind = next(group for group in mark.groups() if group is not None).strip(), mark[0][0]
        code = re.fullmatch(r"\w*_\w*|[a-z]+\d+|\d\d?(:\d\d)*([.,]\d+)?", inner, re.I)
        code = code or inner.isupper() and not text.isupper()
        tag = re.fullmatch(r"/?([a-z]{1,12})", inner, re.I)
        if (EVENT.fullmatch(inner) or kind == "♪" or kind == "[" and code and " " not in inner
                or kind in "<{~+" and (code or tag and tag[1].lower() not in TAGS)):
            return mark[0]
    found = LABEL.match(text) or NOTE.search(text) or ADDRESS.search(text)
    return found[0].strip() if found else ""
