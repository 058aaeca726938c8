"""Plans of runs that are not there, against runs that are."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ITEMS, USERS, make_catalog, some
from test_cli import ROOT, call, refused
from training import make_config, make_run

from neggen_jax import aot, hlo, plan, plan_report
from neggen_jax.errors import InputError
from neggen_jax.roofline import CHIPS, Times, Topology, times

WIDTHS = {"text": 12, "image": 9}


def small_case(argument="lightgcn", pod="v5e:2x2", model=4, **changes):
    config = make_config(argument, mesh__data=-1, mesh__model=model, **changes)
    train = make_catalog().train
    return plan.Case(
        argument,
        config,
        Topology.parse(pod),
        USERS,
        ITEMS,
        len(train),
        WIDTHS,
        longest=int(np.bincount(train.users).max()),
    )


@pytest.fixture
def on_cpu(monkeypatch):
    """Plans with virtual devices, also where libtpu is installed."""
    monkeypatch.setattr(aot, "have_libtpu", lambda: False)


@pytest.mark.parametrize("argument", some(["lightgcn", "mci"], "mci"))
def test_the_program_planned_is_the_program_that_trains(argument, on_cpu):
    """On one device, where there is no skew, to the last byte.

    Of the item graphs only the most edges are known, so MCI's may need more.
    """
    made = plan.make(small_case(argument, "v5e:1x1", 1)).phases["train"]
    run = make_run(argument)
    state, _ = run.start()
    prepared = jax.jit(run.program.prepare)(run.inputs, jnp.int32(0))
    trainer = run.program.trainer(state)
    count = run.partition.put(jnp.int32(0))
    compiled = trainer.lower(state, prepared, run.stack(), count).compile()
    counts = hlo.Program(compiled.as_text()).count()
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    if argument == "lightgcn":
        assert made.temporaries == temporaries
        assert made.counts == counts
        assert made.compiler["flops"] == compiled.cost_analysis()["flops"]
    else:
        assert temporaries <= made.temporaries <= 2 * temporaries
        assert counts.flops <= made.counts.flops <= 1.5 * counts.flops


def test_tables_are_cut_and_counted(on_cpu):
    made = plan.make(small_case())
    dim, rows = 8, (USERS + 3) // 4 + (ITEMS + 3) // 4
    assert made.mesh == {"data": 1, "model": 4}
    assert made.held["parameters"] == 4 * dim * rows
    # Two moments, and a count or two.
    moments = 2 * made.held["parameters"]
    assert moments < made.held["optimiser"] <= moments + 64
    assert made.held["features"] == made.held["counterfactuals"] == 0
    train = made.case.interactions
    room = math.ceil(train / 4 * made.case.skew)
    assert made.held["positives"] == 4 * (room + (USERS + 3) // 4 + 1)
    # Nothing that an encoder reads is there twice: two stacks are all, of
    # users and items.
    stack = 2 * 4 * 64 * 3
    assert made.passing["train"] == 2 * stack
    assert made.fits
    # Tables of another shard are received in a step.
    assert sum(made.phases["train"].counts.collectives.values()) > 0
    assert made.steps == -(-train // 64)
    assert made.blocks == 1


@pytest.mark.slow
def test_sources_are_planned_with_what_they_read(on_cpu):
    file = ROOT / "configs" / "neggen.py"
    config = make_config("lightgcn", file, mesh__data=-1, mesh__model=4)
    topology = Topology.parse("v5e:2x2")
    case = plan.Case("n", config, topology, USERS, ITEMS, 400, WIDTHS, 3)
    made = plan.make(case)
    rows, widths = (ITEMS + 3) // 4, sum(WIDTHS.values())
    # Factual and three others, with a flag each; moments of one vector.
    table = rows * (4 * widths * 4 + 2 * 4)
    moments = 4 * widths + 2 * 4
    assert made.held["counterfactuals"] == table + moments


@pytest.mark.slow
def test_what_would_make_it_fit_is_tried(on_cpu):
    case = small_case("mf", model=1)
    case = plan.dataclasses.replace(
        case, users=50_000_000, items=1_000_000, interactions=10**8
    )
    case = plan.changed(case, {"encoder.dim": 32})
    made = plan.make(case)
    assert not made.fits
    assert made.left < 0
    assert made.total(made.worst) > made.limit
    tried = plan.remedies(made)
    changes, last = tried[-1]
    assert last.fits
    assert changes == {"mesh.tables": "all", "mesh.exchange": "pull"}
    said = plan_report.text(made, tried)
    assert "It does not fit: " in said
    assert (
        "It would fit with --config.mesh.tables=all "
        "--config.mesh.exchange=pull" in said
    )
    # Users' vectors and both their moments, or their gradient.
    assert "f32[50000000,32]" in said or "optimiser, all the time" in said


def test_tables_that_no_int32_points_into_are_refused(on_cpu):
    case = small_case("mf", "v5e:1x1", 1)
    case = plan.dataclasses.replace(case, interactions=5 * 10**9)
    with pytest.raises(InputError, match="too many positives") as caught:
        plan.make(case)
    assert caught.value.found == 5 * 10**9


def test_hosts_are_noted(on_cpu):
    made = plan.make(small_case())
    assert "cut into 1 part " in made.notes[0]
    assert "note: " in plan_report.text(made, [])


@pytest.mark.slow
def test_vectors_that_all_send_to_all_are_counted_by_the_links(on_cpu):
    case = small_case(mesh__exchange="pull", mesh__tables="all")
    made = plan.make(case)
    received = made.phases["train"].counts.collectives
    assert received["all-to-all"] > 0
    assert "edges drew them uniformly" in made.notes[1]
    # On a torus of 2 x 2 one of three others is two links away.
    longer = sum(received.values()) + received["all-to-all"] / 3
    seconds = made.times("train").interconnect
    assert seconds == pytest.approx(longer / case.topology.chip.links)


def test_a_bad_config_is_refused_as_a_run_would_be(on_cpu):
    case = plan.changed(small_case(model=1), {"train.batch_size": 63})
    with pytest.raises(InputError, match="does not cut evenly"):
        plan.make(case)


def test_fewer_virtual_devices_than_chips_are_refused(on_cpu):
    with pytest.raises(InputError, match="fewer virtual devices"):
        aot.devices(Topology.parse("v5e:16x16"))


def test_the_roofline_is_the_slowest_resource():
    chip = CHIPS["v5e"]
    found = times(chip, chip.flops, 3 * chip.bandwidth, 2 * chip.links)
    assert found == Times(1.0, 3.0, 2.0)
    assert (found.bound, found.least) == ("hbm", 3.0)
    # Half a chip has half of everything.
    assert times(chip, chip.flops, 0, 0, devices=2).compute == 2.0


@pytest.mark.parametrize("pod", ["v5e:4x4", "v5e:16x16", "v4:3x4x1", "v5e:1x1"])
def test_the_distance_of_chips_is_that_of_the_torus(pod):
    topology = Topology.parse(pod)
    chips = np.array(list(np.ndindex(*topology.shape)))
    apart = np.abs(chips[:, None] - chips)
    links = np.minimum(apart, np.array(topology.shape) - apart).sum(-1)
    others = links[links > 0]
    assert topology.distance == pytest.approx(
        others.mean() if others.size else 1
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("v5:4x4", "did you mean"),
        ("v5e:4", "do not form"),
        ("v5e:4x4x4", "do not form"),
        ("v4:4x4", "do not form"),
        ("v5e:0x4", "do not form"),
        ("v5e:axb", "do not form"),
    ],
)
def test_a_pod_that_is_none_is_refused(text, problem):
    with pytest.raises(InputError, match=problem):
        Topology.parse(text)


def test_a_hollow_catalogue_takes_no_memory():
    case = small_case()
    case = plan.dataclasses.replace(
        case, users=10**8, items=10**7, interactions=5 * 10**9
    )
    hollow = plan.hollow(case)
    assert len(hollow.train) == 5 * 10**9
    assert hollow.features["text"].values.shape == (10**7, 12)
    held = hollow.train.users, hollow.features["text"].values
    assert all(array.base.nbytes <= 8 for array in held)


PLANS = """
[[plan]]
config = "configs/baseline.py:mf"
topology = "v5e:1x1"
users = 1_000
items = 500
interactions = 20_000
longest = 15

[[plan]]
config = "configs/baseline.py:lightgcn"
set = ["mesh.model=2", "encoder.dim=8"]
topology = "v5e:1x2"
users = 1_000
items = 500
interactions = 20_000
longest = 15
"""


def test_the_command_prints_a_table_of_plans(tmp_path):
    (tmp_path / "plans.toml").write_text(PLANS)
    output = tmp_path / "plans.json"
    table = tmp_path / "plans.md"
    done = call(
        "plan",
        f"--plans={tmp_path / 'plans.toml'}",
        f"--output={output}",
        f"--table={table}",
    )
    assert done.returncode == 0, done.stderr
    assert "the CPU's compiler" in table.read_text()
    rows = [r for r in done.stdout.splitlines() if r.startswith("| baseline")]
    assert [row.split(" | ")[2] for row in rows] == ["1x1", "1x2"]
    assert all(row.endswith("| yes |") for row in rows)
    assert all(row in table.read_text() for row in rows)
    one, two = json.loads(output.read_text())
    assert one["fits"] is two["fits"] is True
    assert two["programs"]["train"]["counts"]["collectives"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "There is nothing to plan"),
        (("--config=configs/baseline.py:mf", "--topology=v7:2x2"), "v7"),
        (
            ("--config=configs/baseline.py:mf", "--features=text"),
            "MODALITY:WIDTH",
        ),
        (("--plans=nowhere.toml",), "nowhere.toml"),
    ],
)
def test_the_command_refuses(flags, said):
    assert said in refused(call("plan", *flags))


@pytest.mark.slow
@pytest.mark.skipif(not aot.have_libtpu(), reason="requirements-tpu.txt")
def test_the_compiler_of_tpus_plans_a_pod(tmp_path):
    output = tmp_path / "plan.json"
    done = call(
        "plan",
        "--config=configs/baseline.py:lightgcn",
        "--topology=v5e:4x4",
        "--config.mesh.model=16",
        "--users=2e7",
        "--items=2e6",
        "--interactions=4e8",
        "--nosearch",
        f"--output={output}",
    )
    assert done.returncode == 0, done.stderr
    (record,) = json.loads(output.read_text())
    assert record["compiler"] == "tpu"
    train = record["programs"]["train"]
    # All users' vectors, gathered whole: 20 M of 64 floats, in 128 lanes.
    assert train["total"] > record["usable_bytes"]
    assert "RESOURCE_EXHAUSTED" in train["refused"]
    assert train["largest"][0][0] == 2 * 10**7 * 128 * 4
    assert record["programs"]["rank"]["refused"] == ""
