"""A report as Markdown, with links to the plots' files.

What anybody may have written is escaped: nothing becomes a link, a picture or
HTML that was none.
"""

from __future__ import annotations

import functools
import re

from neggen_jax.page import plain
from neggen_jax.reporting.document import (
    Block,
    Cards,
    Cell,
    Code,
    Document,
    Example,
    Facts,
    Folded,
    Plots,
    Shelf,
    Table,
    Words,
)

# What means something within a line. At the beginning of one nothing of
# others' stands.
_SIGNS = re.compile(r"([\\`*_{}\[\]<>()#|~!$&])")


def render(document: Document) -> str:
    """The document as Markdown."""
    parts = [f"# {escape(document.title)}", escape(document.lead)]
    for section in document.sections:
        if section.blocks:
            parts.append(f"## {escape(section.title)}")
            parts += map(_block, section.blocks)
    return "\n\n".join(part for part in parts if part) + "\n"


def escape(words: str) -> str:
    """Words as text in one line, and nothing else."""
    line = " ".join(plain(words).split())
    # Bare addresses become links in many readers.
    return re.sub(
        r"(?i)\b(https?|ftp|mailto|www)(?=[:.])",
        r"\1&#8203;",
        _SIGNS.sub(r"\\\1", line),
    )


@functools.singledispatch
def _block(block: Block) -> str:
    raise TypeError(type(block).__name__)


@_block.register
def _words(block: Words) -> str:
    said = escape(block.text)
    return f"> {said}" if block.manner == "note" else said


@_block.register
def _code(block: Code) -> str:
    # Longer than any fence within.
    longest = max(map(len, re.findall("`+", block.text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{plain(block.text)}\n{fence}"


@_block.register
def _cards(block: Cards) -> str:
    return "\n".join(
        f"- {escape(card.label)}: **{escape(card.value)}** "
        f"{escape(card.under)}".rstrip()
        for card in block.cards
    )


@_block.register
def _facts(block: Facts) -> str:
    return "\n".join(
        f"- {escape(label)}: {escape(value)}" for label, value in block.pairs
    )


@_block.register
def _table(block: Table) -> str:
    lines = [
        [escape(cell) for cell in block.header],
        ["---", *["---:"] * (len(block.header) - 1)],
        *([_cell(cell) for cell in row] for row in block.rows),
    ]
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{escape(block.caption)}:\n\n{rows}"


def _cell(cell: Cell) -> str:
    return " ".join(filter(None, (escape(cell.text), escape(cell.under))))


@_block.register
def _plots(block: Plots) -> str:
    if not block.file:
        return ""
    # In a path, only what would end the link is in the way.
    target = re.sub(r"[<>\n]", "", block.file)
    return f"![{escape(block.title)}](<{target}>)"


@_block.register
def _example(block: Example) -> str:
    parts = [f"### {escape(block.title)}", escape(block.about)]
    return "\n\n".join([*parts, *map(_shelf, block.shelves)])


def _shelf(shelf: Shelf) -> str:
    lines = []
    for tile in shelf.tiles:
        number = f"{tile.rank}." if tile.rank else "-"
        mark = f" **({escape(tile.mark)})**" if tile.mark else ""
        lines.append(f"{number} {escape(tile.title)}{mark}")
    if shelf.more:
        lines.append(f"\n{escape(shelf.more)}")
    return "\n".join([f"{escape(shelf.label)}:", "", *lines])


@_block.register
def _folded(block: Folded) -> str:
    inner = "\n\n".join(filter(None, map(_block, block.blocks)))
    if not inner:
        return ""
    return (
        f"<details><summary>{escape(block.summary)}</summary>\n\n"
        f"{inner}\n\n</details>"
    )
