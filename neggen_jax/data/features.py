"""Texts and images of a catalogue's items -> one vector per item.

`data/prepare.py` calls `extract` once per modality and stores what comes
back. Which encoders there are is the table `ENCODERS`; how they work,
`data/encoders.py` (no weights) and `data/encoders_neural.py` (with weights).

Every vector has length one. An item without content is absent: its row is
zero and its `present` is False; so is one of which the encoder can say
nothing, such as a text without a word. The manifest of what was made holds
all that shaped it and nothing else - no times, no paths - so that the same
content and settings give the same manifest anywhere.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neggen_jax.catalog import Features, ItemRecords
from neggen_jax.data.encoders import SEEDS, Encoder, Pixels, Tfidf, untracked
from neggen_jax.data.encoders_neural import (
    MINILM,
    ImageTransformer,
    TextTransformer,
)
from neggen_jax.data.images import check_images, unreadable
from neggen_jax.errors import InputError, nearest

ENCODERS: dict[str, dict[str, type[Encoder]]] = {
    "text": {"tfidf": Tfidf, "transformers": TextTransformer},
    "image": {"pixels": Pixels, "transformers": ImageTransformer},
}

# Items whose vectors show whether two encoders are the same.
_CHECKED = 64


def extract(
    records: ItemRecords,
    modality: str,
    encoder: str,
    *,
    model: str | None = None,
    dim: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = True,
    text_attributes: Sequence[str] | None = None,
    bad_images: str = "error",
) -> Features:
    """Encodes one modality of all items.

    Args:
      records: the items' texts, attributes and image files.
      modality: "text" or "image".
      encoder: "tfidf" or "transformers" for texts, "pixels" or
        "transformers" for images.
      model: for "transformers", a directory or a name on the Hugging Face
        hub; for texts by default the MiniLM of requirements-mllm.txt.
      dim: width of the vectors; by default 256, or fewer where the items do
        not fill so many, and what the model has for "transformers".
      batch_size: items a neural network is given at a time.
      seed: of the encoder's random numbers.
      progress: whether to show on stderr how far the work is.
      text_attributes: names of the attributes that enter an item's text
        (see `item_text`); None for all.
      bad_images: "error" to refuse images that cannot be read, "absent" to
        go on as if those items had none.

    Returns:
      `Features` of `len(records)` rows, with their manifest.

    Raises:
      InputError: for unknown words, content that cannot be read or tells
        nothing, or a model that cannot be loaded.
    """
    kind = encoder_of(modality, encoder, dim, batch_size, seed)
    if bad_images not in ("error", "absent"):
        raise InputError(
            f"Features cannot be made with bad_images={bad_images!r}.",
            fix=nearest(bad_images, ("error", "absent")),
        )
    track = tracked if progress else untracked
    # Made first: a missing model is found before all images are read.
    coder = kind(model, dim, batch_size, seed, track)
    contents, source = contents_of(
        records, modality, text_attributes, bad_images, track
    )
    having = np.array([content is not None for content in contents])
    if not having.any():
        raise InputError(
            f"No item has {modality} to make features of.",
            found=f"{len(records)} items without",
            fix=f"leave the modality {modality!r} out",
        )
    some = coder.fit_transform([c for c in contents if c is not None])
    values = np.zeros((len(records), some.shape[1]), np.float32)
    values[having] = unit_rows(some)
    present = np.asarray(values.any(axis=1))
    manifest = {
        "modality": modality,
        "encoder": encoder,
        **coder.about(),
        "source": source,
        "items": len(records),
        "absent": int((~present).sum()),
        "dim": values.shape[1],
        "sha256": hashlib.sha256(values.data).hexdigest(),
    }
    return Features(values, present, manifest)


def contents_of(
    records: ItemRecords,
    modality: str,
    attributes: Sequence[str] | None = None,
    bad_images: str = "error",
    track: Any = untracked,
) -> tuple[list[Any], dict[str, Any]]:
    """What an encoder is given of each item, or None; and where it is from.

    Args:
      records: the items.
      modality: "text" or "image".
      attributes: see `item_text`.
      bad_images: see `extract`.
      track: shows how far the work is.

    Raises:
      InputError: for content that cannot be read.
    """
    if modality == "text":
        return _texts(records, attributes)
    return _images(records, bad_images, track)


def item_text(
    records: ItemRecords, item: int, attributes: Sequence[str] | None = None
) -> str:
    """What a text encoder reads of one item.

    Its title, its description and its attributes as "name: value; ...", with
    full stops between; parts that are empty are left out. Attributes that
    only the image shows must not be among `attributes`: the text would tell
    what it cannot know.

    Args:
      records: the items.
      item: index of the item.
      attributes: names of those to tell; None for all.
    """
    told = [
        f"{name.replace('_', ' ')}: {value.strip()}"
        for name, value in records.attributes[item].items()
        if value.strip() and (attributes is None or name in attributes)
    ]
    parts = [records.titles[item], records.texts[item], "; ".join(told)]
    text = ""
    for part in filter(None, map(str.strip, parts)):
        text += joint(text) + part
    return text


def joint(text: str) -> str:
    """What goes between a text and the sentence that follows it.

    A full stop and a space; no second stop where there is one, and nothing
    behind nothing.
    """
    if not text:
        return ""
    return " " if text[-1] in ".!?:;\N{HORIZONTAL ELLIPSIS}" else ". "


def encoder_of(
    modality: str, encoder: str, dim: int | None, batch_size: int, seed: int
) -> type[Encoder]:
    """The encoder's class, when nothing is wrong with the arguments.

    Raises:
      InputError: if something is; see `extract` for what they mean.
    """
    known: dict[str, tuple[str, Collection[str]]] = {
        "modality": (modality, ENCODERS),
        "encoder": (encoder, ENCODERS.get(modality, {})),
    }
    for name, (word, words) in known.items():
        if word not in words:
            raise InputError(
                f"Features cannot be made with {name}={word!r}.",
                fix=nearest(word, words),
            )
    numbers = {
        "dim": (1 if dim is None else dim, 1, 2**16),
        "batch_size": (batch_size, 1, 2**16),
        "seed": (seed, 0, SEEDS - 1),
    }
    for name, (number, low, high) in numbers.items():
        if not low <= number <= high:
            raise InputError(
                f"Features cannot be made with {name}={number}.",
                expected=f"at least {low} and at most {high}",
            )
    return ENCODERS[modality][encoder]


def _texts(
    records: ItemRecords, attributes: Sequence[str] | None
) -> tuple[list[Any], dict[str, Any]]:
    """Each item's text or None, and where they come from."""
    known = {name for item in records.attributes for name in item}
    for name in attributes or ():
        if name not in known:
            raise InputError(
                f"No item has the attribute {name!r}.",
                where="text_attributes",
                fix=nearest(name, known),
            )
    digest = hashlib.sha256()
    texts: list[str | None] = []
    for item in range(len(records)):
        text = item_text(records, item, attributes)
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                "A text holds half of a character (a lone surrogate).",
                where=f"item {records.ids[item]}",
                found=f"{text[error.start]!a} in {text[:40]!a}",
                fix="read the source as UTF-8, or replace such characters",
            ) from None
        # Lengths keep "ab", "c" apart from "a", "bc".
        digest.update(struct.pack("<q", len(data)) + data)
        texts.append(text or None)
    chosen = None if attributes is None else sorted(attributes)
    return texts, {"attributes": chosen, "sha256": digest.hexdigest()}


def _images(
    records: ItemRecords, bad_images: str, track: Any
) -> tuple[list[Any], dict[str, Any]]:
    """Each item's image file or None, and where they come from."""
    root = Path(records.image_root)
    having = [item for item, file in enumerate(records.images) if file]
    paths = [root / records.images[item] for item in having]
    digests, problems = check_images(track(paths, "checking images"))
    if problems and bad_images == "error":
        names = [records.ids[item] for item in having]
        raise unreadable(problems, paths, names)
    files: list[Path | None] = [None] * len(records)
    digest = hashlib.sha256()
    for position, item in enumerate(having):
        if position not in problems:
            files[item] = paths[position]
            digest.update(struct.pack("<q", item) + digests[position])
    return files, {"unreadable": len(problems), "sha256": digest.hexdigest()}


def unit_rows(values: np.ndarray, longest: float | None = None) -> np.ndarray:
    """Rows of length one; zero where there is nothing but rounding.

    Args:
      values: `[n, f]`.
      longest: length of the longest row of the whole, where `values` are a
        part of it.

    Raises:
      InputError: if a value is not finite.
    """
    if not np.isfinite(values).all():
        raise InputError(
            "The encoder's vectors hold NaN or infinity.",
            found=f"{(~np.isfinite(values).all(axis=1)).sum()} such items",
            fix="choose another model",
        )
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    tell = lengths > 1e-5 * (lengths.max() if longest is None else longest)
    return np.where(tell, values / np.where(tell, lengths, 1), 0)


def encode_new(
    known: Features,
    modality: str,
    records: ItemRecords | None,
    new: ItemRecords,
    model: str | None = None,
    bad_images: str = "error",
) -> np.ndarray:
    """Encodes new items' content as that of a dataset was encoded.

    An encoder without weights learns from the dataset's own items again; that
    it gives their vectors again is seen to.

    Args:
      known: the dataset's features of the modality.
      modality: "text" or "image".
      records: of the dataset.
      new: of the new items.
      model: where the weights of a neural encoder are now.
      bad_images: see `extract`.

    Returns:
      float32 `[n, f]`; unit rows, or zero for items without.

    Raises:
      InputError: if the dataset's vectors came from elsewhere, or the encoder
        is not the one that made them.
    """
    about = known.manifest
    name = about.get("encoder")
    if name not in ENCODERS.get(modality, {}) or records is None:
        raise InputError(
            f"New items' {modality} cannot be encoded like that of the known.",
            where=f"features of the modality {modality!r}",
            expected="vectors that launch/prepare.py has made of content",
            found=f"encoder {name!r}",
            fix=f'give vectors: "vectors": {{"{modality}": [...]}}',
        )
    chosen = about["source"].get("attributes")
    if modality == "text":
        texts = (item_text(new, i, chosen) for i in range(len(new)))
        contents: list[Any] = [text or None for text in texts]
    else:
        contents, _ = contents_of(new, modality, bad_images=bad_images)
    having = np.array([content is not None for content in contents], bool)
    out = np.zeros((len(new), known.dim), np.float32)
    if not having.any():
        return out
    # As it was prepared: images that could not be read are absent.
    first = records.only(range(known.learned_from))
    old, _ = contents_of(first, modality, chosen, "absent")
    coder, longest = _relearned(known, modality, name, old, model)
    rows = coder.transform([c for c in contents if c is not None])
    out[having] = unit_rows(rows, longest)
    return out


def _relearned(
    known: Features,
    modality: str,
    name: str,
    contents: list[Any],
    model: str | None,
) -> tuple[Any, float]:
    """The encoder as it was, and the length of its longest known vector."""
    about = known.manifest
    kind = ENCODERS[modality][name]
    seed = int(about.get("parameters", {}).get("seed", 0))
    neural = name == "transformers"
    # The width may have been asked for, or be what there was.
    for dim in (None,) if neural else (None, known.dim):
        coder = kind(_weights(about, model) if neural else None, dim, seed=seed)
        some = np.flatnonzero([content is not None for content in contents])
        if neural:
            some = some[:_CHECKED]
        rows = coder.fit_transform([contents[i] for i in some])
        longest = float(np.linalg.norm(rows, axis=1).max())
        check = slice(0, _CHECKED)
        made = unit_rows(rows[check], longest)
        want = known.values[some[check]]
        # Machines round otherwise; other encoders differ by far more.
        if made.shape == want.shape and np.allclose(made, want, atol=1e-3):
            return coder, longest
    raise InputError(
        "The dataset's vectors were made by another encoder.",
        where=f"features of the modality {modality!r}",
        expected={k: about.get(k) for k in ("encoder", "model", "parameters")},
        found={"encoder": name, **coder.about()},
        fix=f"name its weights (--{modality}_model), or give vectors",
    )


def _weights(about: Mapping[str, Any], model: str | None) -> str | None:
    name = (about.get("model") or {}).get("name")
    return model or (None if name == MINILM else name)


def tracked(steps: Iterable[Any], label: str) -> Iterable[Any]:
    """A progress bar on stderr, so that stdout keeps to results."""
    from rich.console import Console
    from rich.progress import track

    return track(steps, f"{label:<16}", console=Console(stderr=True))
