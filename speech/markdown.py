"""Text as people paste it -> the text that a reader of the page sees, without Markdown's signs and addresses.

What is no Markdown stays as it is: 2*3*4, snake_case, [noise], #5. The words of code stay, its fence goes.
"""
import re

FENCE = re.compile(r"\s*(`{3,}|~{3,})[^`]*$")
RULE = re.compile(r"\s*(?:(?:[-*_]\s*){3,}|=+\s*)$")                              # ---, and below a title
HEADING = re.compile(r"\s{0,3}#{1,6}\s+(.*?)\s*#*\s*$")
ITEM = re.compile(r"\s*(?:[-*•]|\+(?=\s+[^\W\d])|(\d{1,2}[.)]))\s+(?:\[[ xX]\]\s+)?(?=\S)")
HEAD = re.compile(r"\s*\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$")           # |---|:-:|, a table's second row
NOTE = re.compile(r"\s*\[\^[^\]\s]{1,40}\]:\s*")                                  # [^1]: a footnote's text
DEFINED = re.compile(r"\s{0,3}\[[^\]^\n]+\]:\s+<?(?:\w+://|www\.|mailto:|[./#])\S*")         # [1]: an address
TARGET = r"\(\s*(?:<[^<>\n]*>|[^()\s]*(?:\([^()\s]*\)[^()\s]*)*)(?:\s+(?:\"[^\"\n]*\"|'[^'\n]*'))?\s*\)"
INLINE = [(re.compile(pattern), seen) for pattern, seen in [
    (rf"!\[([^\[\]\n]{{0,300}})\](?:{TARGET}|\[[^\[\]\n]{{0,100}}\])",              # a picture: what it shows
     lambda m: "" if re.search(r"\.\w{3,4}$", m[1]) else m[1]),
    (r"\[\^[^\[\]\s]{1,40}\]", ""),                                                   # a footnote's mark
    (rf"\[([^\[\]\n]{{0,300}})\]{TARGET}", r"\1"),                                    # a link: its words
    (r"\[([^\[\]\n]{0,300}[^\W\d][^\[\]\n]{0,300})\]\[[^\[\]\n]{0,100}\]", r"\1"),
    (r" ?(?<!~)~~(?=[^\s~])([^~\n]{1,500})(?<=\S)~~(?!~)", ""),                       # struck out
    *[(r"(?<![\w\\*])(\*{1,3})(?=[^\s*])([^*\n]{1,500})(?<=[^\s\\])\1(?!\*)", r"\2")] * 2,
    (r"(?<![\w\\])(_{1,3})(?=[^\s_])([^_\n]{1,500})(?<=[^\s\\])\1(?!\w)", r"\2"),
    (r"(?<!=)==(?=[^\s=])([^=\n]{1,300})(?<=\S)==(?!=)", r"\1"),
    (r"\\([\\`*_{}\[\]()#+.!|<>~-])", r"\1"), (r"\\$", ""),
]]


def inline(text):
    """One line without links, pictures, emphasis and the marks of footnotes; code is left as it is."""
    parts = re.split(r"(?<!`)(`{1,3})(?!`)([^`\n]{1,500})\1(?!`)", text)          # text, "`", code, text, ...
    for i in range(0, len(parts), 3):
        for pattern, seen in INLINE:
            parts[i] = pattern.sub(seen, parts[i])
    return "".join(part for i, part in enumerate(parts) if i % 3 != 1)


def row(line):
    """| Green | 2 | -> Green, 2."""
    cells = [re.sub(r"<br\s*/?>", ", ", inline(cell)).strip() for cell in re.split(r"(?<!\\)\|", line)]
    return ", ".join(cell for cell in cells if cell) + "."


def plain(text):
    """A text -> the same without what Markdown does not show. A title and a table's row get a full stop."""
    lines, out, fence, table = re.sub(r"(?s)<!--.{0,2000}?-->", "", text).split("\n"), [], "", False
    for line, below in zip(lines, [*lines[1:], ""]):
        line = re.sub(r"^\s*(?:>\s?)+(?!\d)", "", line)                               # a quotation
        edge, mark, table = line.strip(), FENCE.match(line), table and "|" in line
        if mark and (not fence or mark[1].startswith(fence)):
            fence = "" if fence else mark[1]
            out.append("")
        elif fence:
            out.append(line)
        elif table or "|" in line and ("|" in below and HEAD.match(below)
                                       or edge[0] == edge[-1] == "|" and line.count("|") > 2):
            table = True
            out += [] if HEAD.match(line) else [row(line)]
        elif RULE.match(line) or DEFINED.match(line):
            out.append("")
        elif heading := HEADING.match(line):
            title = inline(heading[1])
            out += ["", title + "." * (title[-1:] not in ".!?:…"), ""]
        else:
            item = ITEM.match(line)
            if item:                            # after a long line it would be taken for that one's end
                out += [""] * bool(out and len(out[-1]) >= 60)
                line = (item[1] + " " if item[1] else "") + line[item.end():]
            out.append(inline(NOTE.sub("", line)))
    return "\n".join(out)
