"""Interaction logs in other toolboxes' files -> `Catalog`.

`read_mmrec` reads the layout of the MMRec toolbox, which most published
multi-modal data comes in: a directory with `<name>.inter` (tab-separated,
with a header: userID, itemID, x_label and, if known, timestamp; x_label is 0
for train, 1 for valid, 2 for test), and perhaps `items.jsonl` and feature
matrices (`data/items.py`).

`data/prepare.py` calls it, adds what features are missing and hands the
catalogue to `data/store.py`. Columns are handled as arrays throughout; Python
looks at single lines only to say what is wrong with them.
"""

from __future__ import annotations

import csv
import itertools
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from neggen_jax.catalog import SPLITS, Catalog, Interactions
from neggen_jax.data.items import bare_records, read_matrices, read_records
from neggen_jax.errors import InputError, nearest

if TYPE_CHECKING:
    import pyarrow as pa

_USER, _ITEM, _LABEL, _TIME = "userID", "itemID", "x_label", "timestamp"
_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,17}")  # all of these fit in int64
_LABELS = ("0", "1", "2")  # in the order of SPLITS


class _Column(NamedTuple):
    """Words of which many rows have the same.

    Attributes:
      codes: int32 `[n]`, positions in `names`.
      names: the distinct words, an Arrow array of strings.
    """

    codes: np.ndarray
    names: pa.Array


class _Log(NamedTuple):
    """The columns of an interaction file, `[n]` each."""

    users: _Column
    items: _Column
    labels: _Column
    times: np.ndarray | None

    def only(self, rows: np.ndarray) -> _Log:
        """The rows where the mask `rows` is True."""
        columns = (self.users, self.items, self.labels)
        users, items, labels = (_Column(c[rows], names) for c, names in columns)
        times = None if self.times is None else self.times[rows]
        return _Log(users, items, labels, times)


def read_mmrec(
    directory: str | os.PathLike[str],
    *,
    file: str | None = None,
    name: str | None = None,
    duplicates: str = "error",
    cold_users: str = "error",
) -> Catalog:
    """Reads a directory in the layout of the MMRec toolbox.

    Identifiers that are whole numbers from 0 on without gaps are taken as
    the indices. Others (strings, numbers with gaps) are numbered in sorted
    order and kept as `user_ids` and `records.ids`; for items only if neither
    items.jsonl nor a feature matrix fixes their order.

    Args:
      directory: with one `.inter` file, or several of which one is named as
        the directory or given by `file`.
      file: name of the `.inter` file.
      name: of the catalogue; None: the `.inter` file's.
      duplicates: what to do with a (user, item) pair that occurs again:
        "error", or keep the "first".
      cold_users: what to do with users of valid and test who are not in
        train: "error", or "drop" them.

    Returns:
      The validated catalogue. It has records if there is anything to know of
      the items, and the features that the directory has matrices of.

    Raises:
      InputError: if a file is missing, cannot be read, or breaks a rule.
    """
    _check_choice("duplicates", duplicates, ("error", "first"))
    _check_choice("cold_users", cold_users, ("error", "drop"))
    root = Path(directory).absolute()
    path = _find(root, file)
    log = _read(path)
    split = _split_of(log.labels, path)
    records = read_records(root)
    features = read_matrices(root, None if records is None else len(records))
    # Either of them says how many items there are and in which order.
    sizes = [len(matrix.values) for matrix in features.values()]
    num_items = len(records) if records is not None else max(sizes, default=0)
    known = _known_items(log.items, num_items, path) if num_items else None

    rows = np.ones(len(split), np.bool_)
    if duplicates == "first":
        rows = _first_of_each_pair(log)
    if cold_users == "drop":
        warm = np.zeros(len(log.users.names), np.bool_)
        warm[log.users.codes[rows & (split == 0)]] = True
        rows &= warm[log.users.codes]
    if not rows.all():
        log, split = log.only(rows), split[rows]

    users, user_ids = _number(log.users)
    if known is not None:
        items = known[log.items.codes]
    else:
        items, item_ids = _number(log.items)
        num_items = int(items.max(initial=-1)) + 1
        records = None if item_ids is None else bare_records(item_ids)
    return Catalog(
        name=name or path.stem,
        num_users=int(users.max(initial=-1)) + 1,
        num_items=num_items,
        splits={
            part: Interactions(
                users[split == number],
                items[split == number],
                None if log.times is None else log.times[split == number],
            )
            for number, part in enumerate(SPLITS)
        },
        features=features,
        records=records,
        user_ids=user_ids,
    ).validate()


def _check_choice(flag: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(
            f"There is no way {value!r} to handle {flag}.",
            fix=nearest(value, known),
        )


def _find(root: Path, file: str | None) -> Path:
    """The `.inter` file that is meant."""
    if not root.is_dir():
        raise InputError("There is no such input directory.", where=root)
    if file is not None:
        if not (root / file).is_file():
            raise InputError(
                "There is no such interaction file.",
                where=root / file,
                fix=nearest(file, (p.name for p in root.glob("*.inter"))),
            )
        return root / file
    paths = sorted(root.glob("*.inter"))
    named = root / f"{root.name}.inter"
    if named in paths:
        return named
    if len(paths) != 1:
        raise InputError(
            "It is not clear which interaction file is meant."
            if paths
            else "The input directory has no interaction file.",
            where=root,
            expected=f"one file *.inter, or {named.name}",
            found=", ".join(path.name for path in paths) or "none",
            fix="name one with --file" if paths else None,
        )
    return paths[0]


def _read(path: Path) -> _Log:
    """Reads the columns that matter of a tab-separated file."""
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    header = _header(path)
    words = pa.dictionary(pa.int32(), pa.string())
    types = dict.fromkeys((_USER, _ITEM, _LABEL), words)
    failure: Exception | None = None
    # Whole numbers first: nanoseconds do not fit into a float.
    for number in (pa.int64(), pa.float64()):
        if _TIME in header:
            types[_TIME] = number
        try:
            table = arrow_csv.read_csv(
                path,
                parse_options=arrow_csv.ParseOptions(delimiter="\t"),
                convert_options=arrow_csv.ConvertOptions(
                    column_types=types, include_columns=list(types)
                ),
            ).unify_dictionaries()
            break
        except pa.ArrowInvalid as error:
            failure = error
    else:
        raise _explain(path, header, failure)
    if not table.num_rows:
        raise InputError("The interaction file has no rows.", where=path)
    columns = {}
    for name in (_USER, _ITEM, _LABEL):
        column = table.column(name).combine_chunks()
        columns[name] = _Column(column.indices.to_numpy(), column.dictionary)
        absent = np.array([not word for word in column.dictionary.to_pylist()])
        if absent.any():
            raise InputError(
                f"A value is missing in the column {name!r}.",
                where=_first_line(path, columns[name], absent),
            )
    times = None
    if _TIME in header:
        column = table.column(_TIME)
        if column.null_count:
            row = int(np.flatnonzero(column.is_null().to_numpy())[0])
            raise InputError("A timestamp is missing.", where=_line(path, row))
        times = column.to_numpy().astype(np.int64)
    return _Log(columns[_USER], columns[_ITEM], columns[_LABEL], times)


def _header(path: Path) -> list[str]:
    with path.open("rb") as file:
        line = file.readline()
    try:
        header = _fields(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise _explain(path, [], error) from None
    missing = [n for n in (_USER, _ITEM, _LABEL) if n not in header]
    if missing:
        raise InputError(
            f"The interaction file has no column {missing[0]!r}.",
            where=f"{path}, line 1",
            expected=f"{_USER}, {_ITEM}, {_LABEL} and perhaps {_TIME}, "
            "separated by tabs",
            found=", ".join(header) if line.strip() else "an empty line",
        )
    return header


def _fields(line: str) -> list[str]:
    """The fields of one line, which may be quoted; none of an empty line."""
    return next(csv.reader([line.rstrip("\r\n")], delimiter="\t"), [])


def _explain(path: Path, header: list[str], error: object) -> InputError:
    """What is wrong with a file that Arrow refuses, found line by line."""
    start = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}, line {number}"
            try:
                fields = _fields(line.decode("utf-8"))
            except UnicodeDecodeError as wrong:
                return InputError(
                    "The interaction file is not UTF-8.",
                    where=f"{where}, byte {start + wrong.start} of the file",
                    found=f"byte 0x{line[wrong.start]:02x}",
                    fix="convert it, e.g. iconv -f latin1 -t utf-8",
                )
            start += len(line)
            if fields and len(fields) != len(header):
                return InputError(
                    "A line has the wrong number of fields.",
                    where=where,
                    expected=f"{len(header)} fields, separated by tabs",
                    found=f"{len(fields)} fields",
                )
            if number > 1 and fields and _TIME in header:
                word = fields[header.index(_TIME)]
                try:
                    float(word)
                except ValueError:
                    return InputError(
                        "A timestamp is not a number.",
                        where=where,
                        found=repr(word),
                    )
    return InputError(
        "The interaction file cannot be read.", where=path, found=error
    )


def _line(path: Path, row: int) -> str:
    """Where the row `row` of the columns stands in the file."""
    with path.open("rb") as file:
        lines = (n for n, line in enumerate(file, 1) if line.strip(b"\r\n"))
        return f"{path}, line {next(itertools.islice(lines, row + 1, None))}"


def _first_line(path: Path, column: _Column, wrong: np.ndarray) -> str:
    """Where the first row stands whose name is one of those marked."""
    return _line(path, int(np.argmax(wrong[column.codes])))


def _split_of(labels: _Column, path: Path) -> np.ndarray:
    """Position in SPLITS of every row, int8 `[n]`."""
    names = labels.names.to_pylist()
    wrong = np.array([name not in _LABELS for name in names])
    if wrong.any():
        raise InputError(
            f"Unknown split label in the column {_LABEL!r}.",
            where=_first_line(path, labels, wrong),
            expected="0 (train), 1 (valid) or 2 (test)",
            found=repr(names[int(np.argmax(wrong))]),
        )
    return np.array([int(name) for name in names], np.int8)[labels.codes]


def _integers(names: pa.Array) -> np.ndarray | None:
    """The names as int64, or None if one is not a plainly written integer."""
    import pyarrow as pa
    from pyarrow import compute

    try:
        numbers = compute.cast(names, pa.int64())
    except pa.ArrowInvalid:
        return None
    # "007" and "7" are two identifiers, not one number.
    plain = compute.equal(compute.cast(numbers, pa.string()), names)
    return numbers.to_numpy() if compute.all(plain).as_py() else None


def _known_items(items: _Column, num_items: int, path: Path) -> np.ndarray:
    """The item index that each distinct name stands for, int32."""
    numbers = _integers(items.names)
    names = items.names.to_pylist()
    if numbers is None:
        problem = "An item id is not a whole number."
        wrong = np.array([not _WHOLE.fullmatch(name) for name in names])
    else:
        problem = "Unknown item id."
        wrong = (numbers < 0) | (numbers >= num_items)
    if numbers is None or wrong.any():
        raise InputError(
            problem,
            where=_first_line(path, items, wrong),
            expected=f"an index in [0, {num_items}): the items' file or "
            f"feature matrices have {num_items} lines or rows",
            found=repr(names[int(np.argmax(wrong))]),
            fix="number the items by their lines, or remove those files",
        )
    return numbers.astype(np.int32)


def _first_of_each_pair(log: _Log) -> np.ndarray:
    """Mask of the rows whose user and item have not occurred before."""
    pairs = log.users.codes.astype(np.int64) * len(log.items.names)
    _, first = np.unique(pairs + log.items.codes, return_index=True)
    rows = np.zeros(len(pairs), np.bool_)
    rows[first] = True
    return rows


def _number(column: _Column) -> tuple[np.ndarray, list[str] | None]:
    """Indices of the rows, int32 `[n]`, and what each index was called.

    The second is None where names and indices are the same.
    """
    from pyarrow import compute

    names = column.names
    used = np.bincount(column.codes, minlength=len(names)) > 0
    numbers = _integers(names)
    if numbers is not None:
        order = np.argsort(numbers)
    else:
        order = compute.sort_indices(names).to_numpy().astype(np.int64)
    order = order[used[order]]
    index = np.full(len(names), -1, np.int32)
    index[order] = np.arange(len(order))
    if numbers is not None and (numbers[order] == np.arange(len(order))).all():
        return index[column.codes], None
    return index[column.codes], names.take(order).to_pylist()
