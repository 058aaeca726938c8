"""A page about a counterfactual set, in Markdown.

For wherever HTML is not at hand: pictures are named where they lie, and the
figures are drawn into a file beside the page.
"""

from __future__ import annotations

import html
import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from neggen_jax import plots_counterfactuals
from neggen_jax.generation import page, wording
from neggen_jax.generation.page import Page, Shown
from neggen_jax.generation.records import Record

# Signs that mean something anywhere, and those that do where a line begins.
_SIGNS = re.compile(r"([\\`*_\[\]~|])")
_LEADING = re.compile(r"^(\d*)([#+\-=.)])")
_UNWANTED = re.compile(
    "[\0-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]+"
)


def write(content: Page, target: Path) -> None:
    """Writes the page, and its figures as a PNG beside it.

    Raises:
      OSError: if they cannot be written.
    """
    drawn = target.with_suffix(".png")
    figure = plots_counterfactuals.overview(content.figures, content.title)
    figure.savefig(drawn)
    target.write_text("\n".join(_lines(content, target, drawn)), "utf-8")


def _lines(content: Page, target: Path, drawn: Path) -> Iterator[str]:
    yield f"# Counterfactuals {_text(content.title)}\n"
    for note in content.notes:
        yield f"> {_text(note)}\n"
    for figure, what, full in page.headlines(content.figures):
        yield f"- **{_text(figure)}** {_text(what)}" + (
            f" ({_text(full)})" if full else ""
        )
    yield ""
    first, *rest = page.table(content.figures)
    yield _row(first)
    yield _row(["---"] * len(first), plain=True)
    yield from map(_row, rest)
    yield f"\n![Figures of the set]({quote(drawn.name)})\n"
    for label, value in content.about:
        yield f"- {_line(_text(label))}: {_text(value)}"
    if content.items:
        yield f"\n## {_text(page.drawn(content))}\n"
    for shown in content.items:
        yield from _item(shown, target)
    if content.failures:
        yield f"\n## {_text(page.listed(content))}\n"
    for kind, count, some in page.by_reason(content):
        yield f"{_around('**', kind)}: {count:,}\n"
        for record in some:
            about = f"item {record.item}, {record.id}, {record.modality}"
            told = f": {record.error}" if record.error != kind else ""
            yield f"- {_text(about + told)}"
        more = count - len(some)
        yield f"- and {more:,} more\n" if more else ""


def _item(shown: Shown, target: Path) -> Iterator[str]:
    yield f"### {_line(_text(shown.title)) or 'without a title'}\n"
    yield f"item {shown.item}, {_text(shown.id)}\n"
    if shown.picture:
        path = os.path.relpath(shown.picture_file, target.absolute().parent)
        yield f"![]({quote(path)})\n"
    elif shown.trouble:
        yield f"{_text(shown.trouble)}\n"
    for record in shown.records:
        yield from _record(record)


def _record(record: Record) -> Iterator[str]:
    yield f"**{record.modality}**\n"
    pieces = wording.masked(record)
    if record.description:
        if "".join(said for said, _ in pieces) != record.description:
            yield _line(_text(record.description)) + "\n"
            yield "masked:\n"
        words = [
            f"{_around('**', said)} ({_text(name)})" if name else _text(said)
            for said, name in pieces
        ]
        yield _line("".join(words)) + "\n"
    if not record.accepted:
        yield f"Failed: {_text(record.error)}\n"
    for made in record.negatives:
        signs = {wording.OLD: "~~", wording.NEW: "**"}
        parts = wording.difference(record.description, made.text)
        words = [
            _around(signs[kind], said) if kind in signs else _text(said)
            for kind, said in parts
        ]
        for place, (kind, _) in enumerate(parts[:-1]):
            if kind == wording.OLD and parts[place + 1][0] == wording.NEW:
                words[place] += " "
        yield "> " + _line("".join(words)) + "\n>"
        for name, (old, new) in made.changes.items():
            yield f"> - {_line(_text(name))}: {_text(old)} → {_text(new)}"
        yield ""


def _around(sign: str, words: str) -> str:
    """Signs stand at words: beside a space they mean nothing."""
    bare = words.strip()
    if not bare:
        return _text(words)
    before = words[: len(words) - len(words.lstrip())]
    after = words[len(words.rstrip()) :]
    return f"{_text(before)}{sign}{_text(bare)}{sign}{_text(after)}"


def _row(cells: list[str] | tuple[str, ...], plain: bool = False) -> str:
    told = cells if plain else [_text(cell) for cell in cells]
    return "| " + " | ".join(told) + " |"


def _text(words: str) -> str:
    """What anybody may have written, as text in one line."""
    line = _SIGNS.sub(r"\\\1", _UNWANTED.sub(" ", words))
    return html.escape(line, quote=False)


def _line(words: str) -> str:
    """What is text already, where a line begins: no list, no heading."""
    return _LEADING.sub(r"\1\\\2", words.lstrip())
