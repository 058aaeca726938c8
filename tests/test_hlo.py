"""Counts in compiled programs, against what is known of them."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from neggen_jax import hlo, hlo_text

N, ROUNDS = 256, 7


def program(function, *shapes):
    shapes = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    return hlo.Program(jax.jit(function).lower(*shapes).compile().as_text())


def square(x):
    return (x, x), jnp.float32


def test_a_loop_counts_by_its_rounds():
    def run(x):
        return jax.lax.fori_loop(0, ROUNDS, lambda _, y: y @ x, x)

    counts = program(run, ((N, N), jnp.float32)).count()
    products = ROUNDS * 2 * N**3
    # Beside the products there is no more than a counter and copies.
    assert products <= counts.flops < 1.01 * products
    assert counts.open_loops == 0
    # Each round reads two matrices and writes one.
    assert counts.bytes >= ROUNDS * 3 * 4 * N**2


def test_a_loop_of_open_length_counts_once_and_is_told():
    def run(x, n):
        return jax.lax.fori_loop(0, n, lambda _, y: y @ x, x)

    counts = program(run, ((N, N), jnp.float32), ((), jnp.int32)).count()
    assert 2 * N**3 <= counts.flops < 1.01 * 2 * N**3
    assert counts.open_loops == 1


def test_gathered_rows_are_read_and_not_the_table():
    rows, width = 2**16, 64
    counts = program(
        lambda table, index: table[index] * 2,
        ((rows, width), jnp.float32),
        ((32,), jnp.int32),
    ).count()
    picked = 32 * width * 4
    # Read, multiplied and written, on the way perhaps once more each.
    assert 2 * picked <= counts.bytes <= 6 * picked + 1024


def test_changed_rows_are_written_and_not_the_table():
    rows, width = 2**16, 64
    shapes = (
        jax.ShapeDtypeStruct((rows, width), jnp.float32),
        jax.ShapeDtypeStruct((1, width), jnp.float32),
    )
    update = jax.jit(
        lambda table, new: jax.lax.dynamic_update_slice(table, new, (5, 0)),
        donate_argnums=0,
    )
    text = update.lower(*shapes).compile().as_text()
    assert hlo.Program(text).count().bytes <= 8 * width * 4


# Bytes that a device receives of 8, having n bytes of float32 before.
COLLECTIVES = {
    "all-gather": (
        lambda x: jax.lax.all_gather(x, "model", tiled=True)[: len(x)],
        lambda n: 7 * n,
    ),
    "all-reduce": (lambda x: jax.lax.psum(x, "model"), lambda n: 2 * n * 7 / 8),
    "reduce-scatter": (
        lambda x: jnp.tile(
            jax.lax.psum_scatter(x, "model", tiled=True), (8, 1)
        ),
        lambda n: n * 7 / 8,
    ),
    "collective-permute": (
        lambda x: jax.lax.ppermute(
            x, "model", [(i, (i + 1) % 8) for i in range(8)]
        ),
        lambda n: n,
    ),
    "all-to-all": (
        lambda x: jax.lax.all_to_all(x, "model", 0, 0, tiled=True),
        lambda n: n * 7 / 8,
    ),
}


@pytest.mark.parametrize("kind", COLLECTIVES)
def test_received_bytes_of_a_collective_in_a_loop(kind, eight):
    act, expected = COLLECTIVES[kind]

    @functools.partial(
        jax.shard_map,
        mesh=eight.mesh,
        in_specs=P("model"),
        out_specs=P("model"),
        check_vma=False,
    )
    def run(x):
        return jax.lax.fori_loop(0, ROUNDS, lambda _, y: jnp.sin(act(y)), x)

    counts = program(run, ((8 * 64, 32), jnp.float32)).count()
    received = expected(64 * 32 * 4)
    # The CPU compiler may spell a reduce-scatter as an all-reduce.
    if kind == "reduce-scatter" and kind not in counts.collectives:
        kind, received = "all-reduce", 2 * received
    assert counts.collectives == {kind: pytest.approx(ROUNDS * received)}


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[1000,64]{1,0}", 1000 * 64 * 4),
        # The width is padded to 128 lanes, or the rows are.
        ("f32[1000,64]{1,0:T(8,128)}", 1000 * 128 * 4),
        ("f32[1000,64]{0,1:T(8,128)}", 1024 * 64 * 4),
        ("bf16[16,100]{1,0:T(8,128)(2,1)}", 16 * 128 * 2),
        ("s32[1000]{0:T(1024)}", 1024 * 4),
        ("pred[10]{0}", 10),
        ("f32[]{:T(128)}", 4),
    ],
)
def test_arrays_have_the_padding_of_their_layout(shape, size):
    (array,) = hlo_text.arrays(shape)
    assert array.bytes == size


def test_what_lives_on_the_core_is_told_apart():
    fast, slow = hlo_text.arrays("(f32[8]{0:T(128)S(1)}, f32[8]{0:T(128)})")
    assert (fast.fast, slow.fast) == (True, False)


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("replica_groups=[4,2]<=[8]", 2),
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", 4),
        (
            "replica_groups=mesh['a'=2,'b'=4], device_ids=([2,4]T(1,0)) "
            "{'b'}, use_global_device_ids=true",
            4,
        ),
    ],
)
def test_groups_are_read_in_all_spellings(groups, size):
    line = f"  %x = f32[16]{{0}} all-reduce(%y), channel_id=1, {groups}"
    found = hlo_text.instruction(line)
    assert hlo.received(found, "all-reduce") == 2 * 64 * (size - 1) / size


def test_the_largest_arrays_are_named_by_where_they_come_from():
    def run(x):
        with jax.named_scope("outer"):
            return jnp.sin(x @ x) @ x

    found = program(run, ((N, N), jnp.float32)).largest(4 * N**2)
    assert found[0][0] == 4 * N**2
    assert any("outer" in origin for *_, origin in found)


THREADED = """HloModule m

%start (p: f32[64]) -> (f32[64], f32[256]) {
  %p = f32[64]{0} parameter(0)
  %g.1 = f32[256]{0} all-gather(%p), channel_id=4, replica_groups=[1,4]<=[4]
  ROOT %c = (f32[64]{0}, f32[256]{0}) custom-call(%g.1), \
custom_call_target="AsyncCollectiveStart"
}

%beside (p: f32[64], q: f32[8]) -> (f32[8], f32[64]) {
  %p = f32[64]{0} parameter(0)
  %g.2 = f32[256]{0} all-gather(%p), channel_id=4, replica_groups=[1,4]<=[4]
  %q = f32[8]{0} parameter(1)
  %n = f32[8]{0} negate(%q)
  ROOT %t = (f32[8]{0}, f32[64]{0}) tuple(%n, %p)
}

ENTRY %main (x: f32[64], y: f32[8]) -> f32[8] {
  %x = f32[64]{0} parameter(0)
  %y = f32[8]{0} parameter(1)
  %s = (f32[64]{0}, f32[256]{0}) fusion(%x), kind=kCustom, calls=%start
  %b = (f32[8]{0}, f32[64]{0}) fusion(%x, %y), kind=kCustom, calls=%beside
  ROOT %r = f32[8]{0} get-tuple-element(%b), index=0
}
"""


def test_a_collective_that_runs_beside_others_counts_once():
    """As TPUs write it: every fusion it runs beside names it again."""
    counts = hlo.Program(THREADED).count()
    assert counts.collectives == {"all-gather": 256 * 4 * 3 / 4}
    # What it reads and writes, and eight numbers read and written.
    assert counts.bytes == 4 * (64 + (64 + 256)) + 2 * 4 * 8
    assert counts.flops == 8


UNROLLED = """HloModule m

ENTRY %main (x: f32[64]) -> f32[64] {
  %x = f32[64]{0} parameter(0)
  %a = f32[64]{0} collective-permute(%x), channel_id=4, \
source_target_pairs={{0,1},{1,0}}
  ROOT %b = f32[64]{0} collective-permute(%a), channel_id=4, \
source_target_pairs={{0,1},{1,0}}
}
"""


def test_the_rounds_of_an_unrolled_loop_all_count():
    counts = hlo.Program(UNROLLED).count()
    assert counts.collectives == {"collective-permute": 2 * 4 * 64}
