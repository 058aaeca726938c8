"""What the bazaar's items look like, and what is written on their labels.

Pictures are painted with NumPy: a silhouette, cut to shape, dyed, printed
with a pattern and photographed before a backdrop, each a little different in
pose, light and dye. Texts are put together from sentences. A
picture depends only on the attributes that are seen in pictures, a text only
on those told in texts.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Points = list[tuple[float, float]]

TEMPLATE = 256  # side of a silhouette in pixels
FINER = 2  # pixels painted for one of the picture, along each side

DYES = {
    "red": (0.80, 0.14, 0.16),
    "orange": (0.93, 0.48, 0.10),
    "yellow": (0.94, 0.78, 0.18),
    "green": (0.24, 0.56, 0.24),
    "teal": (0.05, 0.53, 0.55),
    "blue": (0.16, 0.34, 0.76),
    "purple": (0.46, 0.22, 0.60),
    "pink": (0.93, 0.50, 0.66),
}
BACKDROPS = {
    "slate": (0.36, 0.39, 0.44),
    "sand": (0.83, 0.73, 0.57),
    "sky": (0.66, 0.80, 0.93),
    "studio": (0.95, 0.94, 0.92),
}
CREAM, INK = (0.98, 0.95, 0.88), (0.10, 0.09, 0.14)


def _arc(
    x: float, y: float, rx: float, ry: float, turn: tuple[float, float]
) -> Points:
    """Points on an ellipse around (x, y), between two angles in degrees."""
    angles = np.deg2rad(np.linspace(turn[0], turn[1], 24))
    return [(x + rx * np.cos(a), y + ry * np.sin(a)) for a in angles]


# Silhouettes on the square [-1, 1] x [-1, 1], y downwards: half outlines, to
# be mirrored; strokes of cloth; seams, which are only a little darker.
OUTLINES: dict[str, Points] = {
    "t-shirt": [
        (0, -0.56), (0.13, -0.58), (0.24, -0.70), (0.46, -0.62), (0.90, -0.22),
        (0.66, 0.04), (0.47, -0.14), (0.49, 0.76), (0, 0.78),
    ],
    "jumper": [
        (0, -0.72), (0.22, -0.74), (0.48, -0.62), (0.68, -0.34), (0.90, 0.56),
        (0.68, 0.64), (0.47, -0.06), (0.50, 0.70), (0, 0.72),
    ],
    "dress": [
        (0, -0.50), (0.12, -0.56), (0.19, -0.88), (0.30, -0.88), (0.34, -0.44),
        (0.24, -0.10), (0.66, 0.82), (0.34, 0.90), (0, 0.88),
    ],
    "skirt": [(0, -0.62), (0.36, -0.62), (0.76, 0.60), (0.40, 0.70), (0, 0.68)],
    "hat": [
        (0, -0.52), (0.20, -0.58), (0.42, -0.46), (0.48, 0.20), (0.94, 0.32),
        (0.86, 0.48), (0.44, 0.58), (0, 0.60),
    ],
    "bag": [(0, -0.22), (0.62, -0.22), (0.74, 0.78), (0, 0.80)],
    "scarf": [(0, -0.40), (0.30, -0.44), (0.24, -0.08), (0, -0.04)],
    "umbrella": [
        *_arc(0, 0.10, 0.94, 0.86, (-90, 0)),
        *_arc(0.63, 0.10, 0.31, 0.14, (0, -180)),
        *_arc(0, 0.10, 0.32, 0.14, (0, -90)),
    ],
}  # fmt: skip
STROKES: dict[str, list[tuple[float, Points]]] = {
    "bag": [(0.09, _arc(0, -0.22, 0.34, 0.56, (-180, 0)))],
    "scarf": [
        (0.24, _arc(0, -0.46, 0.46, 0.30, (0, 360))),
        (0.34, [(-0.16, -0.10), (-0.36, 0.80)]),
        (0.34, [(0.14, -0.10), (0.30, 0.52)]),
    ],
    "umbrella": [
        (0.08, [(0, 0), (0, 0.72), *_arc(0.15, 0.72, 0.15, 0.16, (180, 0))]),
        (0.06, [(0, -0.70), (0, -0.90)]),
    ],
}
SEAMS: dict[str, list[Points]] = {
    "t-shirt": [
        _arc(0, -0.64, 0.22, 0.20, (0, 180)),
        [(0.47, -0.14), (0.46, -0.60)],
        [(-0.47, -0.14), (-0.46, -0.60)],
    ],
    "jumper": [
        _arc(0, -0.74, 0.22, 0.16, (0, 180)),
        [(0.47, -0.06), (0.48, -0.60)],
        [(-0.47, -0.06), (-0.48, -0.60)],
        [(-0.50, 0.58), (0.50, 0.58)],
    ],
    "dress": [
        [(-0.25, -0.10), (0.25, -0.10)],
        [(-0.10, 0.10), (-0.24, 0.84)],
        [(0.10, 0.10), (0.24, 0.84)],
    ],
    "skirt": [
        [(-0.40, -0.48), (0.40, -0.48)],
        [(-0.12, -0.40), (-0.26, 0.66)],
        [(0.12, -0.40), (0.26, 0.66)],
    ],
    "hat": [
        _arc(0, 0.12, 0.50, 0.22, (0, 180)),
        _arc(0, -0.02, 0.48, 0.2, (0, 180)),
    ],
    "bag": [[(-0.64, -0.08), (0.64, -0.08)]],
    "scarf": [
        _arc(0, -0.46, 0.34, 0.18, (0, 360)),
        [(-0.52, 0.68), (-0.14, 0.76)],
        [(0.10, 0.46), (0.46, 0.36)],
    ],
    "umbrella": [
        [(0, -0.74), (-0.32, 0.08)],
        [(0, -0.74), (0.32, 0.08)],
    ],
}


@functools.cache
def _template(category: str) -> np.ndarray:
    """Cloth, seams and softened cloth, float32 `[3, TEMPLATE * TEMPLATE]`."""
    centre = TEMPLATE / 2

    def scaled(points: Points) -> Points:
        return [(centre + centre * x, centre + centre * y) for x, y in points]

    cloth, seams = (Image.new("L", (TEMPLATE, TEMPLATE)) for _ in range(2))
    half = OUTLINES[category]
    outline = half + [(-x, y) for x, y in reversed(half)]
    draw = ImageDraw.Draw(cloth)
    draw.polygon(scaled(outline), fill=255)
    for width, line in STROKES.get(category, []):
        pixels = round(width * TEMPLATE / 2)
        draw.line(scaled(line), fill=255, width=pixels, joint="curve")
    for line in SEAMS[category]:
        ImageDraw.Draw(seams).line(scaled(line), fill=255, width=4)
    layers = (
        cloth.filter(ImageFilter.GaussianBlur(2)),
        seams.filter(ImageFilter.GaussianBlur(1)),
        cloth.filter(ImageFilter.GaussianBlur(12)),
    )
    flat = [np.asarray(layer, np.float32).ravel() / 255 for layer in layers]
    return np.stack(flat)


def paint(
    known: Mapping[str, str], size: int, noise: float, rng: np.random.Generator
) -> np.ndarray:
    """A photograph of one item.

    Args:
      known: attribute name -> value; those not seen in pictures are ignored.
      size: side of the picture in pixels.
      noise: grain.
      rng: pose, light, dye and grain differ from picture to picture.

    Returns:
      uint8 `[size, size, 3]`, RGB.
    """
    turn, zoom, right, down, *luck = rng.uniform(-1, 1, 9).tolist()
    place = np.linspace(-1, 1, 2 * size * FINER + 1, dtype=np.float32)[1::2]
    across, along = place, place[:, None]
    # The item's own coordinates of each point, two of [p, p].
    scale = 0.88 + 0.06 * zoom
    cos, sin = math.cos(0.14 * turn) / scale, math.sin(0.14 * turn) / scale
    x = cos * (across - 0.05 * right) + sin * (along - 0.05 * down)
    y = cos * (along - 0.05 * down) - sin * (across - 0.05 * right)

    cloth, seams, soft = _cut_out(known, x, y)
    shadow = _cut_out(known, x - 0.07, y - 0.09, slice(2, 3))[0]
    light = 1.03 - 0.10 * along - 0.08 * (across**2 + along**2)
    ground = light * (1 - 0.38 * shadow) * (1 - cloth)
    # Seams are dark, and edges turn away from the light.
    cloth *= (1 - 0.45 * seams) * (0.74 + 0.26 * soft)
    motif = _motif(known["pattern"], x + 0.1 * luck[0], y + 0.1 * luck[1])
    # Each pixel is a mixture of three colours: backdrop, dye and print.
    mixture = np.stack([ground, cloth * (1 - motif), cloth * motif])
    mixture = mixture.reshape(3, size, FINER, size, FINER).mean((2, 4))
    picture = np.tensordot(mixture, _colours(known, *luck[2:]), (0, 0))
    picture += 0.05 * noise * rng.standard_normal(picture.shape, np.float32)
    return (255 * picture.clip(0, 1) + 0.5).astype(np.uint8)


def _cut_out(
    known: Mapping[str, str],
    x: np.ndarray,
    y: np.ndarray,
    layers: slice = slice(None),
) -> np.ndarray:
    """Layers of the item's template at the given points, `[layers, p, p]`."""
    # How wide and how high the item is there, relative to the template.
    match known["cut"]:
        case "slim":
            x = x / 0.66
        case "flared":
            x = x / (0.85 + 0.23 * y)
        case "cropped":
            y = y / 0.66
    centre, last = TEMPLATE / 2, TEMPLATE - 1
    column = (centre + centre * x).clip(0, last).astype(np.int32)
    row = (centre + centre * y).clip(0, last).astype(np.int32)
    template = _template(known["category"])[layers]
    return template.take(row * TEMPLATE + column, axis=1)


def _colours(
    known: Mapping[str, str], fade: float, kind: float, contrast: float
) -> np.ndarray:
    """Backdrop, dye and print, RGB, float32 `[3, 3]`."""
    dye = (np.array(DYES[known["colour"]]) * (1 + 0.12 * fade)).clip(0, 1)
    ink = np.array(CREAM if kind > -0.2 else INK)
    ink = dye + (0.78 + 0.1 * contrast) * (ink - dye)
    ground = np.array(BACKDROPS[known["backdrop"]])
    return np.stack([ground, dye, ink]).astype(np.float32)


def _motif(pattern: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How much of the print a pattern has at the given points, `[p, p]`."""

    def wave(z: np.ndarray, period: float) -> np.ndarray:
        return (np.abs(z / period % 1 - 0.5) < 0.25).astype(np.float32)

    match pattern:
        case "plain":
            return np.zeros_like(x)
        case "striped":
            return wave(x, 0.36)
        case "hooped":
            return wave(y, 0.36)
        case "checked":
            return (wave(x, 0.5) + wave(y, 0.5)) / 2
        case "dotted":
            row = np.floor(y / 0.3)
            side = 0.34 * ((x / 0.34 + row / 2) % 1 - 0.5)
            up = y - 0.3 * (row + 0.5)
            return (side**2 + up**2 < 0.01).astype(np.float32)
        case "zigzag":
            return wave(y + 0.5 * np.abs(x / 0.4 % 1 - 0.5), 0.32)
    raise ValueError(f"no such pattern: {pattern}")


TITLES = (
    "{Colour} {material} {category} by {brand}",
    "{brand} {style} {category} in {colour}",
    "{Style} {category}, {colour} {material}",
    "{brand} {material} {category}",
    "The {style} {category} in {colour} {material}",
)
OPENINGS = (
    "Meet your new {colour} {category}.",
    "This {category} comes in {colour}.",
    "The {category} that goes with everything, here in {colour}.",
    "If you own only one {category}, let it be {colour}.",
    "In {colour}: the {category} that friends will ask about.",
)
SENTENCES = {
    "material": (
        "Made of fine {material}.",
        "The {material} feels good from the first day.",
        "Cut from {material} that keeps its form.",
        "It is {material} through and through.",
        "The {material} was woven in a small mill.",
    ),
    "style": (
        "The look is {style}.",
        "For those who like it {style}.",
        "{Style} in spirit and easy to live with.",
        "It belongs in every {style} wardrobe.",
        "Somebody {style} will be happy with it.",
    ),
    "brand": (
        "From the workshop of {brand}.",
        "Designed and sewn by {brand}.",
        "{brand} has made these for years.",
        "Another good idea of {brand}.",
        "The label says {brand}.",
    ),
    "season": (
        "Part of the {season} collection.",
        "New for {season}.",
        "It was photographed for the {season} catalogue.",
        "You will want it in {season}.",
        "Made with {season} in mind.",
    ),
}
FILLERS = (
    "Free returns within thirty days.",
    "Hand wash and dry in the shade.",
    "See the table of sizes before you order.",
    "Packed by hand in a paper box.",
    "Our customers give it five stars.",
    "Photos may differ a little from the product.",
    "Ships within two working days.",
    "A present that nobody will return.",
    *("",) * 4,
)


def label(
    known: Mapping[str, str], rng: np.random.Generator
) -> tuple[str, str]:
    """Title and description of one item.

    The description tells all the attributes that texts tell; the title some.

    Args:
      known: attribute name -> value; those not told in texts are ignored.
      rng: the choice of words differs from text to text.
    """
    words = {name: known[name] for name in ("category", "colour", *SENTENCES)}
    words |= {n.capitalize(): w.capitalize() for n, w in words.items()}
    body = [*SENTENCES.values(), FILLERS]
    order = rng.permutation(len(body))
    pools = [TITLES, OPENINGS, *(body[place] for place in order)]
    picks = rng.integers(0, [len(pool) for pool in pools])
    title, *text = (
        pool[pick].format_map(words)
        for pool, pick in zip(pools, picks, strict=True)
    )
    return title, " ".join(filter(None, text))
