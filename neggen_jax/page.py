"""Pages as one HTML file: the frame, and what all of them are made of.

Reports of runs (`reporting/`) and of counterfactual sets
(`generation/inspection/`) are such pages. Nothing is loaded from anywhere:
style and pictures are in the file, there are no scripts, and a policy in the
file forbids both. Whatever a catalogue, a model or a person wrote goes
through `text`.
"""

from __future__ import annotations

import base64
import html
import importlib.resources
import io
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 144
# Signs that are not text: HTML forbids them, or they turn what follows
# around.
_UNWANTED = re.compile(
    "[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069"
    "\ufdd0-\ufdef\ufffe\uffff\ud800-\udfff]"
)
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_FRAME = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
# Of a drawing, what the page has colours of its own for, light and dark.
_COLOURS = {
    "#000000": "currentColor",
    "black": "currentColor",
    "#0072b2": "var(--blue)",
    "#666666": "var(--faint)",
    "#bbbbbb": "var(--line)",
    "#dddddd": "var(--line)",
    "#ffffff": "var(--card)",
    "white": "var(--card)",
}


def frame(title: str, body: str, style: str) -> str:
    """A page.

    Args:
      title: plain words, for the browser's tab.
      body: HTML.
      style: CSS that goes behind that of all pages.
    """
    own = importlib.resources.files("neggen_jax").joinpath("page.css")
    return _FRAME.format(
        policy=_POLICY,
        title=text(title),
        style=own.read_text("utf-8") + style,
        body=body,
    )


def plain(words: str) -> str:
    """What anybody may have written, without signs that are not text."""
    return _UNWANTED.sub("\ufffd", words)


def text(words: str) -> str:
    """What anybody may have written, as text and nothing else."""
    return html.escape(plain(words))


def png(figure: Figure, alt: str) -> str:
    """A figure as a picture.

    Args:
      figure: of matplotlib.
      alt: what it shows, for who cannot see it.
    """
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=_DPI)
    data = base64.b64encode(stream.getvalue()).decode()
    return f'<img alt="{text(alt)}" src="data:image/png;base64,{data}">'


def svg(figure: Figure, alt: str) -> str:
    """A figure as a drawing in the page's own colours and letters.

    Args:
      figure: of matplotlib.
      alt: what it shows, for who cannot see it; unlike that of any other
        drawing of the page.
    """
    import matplotlib

    stream = io.StringIO()
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": alt, "savefig.dpi": 72}
    ):
        figure.savefig(stream, format="svg", transparent=True)
    drawing = stream.getvalue()
    # From the first mark on; no namespaces, which name hosts.
    drawing = drawing[drawing.index("<svg") :]
    box = re.search(r'viewBox="[^"]*"', drawing)
    assert box is not None
    drawing = drawing[drawing.index(">") + 1 :]
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r"<!--.*?-->", "", drawing, flags=re.DOTALL)
    used = set(re.findall(r"#(\w+)", drawing))
    drawing = re.sub(
        r' id="([^"]*)"',
        lambda found: found[0] if found[1] in used else "",
        drawing,
    )
    for colour, own in _COLOURS.items():
        drawing = re.sub(rf"(?<=: ){colour}\b", own, drawing)
    label = f'role="img" aria-label="{text(alt)}"'
    return f'<svg class="plot" {label} {box[0]}>{drawing.strip()}'
