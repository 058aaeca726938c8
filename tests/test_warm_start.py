"""Runs that begin where others ended, on data that have grown since."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import on_mesh, some
from growing import PAST, PRESENT, past, present, write
from training import BASELINE, digests, make_config, numbers

from neggen_jax.data import store
from neggen_jax.data.prepare import prepare
from neggen_jax.errors import InputError
from neggen_jax.run import Run, reopen
from neggen_jax.train import train_and_evaluate
from neggen_jax.warm_start import _ring, grown, warm_start

GDNSM = BASELINE.parent / "gdnsm.py"
# Small, and from the first step on with negatives in the bank.
SMALL = {
    "train__epochs": 2,
    "negatives__generated__start": 0.0,
    "negatives__generated__timesteps": 5,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The directory of both datasets and of a run on the first one."""
    root = tmp_path_factory.mktemp("base")
    config = gdnsm(data__path=str(past(root)))
    train_and_evaluate(config, root / "run")
    present(root)
    return root


def gdnsm(**changes):
    return make_config("lightgcn,bank", GDNSM, **{**SMALL, **changes})


def begun(base, config, mesh=(1, 1), data="present"):
    """A run's state of step 0, and with what it starts from."""
    config.data.path = config.data.path or str(base / data)
    config.train.start_from = config.train.start_from or str(base / "run")
    config.mesh.data, config.mesh.model = mesh
    run = Run.make(config, devices=jax.devices()[: mesh[0] * mesh[1]])
    state, _ = run.start()
    return run, numbers(state), warm_start(run, state)


def names(path):
    catalog = store.load(path, records=True)
    return {"users": catalog.user_names(), "items": catalog.item_names()}


def check_rows(base, got, fresh, data="present", key=".params['encoder']"):
    """Rows are those of the same identifiers, or as they begin."""
    _, trained, _ = reopen(base / "run")
    old, was, now = (
        numbers(trained.params["encoder"]),
        names(base / "past"),
        names(base / data),
    )
    for table in ("users", "items"):
        rows = got[f"{key}['{table}']"]
        begin = fresh[f".params['encoder']['{table}']"]
        known = {name: row for row, name in enumerate(was[table])}
        for row, name in enumerate(now[table]):
            want = (
                old[f"['{table}']"][known[name]]
                if name in known
                else begin[row]
            )
            np.testing.assert_array_equal(rows[row], want)
        np.testing.assert_array_equal(rows[len(now[table]) :], 0)
        assert set(now[table]) - known.keys()


@pytest.mark.parametrize("mesh", some([(1, 1), (1, 8), (4, 2)], (4, 2)))
def test_tables_grow_by_identifier(base, mesh):
    before = digests(base / "run")
    config = gdnsm(mesh__tables="all" if mesh == (4, 2) else "model")
    run, fresh, state = begun(base, config, mesh)
    got = numbers(state)
    check_rows(base, got, fresh)
    assert digests(base / "run") == before
    # What the source of negatives has learned comes along, users' bank too.
    _, trained, _ = reopen(base / "run")
    old = numbers(trained)
    learned = [k for k in old if "sources_generated" in k and "opt" not in k]
    assert any("bank" in key for key in learned)
    size = store.load(base / "past").num_users
    for key in learned:
        rows = size if "bank" in key else None
        np.testing.assert_array_equal(got[key][:rows], old[key][:rows])
    assert any(old[key].any() for key in learned if "bank" in key)
    # The optimiser begins anew; arrays lie where they lay.
    assert not any(v.any() for k, v in got.items() if k.startswith(".opt"))
    want, _ = run.start()
    assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(
        lambda x: x.sharding, want
    )


def test_a_dataset_in_another_order_and_without_some(base, tmp_path):
    """Prepared afresh of what is new alone, dealt: identifiers tell."""
    known = {row[:2] for row in PAST}
    prepare(
        "csv",
        write(
            base / "raw" / "new.csv",
            [row for row in PRESENT if row[:2] not in known],
        ),
        tmp_path / "data",
        split="random",
        order="dealt",
        text="none",
    )
    config = make_config("lightgcn", data__path=str(tmp_path / "data"))
    _, fresh, state = begun(base, config)
    got = numbers(state)
    (tmp_path / "here").mkdir()
    for name in ("past", "run"):
        (tmp_path / "here" / name).symlink_to(base / name)
    (tmp_path / "here" / "data").symlink_to(tmp_path / "data")
    check_rows(tmp_path / "here", got, fresh, "data")
    assert not set(names(base / "past")["users"]) <= set(
        names(tmp_path / "data")["users"]
    )


def test_what_is_refused_leaves_no_workdir(base, tmp_path):
    config = make_config(
        "lightgcn",
        data__path=str(base / "present"),
        train__start_from=str(tmp_path / "nowhere"),
    )
    with pytest.raises(InputError, match="cannot be read"):
        train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_refused_if_it_has_trained_on_what_is_held_out(base, tmp_path):
    """The same interactions, split by another seed."""
    past = base / "raw" / "past.csv"
    prepare("csv", past, tmp_path / "data", split="random", seed=1)
    ours, theirs = (store.load(p) for p in (tmp_path / "data", base / "past"))
    assert ours.user_names() == theirs.user_names()
    assert ours.item_names() == theirs.item_names()
    known = {*zip(theirs.train.users, theirs.train.items, strict=True)}
    held_out = [
        pair
        for name in ("valid", "test")
        for pair in zip(
            ours.splits[name].users, ours.splits[name].items, strict=True
        )
    ]
    count = sum(pair in known for pair in held_out)
    assert count
    config = make_config("lightgcn", data__path=str(tmp_path / "data"))
    with pytest.raises(InputError, match="on what is held out") as caught:
        begun(base, config)
    assert caught.value.found == f"{count} of {len(held_out)}"


def test_the_whole_command(base, tmp_path, capsys):
    """At a learning rate of 0, what was known is still there at the end."""
    before = digests(base / "run")
    config = make_config(
        "lightgcn",
        data__path=str(base / "present"),
        train__start_from=str(base / "run"),
        train__epochs=1,
        train__ema=0.5,
        optimizer__learning_rate=0.0,
    )
    run = Run.make(config)
    fresh = numbers(run.start()[0])
    train_and_evaluate(config, tmp_path / "run")
    assert f": new, from {base / 'run'}; compiling" in capsys.readouterr().out
    _, state, _ = reopen(tmp_path / "run")
    check_rows(base, numbers(state), fresh)
    check_rows(base, numbers(state), fresh, key=".average['encoder']")
    assert digests(base / "run") == before


def test_refused(base, tmp_path):
    other = make_config("lightgcn", encoder__dim=4)
    with pytest.raises(InputError, match="another encoder"):
        begun(base, other)
    table = [(f"z{u}", i, t) for u, i, t in PRESENT]
    file = write(tmp_path / "raw" / "strange.csv", table)
    prepare("csv", file, tmp_path / "strange", split="random")
    config = make_config("lightgcn", data__path=str(tmp_path / "strange"))
    with pytest.raises(InputError, match="none of the users"):
        begun(base, config)


def test_refused_where_its_data_are_gone_or_of_other_widths(base, tmp_path):
    narrow = tmp_path / "narrow"
    catalog = store.load(base / "present", records=True)
    text = catalog.features["text"]
    cut = dataclasses.replace(text, values=text.values[:, :5].copy())
    cut.values[~cut.values.any(axis=1) & cut.present] = 1
    features = {"text": cut}
    catalog = dataclasses.replace(
        catalog, features=features, verified="", indexed=None
    )
    store.save(catalog.validate(), narrow, source={})
    with pytest.raises(InputError, match="does not fit"):
        begun(base, gdnsm(data__path=str(narrow)))
    shutil.copytree(base / "run", tmp_path / "run")
    identity = tmp_path / "run" / "run.json"
    moved = identity.read_text().replace(
        str(base / "past"), str(tmp_path / "x")
    )
    identity.write_text(moved)
    config = gdnsm(train__start_from=str(tmp_path / "run"))
    with pytest.raises(InputError, match="no such dataset directory"):
        begun(base, config)


def test_rows_go_round(partition):
    """Old and new tables of sizes that no mesh cuts evenly, any places."""
    rng = np.random.default_rng(0)
    for axis, shape in (("item", (3,)), ("user", ()), ("user", (2, 3))):
        for size, before in ((19, 13), (13, 19), (5, 41)):
            rows = partition.padded(size, axis)
            old_rows = partition.padded(before, axis)
            new = rng.normal(size=(rows, *shape)).astype(np.float32)
            old = rng.normal(size=(old_rows, *shape)).astype(np.float32)
            places = rng.integers(0, before + 1, rows).astype(np.int32)
            want = np.where(
                (places > 0).reshape(-1, *[1] * len(shape)),
                old[places - 1],
                new,
            )
            got = grown(
                partition.put(new, axis),
                partition.put(old, axis),
                partition.put(places, axis),
                partition,
                axis,
            )
            np.testing.assert_array_equal(got, want)
            assert got.sharding.is_equivalent_to(
                partition.sharding(axis), got.ndim
            )


def test_no_device_holds_a_whole_table():
    """What a device is sent at a time does not grow with their number."""
    mesh = on_mesh(1, 8)
    new, old, places = (
        mesh.abstract(shape, dtype, "item")
        for shape, dtype in (
            ((8000, 64), jnp.float32),
            ((4000, 64), jnp.float32),
            ((8000,), jnp.int32),
        )
    )
    made = _ring(mesh.mesh, mesh.spec("item"), 8).lower(new, old, places)
    text = made.compile().as_text()
    assert "collective-permute" in text
    assert "all-gather" not in text
    assert "all-reduce" not in text
