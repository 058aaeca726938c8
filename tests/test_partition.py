"""The mesh and the table that maps logical axes to it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from neggen_jax.errors import InputError
from neggen_jax.partition import RULES, Partition, make_partition


def test_spec_follows_the_table(one):
    assert one.spec("batch", "embed") == P("data", None)
    assert one.spec("step", "batch") == P(None, "data")
    assert one.spec("item", None) == P("model", None)


def test_an_axis_without_a_rule_is_refused_with_the_nearest(one):
    with pytest.raises(InputError, match="did you mean 'item'"):
        one.spec("itme")


def test_axes_that_collide_are_refused(one):
    with pytest.raises(InputError, match="mesh axis 'model'"):
        one.spec("user", "item")


def test_other_rules_make_another_layout(one):
    whole = Partition(one.mesh, {**RULES, "user": None})
    assert whole.spec("user", "item") == P(None, "model")


def test_tables_may_be_spread_over_all_devices():
    partition = make_partition(4, 2, tables="all")
    assert partition.spec("item", None) == P(("data", "model"), None)
    assert partition.shards("item") == 8
    assert partition.shards("ranked") == 2
    with pytest.raises(InputError, match="mesh axis 'data'"):
        partition.spec("batch", "item")
    with pytest.raises(InputError, match="spread tables") as caught:
        make_partition(4, 2, tables="modle")
    assert caught.value.where == "config.mesh.tables"


def test_rows_are_joined_where_they_belong(partition):
    rows = partition.mine(16, "batch")
    # One process has all of them, whatever the mesh.
    np.testing.assert_array_equal(rows, np.arange(16))
    value = np.arange(3 * 16 * 2).reshape(3, 16, 2)
    whole = partition.join(value, rows, 16, "step", "batch")
    np.testing.assert_array_equal(whole, value)
    assert whole.sharding == partition.sharding("step", "batch")


@pytest.mark.parametrize(
    ("data", "model", "shape"),
    [(-1, 1, (8, 1)), (-1, 2, (4, 2)), (2, 4, (2, 4)), (1, 8, (1, 8))],
)
def test_a_mesh_uses_every_device_once(data, model, shape):
    partition = make_partition(data, model)
    assert partition.mesh.devices.shape == shape
    assert len(set(partition.mesh.devices.flat)) == 8
    assert (partition.shards("batch"), partition.shards("item")) == shape


@pytest.mark.parametrize(
    ("data", "model"), [(3, 2), (-1, 3), (8, 2), (0, 8), (4, 0), (-2, -4)]
)
def test_a_mesh_that_does_not_fit_is_refused(data, model):
    with pytest.raises(InputError, match="does not fit the devices") as error:
        make_partition(data, model)
    assert error.value.where == "config.mesh"


def test_padded_is_the_smallest_multiple(partition):
    pieces = partition.shards("item")
    for size in range(1, 40):
        padded = partition.padded(size, "item")
        assert padded % pieces == 0
        assert size <= padded < size + pieces
    assert partition.padded(13, "embed") == 13


def test_put_places_the_rows_that_the_table_says(partition):
    value = np.arange(48).reshape(16, 3)
    placed = partition.put(value, "item", None)
    np.testing.assert_array_equal(placed, value)
    rows = 16 // partition.shards("item")
    shapes = {shard.data.shape for shard in placed.addressable_shards}
    assert shapes == {(rows, 3)}


def test_parameters_are_made_where_their_axes_say(partition):
    def init(key):
        table = nn.Partitioned(jax.random.normal(key, (16, 4)), ("item", None))
        return {"table": table, "bias": jnp.zeros(3)}

    shardings = partition.tree_shardings(
        jax.eval_shape(init, jax.random.key(0))
    )
    assert shardings["table"].spec == partition.spec("item", None)
    assert shardings["bias"].spec == P()
    made = jax.jit(lambda key: nn.unbox(init(key)), out_shardings=shardings)(
        jax.random.key(0)
    )
    assert made["table"].sharding == shardings["table"]
    assert made["bias"].is_fully_replicated
