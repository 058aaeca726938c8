"""TFRecord files of `tf.train.Example`s: written by TFDS, read without it.

`data/store.py` keeps interactions and item records in such files, so that
anybody's tools can open them. Training machines need not have TensorFlow, nor
wait the seconds that importing it takes: reading the two formats in question
needs nothing but NumPy.

- the framing of a record: length (uint64), masked CRC-32C of the length
  (uint32), data, masked CRC-32C of the data (uint32), all little-endian;
- the protocol-buffer encoding of `tf.train.Example`, which is one map from
  feature names to lists of bytes, of floats or of integers.

The CRC of the length is checked, so that a damaged frame is found where it
is. The CRC of the data is not: in Python it would cost more than everything
else together, and the store holds stronger digests of the same bytes.
"""

from __future__ import annotations

import errno
import functools
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from neggen_jax.errors import InputError

Values = list[memoryview] | np.ndarray

_HEADER = struct.Struct("<QI")
_FOOTER_BYTES = 4
# Wire types of protocol buffers: the lowest 3 bits of a field's key.
_VARINT, _BYTES, _FIXED32 = 0, 2, 5
# `tf.train.Feature` is one of three lists, told apart by the field's number.
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 1, 2, 3


def write(
    directory: Path,
    name: str,
    features: Mapping[str, Any],
    splits: Mapping[str, Iterable[dict[str, Any]]],
    records_per_file: int,
) -> dict[str, list[Path]]:
    """Writes one TFDS dataset, in the order given.

    Args:
      directory: where to; it must exist.
      name: of the dataset, in snake case.
      features: name -> `tfds.features` connector.
      splits: name -> examples, consumed one by one.
      records_per_file: how many examples make a file.

    Returns:
      Split -> its files, in order.

    Raises:
      OSError: if the disk is full.
    """
    import tensorflow as tf
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import SequentialWriter

    identity = tfds.core.dataset_info.DatasetIdentity(
        name=name,
        version="1.0.0",
        data_dir=os.fspath(directory),
        module_name=__name__,
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        description="Written by neggen_jax; see neggen_jax/data/store.py.",
        features=tfds.features.FeaturesDict(features),
    )
    try:
        writer = SequentialWriter(info, records_per_file)
        writer.initialize_splits(list(splits))
        for split, examples in splits.items():
            writer.add_examples({split: examples})
        writer.close_all()
    except tf.errors.OpError as error:
        raise OSError(errno.EIO, error.message) from error
    return {
        split: sorted(directory.glob(f"{name}-{split}.tfrecord-*"))
        for split in splits
    }


def read(path: Path) -> Iterator[bytes]:
    """Yields the records of one TFRecord file, one in memory at a time.

    Raises:
      InputError: if the file is missing, truncated, or not a TFRecord file.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(
            "A record file cannot be opened.", where=path, found=error.strerror
        ) from None
    with file:
        left = path.stat().st_size
        number = 0
        while left:
            frame = file.read(_HEADER.size)
            if len(frame) < _HEADER.size:
                _damaged(path, number, "its length", f"{len(frame)} bytes")
            length, crc = _HEADER.unpack(frame)
            if crc != masked_crc32c(frame[:8]):
                _damaged(path, number, "a length that fits its CRC", length)
            left -= _HEADER.size + length + _FOOTER_BYTES
            if left < 0:
                _damaged(path, number, f"{length} bytes", f"{-left} fewer")
            yield file.read(length)
            file.seek(_FOOTER_BYTES, 1)
            number += 1


def parse(record: bytes, where: object = None) -> dict[str, Values]:
    """Decodes one serialised `tf.train.Example`.

    Args:
      record: what `read` yields.
      where: its file, for the error.

    Returns:
      Feature name -> list of byte strings (views of `record`), float32 array
      or int64 array. A feature without a kind is an empty list.

    Raises:
      InputError: if the record is not an Example.
    """
    features: dict[str, Values] = {}
    try:
        for field, part in _messages(memoryview(record)):
            if field != 1:
                continue
            for _, entry in _messages(part):
                # One entry of the map: field 1 is the key, 2 the value.
                pair = dict(_messages(entry))
                name = str(pair.get(1, b""), "utf-8")
                features[name] = _feature(pair.get(2, memoryview(b"")))
    except (IndexError, ValueError, TypeError, struct.error) as error:
        raise InputError(
            "A record is not a tf.train.Example.",
            where=where,
            found=str(error),
        ) from None
    return features


def masked_crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli) of `data`, masked as TFRecord files do."""
    table = _crc_table()
    crc = 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    rotated = (crc >> 15) | (crc << 17)
    return (rotated + 0xA282EAD8) & 0xFFFFFFFF


@functools.cache
def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


def _damaged(
    path: Path, number: int, expected: object, found: object
) -> NoReturn:
    raise InputError(
        "A record file is truncated or damaged.",
        where=f"{path}, record {number}",
        expected=expected,
        found=found,
        fix="prepare the dataset directory again",
    )


def _feature(data: memoryview) -> Values:
    values: Values = []
    for kind, part in _messages(data):
        if kind == _BYTES_LIST:
            values = [value for _, value in _messages(part)]
        elif kind == _FLOAT_LIST:
            packed = b"".join(value for _, value in _fields(part, _FIXED32))
            values = np.frombuffer(packed, "<f4")
        elif kind == _INT64_LIST:
            values = _integers(part)
    return values


def _integers(data: memoryview) -> np.ndarray:
    values: list[int] = []
    for _, part in _fields(data, _VARINT):
        at = 0
        while at < len(part):
            value, at = _varint(part, at)
            values.append(value)
    # Negative numbers are written as their two's complement.
    return np.array([v % 2**64 for v in values], np.uint64).view(np.int64)


def _messages(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yields (field number, content) of a message made of byte fields."""
    return _fields(data, _BYTES)


def _fields(data: memoryview, other: int) -> Iterator[tuple[int, memoryview]]:
    """Yields (field number, content) of a message.

    A repeated number may be packed (one byte field) or not (one field of the
    wire type `other` for each); both come out as their encoded bytes.
    """
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        start, wire = at, key & 7
        if wire == _BYTES:
            length, start = _varint(data, at)
            at = start + length
        elif wire == other == _VARINT:
            _, at = _varint(data, at)
        elif wire == other == _FIXED32:
            at += 4
        else:
            raise ValueError(f"unexpected wire type {wire}")
        if at > end:
            raise ValueError(f"a field ends {at - end} bytes past its message")
        yield key >> 3, data[start:at]


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """The variable-length integer at `at`, and the position after it."""
    byte = data[at]
    value, shift = byte & 0x7F, 0
    while byte & 0x80:
        at += 1
        shift += 7
        if shift > 63:
            raise ValueError("an integer of more than 64 bits")
        byte = data[at]
        value |= (byte & 0x7F) << shift
    return value, at + 1
