"""Checkpoints: the latest and the best survive, whole, or say what is wrong."""

import gc
import pathlib
import shutil
import subprocess
import sys

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from training import digests, fill

from neggen_jax import checkpoint
from neggen_jax.checkpoint import Checkpoints, read_json, write_json
from neggen_jax.errors import InputError
from neggen_jax.step import State

# Orbax leaves coroutines behind when a file cannot be read.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(autouse=True)
def collected():
    """So that the mark above is still there when they are thrown away."""
    yield
    gc.collect()


def make_state(step: int, partition) -> State:
    """A state whose every number depends on the step."""
    rng = np.random.default_rng(step)
    table = partition.put(rng.random((64, 16), np.float32), "item", "embed")
    return State(
        step=partition.put(np.int32(step)),
        params={"items": table},
        opt_state=({"mu": table * 2},),
        variables={"bank": {"vectors": table + 1}},
        average=None,
    )


def shape(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def abstract(partition) -> State:
    return jax.tree.map(shape, make_state(0, partition))


def write(workdir, partition, values: dict[int, float | None], keep=2) -> None:
    """Saves steps as the trainer would: the first highest value is best."""
    best: tuple[float, int] | None = None
    with Checkpoints(workdir, keep) as checkpoints:
        for step, value in values.items():
            if value is not None and (best is None or value > best[0]):
                best = value, step
            meta = {"best_step": best and best[1]}
            checkpoints.save(make_state(step, partition), meta)
        checkpoints.wait()


def steps(workdir: pathlib.Path) -> list[int]:
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())


def assert_equal(got: State, want: State) -> None:
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_what_is_restored_is_what_was_saved(tmp_path, one):
    write(tmp_path, one, {3: 0.1, 5: 0.3})
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest == 5
        for step in (3, 5):
            got, meta = checkpoints.restore(abstract(one), step)
            assert_equal(got, make_state(step, one))
            assert meta == {"best_step": step}
        assert_equal(checkpoints.restore(abstract(one))[0], make_state(5, one))


@pytest.mark.parametrize("rows", [61, 62, 72])
def test_padding_may_differ_between_meshes(tmp_path, one, rows):
    """Tables of 61 rows are 62 or 72 long on some meshes, with zeros."""

    def padded(size: int) -> State:
        table = np.zeros((size, 8), np.float32)
        table[:61] = np.random.default_rng(0).random((61, 8))
        value = one.put(table, "item", "embed")
        return State(one.put(np.int32(1)), {"items": value}, (), {}, None)

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(padded(62), {"best_step": 1})
        checkpoints.wait()
        got, _ = checkpoints.restore(jax.tree.map(shape, padded(rows)))
    assert_equal(got, padded(rows))


def test_restores_onto_another_mesh(tmp_path, one, partition):
    write(tmp_path, one, {3: 0.1})
    with Checkpoints(tmp_path) as checkpoints:
        got, _ = checkpoints.restore(abstract(partition))
    assert_equal(got, make_state(3, partition))
    want = jax.tree.map(lambda x: x.sharding, abstract(partition))
    assert jax.tree.map(lambda x: x.sharding, got) == want


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ({1: 0.1, 2: 0.3, 3: 0.2, 4: 0.1, 5: 0.1}, [2, 4, 5]),
        ({1: 0.1, 2: 0.3, 3: 0.3, 4: 0.3, 5: 0.3}, [2, 4, 5]),  # a tie
        ({1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4, 5: 0.5}, [4, 5]),
        ({1: None, 2: None, 3: None}, [2, 3]),
        ({1: None, 2: 0.0, 3: None, 4: None, 5: None}, [2, 4, 5]),
    ],
)
def test_keeps_the_latest_and_the_first_best(tmp_path, one, values, kept):
    write(tmp_path, one, values)
    assert steps(tmp_path) == kept


def test_a_new_process_still_knows_the_best(tmp_path, one):
    """Each step is saved by a manager of its own, as after many kills."""
    for step in range(1, 6):
        with Checkpoints(tmp_path) as checkpoints:
            meta = {"best_step": min(step, 2)}
            checkpoints.save(make_state(step, one), meta)
    assert steps(tmp_path) == [2, 4, 5]


def test_saving_does_not_see_what_training_does_next(tmp_path, one):
    """The buffers of a state that is being written are donated at once."""
    change = jax.jit(
        lambda state: jax.tree.map(lambda x: x + x.dtype.type(1), state),
        donate_argnums=0,
    )
    with Checkpoints(tmp_path, keep=9) as checkpoints:
        state = make_state(1, one)
        for _ in range(5):
            checkpoints.save(state, {"best_step": None})
            for _ in range(3):
                state = change(state)
        checkpoints.wait()
        for number in range(5):
            got, _ = checkpoints.restore(abstract(one), 1 + 3 * number)
            want = make_state(1, one)
            for _ in range(3 * number):
                want = change(want)
            assert_equal(got, want)


def test_a_half_written_checkpoint_is_ignored_and_cleaned(tmp_path, one):
    write(tmp_path, one, {1: 0.1, 2: 0.2})
    root = tmp_path / "checkpoints"
    left = root / "3.orbax-checkpoint-tmp"
    shutil.copytree(root / "2", left)
    (left / "commit_success.txt").unlink(missing_ok=True)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.latest == 2
    assert left.exists(), "a reader must not touch what a writer is about"
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest == 2
        assert_equal(checkpoints.restore(abstract(one))[0], make_state(2, one))
        # The run comes to that step again.
        checkpoints.save(make_state(3, one), {"best_step": 1})
        checkpoints.wait()
        assert_equal(checkpoints.restore(abstract(one))[0], make_state(3, one))
    assert steps(tmp_path) == [1, 2, 3]


def files_of(workdir: pathlib.Path, step: int) -> list[str]:
    root = workdir / "checkpoints" / str(step)
    return sorted(
        str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()
    )


def test_no_damage_goes_unnoticed(tmp_path, one, capsys):
    """Any file cut short, flipped or removed: a warning, or no difference.

    With a warning, what is restored is the one before; the damaged one is
    moved away as it is, but not by readers.
    """
    origin, workdir = tmp_path / "origin", tmp_path / "workdir"
    write(origin, one, {1: 0.1, 2: 0.2})
    noticed = set()
    capsys.readouterr()
    for name in files_of(origin, 2):
        for damage in ("truncate", "flip", "remove"):
            shutil.copytree(origin, workdir)
            hurt(workdir / "checkpoints" / "2" / name, damage)
            hashes = digests(workdir)
            with Checkpoints(workdir, read_only=True) as checkpoints:
                read = checkpoints.restore(abstract(one))
            assert digests(workdir) == hashes, (name, damage)
            told = capsys.readouterr().err
            with Checkpoints(workdir) as checkpoints:
                found = checkpoints.restore(abstract(one))
                latest = checkpoints.latest
            assert_equal(read, found)
            # Without a warning, nothing that matters stood in that file.
            step = 1 if told else 2
            assert latest == step
            assert_equal(found[0], make_state(step, one))
            assert found[1] == {"best_step": step}
            if told:
                noticed.add((name.split("/")[0], damage))
                assert "step 2 cannot be read (" in told
                assert "going on from step 1" in told
                assert "is left where it is" in told
                assert f"stands in {workdir}/damaged/2" in (
                    capsys.readouterr().err
                )
                assert digests(workdir) == {
                    path.replace("checkpoints/2/", "damaged/2/"): value
                    for path, value in hashes.items()
                }
            shutil.rmtree(workdir)
    for item in ("state", "meta"):
        assert {d for i, d in noticed if i == item} == {
            "truncate",
            "flip",
            "remove",
        }


@pytest.mark.parametrize("bit", [0, 7, 20, 31])
def test_one_flipped_bit_in_the_numbers_is_noticed(tmp_path, one, bit):
    """TensorStore itself has no checksum over what arrays contain."""
    write(tmp_path, one, {1: 0.1})
    root = tmp_path / "checkpoints" / "1" / "state" / "ocdbt.process_0" / "d"
    path = max(root.iterdir(), key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    assert len(data) > 64 * 16 * 3, "this should be the file of a table"
    data[len(data) // 2 + bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(InputError, match="cannot be read") as caught,
    ):
        checkpoints.restore(abstract(one))
    assert "from the start" in caught.value.fix


def test_numbers_of_another_checkpoint_are_noticed(tmp_path, one, capsys):
    """Every file is whole, only not the one that belongs there."""
    write(tmp_path, one, {1: 0.1, 2: 0.2})
    root = tmp_path / "checkpoints"
    shutil.rmtree(root / "2" / "state")
    shutil.copytree(root / "1" / "state", root / "2" / "state")
    with Checkpoints(tmp_path) as checkpoints:
        assert_equal(checkpoints.restore(abstract(one))[0], make_state(1, one))
    assert "contradict their checksum" in capsys.readouterr().err


def test_goes_back_as_far_as_it_must(tmp_path, one, capsys):
    """What is gone back to is whole: its own best step is still there."""
    values = {1: 0.3, 2: 0.1, 3: 0.1, 4: 0.4, 5: 0.5}
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        for step in values:
            meta = {"best_step": step if step > 3 else 1}
            checkpoints.save(make_state(step, one), meta)
    # 3 is one of the latest three, and names 1.
    assert steps(tmp_path) == [1, 3, 4, 5]
    for step in (4, 5):
        shutil.rmtree(tmp_path / "checkpoints" / str(step) / "meta")
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        state, meta = checkpoints.restore(abstract(one))
        assert_equal(state, make_state(3, one))
        best, _ = checkpoints.restore(abstract(one), meta["best_step"])
        assert_equal(best, make_state(1, one))
        # It comes to these steps again, and the next damage is another.
        for step in (4, 5):
            meta = {"best_step": step}
            checkpoints.save(make_state(step, one), meta)
    assert steps(tmp_path) == [1, 3, 4, 5]
    shutil.rmtree(tmp_path / "checkpoints" / "5" / "state")
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        assert_equal(checkpoints.restore(abstract(one))[0], make_state(4, one))
    aside = sorted(path.name for path in (tmp_path / "damaged").iterdir())
    assert aside == ["4", "5", "5-again"]
    said = capsys.readouterr().err.splitlines()
    assert [line.split(" (")[0] for line in said] == [
        f"warning: The checkpoint of step {step} cannot be read"
        for step in (5, 4, 5)
    ]


def test_if_none_can_be_read_all_stay(tmp_path, one, capsys):
    write(tmp_path, one, {1: 0.1, 2: 0.2})
    for step in (1, 2):
        shutil.rmtree(tmp_path / "checkpoints" / str(step) / "meta")
    before = digests(tmp_path)
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(InputError, match="step 2 cannot be read") as caught,
    ):
        checkpoints.restore(abstract(one))
    assert f"move {tmp_path}/checkpoints away" in caught.value.fix
    assert digests(tmp_path) == before
    assert capsys.readouterr().err == ""


def test_a_damaged_best_is_an_error(tmp_path, one):
    """No other step can stand for it."""
    write(tmp_path, one, {1: 0.2, 2: 0.1})
    shutil.rmtree(tmp_path / "checkpoints" / "1" / "state")
    before = digests(tmp_path)
    with Checkpoints(tmp_path) as checkpoints:
        _, meta = checkpoints.restore(abstract(one))
        with pytest.raises(InputError, match="step 1 cannot") as caught:
            checkpoints.restore(abstract(one), meta["best_step"])
    assert "from the start" in caught.value.fix
    assert digests(tmp_path) == before


@pytest.mark.parametrize("process", ["same", "another"])
def test_a_passing_step_stands_until_there_is_a_newer_one(
    tmp_path, one, process
):
    def save(checkpoints, step, best, passing=False):
        state = make_state(step, one)
        checkpoints.save(state, {"best_step": best}, passing)
        checkpoints.wait()

    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 2, best=2)
        save(checkpoints, 4, best=4)
        save(checkpoints, 5, best=4, passing=True)
        assert steps(tmp_path) == [2, 4, 5]
        before = digests(tmp_path)
        save(checkpoints, 5, best=5, passing=True)
        assert digests(tmp_path) == before
        if process == "same":
            save(checkpoints, 6, best=4)
    if process == "another":
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.pass_by(5)
            save(checkpoints, 6, best=4)
    assert steps(tmp_path) == [4, 6]


def test_a_passing_step_can_be_saved_for_good(tmp_path, one):
    """A run that was stopped before it had evaluated knows more later."""
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(1, one), {"best_step": None}, passing=True)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.pass_by(1)
        for best in (1, 9):  # the second time it is as good as any
            checkpoints.save(make_state(1, one), {"best_step": best})
        _, meta = checkpoints.restore(abstract(one))
        assert meta == {"best_step": 1}
        for step in (2, 3):
            checkpoints.save(make_state(step, one), {"best_step": 2})
    assert steps(tmp_path) == [2, 3]


@hypothesis.settings(max_examples=25)
@hypothesis.given(
    row=st.integers(0, 60),
    column=st.integers(0, 7),
    bit=st.integers(0, 31),
    padding=st.integers(1, 5),
)
def test_the_checksum_sees_each_bit_and_no_padding(row, column, bit, padding):
    values = np.random.default_rng(0).random((61, 8), np.float32)
    flipped, swapped = values.copy(), values.copy()
    flipped.view(np.uint32)[row, column] ^= np.uint32(1) << np.uint32(bit)
    swapped[[row, row - 1]] = values[[row - 1, row]]
    wider = np.pad(values, ((0, padding), (0, 0)))

    def checksum(table: np.ndarray, meta: str = "") -> str:
        params = {"a": jnp.asarray(table), "b": jnp.ones(3)}
        state = State(jnp.int32(7), params, (), {}, None)
        return checkpoint._checksum(state, {"meta": meta})

    right = checksum(values)
    assert checksum(wider) == right
    others = {checksum(flipped), checksum(swapped), checksum(values, "x")}
    assert len(others - {right}) == 3


def test_a_full_disk_is_told_before_anything_is_half_written(small_disk, one):
    with Checkpoints(small_disk) as checkpoints:
        checkpoints.save(make_state(1, one), {"best_step": 1})
        checkpoints.wait()
        filler = fill(small_disk, leave=100_000)
        before = digests(small_disk)
        with pytest.raises(InputError, match="make room") as caught:
            checkpoints.save(make_state(2, one), {"best_step": 1})
        assert "0.3 MiB are needed, 0.1 MiB are free" in caught.value.found
        assert digests(small_disk) == before
        filler.unlink()
        checkpoints.save(make_state(2, one), {"best_step": 1})
        checkpoints.wait()
        for step in (1, 2):
            got, _ = checkpoints.restore(abstract(one), step)
            assert_equal(got, make_state(step, one))


LIMITED = """
import pathlib, resource, sys
sys.path[:0] = sys.argv[2:]
import conftest, test_checkpoint as test
from neggen_jax.checkpoint import Checkpoints
from neggen_jax.errors import reported
one = conftest.on_mesh(1, 1)
with reported(), Checkpoints(sys.argv[1]) as checkpoints:
    checkpoints.save(test.make_state(1, one), {"best_step": 1})
    checkpoints.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    checkpoints.save(test.make_state(2, one), {"best_step": 1})
    checkpoints.wait()
"""


def test_what_a_disk_refuses_while_it_is_written_is_told(tmp_path, one):
    """A limit on the size of files stands for a quota, or a full disk."""
    tests = pathlib.Path(__file__).parent
    paths = [str(tmp_path), str(tests), str(tests.parent)]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *paths], capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    _, _, message = done.stderr.partition("error: ")
    assert message.startswith("A checkpoint could not be written")
    assert "make room" in message
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest == 1
        got, _ = checkpoints.restore(abstract(one))
        assert_equal(got, make_state(1, one))
        checkpoints.save(make_state(2, one), {"best_step": 1})
    assert steps(tmp_path) == [1, 2]


def test_refuses_a_checkpoint_of_another_model(tmp_path, one):
    write(tmp_path, one, {1: 0.1})
    other = abstract(one)
    other = other.replace(params={"users": other.params["items"]})
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(InputError, match="step 1 cannot be read"),
    ):
        checkpoints.restore(other)


def test_names_the_steps_that_are_there(tmp_path, one):
    write(tmp_path, one, {1: 0.1, 4: 0.2})
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(InputError) as caught,
    ):
        checkpoints.restore(abstract(one), 3)
    assert "[1, 4]" in str(caught.value)
    with Checkpoints(tmp_path / "empty") as checkpoints:
        assert checkpoints.latest is None
        with pytest.raises(InputError, match="train first"):
            checkpoints.restore(abstract(one))


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}
    path.write_text('{"a": ')
    with pytest.raises(InputError, match="damaged") as caught:
        read_json(path)
    assert caught.value.where == path


def hurt(path: pathlib.Path, damage: str) -> None:
    data = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    elif damage == "truncate":
        path.write_bytes(data[: len(data) // 2])
    elif data:
        data[len(data) // 2] ^= 0x10
        path.write_bytes(data)
