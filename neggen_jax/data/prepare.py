"""Raw files -> dataset directory: the first command of the way of the data.

`launch/prepare.py` calls `prepare`, which asks a source
(`data/sources/registry.py`) for a `Catalog`, has `data/features.py` turn
texts and images into vectors where the source brings none, and hands the
validated whole to `data/store.py`. What came of it is told by
`data/summary.py`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neggen_jax.catalog import Catalog, ItemRecords
from neggen_jax.data import store
from neggen_jax.data.dealing import deal
from neggen_jax.data.extension import Known, with_content
from neggen_jax.data.features import ENCODERS, extract
from neggen_jax.data.sources.matrices import read_embedding
from neggen_jax.data.sources.registry import SOURCES, Made
from neggen_jax.errors import InputError, nearest


def prepare(
    source: str,
    input: str | os.PathLike[str] | None,
    output: str | os.PathLike[str],
    *,
    text: str = "auto",
    image: str = "auto",
    text_model: str | None = None,
    image_model: str | None = None,
    embeddings: Mapping[str, str | os.PathLike[str]] | None = None,
    text_attributes: Sequence[str] | None = None,
    bad_images: str = "error",
    order: str = "given",
    extends: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    **options: Any,
) -> Catalog:
    """Makes a dataset directory.

    Args:
      source: one of `registry.SOURCES`.
      input: what the source reads; None if it reads nothing.
      output: dataset directory to make.
      text: where text vectors come from: "file" (the source's own),
        "tfidf", "transformers", "none", or "auto": the source's own if it
        has any, else `text_model` if given, else "tfidf" if it has texts.
      image: likewise: "file", "pixels", "transformers", "none" or "auto".
      text_model: path or hub name of a sentence encoder, for "transformers".
      image_model: path or hub name of an image encoder.
      embeddings: modality -> file with vectors of one's own, instead of the
        source's; see `matrices.read_embedding`.
      text_attributes: names of the attributes that enter the texts; None
        for all (of the bazaar none, whose texts tell what they may).
      bad_images: "error" to refuse images that cannot be read, "absent" to
        go on as if those items had none.
      order: of users and items: "given", as the source has them, or "dealt"
        at random, so that all shards of a table have as much to do; their
        identifiers tell which is which.
      extends: dataset directory to which what the source brings is added;
        see `data/extension.py`. How vectors are made is as it was there.
      overwrite: replace a dataset directory that is there already.
      **options: of the source, as `registry.SOURCES` lists them.

    Returns:
      What `store.load` reads from the new directory.

    Raises:
      InputError: for unknown words, bad input, or a full disk. `output` is
        then as it was.
    """
    more = {} if extends is None else {"extends": extends}
    _check_options(source, {**options, **more})
    asked = {"text": (text, text_model), "image": (image, image_model)}
    own = {name: Path(path) for name, path in (embeddings or {}).items()}
    for modality, (encoder, model) in asked.items():
        _check_encoder(modality, encoder, model, modality in own)
    _check_order(order, source)
    known = None
    if extends is not None:
        words = {f"--{name}={word}": word for name, (word, _) in asked.items()}
        words |= {"--order=dealt": "auto" if order == "given" else order}
        words |= {"--text_attributes": "auto" if not text_attributes else ""}
        _check_extends(Path(extends), Path(output), words)
        options["extends"] = known = Known.load(extends)
    with store.replacing(output, overwrite=overwrite) as partial:
        made = SOURCES[source].make(input, partial, options)
        if text_attributes is None:
            text_attributes = made.text_attributes
        if known is not None:
            # Its numbers are not the source's.
            made = made._replace(indexed=False)
        catalog = _with_embeddings(made, own)
        if known is not None:
            models = {name: model for name, (_, model) in asked.items()}
            catalog = with_content(known, catalog, own, models, bad_images)
            made.about.update(known.about())
            if "name" not in options:
                catalog = dataclasses.replace(catalog, name=known.catalog.name)
        else:
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


def _check_options(source: str, options: Mapping[str, Any]) -> None:
    if source not in SOURCES:
        raise InputError(
            f"There is no source {source!r}.", fix=nearest(source, SOURCES)
        )
    known = SOURCES[source].options
    for name in options:
        if name not in known:
            raise InputError(
                f"The source {source!r} has no option {name!r}.",
                fix=nearest(name, known),
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


def _check_extends(
    extends: Path, output: Path, words: Mapping[str, str]
) -> None:
    """Refuses what a dataset that is extended has settled.

    Args:
      extends: that dataset directory.
      output: where the new one goes.
      words: flag -> "auto", unless something was asked for.
    """
    for flag, word in words.items():
        if word != "auto":
            raise InputError(
                "This was settled when the dataset that is extended was made.",
                where=f"{flag} --extends={extends}",
                fix="leave it out, or prepare a dataset of its own",
            )
    if output.resolve() == extends.resolve():
        raise InputError(
            "A dataset directory is not extended in its place: runs need it.",
            where=f"--output={output}",
            fix="name another directory",
        )


def _check_encoder(
    modality: str, encoder: str, model: str | None, own: bool
) -> None:
    known = ("auto", "file", "none", *ENCODERS[modality])
    if encoder not in known:
        raise InputError(
            f"There is no way {encoder!r} to make {modality} features.",
            where=f"--{modality}",
            fix=nearest(encoder, known),
        )
    if own and (model is not None or encoder not in ("auto", "file")):
        raise InputError(
            f"Vectors of {modality} are given, and others are asked for.",
            where=f"--embedding={modality}=... --{modality}={encoder}",
            fix="leave one of them out",
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
            expected=f"a matrix {modality}_feat.npy beside the interactions, "
            f"or --embedding={modality}=FILE",
            fix=f"pass --{modality}=auto",
        )
    if word in ENCODERS[modality] and catalog.records is None:
        raise InputError(
            f"The source brings no {modality} to make features of.",
            where=f"--{modality}={word}",
            fix=f"pass --{modality}=auto",
        )
    return word


def _with_embeddings(made: Made, own: Mapping[str, Path]) -> Catalog:
    """The catalogue with one's own vectors."""
    catalog = made.catalog
    features = dict(catalog.features)
    for modality, path in own.items():
        features[modality] = read_embedding(
            path, modality, catalog, made.indexed
        )
        made.about.setdefault("embeddings", {})[modality] = os.fspath(
            path.resolve()
        )
    return dataclasses.replace(catalog, features=features)


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
