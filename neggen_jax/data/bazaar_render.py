"""What the bazaar's items look like, and what is written on their labels.

Pictures are painted in batches with NumPy: a silhouette, cut to shape, dyed,
printed with a pattern and photographed before a backdrop, each a little
different in pose, light and dye. Texts are put together from sentences. A
picture depends only on the attributes that are seen in pictures, a text only
on those told in texts.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Values = Mapping[str, np.ndarray]  # attribute name -> value of each item
Points = list[tuple[float, float]]

PER_DIRECTORY = 1_000
BATCH = 64
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
def _templates() -> dict[str, np.ndarray]:
    """Category -> cloth, seams and soft cloth, `[TEMPLATE, TEMPLATE, 3]`."""
    return {name: _template(name) for name in OUTLINES}


def _template(category: str) -> np.ndarray:
    def scaled(points: Points) -> Points:
        half = TEMPLATE / 2
        return [(half + half * x, half + half * y) for x, y in points]

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
    return np.stack(
        [np.asarray(layer, np.float32) / 255 for layer in layers], -1
    )


def paint(
    values: Values, size: int, noise: float, rng: np.random.Generator
) -> np.ndarray:
    """Photographs of n items.

    Args:
      values: the attributes seen in pictures; others are ignored.
      size: side of a picture in pixels.
      noise: grain.
      rng: pose, light, dye and grain differ from picture to picture.

    Returns:
      uint8 `[n, size, size, 3]`, RGB.
    """
    count = len(values["category"])
    # One column for each of the things that differ, in [-1, 1].
    luck = rng.uniform(-1, 1, (count, 9)).astype(np.float32)
    place = (np.arange(size * FINER, dtype=np.float32) + 0.5) / size / FINER
    grid_y, grid_x = np.meshgrid(2 * place - 1, 2 * place - 1, indexing="ij")
    x, y = _pose(grid_x, grid_y, luck[:, :4])
    layers = _cut_out(values, x, y)
    shadow = _cut_out(values, x - 0.07, y - 0.09)[..., 2:]
    cloth = _cloth(values, x, y, luck[:, 4:])
    cloth *= 1 - 0.45 * layers[..., 1:2]  # seams
    cloth *= 0.74 + 0.26 * layers[..., 2:]  # edges turn away from the light
    ground = np.array([BACKDROPS[v] for v in values["backdrop"]], np.float32)
    light = 1.03 - 0.10 * grid_y - 0.08 * (grid_x**2 + grid_y**2)
    picture = ground[:, None, None] * light[..., None]
    picture = picture * (1 - 0.38 * shadow)
    picture += layers[..., :1] * (cloth - picture)
    picture = picture.reshape(count, size, FINER, size, FINER, 3).mean((2, 4))
    grain = rng.standard_normal(picture.shape, np.float32)
    picture += 0.05 * noise * grain
    return (255 * picture.clip(0, 1) + 0.5).astype(np.uint8)


def _pose(
    grid_x: np.ndarray, grid_y: np.ndarray, luck: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Each item's own coordinates of all points, two of `[n, p, p]`."""
    turn, zoom, right, down = luck.T[:, :, None, None]
    x, y = grid_x - 0.05 * right, grid_y - 0.05 * down
    scale = 0.88 + 0.06 * zoom
    cos, sin = np.cos(0.14 * turn) / scale, np.sin(0.14 * turn) / scale
    return cos * x + sin * y, cos * y - sin * x


def _cut_out(values: Values, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Template layers at the given points, `[n, p, p, 3]`."""
    cut = values["cut"][:, None, None]
    # How wide and how high the item is there, relative to the template.
    flare = 0.62 + 0.46 * (y + 1) / 2
    wide = np.select([cut == "slim", cut == "flared"], [0.66, flare], 1.0)
    high = np.where(cut == "cropped", 0.66, 1.0)
    place = np.stack([y / high, x / wide])
    pixel = ((place + 1) * (TEMPLATE / 2)).clip(0, TEMPLATE - 1).astype(int)
    kinds = list(_templates())
    kind = np.array([kinds.index(v) for v in values["category"]])
    atlas = np.stack(list(_templates().values()))
    return atlas[kind[:, None, None], pixel[0], pixel[1]]


def _cloth(
    values: Values, x: np.ndarray, y: np.ndarray, luck: np.ndarray
) -> np.ndarray:
    """Dyed and printed cloth at the given points, `[n, p, p, 3]`."""
    dye = np.array([DYES[v] for v in values["colour"]], np.float32)
    dye = (dye * (1 + 0.12 * luck[:, :1])).clip(0, 1)
    other = np.where(luck[:, 1:2] > -0.2, CREAM, INK).astype(np.float32)
    other = dye + (0.78 + 0.1 * luck[:, 2:3]) * (other - dye)
    motif = np.zeros(x.shape, np.float32)
    for pattern in np.unique(values["pattern"]):
        rows = values["pattern"] == pattern
        shift = 0.1 * luck[rows, 3:, None, None]
        motif[rows] = _motif(
            pattern, x[rows] + shift[:, 0], y[rows] + shift[:, 1]
        )
    dye, other = dye[:, None, None], other[:, None, None]
    return dye + motif[..., None] * (other - dye)


def _motif(pattern: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How much of the second colour a pattern has at the given points."""

    def wave(z: np.ndarray, period: float = 0.36) -> np.ndarray:
        return np.abs(z / period % 1 - 0.5) < 0.25

    match pattern:
        case "plain":
            return np.zeros_like(x)
        case "striped":
            return wave(x)
        case "hooped":
            return wave(y)
        case "checked":
            return (wave(x, 0.5) + wave(y, 0.5).astype(np.float32)) / 2
        case "dotted":
            row = np.floor(y / 0.30)
            across = (x / 0.34 + row / 2) % 1 - 0.5
            return (across * 0.34) ** 2 + (y - 0.30 * (row + 0.5)) ** 2 < 0.01
        case "zigzag":
            return wave(y + 0.5 * np.abs(x / 0.4 % 1 - 0.5), 0.32)
    raise ValueError(f"no such pattern: {pattern}")


def pictures(
    values: Values,
    present: np.ndarray,
    image_root: str,
    size: int,
    noise: float,
    rng: np.random.Generator,
) -> list[str]:
    """Paints and writes the items' pictures.

    Returns:
      Their files relative to `image_root`; "" where not `present` (`[n]`).
    """
    files = []
    for begin in range(0, len(present), BATCH):
        part = slice(begin, begin + BATCH)
        batch = {name: column[part] for name, column in values.items()}
        for offset, picture in enumerate(paint(batch, size, noise, rng)):
            item = begin + offset
            file = f"{item // PER_DIRECTORY:03d}/{item:06d}.png"
            files.append(file if present[item] else "")
            if present[item]:
                path = Path(image_root) / file
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(path)
    return files


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
)


def labels(
    values: Values, rng: np.random.Generator
) -> tuple[list[str], list[str]]:
    """Titles and descriptions of n items.

    A description tells all the attributes that texts tell; a title some.
    """
    titles, texts = [], []
    count = len(values["category"])
    luck = rng.integers(0, 1 << 30, (count, 8))
    order = rng.permuted(np.tile(np.arange(len(SENTENCES)), (count, 1)), axis=1)
    names = ("category", "colour", *SENTENCES)
    rows = zip(*(values[name] for name in names), strict=True)
    pools = list(SENTENCES.values())
    for words, picks, turns in zip(rows, luck, order, strict=True):
        known = dict(zip(names, words, strict=True))
        known |= {n.capitalize(): w.capitalize() for n, w in known.items()}
        pick = iter(picks)
        chosen = [TITLES, OPENINGS, *(pools[turn] for turn in turns)]
        if next(pick) % 3:
            chosen.insert(-(next(pick) % 4), FILLERS)
        lines = [pool[next(pick) % len(pool)] for pool in chosen]
        title, *text = (line.format(**known) for line in lines)
        titles.append(title)
        texts.append(" ".join(text))
    return titles, texts
