"""The bazaar: a synthetic catalogue whose causes are known.

Ships with the code, needs no download and comes in any size from a demo to
millions of items. Each item is drawn from nine attributes. Some show only in
its picture, some only in its text, some in both. Each user chooses by one to
three *causal* attributes, under popularity bias; the *irrelevant* ones go
with popularity and move nobody. So a method that learns causes can be told
from one that learns correlations: `Truth` knows.

`make` gives a `Catalog` to `data/prepare.py`. With `features="render"` it has
real texts and pictures (`data/bazaar/render.py`), from which features are
extracted as from any other source; with `features="direct"` the attributes
are turned into vectors right away, for tests of scale. `Truth` is stored
beside the data, where nothing that trains will look.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from neggen_jax.catalog import (
    SPLITS,
    Catalog,
    Features,
    Interactions,
    ItemRecords,
)
from neggen_jax.data.bazaar import choices
from neggen_jax.data.bazaar.truth import Truth
from neggen_jax.errors import InputError, nearest

MODALITIES = ("text", "image")
PER_DIRECTORY = 1_000  # pictures
FIRST_DAY = 1_704_067_200  # 2024-01-01 in Unix seconds
YEAR = 366 * 86_400


class Attribute(NamedTuple):
    """One thing there is to know of an item.

    Attributes:
      name: what it is called.
      values: what it can be.
      seen_in: the modalities that show it.
      causal: whether it moves anybody. If not, it goes with popularity: the
        further down the list of values, the more popular the item.
    """

    name: str
    values: tuple[str, ...]
    seen_in: tuple[str, ...]
    causal: bool

    @property
    def visibility(self) -> str:
        """ "text", "image" or "both"."""
        return "both" if len(self.seen_in) > 1 else self.seen_in[0]


def _attribute(
    name: str, values: str, *seen_in: str, causal: bool = True
) -> Attribute:
    return Attribute(name, tuple(values.split()), seen_in, causal)


ATTRIBUTES = (
    _attribute(
        "category",
        "t-shirt jumper dress skirt hat bag scarf umbrella",
        *MODALITIES,
    ),
    _attribute(
        "colour",
        "red orange yellow green teal blue purple pink",
        *MODALITIES,
    ),
    _attribute(
        "pattern", "plain striped hooped checked dotted zigzag", "image"
    ),
    _attribute("cut", "regular slim flared cropped", "image"),
    _attribute("backdrop", "slate sand sky studio", "image", causal=False),
    _attribute("material", "cotton linen wool silk denim velvet", "text"),
    _attribute(
        "style", "casual sporty classic romantic punk minimalist", "text"
    ),
    _attribute(
        "brand",
        "Amberlo Brunvik Corvane Dunmere Elsvale Fernhart Glenrowe Hollisk",
        "text",
        causal=False,
    ),
    _attribute("season", "winter autumn spring summer", "text", causal=False),
)
SIZES = tuple(len(a.values) for a in ATTRIBUTES)
OFFSETS = np.cumsum([0, *SIZES])


@dataclasses.dataclass(frozen=True)
class Bazaar:
    """What the bazaar is to be like.

    With the strengths as they stand, test Recall@20 is about .01 at random,
    .06 by popularity, .17 for a linear model of the interactions, .25 for a
    profile of all attributes (.15 of those in texts, .14 of those in
    pictures), and .45 for who knows `Truth`.

    Attributes:
      num_users: number of users.
      num_items: number of items.
      interactions_per_user: mean over users; a few have many more, nobody
        has fewer than five.
      num_interactions: exact total; None: `num_users` times the mean.
      num_train: exact number of train interactions; None: about 80 %.
      seed: the same seed and sizes give the same bazaar.
      features: "render" for texts and pictures, "direct" for vectors.
      text_width: of direct vectors of texts.
      image_width: of direct vectors of pictures.
      image_size: side of a picture in pixels.
      popularity_bias: exponent of Zipf's law over the items' popularity; 0
        makes all items equally popular.
      cause_strength: mean gain in log-odds of an item with a liked value.
      confounding: how strongly the irrelevant attributes go with popularity.
      noise: how much of the content says nothing: its standard deviation
        relative to the signal's in direct features, grain in pictures.
      missing: share of items without text, and share without a picture.
    """

    num_users: int = 3_000
    num_items: int = 2_000
    interactions_per_user: float = 16.0
    num_interactions: int | None = None
    num_train: int | None = None
    seed: int = 0
    features: str = "render"
    text_width: int = 64
    image_width: int = 64
    image_size: int = 64
    popularity_bias: float = 0.6
    cause_strength: float = 3.5
    confounding: float = 1.5
    noise: float = 0.3
    missing: float = 0.0

    @classmethod
    def baby(cls, **changes: Any) -> Bazaar:
        """As large as Amazon Baby, the usual benchmark; direct features."""
        sizes = dict(num_users=19_445, num_items=7_050)
        sizes |= dict(num_interactions=160_792, num_train=118_551)
        return cls(**{**sizes, "features": "direct", **changes})

    @classmethod
    def sports(cls, **changes: Any) -> Bazaar:
        """As large as Amazon Sports; direct features."""
        sizes = dict(num_users=35_598, num_items=18_357)
        sizes |= dict(num_interactions=296_337)
        return cls(**{**sizes, "features": "direct", **changes})

    @classmethod
    def electronics(cls, **changes: Any) -> Bazaar:
        """As large as Amazon Electronics; direct features."""
        sizes = dict(num_users=192_403, num_items=63_001)
        sizes |= dict(num_interactions=1_689_188)
        return cls(**{**sizes, "features": "direct", **changes})

    @property
    def total(self) -> int:
        """Number of interactions over all splits."""
        if self.num_interactions is not None:
            return self.num_interactions
        return round(self.num_users * self.interactions_per_user)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            whole = str(field.type).startswith("int") and value is not None
            if whole and not isinstance(value, numbers.Integral):
                raise InputError(
                    f"A bazaar cannot have {field.name}={value!r}.",
                    expected="a whole number",
                )
        users = self.num_users
        most = users * self.num_items // 4
        self._within("num_users", 1)
        self._within("num_items", 4 * choices.MIN_HISTORY)
        mean = "num_interactions"
        if self.num_interactions is None:
            mean = "interactions_per_user"
            self._within(mean, choices.MIN_HISTORY, self.num_items / 4)
        else:
            self._within(mean, users * choices.MIN_HISTORY, most)
        if self.num_train is not None:
            self._within("num_train", users, self.total - 2 * users)
        self._within("seed", 0)
        self._within("text_width", 1, 2**16)
        self._within("image_width", 1, 2**16)
        self._within("image_size", 16, 1024)
        self._within("popularity_bias", 0, 3)
        self._within("cause_strength", 0, 20)
        self._within("confounding", 0, 20)
        self._within("noise", 0, 100)
        self._within("missing", 0, 0.9)
        if self.features not in ("render", "direct"):
            raise InputError(
                f"A bazaar cannot have features={self.features!r}.",
                fix=nearest(self.features, ("render", "direct")),
            )

    def _within(self, name: str, low: float, high: float = math.inf) -> None:
        value = getattr(self, name)
        if not low <= value <= high:  # also catches NaN
            raise InputError(
                f"A bazaar cannot have {name}={value}.",
                expected=f"at least {low}"
                + (f" and at most {high}" if high < math.inf else ""),
                fix="mind that the limits of one size depend on the others",
            )


def make(
    config: Bazaar, image_root: str | os.PathLike[str] | None = None
) -> tuple[Catalog, Truth]:
    """Opens a bazaar.

    Args:
      config: what it is to be like.
      image_root: existing or new directory that the pictures are written
        to; needed for `features="render"` and unused otherwise.

    Returns:
      The validated catalogue, with records and no features (render) or with
      features "text" and "image" and no records (direct); and its truth.

    Raises:
      InputError: no `image_root` was given where pictures are to be drawn.
    """
    if config.features == "direct":
        image_root = None
    elif image_root is None:
        raise InputError(
            "A bazaar with pictures needs a directory to put them in.",
            expected="image_root",
            fix="give one, or ask for features='direct'",
        )
    truth = _draw_truth(config)
    present = {m: _draw_present(config, m) for m in MODALITIES}
    features, records = {}, None
    if image_root is None:
        for modality in MODALITIES:
            features[modality] = _vectors(
                config, modality, truth.item_values, present[modality]
            )
    else:
        records = _records(config, truth.item_values, present, image_root)
    catalog = Catalog(
        name="bazaar",
        num_users=config.num_users,
        num_items=config.num_items,
        splits=_trade(config, truth),
        features=features,
        records=records,
    )
    return catalog.validate(), truth


def _rng(config: Bazaar, purpose: str) -> np.random.Generator:
    """Each purpose has its own stream: more users leave the items alone."""
    return np.random.default_rng([config.seed, zlib.crc32(purpose.encode())])


def _draw_truth(config: Bazaar) -> Truth:
    item_values, appeal = _draw_items(config)
    causes, preferences = choices.draw_tastes(
        _rng(config, "tastes"),
        config.num_users,
        SIZES,
        [i for i, a in enumerate(ATTRIBUTES) if a.causal],
        config.cause_strength,
    )
    return Truth(
        attributes=tuple(a.name for a in ATTRIBUTES),
        values=tuple(a.values for a in ATTRIBUTES),
        visibility=tuple(a.visibility for a in ATTRIBUTES),
        causal=np.array([a.causal for a in ATTRIBUTES]),
        item_values=item_values,
        appeal=appeal,
        causes=causes,
        preferences=preferences,
    )


def _draw_items(config: Bazaar) -> tuple[np.ndarray, np.ndarray]:
    """Values, int8 `[I, A]`, and log-popularity, float32 `[I]`."""
    rng = _rng(config, "items")
    rank = rng.permutation(config.num_items)
    # The offset keeps the first few from taking everything (Mandelbrot).
    appeal = -np.log1p(rank + config.num_items / 500) * config.popularity_bias
    height = 1 - 2 * (rank + 0.5) / config.num_items  # 1 most, -1 least popular
    values = np.empty((config.num_items, len(ATTRIBUTES)), np.int8)
    for column, attribute in enumerate(ATTRIBUTES):
        odds = rng.gumbel(size=(config.num_items, len(attribute.values)))
        if not attribute.causal:
            tilt = np.linspace(-1, 1, len(attribute.values))
            odds += config.confounding * height[:, None] * tilt
        values[:, column] = odds.argmax(1)
    return values, appeal.astype(np.float32)


def _draw_present(config: Bazaar, modality: str) -> np.ndarray:
    """Which items have the modality, bool `[I]`."""
    order = _rng(config, f"missing {modality}").permutation(config.num_items)
    return order >= round(config.missing * config.num_items)


def _vectors(
    config: Bazaar, modality: str, item_values: np.ndarray, present: np.ndarray
) -> Features:
    """Sum of one random direction per visible value, and noise."""
    rng = _rng(config, f"vectors {modality}")
    seen = [i for i, a in enumerate(ATTRIBUTES) if modality in a.seen_in]
    width = getattr(config, f"{modality}_width")
    values = rng.standard_normal((len(present), width), np.float32)
    values *= config.noise
    for column in seen:
        directions = rng.standard_normal((SIZES[column], width))
        directions /= len(seen) ** 0.5  # unit variance of the whole signal
        values += directions.astype(np.float32)[item_values[:, column]]
    values[~present] = 0
    parameters = {"dim": width, "noise": config.noise, "seed": config.seed}
    manifest = {
        "encoder": "bazaar-direct",
        "version": "1",
        "parameters": parameters,
    }
    return Features(values, present, manifest)


def _records(
    config: Bazaar,
    item_values: np.ndarray,
    present: Mapping[str, np.ndarray],
    image_root: str | os.PathLike[str],
) -> ItemRecords:
    """Titles, texts, pictures, and the attributes that these show."""
    # Imported here: those who want vectors need no Pillow.
    from neggen_jax.data.bazaar import render

    text_rng, image_rng = _rng(config, "texts"), _rng(config, "pictures")
    titles, texts, images, attributes = [], [], [], []
    for item, row in enumerate(item_values.tolist()):
        known = {
            attribute.name: attribute.values[value]
            for attribute, value in zip(ATTRIBUTES, row, strict=True)
        }
        shown = [m for m in MODALITIES if present[m][item]]
        title = text = file = ""
        if "text" in shown:
            title, text = render.label(known, text_rng)
        if "image" in shown:
            file = f"{item // PER_DIRECTORY:03d}/{item:06d}.png"
            picture = render.paint(
                known, config.image_size, config.noise, image_rng
            )
            _write(picture, Path(image_root, file))
        titles.append(title)
        texts.append(text)
        images.append(file)
        attributes.append(
            {
                a.name: known[a.name]
                for a in ATTRIBUTES
                if {*a.seen_in} & {*shown}
            }
        )
    ids = [f"item{item}" for item in range(config.num_items)]
    return ItemRecords(
        ids, titles, texts, attributes, images, os.fspath(image_root)
    )


def _write(picture: np.ndarray, path: Path) -> None:
    from PIL import Image

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    except OSError as error:
        raise InputError(
            "A picture cannot be written.",
            where=path,
            found=error.strerror or error,
            fix="check the directory's permissions and free space",
        ) from error


def _trade(config: Bazaar, truth: Truth) -> dict[str, Interactions]:
    """Everybody's interactions, in order of time, by split."""
    rng = _rng(config, "trade")
    users, total = config.num_users, config.total
    lengths = choices.draw_histories(rng, users, total, config.num_items // 2)
    causal = np.flatnonzero(truth.causal)
    items = choices.choose(
        rng,
        truth.appeal,
        OFFSETS[causal] + truth.item_values[:, causal],
        truth.preferences,
        lengths,
    )
    part = choices.split(rng, lengths, config.num_train)
    # The people of the bazaar come and go all year.
    arrival = rng.permutation(total)
    part, items = part[arrival], items[arrival]
    buyers = np.repeat(np.arange(users, dtype=np.int32), lengths)[arrival]
    times = FIRST_DAY + np.arange(total) * YEAR // total
    rows = (part == number for number in range(len(SPLITS)))
    return {
        split: Interactions(buyers[row], items[row], times[row])
        for split, row in zip(SPLITS, rows, strict=True)
    }
