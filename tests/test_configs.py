"""Every experiment of configs/ trains, on any mesh, to the same losses."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_catalog, some
from generated import LEAST, QUICK
from rewritten import make_neggen, make_rewritten
from training import BASELINE, make_config, small

from neggen_jax import config as configs
from neggen_jax.run import Run
from neggen_jax.train import train_and_evaluate

# Every word that configs/baseline.py takes occurs, and every mesh.
EXPERIMENTS = {
    "mf,smoke": (8, 1),
    "lightgcn,uniform": (4, 2),
    "vbpr,dens": (1, 8),
    "freedom,popularity": (4, 2),
    "mci,mixgcf": (1, 8),
    "bm3": (4, 2),
    "mgcn": (8, 1),
    "smore": (1, 8),
}
# Those of its words for negatives that are not among them.
SAMPLERS = ("dns", "dns_mn", "ahns", "in_batch", "softmax")


def assert_finite(tree, name="") -> None:
    if isinstance(tree, dict):
        for key, value in tree.items():
            assert_finite(value, f"{name}.{key}")
    elif isinstance(tree, float):
        assert math.isfinite(tree), name


def train_one_epoch(argument, mesh, workdir):
    config = make_config(argument, train__epochs=1)
    config.mesh.data, config.mesh.model = mesh
    results = train_and_evaluate(config, workdir, make_catalog())
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return results, [json.loads(line) for line in lines]


def assert_same_losses(argument, lines) -> None:
    """The first dispatch, against the one device of `small`.

    What differs are sums of some thousand terms in another order, over three
    steps: errors like the root of their number, some ten roundings; a
    hundred is generous.
    """
    it = small(argument)
    _, report = it.dispatch(it.state, it.inputs, it.stack, jnp.int32(3))
    first = {k: v for k, v in lines[0].items() if k.startswith("train/")}
    assert first.keys() == {f"train/{name}" for name in report.means}
    for name, value in report.means.items():
        assert first[f"train/{name}"] == pytest.approx(
            float(value), rel=100 * float(np.finfo(np.float32).eps)
        ), name


@pytest.mark.parametrize("argument", some(EXPERIMENTS, "vbpr,dens", "smore"))
def test_trains_an_epoch(argument, tmp_path):
    results, lines = train_one_epoch(argument, EXPERIMENTS[argument], tmp_path)
    assert lines[0]["step"] == 3
    assert_same_losses(argument, lines)
    for line in lines:
        assert_finite(line)

    stored = json.loads((tmp_path / "results.json").read_text())
    assert stored == results
    promised = {"dataset", "config", "step", "valid", "test", "timing"}
    assert promised <= stored.keys()
    assert_finite(stored)
    assert stored["config"]["encoder"]["name"] == argument.split(",")[0]
    assert stored["dataset"]["fingerprint"] == make_catalog().fingerprint
    assert stored["step"] == 9
    assert {"recall@5", "ndcg@20"} <= stored["valid"].keys()
    assert {"recall@5", "ndcg@20"} <= stored["test"].keys()
    assert {
        "seconds_per_epoch",
        "examples_per_second",
        "evaluation_seconds",
        "compile_seconds",
    } <= stored["timing"].keys()
    assert list((tmp_path / "plots").iterdir())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_takes_steps(sampler):
    """Three, on eight devices, and parameters follow."""
    it = small(f"mf,{sampler}", (4, 2))
    state, report = it.dispatch(it.state, it.inputs, it.stack, jnp.int32(3))
    assert report.bad_step == -1
    assert int(state.step) == 3
    assert_finite({k: float(v) for k, v in report.means.items()})
    before, after = (x.params["encoder"]["items"] for x in (it.state, state))
    assert np.abs(np.asarray(after - before)).max() > 1e-3
    source = "whole_batch" if sampler == "softmax" else sampler
    assert it.run.config.negatives.sampled.name == source


@pytest.mark.parametrize("file", ["gdnsm", "neggen"])
def test_words_for_samplers_are_those_of_the_baseline(file):
    known = configs.load(f"{BASELINE}:lightgcn,mixgcf")
    config = configs.load(f"{BASELINE.with_stem(file)}:lightgcn,mixgcf")
    assert config.negatives.sampled == known.negatives.sampled
    assert len(config.negatives) == 2


@pytest.mark.slow
def test_a_sampler_beside_both_kinds_of_generated_negatives():
    """DENS, NegGen and GDNSM learn in one step, each from its own loss."""
    config = make_neggen("mf,gdnsm,dens")
    config.negatives.generated.update(LEAST)
    run = Run.make(config, make_rewritten(), jax.devices()[:1])
    state, _ = run.start()
    stack, count = next(run.batches(0)), jnp.int32(3)
    step = jax.jit(run.program.dispatch).lower(state, run.inputs, stack, count)
    after, report = step.compile(QUICK)(state, run.inputs, stack, count)
    assert report.bad_step == -1
    assert {
        *("bpr", "alignment", "counterfactual", "generated"),
        *("sampled/contrast", "generated/denoiser"),
    } <= report.means.keys()
    for name in ("sampled", "generated", "counterfactual"):
        parts = (x.params[f"sources_{name}"] for x in (state, after))
        changed = jax.tree.map(lambda x, y: bool((x != y).any()), *parts)
        assert all(jax.tree.leaves(changed)), name


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(8, 1), (4, 2), (1, 8)])
@pytest.mark.parametrize("argument", EXPERIMENTS)
def test_losses_are_the_same_on_every_mesh(argument, mesh, tmp_path):
    _, lines = train_one_epoch(argument, mesh, tmp_path)
    assert_same_losses(argument, lines)
