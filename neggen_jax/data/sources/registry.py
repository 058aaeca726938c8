"""Where a catalogue may come from: the sources of `launch/prepare.py`.

A source is one function and one line in `SOURCES`. Its options are keywords
of the function that reads its files, so that they are documented there, and
one that it does not have is refused by `data/prepare.py`.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from neggen_jax.catalog import Catalog
from neggen_jax.data.bazaar.make import ATTRIBUTES, Bazaar, make
from neggen_jax.data.sources.amazon.source import read_amazon
from neggen_jax.data.sources.assemble import Rules
from neggen_jax.data.sources.diffmm import read_diffmm
from neggen_jax.data.sources.mmrec import read_mmrec
from neggen_jax.data.sources.own_files import read_files
from neggen_jax.data.sources.tfds_source import read_tfds
from neggen_jax.errors import InputError

Input = str | os.PathLike[str] | None
Options = Mapping[str, Any]


class Made(NamedTuple):
    """What a source has made.

    Attributes:
      catalog: with the features that the source has itself.
      about: how it was made, for the description of the dataset directory.
      text_attributes: names of the attributes that may enter the texts;
        None for all.
      indexed: whether the source numbers items by rows and lines, so that
        matrices beside it have the same order.
    """

    catalog: Catalog
    about: dict[str, Any]
    text_attributes: Sequence[str] | None = None
    indexed: bool = False


class Source(NamedTuple):
    """A way for data to come in.

    Attributes:
      make: called with the input, the directory that becomes the dataset
        directory (for files of the source's own), and the options.
      options: their names.
    """

    make: Callable[[Input, Path, Options], Made]
    options: tuple[str, ...]


def _mmrec(input: Input, partial: Path, options: Options) -> Made:
    catalog = read_mmrec(_given("mmrec", input), **options)
    known = os.path.exists(os.path.join(str(input), "items.jsonl"))
    indexed = known or catalog.records is None or bool(catalog.features)
    return Made(catalog, _about("mmrec", input, options), indexed=indexed)


def _diffmm(input: Input, partial: Path, options: Options) -> Made:
    catalog = read_diffmm(_given("diffmm", input), **options)
    return Made(catalog, _about("diffmm", input, options), indexed=True)


def _csv(input: Input, partial: Path, options: Options) -> Made:
    catalog = read_files("csv", _given("csv", input), **options)
    return Made(catalog, _about("csv", input, options))


def _parquet(input: Input, partial: Path, options: Options) -> Made:
    catalog = read_files("parquet", _given("parquet", input), **options)
    return Made(catalog, _about("parquet", input, options))


def _amazon(input: Input, partial: Path, options: Options) -> Made:
    catalog = read_amazon(_given("amazon", input), scratch=partial, **options)
    return Made(catalog, _about("amazon", input, options))


def _tfds(input: Input, partial: Path, options: Options) -> Made:
    _none("tfds", input, "pass --name, and perhaps --data_dir")
    if "name" not in options:
        raise InputError(
            "The source 'tfds' reads a dataset by its name.",
            fix="name it, such as --name=movielens/100k-ratings",
        )
    return Made(read_tfds(**options), _about("tfds", None, options))


def _bazaar(input: Input, partial: Path, options: Options) -> Made:
    _none("bazaar", input, "leave --input out, or name another --source")
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
    return Made(catalog, about, text_attributes=(), indexed=True)


def _keywords(function: Callable[..., Any]) -> tuple[str, ...]:
    """Names of the keywords that a person may give."""
    names: list[str] = []
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            names += Rules.__annotations__
        elif parameter.kind is parameter.KEYWORD_ONLY and name != "scratch":
            names.append(name)
    return tuple(names)


SOURCES = {
    "amazon": Source(_amazon, _keywords(read_amazon)),
    "bazaar": Source(
        _bazaar, tuple(field.name for field in dataclasses.fields(Bazaar))
    ),
    "csv": Source(_csv, _keywords(read_files)),
    "diffmm": Source(_diffmm, _keywords(read_diffmm)),
    "mmrec": Source(_mmrec, _keywords(read_mmrec)),
    "parquet": Source(_parquet, _keywords(read_files)),
    "tfds": Source(_tfds, _keywords(read_tfds)),
}


def _about(source: str, input: Input, options: Options) -> dict[str, Any]:
    told = {name: v for name, v in options.items() if name != "extends"}
    known = {"source": source, **told}
    if input is not None:
        known["input"] = os.fspath(Path(input).resolve())
    return known


def _given(source: str, input: Input) -> str | os.PathLike[str]:
    if input is None:
        raise InputError(
            f"The source {source!r} reads files.",
            fix="name them with --input=DIR",
        )
    return input


def _none(source: str, input: Input, fix: str) -> None:
    if input is not None:
        raise InputError(
            f"The source {source!r} reads no files.",
            found=f"--input={input}",
            fix=fix,
        )
