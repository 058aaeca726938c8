"""A page about a counterfactual set, as one HTML file.

Nothing is loaded from anywhere: style and pictures are in the file, there are
no scripts, and a policy in the file forbids both. Whatever a catalogue or a
model wrote is escaped.
"""

from __future__ import annotations

import html
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

from neggen_jax import plots_counterfactuals
from neggen_jax.generation.inspection import page, wording
from neggen_jax.generation.inspection.page import Page, Shown
from neggen_jax.generation.records import Alternative, Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 144
_FEW = 20  # failures that need not be unfolded
# Signs that are not text: HTML forbids them, or they turn what follows
# around.
_UNWANTED = re.compile(
    "[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069"
    "\ufdd0-\ufdef\ufffe\uffff\ud800-\udfff]"
)
_STYLE = """
:root { color-scheme: light dark;
  --ground: #fff; --card: #f6f7f8; --line: #d9dde1; --ink: #1b1f23;
  --faint: #5b6570; --accent: #0059a3;
  --mask: #fff0b8; --mask-ink: #6b4b00;
  --new: #cdeed7; --new-ink: #0b4a22; --old: #fbd9d9; --old-ink: #7c1414; }
@media (prefers-color-scheme: dark) { :root {
  --ground: #14171a; --card: #1d2125; --line: #343a41; --ink: #e6e8ea;
  --faint: #9aa4ae; --accent: #7cbcf5;
  --mask: #4a3b0c; --mask-ink: #ffe08a;
  --new: #12402a; --new-ink: #a6ebc0; --old: #4f1d1f; --old-ink: #ffb9b9; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 64rem; color: var(--ink);
  background: var(--ground); font: 1rem/1.5 system-ui, sans-serif;
  overflow-wrap: anywhere; }
details { margin: .5rem 0; }
summary { cursor: pointer; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 0; }
h4 { font-size: .75rem; margin: .9rem 0 .2rem; color: var(--faint);
  font-weight: 600; text-transform: uppercase; letter-spacing: .05em; }
p { margin: .3rem 0; }
.faint { color: var(--faint); font-size: .85rem; }
.note { border-left: .25rem solid var(--accent); padding: .2rem .8rem; }
.tiles { display: grid; gap: .75rem; margin: 1rem 0;
  grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); }
.tile, .item { background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; padding: .75rem .9rem; }
.tile b { display: block; font-size: 1.6rem; line-height: 1.2; }
.tile span { display: block; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; padding: .3rem .6rem .3rem 0; vertical-align: top;
  border-bottom: 1px solid var(--line); font-weight: 400; }
thead th { font-weight: 600; }
th:first-child { color: var(--faint); }
th, td { overflow-wrap: break-word; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem;
  font-size: .85rem; margin: .5rem 0; }
dt { color: var(--faint); }
dd { margin: 0; }
.plots { display: grid; gap: .75rem; margin: 1rem 0;
  grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); }
.plots img { width: 100%; height: auto; border-radius: .6rem;
  background: #fff; border: 1px solid var(--line); display: block; }
.item { display: grid; gap: .25rem 1.2rem; margin: 1rem 0;
  grid-template-columns: 11rem minmax(0, 1fr); }
.item.plain { grid-template-columns: minmax(0, 1fr); }
.item > header { grid-column: 1 / -1; }
.item > figure { margin: .6rem 0 0; }
.item > figure img { width: 100%; height: auto; border-radius: .4rem;
  background: #fff; display: block; }
.blank { border: 1px dashed var(--line); border-radius: .4rem;
  padding: 1.5rem .8rem; text-align: center; }
.words { margin: 0; max-height: 22rem; overflow: auto; white-space: pre-wrap; }
mark, ins, del { border-radius: .25rem; padding: 0 .2rem; }
mark { background: var(--mask); color: var(--mask-ink); }
mark small { opacity: .8; font-size: .7rem; padding-left: .15rem; }
ins { background: var(--new); color: var(--new-ink); text-decoration: none;
  font-weight: 600; }
del { background: var(--old); color: var(--old-ink); }
del + ins { margin-left: .15rem; }
ul.changes { list-style: none; display: flex; flex-wrap: wrap; gap: .3rem;
  padding: 0; margin: .35rem 0 0; font-size: .85rem; }
ul.changes li { border: 1px solid var(--line); border-radius: 1rem;
  padding: .05rem .6rem; }
.failed { border-left: .25rem solid var(--old-ink); padding-left: .7rem;
  margin-top: .9rem; }
.failed > h4 { margin-top: 0; }
.reason { color: var(--old-ink); font-weight: 600; }
@media (max-width: 40rem) {
  .item { grid-template-columns: minmax(0, 1fr); }
  .item > figure { max-width: 11rem; }
  .wide tr { display: block; padding: .4rem 0;
    border-bottom: 1px solid var(--line); }
  .wide td { display: inline; border: 0; padding: 0 .5rem 0 0; }
  dl { grid-template-columns: 1fr; }
  dd { margin-bottom: .3rem; }
}
"""


def write(content: Page, target: Path) -> None:
    """Writes the page.

    Raises:
      OSError: if it cannot be written.
    """
    target.write_text(render(content), "utf-8")


def render(content: Page) -> str:
    """The page as HTML."""
    title = _text(content.title)
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" '
            'content="width=device-width, initial-scale=1">',
            f"<title>Counterfactuals {title}</title>",
            f"<style>{_STYLE}</style>",
            "</head>",
            "<body>",
            f"<h1>Counterfactuals {title}</h1>",
            *(f'<p class="note">{_text(note)}</p>' for note in content.notes),
            _tiles(content),
            _table(content),
            _plots(content),
            _about(content),
            _items(content),
            _failures(content),
            "</body>",
            "</html>",
            "",
        ]
    )


def _text(words: str) -> str:
    """What anybody may have written, as text and nothing else."""
    return html.escape(_UNWANTED.sub("\ufffd", words))


def _tiles(content: Page) -> str:
    found = [
        f'<div class="tile"><b>{_text(figure)}</b><span>{_text(what)}</span>'
        f'<span class="faint">{_text(full)}</span></div>'
        for figure, what, full in page.headlines(content.figures)
    ]
    return f'<div class="tiles">{"".join(found)}</div>'


def _table(content: Page) -> str:
    first, *rest = page.table(content.figures)
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


def _plots(content: Page) -> str:
    drawn = plots_counterfactuals.panels(content.figures)
    found = [
        f'<img alt="{_text(title)}" src="{_png(figure)}">'
        for title, figure in drawn.items()
    ]
    return f'<div class="plots">{"".join(found)}</div>'


def _png(figure: Figure) -> str:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=_DPI)
    return page.data_url(stream.getvalue(), "png")


def _about(content: Page) -> str:
    found = [
        f"<dt>{_text(label)}</dt><dd>{_text(value)}</dd>"
        for label, value in content.about
    ]
    if not found:
        return ""
    return (
        "<details><summary>How the set was made</summary>"
        f"<dl>{''.join(found)}</dl></details>"
    )


def _items(content: Page) -> str:
    if not content.items:
        return ""
    pictures = any(shown.picture_file for shown in content.items)
    return "\n".join(
        [
            f"<h2>{_text(page.drawn(content))}</h2>",
            '<p class="faint">In descriptions, <mark>what is masked</mark>; '
            "in counterfactuals, <del>what was</del> <ins>what is put "
            "instead</ins>.</p>",
            *(_item(shown, pictures) for shown in content.items),
        ]
    )


def _item(shown: Shown, pictures: bool) -> str:
    title = _text(shown.title) or '<span class="faint">without a title</span>'
    if shown.picture:
        # The title stands beside it: nothing is told twice.
        url = page.data_url(shown.picture, "jpeg")
        picture = f'<img alt="" src="{url}" loading="lazy">'
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
            parts.append(f'<p class="faint">{_requests(record)}</p>')
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


def _requests(record: Record) -> str:
    times = "request" if record.attempts == 1 else "requests"
    return f"{record.attempts} {times}"


def _failures(content: Page) -> str:
    if not content.failures:
        return ""
    few = len(content.failures) <= _FEW
    return "\n".join(
        [
            f"<h2>{_text(page.listed(content))}</h2>",
            *(
                _reason(kind, count, some, few)
                for kind, count, some in page.by_reason(content)
            ),
        ]
    )


def _reason(kind: str, count: int, some: list[Record], shown: bool) -> str:
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
