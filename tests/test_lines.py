"""Lines of files of others: bounds, and where it says that they are wrong."""

import gzip

import pytest

from neggen_jax.data.sources.lines import object_of, read_lines, text_of
from neggen_jax.errors import InputError

TEXT = b'{"a": 1}\n\n{"b": "\xc3\xa9"}'


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_lines(tmp_path, pack):
    path = tmp_path / "x"
    path.write_bytes(pack(TEXT))
    lines = list(read_lines(path))
    assert [tuple(line) for line in lines] == [
        (1, 0, b'{"a": 1}\n'),
        (2, 9, b"\n"),
        (3, 10, b'{"b": "\xc3\xa9"}'),
    ]
    assert object_of(lines[2], path, "file") == {"b": "é"}
    assert text_of(lines[1], path, "file") == "\n"
    path.write_bytes(pack(b""))
    assert not list(read_lines(path, label="x"))


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_line_without_end_is_not_read(tmp_path, pack):
    path = tmp_path / "x"
    path.write_bytes(pack(b"short\n" + b"x" * 1_000_000))
    lines = read_lines(path, limit=1000)
    assert next(lines).data == b"short\n"
    with pytest.raises(InputError, match=r"(?s)too long.*line 2, byte 6 "):
        next(lines)
    # One that just fits is read.
    path.write_bytes(pack(b"x" * 999 + b"\n"))
    assert len(next(read_lines(path, limit=1000)).data) == 1000


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_gzip_that_is_cut_off(tmp_path, share):
    path = tmp_path / "x.gz"
    data = gzip.compress(b"".join(b"line %d\n" % n for n in range(100_000)))
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(InputError, match=r"(?s)to its end.*x\.gz, after line"):
        list(read_lines(path))


def test_gzip_that_is_damaged(tmp_path):
    path = tmp_path / "x.gz"
    data = bytearray(gzip.compress(b"some words\n" * 1000))
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(InputError, match="cannot be read to its end"):
        list(read_lines(path))


def test_what_is_no_file(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match="cannot be opened"):
            list(read_lines(path))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a": 1\n', r"the file is not JSON.*line 2"),
        (b"[" * 100_000 + b"\n", r"not JSON.*line 2"),
        (b"[1]\n", r"not a JSON object.*line 2.*list"),
        (b'{"a": "\xe9"}\n', r"file is not UTF-8.*line 2, byte 10 .*0xe9"),
        (b'{"a": ' + b"9" * 5000 + b"}\n", r"not JSON.*line 2"),
    ],
)
def test_lines_that_are_no_objects(tmp_path, data, message):
    path = tmp_path / "x"
    path.write_bytes(b"{}\n" + data)
    line = list(read_lines(path))[1]
    with pytest.raises(InputError, match=f"(?s){message}"):
        object_of(line, path, "file")
