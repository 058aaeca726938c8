"""A page about a counterfactual set, as one HTML file.

The frame is that of `neggen_jax/page.py`; what a catalogue or a model wrote is
escaped.
"""

from __future__ import annotations

import collections
import dataclasses
import importlib.resources
from collections.abc import Mapping, Sequence
from typing import Any

from neggen_jax import page as pages
from neggen_jax.generation.inspection import plots, summary, wording
from neggen_jax.generation.records import Alternative, Record
from neggen_jax.page import text as _text

_FEW = 20  # failures that need not be unfolded


@dataclasses.dataclass(frozen=True)
class Shown:
    """One item on the page.

    Attributes:
      item: index of the item.
      id: the source's own identifier.
      title: of the item; "" where there is none.
      picture: as a data URL; "" where there is none to be seen.
      trouble: why a picture cannot be seen; "" if it can, or there is none.
      records: of the item, by modality.
    """

    item: int
    id: str
    title: str
    picture: str
    trouble: str
    records: tuple[Record, ...]

    @property
    def failed(self) -> bool:
        """Whether one of its records did."""
        return any(not record.accepted for record in self.records)


@dataclasses.dataclass(frozen=True)
class Page:
    """What a page says.

    Attributes:
      title: names set and dataset.
      about: (label, value) of how the set came about.
      notes: what the reader must know of the figures, if anything.
      figures: of `summary.summary`.
      items: random ones.
      having_failed: items of which a record failed, in all.
      failures: kind of reason -> some of the records that failed for it.
    """

    title: str
    about: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    figures: dict[str, Any]
    items: tuple[Shown, ...]
    having_failed: int
    failures: Mapping[str, Sequence[Record]]


def render(page: Page) -> str:
    """The page as HTML."""
    own = importlib.resources.files("neggen_jax.generation.inspection")
    parts = [
        *(f'<p class="note">{_text(note)}</p>' for note in page.notes),
        _headlines(page),
        _table(page),
        _plots(page),
        _about(page),
        _items(page),
        _failures(page),
    ]
    heading = f"Counterfactuals {page.title}"
    return pages.frame(
        heading,
        "\n".join([f"<h1>{_text(heading)}</h1>", *filter(None, parts)]),
        own.joinpath("page.css").read_text("utf-8"),
    )


def _headlines(page: Page) -> str:
    found = "".join(
        f"<li>{_text(told)}</li>" for told in summary.headlines(page.figures)
    )
    return f"<ul>{found}</ul>"


def _table(page: Page) -> str:
    first, *rest = summary.table(page.figures)
    head = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in first)
    body = "".join(
        f'<tr><th scope="row">{_text(row[0])}</th>'
        + "".join(f"<td>{_text(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rest
    )
    return (
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        '<p class="faint">Means, and in brackets the range of the middle '
        "90 in 100.</p>"
    )


def _plots(page: Page) -> str:
    found = "".join(
        pages.png(figure, title)
        for title, figure in plots.panels(page.figures).items()
    )
    return f'<div class="plots">{found}</div>'


def _about(page: Page) -> str:
    found = [
        f"<dt>{_text(label)}</dt><dd>{_text(value)}</dd>"
        for label, value in page.about
    ]
    if not found:
        return ""
    return (
        "<details><summary>How the set was made</summary>"
        f"<dl>{''.join(found)}</dl></details>"
    )


def _items(page: Page) -> str:
    if not page.items:
        return ""
    pictures = any(shown.picture or shown.trouble for shown in page.items)
    return "\n".join(
        [
            f"<h2>{drawn(page)}</h2>",
            '<p class="faint">In descriptions, <mark>what is masked</mark>; '
            "in counterfactuals, <del>what was</del> <ins>what is put "
            "instead</ins>.</p>",
            *(_item(shown, pictures) for shown in page.items),
        ]
    )


def drawn(page: Page) -> str:
    """Headline of the items that are shown."""
    failed = sum(shown.failed for shown in page.items)
    number = len(page.items)
    some = f"{number:,} random item" + ("" if number == 1 else "s")
    if failed:
        some += (
            f", {failed:,} of them from the {page.having_failed:,} that failed"
        )
    return some


def _item(shown: Shown, pictures: bool) -> str:
    title = _text(shown.title) or '<span class="faint">without a title</span>'
    if shown.picture:
        # The title stands beside it: nothing is told twice.
        picture = f'<img alt="" src="{shown.picture}" loading="lazy">'
    else:
        trouble = _text(shown.trouble) or "no picture"
        picture = f'<div class="blank faint">{trouble}</div>'
    return "\n".join(
        [
            f'<article class="item{"" if pictures else " plain"}">',
            f'<header><h3 dir="auto">{title}</h3>'
            f'<span class="faint">item {shown.item}, '
            f"<bdi>{_text(shown.id)}</bdi></span></header>",
            f"<figure>{picture}</figure>" if pictures else "",
            "<div>",
            *(_record(record) for record in shown.records),
            "</div>",
            "</article>",
        ]
    )


def _record(record: Record) -> str:
    parts = [f"<h4>{_text(record.modality)}</h4>"]
    pieces = wording.masked(record)
    if record.description:
        if "".join(said for said, _ in pieces) != record.description:
            parts.append(_paragraph(_text(record.description)))
            parts.append("<h4>masked</h4>")
        words = [
            f"<mark>{_text(said)} <small>{_text(name)}</small></mark>"
            if name
            else _text(said)
            for said, name in pieces
        ]
        parts.append(_paragraph("".join(words)))
    if not record.accepted:
        parts.append(
            f'<p class="reason" dir="auto">Failed: {_text(record.error)}</p>'
        )
        if record.attempts:
            times = "request" if record.attempts == 1 else "requests"
            parts.append(f'<p class="faint">{record.attempts} {times}</p>')
        return f'<section class="failed">{"".join(parts)}</section>'
    several = len(record.negatives) > 1
    for number, made in enumerate(record.negatives, 1):
        label = f"counterfactual {number}" if several else "counterfactual"
        parts.append(f"<h4>{label}</h4>")
        parts.append(_alternative(record, made))
    return f"<section>{''.join(parts)}</section>"


def _alternative(record: Record, made: Alternative) -> str:
    tags = {wording.SAME: "{}", wording.OLD: "<del>{}</del>"}
    tags[wording.NEW] = "<ins>{}</ins>"
    words = "".join(
        tags[kind].format(_text(said))
        for kind, said in wording.difference(record.description, made.text)
    )
    changes = "".join(
        f"<li><bdi>{_text(name)}: <del>{_text(old)}</del> &rarr; "
        f"<ins>{_text(new)}</ins></bdi></li>"
        for name, (old, new) in made.changes.items()
    )
    return f'{_paragraph(words)}<ul class="changes">{changes}</ul>'


def _paragraph(words: str) -> str:
    return f'<p class="words" dir="auto">{words}</p>'


def _failures(page: Page) -> str:
    total = page.figures["failed"]
    if not total:
        return ""
    counts: collections.Counter[str] = collections.Counter()
    for about in page.figures["modalities"].values():
        counts.update(about["reasons"])
    headline = f"{total:,} failed record" + ("" if total == 1 else "s")
    return f"<h2>{headline}</h2>" + "\n".join(
        _reason(kind, count, page.failures[kind], total <= _FEW)
        for kind, count in counts.most_common()
    )


def _reason(kind: str, count: int, some: Sequence[Record], shown: bool) -> str:
    """Records that failed for one kind of reason."""
    rows = "".join(
        f"<tr><td>item {record.item}, <bdi>{_text(record.id)}</bdi></td>"
        f"<td>{_text(record.modality)}</td>"
        # The kind is said already.
        f'<td dir="auto">{_text(record.error) * (record.error != kind)}</td>'
        "</tr>"
        for record in some
    )
    more = count - len(some)
    told = f'<p class="faint">and {more:,} more</p>' if more else ""
    return (
        f'<details class="kind"{" open" if shown else ""}>'
        f'<summary><span class="reason">{_text(kind)}</span> '
        f"{count:,}</summary>"
        f'<table class="wide"><tbody>{rows}</tbody></table>{told}</details>'
    )
