"""What a report says, whatever it is written as.

`single.py` and `beside.py` make documents of these parts; `as_html.py` and
`as_markdown.py` write them down. All strings are plain words: whoever writes
them down escapes them.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Words:
    """A paragraph; `faint` is an explanation, `note` what must not be missed.

    Attributes:
      text: the words.
      manner: "", "faint" or "note".
    """

    text: str
    manner: str = ""


@dataclasses.dataclass(frozen=True)
class Code:
    """What can be copied, such as a command."""

    text: str


@dataclasses.dataclass(frozen=True)
class Card:
    """One number that stands for much.

    Attributes:
      label: what it is.
      value: the number.
      under: what is to be known of it.
    """

    label: str
    value: str
    under: str = ""


@dataclasses.dataclass(frozen=True)
class Cards:
    """Some of them."""

    cards: tuple[Card, ...]


@dataclasses.dataclass(frozen=True)
class Facts:
    """(label, value) of what needs no table."""

    pairs: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Cell:
    """Of a table.

    Attributes:
      text: what it says.
      under: a second line, such as an interval.
      tone: "up" or "down" for what is better or worse, "" for neither.
      bar: from -1 to 1, where a bar shows the number too.
      middle: whether the bar begins in the middle, as of differences.
    """

    text: str
    under: str = ""
    tone: str = ""
    bar: float | None = None
    middle: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows under a header; the first column names the rows.

    Attributes:
      caption: what it shows.
      header: of every column.
      rows: as long as the header.
    """

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclasses.dataclass(frozen=True)
class Plot:
    """A drawing.

    Attributes:
      title: what it shows; other drawings of the document have others.
      figure: of matplotlib.
    """

    title: str
    figure: Figure


@dataclasses.dataclass(frozen=True)
class Plots:
    """Drawings, and the file that shows the same.

    Attributes:
      plots: small ones, for a page.
      title: of all of them.
      file: path of the PNG, for who cannot have drawings in the text; "" if
        there is none.
    """

    plots: tuple[Plot, ...]
    title: str
    file: str


@dataclasses.dataclass(frozen=True)
class Tile:
    """An item in a list.

    Attributes:
      title: of the item.
      picture: as a data URL; "" where there is none.
      rank: in a list that is ordered; 0 elsewhere.
      mark: "" or a word, such as "hit".
    """

    title: str
    picture: str
    rank: int = 0
    mark: str = ""


@dataclasses.dataclass(frozen=True)
class Shelf:
    """Items in a row.

    Attributes:
      label: whose they are.
      tiles: the items.
      more: what is left out, in words; "" if nothing is.
    """

    label: str
    tiles: tuple[Tile, ...]
    more: str = ""


@dataclasses.dataclass(frozen=True)
class Example:
    """One user, and what they are shown.

    Attributes:
      title: who it is.
      about: how well they are served.
      shelves: history, what is held out, and what is recommended.
    """

    title: str
    about: str
    shelves: tuple[Shelf, ...]


@dataclasses.dataclass(frozen=True)
class Folded:
    """What is there for who asks.

    Attributes:
      summary: what it is.
      blocks: it.
    """

    summary: str
    blocks: tuple[Block, ...]


Block = Words | Code | Cards | Facts | Table | Plots | Example | Folded


@dataclasses.dataclass(frozen=True)
class Section:
    """A part with a heading.

    Attributes:
      name: short, of letters and hyphens: what links to it say.
      title: the heading.
      blocks: in order.
    """

    name: str
    title: str
    blocks: tuple[Block, ...]


@dataclasses.dataclass(frozen=True)
class Document:
    """A report.

    Attributes:
      title: the heading of all.
      lead: one line below it.
      sections: in order; those without a block are left out.
    """

    title: str
    lead: str
    sections: tuple[Section, ...]
