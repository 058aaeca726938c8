"""The TFRecord and tf.train.Example reader, against TensorFlow's writer."""

import contextlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neggen_jax.data import records
from neggen_jax.errors import InputError

tf = pytest.importorskip("tensorflow")

int64 = st.integers(-(2**63), 2**63 - 1)
float32 = st.floats(width=32)
features = st.dictionaries(
    st.text(max_size=8),
    st.one_of(
        st.tuples(st.just("bytes_list"), st.lists(st.binary(max_size=300))),
        st.tuples(st.just("float_list"), st.lists(float32)),
        st.tuples(st.just("int64_list"), st.lists(int64)),
        st.none(),
    ),
    max_size=5,
)
anything = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    deadline=None,
    max_examples=50,
)


def example(contents) -> bytes:
    message = tf.train.Example()
    for name, value in contents.items():
        feature = message.features.feature[name]
        if value is not None:
            getattr(feature, value[0]).value.extend(value[1])
    return message.SerializeToString()


def write(path, payloads):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for payload in payloads:
            writer.write(payload)
    return path


@anything
@given(st.lists(features, max_size=4))
def test_reads_what_tensorflow_writes(tmp_path, examples):
    path = write(tmp_path / "x", map(example, examples))
    found = list(records.read(path))
    assert found == [example(contents) for contents in examples]
    for record, contents in zip(found, examples, strict=True):
        parsed = records.parse(record)
        assert parsed.keys() == contents.keys()
        for name, value in contents.items():
            kind, values = value or ("bytes_list", [])
            if kind == "bytes_list" or not values:
                assert list(map(bytes, parsed[name])) == values
            else:
                dtype = np.float32 if kind == "float_list" else np.int64
                assert parsed[name].dtype == dtype
                np.testing.assert_array_equal(
                    parsed[name], np.array(values, dtype)
                )


@anything
@given(st.lists(int64, min_size=1), st.lists(float32, min_size=1))
def test_reads_numbers_that_are_not_packed(integers, floats):
    def key(field, wire):
        return bytes([field << 3 | wire])

    def block(field, content):
        return key(field, 2) + varint(len(content)) + content

    def varint(value):
        value %= 2**64
        out = b""
        while value > 127:
            out += bytes([value & 127 | 128])
            value >>= 7
        return out + bytes([value])

    ints = b"".join(key(1, 0) + varint(v) for v in integers)
    reals = b"".join(key(1, 5) + np.float32(v).tobytes() for v in floats)
    pairs = (b"i", block(3, ints)), (b"f", block(2, reals))
    entries = b"".join(
        block(1, block(1, name) + block(2, feature)) for name, feature in pairs
    )
    record = block(1, entries)
    message = tf.train.Example.FromString(record)
    assert message.features.feature["i"].int64_list.value == integers
    parsed = records.parse(record)
    np.testing.assert_array_equal(parsed["i"], integers)
    np.testing.assert_array_equal(parsed["f"], np.array(floats, np.float32))


@anything
@given(st.data())
def test_damage_is_an_input_error_or_harmless(tmp_path, data):
    contents = data.draw(st.lists(features, min_size=1, max_size=3))
    path = write(tmp_path / "x", map(example, contents))
    whole = path.read_bytes()
    damaged = bytearray(whole)
    at = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        damaged = damaged[:at]
    else:
        damaged[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(damaged)
    found = []
    with contextlib.suppress(InputError):
        for record in records.read(path):
            found.append(record)
            records.parse(record)
        # Unnoticed: other contents of equal length, or whole records less.
        assert sum(map(len, found)) + 16 * len(found) == len(damaged)


@anything
@given(st.data())
def test_damaged_length_or_frame_is_always_found(tmp_path, data):
    payloads = data.draw(st.lists(st.binary(max_size=40), min_size=1))
    path = write(tmp_path / "x", payloads)
    whole = bytearray(path.read_bytes())
    which = data.draw(st.integers(0, len(payloads) - 1))
    start = sum(len(payload) + 16 for payload in payloads[:which])
    at = start + data.draw(st.integers(0, 11))
    whole[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(whole)
    with pytest.raises(InputError, match=rf"record {which}\b"):
        list(records.read(path))


@anything
@given(st.data())
def test_truncated_inside_a_record_is_always_found(tmp_path, data):
    payloads = data.draw(st.lists(st.binary(max_size=40), min_size=1))
    path = write(tmp_path / "x", payloads)
    size = path.stat().st_size
    cut = data.draw(st.integers(1, len(payloads[-1]) + 15))
    path.write_bytes(path.read_bytes()[: size - cut])
    with pytest.raises(InputError, match=rf"record {len(payloads) - 1}\b"):
        list(records.read(path))


@anything
@given(st.binary(max_size=60))
def test_any_bytes_parse_or_are_an_input_error(blob):
    try:
        parsed = records.parse(blob)
    except InputError:
        return
    # What is accepted, the reference implementation accepts, and agrees.
    message = tf.train.Example.FromString(blob)
    assert parsed.keys() == message.features.feature.keys()


def test_crc_of_the_standard():
    # RFC 3720, B.4: CRC-32C of 32 bytes of zeros is 0x8A9136AA.
    crc = 0x8A9136AA
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert records.masked_crc32c(bytes(32)) == masked


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="cannot be opened"):
        list(records.read(tmp_path / "none"))
