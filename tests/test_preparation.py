"""An epoch's inputs: the same as without, and nothing there twice."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training import make_run

from neggen_jax.preparation import Preparation

EPOCH = np.int32(3)


def made(name, **changes):
    run = make_run(name, **changes)
    preparation = Preparation(run.program.prepare, run.inputs, EPOCH)
    return run, preparation


@pytest.mark.parametrize(
    ("name", "changes", "changed"),
    [
        ("vbpr", {}, set()),
        ("freedom", {}, {"user_item"}),
        (
            "vbpr",
            {"train__dtype": "bfloat16"},
            set(),
        ),
    ],
)
def test_what_an_epoch_leaves_is_not_copied(name, changes, changed):
    run, preparation = made(name, **changes)
    got = preparation.compile(run.inputs, EPOCH)(run.inputs, EPOCH)
    want = jax.jit(run.program.prepare)(run.inputs, EPOCH)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for one, other in zip(*map(jax.tree.leaves, (got, want)), strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype
    for field in dataclasses.fields(got):
        before, after = (
            jax.tree.leaves(getattr(x, field.name)) for x in (run.inputs, got)
        )
        same = [a is b for a, b in zip(before, after, strict=True)]
        assert all(same) == (field.name not in changed), field.name


def test_leaves_may_change_places_and_be_constants():
    """As some encoder's might."""

    def prepare(inputs, epoch):
        return {"a": inputs["b"], "b": 7, "c": inputs["a"] + epoch}

    inputs = {"a": jnp.arange(3), "b": jnp.ones(2)}
    preparation = Preparation(prepare, inputs, EPOCH)
    got = preparation.compile(inputs, EPOCH)(inputs, EPOCH)
    assert got["a"] is inputs["b"]
    assert got["b"] == 7
    np.testing.assert_array_equal(got["c"], [3, 4, 5])
    assert [x.shape for x in preparation.shapes] == [(), (3,)]
