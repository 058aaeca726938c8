"""Pickled matrices: read as they are, refused without being run."""

import pickle
import pickletools

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from neggen_jax.catalog import SPLITS
from neggen_jax.data.prepare import prepare
from neggen_jax.data.sources.diffmm import read_diffmm
from neggen_jax.data.sources.pickles import read_matrix
from neggen_jax.errors import InputError

FILES = ("trnMat.pkl", "valMat.pkl", "tstMat.pkl")
USERS, ITEMS = 12, 9


def matrices(seed=0):
    """Three matrices of 0 and 1 that share no entry."""
    rng = np.random.default_rng(seed)
    dense = np.zeros((3, USERS, ITEMS))
    for user in range(USERS):
        chosen = rng.permutation(ITEMS)[:6]
        for split, items in enumerate((chosen[:4], chosen[4:5], chosen[5:])):
            dense[split, user, items] = 1
    return dense


def write(root, dense, kind=sp.coo_matrix, protocol=4):
    root.mkdir(exist_ok=True)
    for name, matrix in zip(FILES, dense, strict=True):
        (root / name).write_bytes(pickle.dumps(kind(matrix), protocol))
    return root


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "kind",
    [sp.coo_matrix, sp.csr_matrix, sp.csc_matrix, sp.coo_array, sp.csr_array],
)
@pytest.mark.parametrize("dtype", ["f4", "f8", "i8", "?"])
def test_all_that_scipy_writes(tmp_path, protocol, kind, dtype):
    dense = matrices()[0].astype(dtype)
    path = tmp_path / "m.pkl"
    path.write_bytes(pickle.dumps(kind(dense), protocol))
    read = read_matrix(path)
    np.testing.assert_array_equal(read.toarray(), dense)


def test_modules_of_older_versions(tmp_path):
    path = tmp_path / "m.pkl"
    dense = matrices()[0]
    data = pickle.dumps(sp.csr_matrix(dense), 2)
    for new, old in (
        (b"scipy.sparse._csr", b"scipy.sparse.csr"),
        (b"numpy._core.multiarray", b"numpy.core.multiarray"),
    ):
        assert new in data
        data = data.replace(new, old)
    path.write_bytes(data)
    np.testing.assert_array_equal(read_matrix(path).toarray(), dense)


def test_a_directory(tmp_path):
    dense = matrices()
    dense[0] *= 5  # ratings, say
    root = write(tmp_path / "tiktok", dense)
    np.save(root / "image_feat.npy", np.eye(ITEMS, 4))
    np.save(root / "audio_feat.npy", np.eye(ITEMS))
    catalog = read_diffmm(root).validate()
    assert catalog.name == "tiktok"
    assert (catalog.num_users, catalog.num_items) == (USERS, ITEMS)
    for split, want in zip(SPLITS, dense, strict=True):
        part = catalog.splits[split]
        got = np.zeros((USERS, ITEMS))
        got[part.users, part.items] = 1
        np.testing.assert_array_equal(got, want > 0)
    assert sorted(catalog.features) == ["audio", "image"]
    assert catalog.features["image"].present.sum() == 4


def test_entries_that_are_several(tmp_path):
    """COO may hold a place twice: they are one interaction, or cancel out."""
    dense = matrices()
    root = write(tmp_path / "x", dense)
    matrix = sp.coo_matrix(dense[0])
    zero = np.argwhere(dense.sum(0) == 0)[0]
    twice = sp.coo_matrix(
        (
            np.concatenate([matrix.data, [1, 1, -1]]),
            (
                np.concatenate([matrix.row, matrix.row[:1], zero[[0, 0]]]),
                np.concatenate([matrix.col, matrix.col[:1], zero[[1, 1]]]),
            ),
        ),
        matrix.shape,
    )
    (root / FILES[0]).write_bytes(pickle.dumps(twice))
    catalog = read_diffmm(root).validate()
    assert len(catalog.train) == dense[0].sum()


def test_rules(tmp_path):
    dense = matrices()
    dense[0, 3] = 0
    root = write(tmp_path / "x", dense)
    with pytest.raises(InputError, match="no train interaction"):
        read_diffmm(root).validate()
    catalog = read_diffmm(root, cold_users="drop").validate()
    assert catalog.num_users == USERS - 1
    assert "3" not in catalog.user_ids
    dense = matrices()
    dense[2] += dense[0]
    write(root, dense)
    with pytest.raises(InputError, match="twice"):
        read_diffmm(root).validate()
    catalog = read_diffmm(root, duplicates="first").validate()
    assert len(catalog.splits["test"]) == matrices()[2].sum()


class Runs:
    """Pickled, it is a program that makes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import pathlib

        return pathlib.Path.touch, (self.path,)


def hostile(path):
    """Ways to have something run, or to take all memory."""
    dense = sp.coo_matrix(matrices()[0])
    inside = sp.coo_matrix(matrices()[0])
    inside.data = np.array([Runs(path)], object)
    state = {"shape": (2, 2), "data": Runs(path)}
    by_state = sp.coo_matrix.__new__(sp.coo_matrix)
    by_state.__dict__.update(state)
    return {
        "a call": pickle.dumps(Runs(path)),
        "beside a matrix": pickle.dumps((dense, Runs(path))),
        "in an array": pickle.dumps(inside),
        "in a state": pickle.dumps(by_state),
        "os.system": b"cos\nsystem\n(S'touch %s'\ntR." % str(path).encode(),
        "eval": b"cbuiltins\neval\n(S'open(%r, \"w\")'\ntR."
        % str(path).encode(),
        "getattr": b"cbuiltins\ngetattr\n(cnumpy\nndarray\nS'x'\ntR.",
        "by a dotted name": b"\x80\x04\x8c\x05numpy\x8c\x0ef2py.os.system\x93.",
        "persistent": b"Pname\n.",
        "a large memo": b"\x80\x04Nr\xff\xff\xff\x7f.",
        "an array": pickle.dumps(np.ones(3)),
        "a dict": pickle.dumps({"a": 1}),
        "DOK": pickle.dumps(sp.dok_matrix((2, 2))),
        "a class": b"cscipy.sparse\ncoo_matrix\n.",
        "a class with a state": b"cscipy.sparse\ncoo_matrix\n}S'a'\nI1\nsb.",
    }


@pytest.mark.parametrize("kind", hostile("x"))
def test_hostile_files_are_refused(tmp_path, kind):
    root = write(tmp_path / "in", matrices())
    ran = tmp_path / "ran"
    (root / FILES[1]).write_bytes(hostile(ran)[kind])
    with pytest.raises(InputError, match=r"(?s)pickle (holds|is).*valMat\.pkl"):
        prepare("diffmm", root, tmp_path / "data")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_a_hostile_file_would_run_elsewhere(tmp_path):
    """Or the test above would show nothing."""
    ran = tmp_path / "ran"
    for kind in ("a call", "os.system", "in an array"):
        data = hostile(ran)[kind]
        assert not ran.exists()
        pickle.loads(data)
        ran.unlink()


def state_of(**changes):
    """A pickled matrix of which parts are others."""
    matrix = sp.csr_matrix(matrices()[0])
    for name, value in changes.items():
        setattr(matrix, name, value)
    return pickle.dumps(matrix)


BAD_STATES = {
    "outside": state_of(indices=np.full(48, ITEMS, np.int32)),
    "negative": state_of(indices=np.full(48, -1, np.int32)),
    "short": state_of(data=np.ones(3)),
    "pointers": state_of(indptr=np.arange(USERS, dtype=np.int32)),
    "falling": state_of(indptr=np.arange(USERS + 1)[::-1].astype(np.int32)),
    "endless": state_of(_shape=(2**40, ITEMS)),
    "complex": state_of(data=np.ones(48, complex)),
    "words": state_of(data=np.full(48, "x")),
    "fields": state_of(data=np.zeros(48, [("a", "f4")])),
    "two axes": state_of(data=np.ones((48, 1))),
    "no shape": state_of(_shape=None),
}


@pytest.mark.parametrize("kind", BAD_STATES)
def test_matrices_that_do_not_fit(tmp_path, kind):
    path = tmp_path / "m.pkl"
    path.write_bytes(BAD_STATES[kind])
    with pytest.raises(InputError, match=r"(?s)no sparse matrix.*m\.pkl"):
        read_matrix(path)


WHOLE = pickle.dumps(sp.csr_matrix(matrices()[0]), 4)


@settings(max_examples=40)
@given(st.integers(0, len(WHOLE) - 1), st.integers(0, 255))
def test_damage_is_an_input_error_or_harmless(tmp_path_factory, place, byte):
    path = tmp_path_factory.getbasetemp() / "damaged.pkl"
    data = bytearray(WHOLE)
    data[place] = byte
    for content in (bytes(data), WHOLE[:place]):
        path.write_bytes(content)
        try:
            assert read_matrix(path).ndim == 2
        except InputError:
            continue


def test_other_bad_files(tmp_path):
    root = write(tmp_path / "in", matrices())
    (root / FILES[2]).unlink()
    with pytest.raises(InputError, match=r"(?s)missing.*tstMat\.pkl"):
        read_diffmm(root)
    (root / FILES[2]).write_bytes(b"")
    with pytest.raises(InputError, match="pickle is damaged"):
        read_diffmm(root)
    other = sp.coo_matrix(matrices()[2][:, :5])
    (root / FILES[2]).write_bytes(pickle.dumps(other))
    with pytest.raises(InputError, match=r"(?s)differ in shape.*\(12, 5\)"):
        read_diffmm(root)
    write(root, matrices())
    np.save(root / "text_feat.npy", np.ones((3, 2)))
    with pytest.raises(InputError, match="one row of features per item"):
        read_diffmm(root)


def test_the_pickles_of_these_tests_are_what_they_say():
    names = [
        code.name
        for code, *_ in pickletools.genops(hostile("x")["a large memo"])
    ]
    assert "LONG_BINPUT" in names
