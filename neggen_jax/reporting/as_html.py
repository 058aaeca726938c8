"""A report as one HTML file that needs nothing else; see `neggen_jax/page.py`.

It reads at any width, in light and dark, with the keyboard, and aloud: only
wide tables scroll sideways, drawings say what they show, and what is told by
colour is told by words or signs as well.
"""

from __future__ import annotations

import functools
import importlib.resources

from neggen_jax import page
from neggen_jax.page import text
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
    Section,
    Shelf,
    Table,
    Tile,
    Words,
)

# Tones are not told by colour alone.
_SIGNS = {"up": "better", "down": "worse"}
# Signs of a card's value that need more room.
_WIDE = 8


def render(document: Document) -> str:
    """The document as HTML."""
    sections = [part for part in document.sections if part.blocks]
    links = "".join(
        f'<li><a href="#{part.name}">{text(part.title)}</a></li>'
        for part in sections
    )
    body = "\n".join(
        [
            f"<header><h1>{text(document.title)}</h1>"
            f'<p class="lead">{text(document.lead)}</p></header>',
            f'<nav aria-label="Sections"><ul>{links}</ul></nav>',
            "<main>",
            *map(_section, sections),
            "</main>",
        ]
    )
    own = importlib.resources.files("neggen_jax.reporting")
    style = own.joinpath("report.css").read_text("utf-8")
    return page.frame(document.title, body, style)


def _section(section: Section) -> str:
    return (
        f'<section id="{section.name}" aria-labelledby="{section.name}-h">'
        f'<h2 id="{section.name}-h">{text(section.title)}</h2>\n'
        + "\n".join(map(_block, section.blocks))
        + "</section>"
    )


@functools.singledispatch
def _block(block: Block) -> str:
    raise TypeError(type(block).__name__)


@_block.register
def _words(block: Words) -> str:
    manner = f' class="{block.manner}"' if block.manner else ""
    return f"<p{manner}>{text(block.text)}</p>"


@_block.register
def _code(block: Code) -> str:
    return f'<pre tabindex="0"><code>{text(block.text)}</code></pre>'


@_block.register
def _cards(block: Cards) -> str:
    found = "".join(
        f'<div class="card"><dt>{text(card.label)}</dt>'
        f"<dd><strong>{text(card.value)}</strong> "
        f"<small>{text(card.under)}</small></dd></div>"
        for card in block.cards
    )
    wide = any(len(card.value) > _WIDE for card in block.cards)
    return f'<dl class="cards{" wider" if wide else ""}">{found}</dl>'


@_block.register
def _facts(block: Facts) -> str:
    found = "".join(
        f"<dt>{text(label)}</dt><dd>{text(value)}</dd>"
        for label, value in block.pairs
    )
    return f"<dl>{found}</dl>"


@_block.register
def _table(block: Table) -> str:
    head = "".join(
        f'<th scope="col">{text(cell)}</th>' for cell in block.header
    )
    rows = "".join(
        f'<tr><th scope="row">{text(row[0].text)}{_under(row[0])}</th>'
        + "".join(map(_cell, row[1:]))
        + "</tr>"
        for row in block.rows
    )
    # Who has no mouse can scroll, too.
    return (
        f'<p class="caption" aria-hidden="true">{text(block.caption)}</p>'
        f'<div class="wide" role="region" tabindex="0" '
        f'aria-label="{text(block.caption)}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _cell(cell: Cell) -> str:
    kind = f' class="{cell.tone}"' if cell.tone else ""
    said = text(cell.text)
    if cell.tone:
        said += f'<span class="aloud"> {_SIGNS[cell.tone]}</span>'
    return f"<td{kind}>{said}{_under(cell)}{_bar(cell)}</td>"


def _under(cell: Cell) -> str:
    return f" <small>{text(cell.under)}</small>" if cell.under else ""


def _bar(cell: Cell) -> str:
    if cell.bar is None:
        return ""
    width = min(1, abs(cell.bar))
    left = 0.0
    if cell.middle:
        width /= 2
        left = 0.5 - (width if cell.bar < 0 else 0)
    style = f"width: {100 * width:.1f}%; margin-left: {100 * left:.1f}%"
    side = "minus" if cell.bar < 0 else "plus"
    return f'<span class="bar {side}"><i style="{style}"></i></span>'


@_block.register
def _plots(block: Plots) -> str:
    if not block.plots:
        return ""
    found = "".join(
        f"<figure><figcaption>{text(plot.title)}</figcaption>"
        f"{page.svg(plot.figure, plot.title)}</figure>"
        for plot in block.plots
    )
    return f'<div class="plots">{found}</div>'


@_block.register
def _example(block: Example) -> str:
    shelves = "".join(map(_shelf, block.shelves))
    return (
        f'<article class="person"><h3>{text(block.title)}</h3>'
        f'<p class="faint">{text(block.about)}</p>{shelves}</article>'
    )


def _shelf(shelf: Shelf) -> str:
    kind = "ol" if any(tile.rank for tile in shelf.tiles) else "ul"
    tiles = "".join(map(_tile, shelf.tiles))
    more = f'<p class="faint">{text(shelf.more)}</p>' if shelf.more else ""
    return f"<h4>{text(shelf.label)}</h4><{kind}>{tiles}</{kind}>{more}"


def _tile(tile: Tile) -> str:
    title = text(tile.title)
    if tile.picture:
        # The title stands below it: nothing is told twice.
        shown = (
            f'<img alt="" src="{tile.picture}" loading="lazy">'
            f'<span class="title" dir="auto">{title}</span>'
        )
    else:
        shown = f'<span class="blank" dir="auto"><b>{title}</b></span>'
    mark = f'<span class="mark">{text(tile.mark)}</span>' if tile.mark else ""
    rank = f'<span class="rank">{tile.rank}</span>' if tile.rank else ""
    kind = ' class="marked"' if tile.mark else ""
    return f"<li{kind}>{rank}{shown}{mark}</li>"


@_block.register
def _folded(block: Folded) -> str:
    inner = "\n".join(map(_block, block.blocks))
    return f"<details><summary>{text(block.summary)}</summary>{inner}</details>"
