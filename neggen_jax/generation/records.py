"""One record of generation: what an item is, and what it might have been.

A record is one line of JSON. A file of them is written and encoded in `sets/`,
shown by `inspection/`, and read by whoever wants to look.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from neggen_jax.errors import InputError

MODALITIES = ("text", "image")


@dataclasses.dataclass(frozen=True)
class Alternative:
    """One counterfactual.

    Attributes:
      text: the description with other values.
      changes: attribute -> (old value, new value), at least one.
    """

    text: str
    changes: Mapping[str, tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Record:
    """What was written of one modality of one item, or why nothing was.

    Attributes:
      item: index of the item.
      id: the source's own identifier.
      modality: "text" or "image".
      description: the item in words: its own text, or its picture described.
      attributes: name -> value of what was masked; mask k is the k-th.
      masked: the description with `[MASK_k]` in their places.
      negatives: the counterfactuals; none in a record that failed.
      backend: who wrote.
      model: which model, as its server or hub calls it; "" without one.
      prompt_version: of the templates; "" without them.
      attempts: what a model was asked, again after bad replies included but
        not after faults on the way; 0 where nobody is asked.
      error: why there are no counterfactuals; "" for an accepted record.
    """

    item: int
    id: str
    modality: str
    description: str = ""
    attributes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    masked: str = ""
    negatives: tuple[Alternative, ...] = ()
    backend: str = ""
    model: str = ""
    prompt_version: str = ""
    attempts: int = 0
    error: str = ""

    @property
    def accepted(self) -> bool:
        """Whether it holds counterfactuals."""
        return not self.error

    @property
    def key(self) -> tuple[int, int]:
        """What records are sorted by: item, then modality."""
        return self.item, MODALITIES.index(self.modality)

    def to_line(self) -> str:
        """One line of JSON with its newline; the same record, the same line."""
        fields = dataclasses.asdict(self)
        return json.dumps(fields, ensure_ascii=False) + "\n"


def parse(line: str | bytes, where: object) -> Record:
    """Reads what `Record.to_line` wrote.

    Args:
      line: with or without its newline.
      where: file and line, for the error.

    Raises:
      InputError: if it is not such a record.
    """
    try:
        fields = json.loads(line)
        negatives = tuple(
            Alternative(
                _text(made["text"]),
                {
                    _text(name): (_text(old), _text(new))
                    for name, (old, new) in made["changes"].items()
                },
            )
            for made in fields.pop("negatives")
        )
        record = Record(negatives=negatives, **fields)
        _check(record)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            "A line is not a record of generation.",
            where=where,
            expected="an object as launch/generate.py writes it",
            found=f"{type(error).__name__}: {error}",
        ) from error
    return record


def read(path: Path, torn: bool = False) -> Iterator[tuple[int, Record, str]]:
    """Yields (first byte, record, where it stands) of a file, line by line.

    Args:
      path: the file.
      torn: whether its last line may be without its end, as a writer leaves
        it that is killed, or at work; then it is left out.

    Raises:
      InputError: for a line that is no record.
    """
    with path.open("rb") as file:
        start = 0
        for number, line in enumerate(file, 1):
            if torn and not line.endswith(b"\n"):
                return
            where = f"{path}, line {number}"
            yield start, parse(line, where), where
            start += len(line)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value


def _check(record: Record) -> None:
    """Raises what `parse` reports for fields of the wrong kind."""
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if field.type == "str":
            _text(value)
        if field.type == "int" and (
            not isinstance(value, int) or isinstance(value, bool) or value < 0
        ):
            raise TypeError(f"{field.name}={value!r} is not a count")
    for pair in record.attributes.items():
        _text(pair[0]), _text(pair[1])
    if record.modality not in MODALITIES:
        raise ValueError(f"no modality {record.modality!r}")
    if bool(record.negatives) == bool(record.error):
        raise ValueError("either counterfactuals or an error, not both")
    if any(not made.changes for made in record.negatives):
        raise ValueError("a counterfactual that changes nothing")
