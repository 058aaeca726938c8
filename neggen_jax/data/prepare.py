"""Raw files -> dataset directory: the first command of the way of the data.

`launch/prepare.py` calls `prepare`, which asks a source for a `Catalog`, has
`data/features.py` turn texts and images into vectors where the source brings
none, and hands the validated whole to `data/store.py`.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from neggen_jax.catalog import SPLITS, Catalog, ItemRecords
from neggen_jax.data import interactions, store
from neggen_jax.data.bazaar import ATTRIBUTES, Bazaar, make
from neggen_jax.data.dealing import deal
from neggen_jax.data.features import ENCODERS, extract
from neggen_jax.errors import InputError, nearest


class _Made(NamedTuple):
    """What a source has made.

    Attributes:
      catalog: with the features that the source has itself.
      about: how it was made, for the description of the dataset directory.
      text_attributes: names of the attributes that may enter the texts;
        None for all.
    """

    catalog: Catalog
    about: dict[str, Any]
    text_attributes: Sequence[str] | None = None


def prepare(
    source: str,
    input: str | os.PathLike[str] | None,
    output: str | os.PathLike[str],
    *,
    text: str = "auto",
    image: str = "auto",
    text_model: str | None = None,
    image_model: str | None = None,
    text_attributes: Sequence[str] | None = None,
    bad_images: str = "error",
    order: str = "given",
    overwrite: bool = False,
    **options: Any,
) -> Catalog:
    """Makes a dataset directory.

    Args:
      source: "mmrec" (files of the MMRec toolbox) or "bazaar" (synthetic).
      input: directory that the source reads; None for the bazaar.
      output: dataset directory to make.
      text: where text vectors come from: "file" (the source's own),
        "tfidf", "transformers", "none", or "auto": the source's own if it
        has any, else `text_model` if given, else "tfidf" if it has texts.
      image: likewise: "file", "pixels", "transformers", "none" or "auto".
      text_model: path or hub name of a sentence encoder, for "transformers".
      image_model: path or hub name of an image encoder.
      text_attributes: names of the attributes that enter the texts; None
        for all (of the bazaar none, whose texts tell what they may).
      bad_images: "error" to refuse images that cannot be read, "absent" to
        go on as if those items had none.
      order: of users and items: "given", as the source has them, or "dealt"
        at random, so that all shards of a table have as much to do; their
        identifiers tell which is which.
      overwrite: replace a dataset directory that is there already.
      **options: of the source: arguments of `interactions.read_mmrec`, or
        fields of `bazaar.Bazaar`.

    Returns:
      What `store.load` reads from the new directory.

    Raises:
      InputError: for unknown words, bad input, or a full disk. `output` is
        then as it was.
    """
    _check_options(source, options)
    asked = {"text": (text, text_model), "image": (image, image_model)}
    for modality, (encoder, model) in asked.items():
        _check_encoder(modality, encoder, model)
    _check_order(order, source)
    with store.replacing(output, overwrite=overwrite) as partial:
        made = _SOURCES[source](input, partial, options)
        if text_attributes is None:
            text_attributes = made.text_attributes
        catalog = made.catalog
        for modality, (encoder, model) in asked.items():
            catalog = _with_features(
                catalog,
                modality,
                _choose(modality, encoder, model, catalog),
                model=model,
                text_attributes=text_attributes,
                bad_images=bad_images,
            )
        if order == "dealt":
            catalog = deal(catalog)
            made.about["order"] = order
        store.write(catalog.validate(), partial, source=made.about)
    return store.load(output)


def summarise(catalog: Catalog, directory: str | os.PathLike[str]) -> None:
    """Prints what is in a dataset directory."""
    from rich.console import Console
    from rich.table import Table

    total = sum(len(catalog.splits[split]) for split in SPLITS)
    table = Table(show_header=False, box=None, title=catalog.name)
    table.add_column(style="bold")
    table.add_row("users", f"{catalog.num_users:,}")
    table.add_row("items", f"{catalog.num_items:,}")
    counts = [f"{split} {len(catalog.splits[split]):,}" for split in SPLITS]
    table.add_row("interactions", f"{total:,} ({', '.join(counts)})")
    density = total / (catalog.num_users * catalog.num_items)
    table.add_row("density", f"{density:.4%}")
    for modality, matrix in catalog.features.items():
        absent = catalog.num_items - int(matrix.present.sum())
        encoder = matrix.manifest.get("encoder", "unknown")
        table.add_row(
            modality,
            f"{matrix.dim} dimensions by {encoder}; {absent:,} items without",
        )
    if not catalog.features:
        table.add_row("modalities", "none")
    table.add_row("fingerprint", catalog.fingerprint)
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    # Below, since a table cuts what a narrow terminal has no room for.
    console.print(f" in {os.fspath(directory)}", markup=False)


def _mmrec(
    input: str | os.PathLike[str] | None,
    partial: Path,
    options: Mapping[str, Any],
) -> _Made:
    if input is None:
        raise InputError(
            "The source 'mmrec' reads files.", fix="name them with --input=DIR"
        )
    catalog = interactions.read_mmrec(input, **options)
    path = os.fspath(Path(input).resolve())
    return _Made(catalog, {"source": "mmrec", "input": path, **options})


def _bazaar(
    input: str | os.PathLike[str] | None,
    partial: Path,
    options: Mapping[str, Any],
) -> _Made:
    if input is not None:
        raise InputError(
            "The source 'bazaar' reads no files.",
            found=f"--input={input}",
            fix="leave --input out, or name another --source",
        )
    config = Bazaar(**options)
    catalog, truth = make(config, partial / "images")
    truth.save(partial / "truth.npz")
    about = {
        "source": "bazaar",
        **dataclasses.asdict(config),
        # What `launch/generate.py` may rewrite of either modality.
        "image_attributes": [
            a.name for a in ATTRIBUTES if "image" in a.seen_in
        ],
        "text_attributes": [a.name for a in ATTRIBUTES if "text" in a.seen_in],
        "told": [],  # Its texts tell all of them in sentences.
    }
    # Its attributes tell of the pictures too, which no text may.
    return _Made(catalog, about, text_attributes=())


_SOURCES = {"mmrec": _mmrec, "bazaar": _bazaar}
_OPTIONS = {
    "mmrec": [*inspect.signature(interactions.read_mmrec).parameters][1:],
    "bazaar": [field.name for field in dataclasses.fields(Bazaar)],
}


def _check_options(source: str, options: Mapping[str, Any]) -> None:
    if source not in _SOURCES:
        raise InputError(
            f"There is no source {source!r}.", fix=nearest(source, _SOURCES)
        )
    for name in options:
        if name not in _OPTIONS[source]:
            raise InputError(
                f"The source {source!r} has no option {name!r}.",
                fix=nearest(name, _OPTIONS[source]),
            )


def _check_order(order: str, source: str) -> None:
    known = ("given", "dealt")
    if order not in known:
        raise InputError(
            f"There is no order {order!r} of users and items.",
            where="--order",
            fix=nearest(order, known),
        )
    if order == "dealt" and source == "bazaar":
        raise InputError(
            "The bazaar cannot be dealt: its truth tells of indices.",
            where="--order=dealt",
            fix="leave it out; its indices do not follow popularity",
        )


def _check_encoder(modality: str, encoder: str, model: str | None) -> None:
    known = ("auto", "file", "none", *ENCODERS[modality])
    if encoder not in known:
        raise InputError(
            f"There is no way {encoder!r} to make {modality} features.",
            where=f"--{modality}",
            fix=nearest(encoder, known),
        )
    if model is not None and encoder not in ("auto", "transformers"):
        raise InputError(
            f"A model was named for {modality}, but would not be used.",
            where=f"--{modality}={encoder} --{modality}_model={model}",
            fix=f"pass --{modality}=transformers",
        )


def _choose(
    modality: str, word: str, model: str | None, catalog: Catalog
) -> str:
    """The encoder that `word` stands for, or "file" or "none"."""
    if word == "auto":
        if model is not None:
            word = "transformers"
        elif modality in catalog.features:
            word = "file"
        elif _has_content(catalog.records, modality):
            word = next(iter(ENCODERS[modality]))
        else:
            word = "none"
    if word == "file" and modality not in catalog.features:
        raise InputError(
            f"The source brings no {modality} features of its own.",
            where=f"--{modality}=file",
            expected=f"a matrix {modality}_feat.npy beside the interactions",
            fix=f"pass --{modality}=auto",
        )
    if word in ENCODERS[modality] and catalog.records is None:
        raise InputError(
            f"The source brings no {modality} to make features of.",
            where=f"--{modality}={word}",
            fix=f"pass --{modality}=auto",
        )
    return word


def _with_features(
    catalog: Catalog, modality: str, encoder: str, **settings: Any
) -> Catalog:
    """The catalogue with vectors of `modality` by `encoder`."""
    features = dict(catalog.features)
    if encoder == "none":
        features.pop(modality, None)
    elif encoder != "file":
        assert catalog.records is not None
        features[modality] = extract(
            catalog.records, modality, encoder, **settings
        )
    return dataclasses.replace(catalog, features=features)


def _has_content(records: ItemRecords | None, modality: str) -> bool:
    if records is None:
        return False
    if modality == "image":
        return any(records.images)
    return any(records.titles) or any(records.texts) or any(records.attributes)
