"""When two values of an attribute are the same in other words.

A counterfactual has to change something, so "Grey" is no contrast to "gray",
nor "stripes" to "striped". The tables here are small and hold only what is
plainly the same: two names of one value that are missed cost one weak
counterfactual, two values held for one cost a good one.
"""

from __future__ import annotations

import functools
import re
import unicodedata

# What a value that says nothing becomes: "N/A", "unspecified", "none".
UNKNOWN = "unknown"

# First the form that is kept, then the words that become it, each in the
# singular. Of words anywhere in a value; British spelling is kept.
_SAME_WORDS = """
    grey: gray greyish grayish
    colour: color
    coloured: colored
    multicoloured: multicolored multicolour multicolor
    fibre: fiber
    centre: center
    metre: meter
    litre: liter
    theatre: theater
    flavour: flavor
    flavoured: flavored
    favourite: favorite
    aluminium: aluminum
    jewellery: jewelry
    pyjama: pajama
    mould: mold
    catalogue: catalog
    tyre: tire
    wood: wooden
    wool: woollen woolen
    gold: golden
    stripe: striped stripy stripey
    check: checked checkered chequered plaid
    dot: dotted spotted
    floral: flowered flowery
    print: printed
    knit: knitted
    rib: ribbed
    pleat: pleated
    embroidery: embroidered
    faux: fake imitation artificial
    purple: violet
    light: pale
    man: gent gentleman male
    woman: lady female
    child: kid
    1: one
    2: two
    3: three
    4: four
    5: five
    6: six
    7: seven
    8: eight
    9: nine
    10: ten
    11: eleven
    12: twelve
"""

# The same for phrases, which may become or replace several words.
_SAME_PHRASES = {
    "navy blue": "dark blue",
    "dark navy": "dark blue",
    "navy": "dark blue",
    "polka dot": "dot",
    "see through": "transparent",
    "tee shirt": "t shirt",
}

# And for values as a whole, where a word would say too little on its own;
# parted by commas.
_SAME_VALUES = """
    plain: solid, unicolour, solid colour, plain colour, single colour,
        1 colour
    multicoloured: multi, multi colour, multi coloured
    t shirt: tee, tshirt
    jumper: sweater, pullover
    trouser: pant
    trainer: sneaker
    autumn: fall
    extra small: xs
    small: s
    medium: m
    large: l
    extra large: xl
    unknown: none, undefined, unspecified, not specified, not known, na, n a,
        not applicable, other, null, unclear, not stated, not given
"""

# Plurals that no rule below finds, and words that only look like plurals.
_SINGULAR = {
    "men": "man",
    "women": "woman",
    "gentlemen": "gentleman",
    "children": "child",
    "feet": "foot",
    "teeth": "tooth",
    "mice": "mouse",
    "leaves": "leaf",
    "shelves": "shelf",
    "scarves": "scarf",
    "knives": "knife",
    "halves": "half",
    "loaves": "loaf",
    "wolves": "wolf",
    "lens": "lens",
    "lenses": "lens",
    "canvas": "canvas",
    "canvases": "canvas",
    "buses": "bus",
    "glasses": "glasses",
    "shoes": "shoe",
    "toes": "toe",
    "canoes": "canoe",
}

# Latin letters that Unicode does not take apart.
_LETTERS = str.maketrans(
    {
        "ø": "o",
        "ł": "l",
        "đ": "d",
        "æ": "ae",
        "œ": "oe",
        "\N{LATIN SMALL LETTER DOTLESS I}": "i",
    }
)
_SIGNS = {
    "&": " and ",
    "+": " plus ",
    "%": " percent ",
    "\N{MULTIPLICATION SIGN}": " x ",
}
_ARTICLES = ("a", "an", "the")
_QUOTE = "['`\N{RIGHT SINGLE QUOTATION MARK}]"
_POSSESSIVE = re.compile(rf"(?<=[^\W\d_]){_QUOTE}s\b")
_APOSTROPHE = re.compile(_QUOTE)
# "A-line" is no line with an article.
_INITIAL = re.compile(r"(?<![^\W_])([^\W\d_])[-\N{HYPHEN}](?=[^\W\d_])")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_DECIMAL = re.compile(r"(?<=\d)[.,](?=\d)")
_LEADING = re.compile(r"(?<![\w.])\.(?=\d)")
_POINT = "\ue000"  # Stands for a decimal point while the others are dropped.
_JOINTS = re.compile(r"(?<=\d)(?=[^\W\d_])|(?<=[^\W\d_])(?=\d)")
_COLOURED = re.compile(r"(?<=\S)(?:(?: in)? colour(?:ed)?)+$")
_SPACES = re.compile(r"(?<!\d) | (?!\d)")


def same_value(one: str, other: str) -> bool:
    """Whether two values of an attribute mean the same.

    Case, accents, punctuation, number, British or American spelling and a
    few plain synonyms make no difference, nor whether a compound is written
    as one word. It is an equivalence: what is the same as the same is the
    same.
    """
    return key(one) == key(other)


@functools.lru_cache(maxsize=65536)
def normalised(value: str) -> str:
    """The form that values which mean the same share, but for spaces.

    It is meant for comparing, not for reading: words are singular, spelt the
    British way, parted by single spaces; `UNKNOWN` for a value that says
    nothing. A value of nothing but signs stays as it is.
    """
    words = map(_singular, _words(_plain(value)))
    text = " ".join(_WORDS.get(word, word) for word in words)
    text = _PHRASE.sub(lambda found: _SAME_PHRASES[found[0]], text)
    if text not in _VALUES:
        text = _COLOURED.sub("", text)
    return _VALUES.get(text, text) or value.casefold().strip()


def key(value: str) -> str:
    """What values that mean the same share, and no others do.

    That is `normalised` without the spaces that part no two numbers.
    """
    return _SPACES.sub("", normalised(value))


def _plain(value: str) -> str:
    """Lower case, no accents on Latin letters, compatibility forms undone."""
    text = value
    for _ in range(2):  # Once more: lower case may bring new marks.
        text = unicodedata.normalize("NFKD", text).casefold()
    kept: list[str] = []
    base = ""
    for letter in text.translate(_LETTERS):
        if unicodedata.category(letter) == "Mn":
            # A mark is part of the letter in scripts other than Latin.
            if base.isascii() or not base.isalpha():
                continue
        else:
            base = letter
        kept.append(letter)
    return unicodedata.normalize("NFC", "".join(kept))


def _words(text: str) -> list[str]:
    """Cuts plain text into words and numbers."""
    text = text.replace(_POINT, " ")
    text = _POSSESSIVE.sub("", text)
    text = _APOSTROPHE.sub("", text)
    text = _INITIAL.sub(r"\1", text)
    text = _THOUSANDS.sub("", text)
    text = _LEADING.sub("0.", text)
    text = _DECIMAL.sub(_POINT, text)
    parts = []
    for letter in text:
        if letter == _POINT:
            parts.append(".")
        elif letter in _SIGNS:
            parts.append(_SIGNS[letter])
        elif unicodedata.category(letter) == "Sc":
            parts.append(f" {letter} ")  # $5 is not 5 €.
        else:
            inside = unicodedata.category(letter)[0] in "LMN"
            parts.append(letter if inside else " ")
    words = _JOINTS.sub(" ", "".join(parts)).split()
    while len(words) > 1 and words[0] in _ARTICLES and words[1].isalpha():
        words = words[1:]
    return words


def _singular(word: str) -> str:
    """Cuts an English plural's ending; wrong ones are wrong consistently."""
    word = re.sub(r"(?<=\w{3})iz(?=(?:e|ed|er|ing|ation)s?$)", "is", word)
    if word in _SINGULAR:
        return _SINGULAR[word]
    if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
        if word.endswith("ies") and len(word) > 4:
            word = word.removesuffix("ies") + "y"
        elif re.search(r"(?:ss|sh|ch|x|zz|o)es$", word):
            word = word.removesuffix("es")
        else:
            word = word.removesuffix("s")
    if word.endswith("ie") and len(word) > 4:
        word = word.removesuffix("ie") + "y"  # "hoodie", "hoody", "hoodies".
    return _SINGULAR.get(word, word)  # "womens" is "women" by now.


def _table(text: str, separator: str | None) -> dict[str, str]:
    """Reads `kept: other other` into other -> kept."""
    table = {}
    for entry in re.split(r"\n(?=    \S)", text.strip("\n")):
        kept, others = entry.split(":")
        for other in others.split(separator):
            table[" ".join(other.split())] = kept.strip()
    return table


_WORDS = _table(_SAME_WORDS, None)
_VALUES = _table(_SAME_VALUES, ",")
_LONGEST_FIRST = sorted(map(re.escape, _SAME_PHRASES), key=len, reverse=True)
_PHRASE = re.compile(rf"(?<!\S)(?:{'|'.join(_LONGEST_FIRST)})(?!\S)")
