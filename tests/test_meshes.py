"""Every encoder and method learns the same on any mesh."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rewritten import make_rewritten
from training import make_config

from neggen_jax.run import Run

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
EPS = np.finfo(np.float32).eps

# data x model, what tables are spread over, and how they are exchanged.
LAYOUTS = {
    "8x1": (8, 1, "model", "gather"),
    "4x2": (4, 2, "model", "gather"),
    "1x8": (1, 8, "model", "gather"),
    "1x8-ring": (1, 8, "model", "ring"),
    "4x2-all-ring": (4, 2, "all", "ring"),
    "1x8-pull": (1, 8, "model", "pull"),
    "4x2-all-pull": (4, 2, "all", "pull"),
}
EXPERIMENTS = {
    "mf": ("baseline", "mf"),
    "lightgcn": ("baseline", "lightgcn"),
    "vbpr": ("baseline", "vbpr"),
    # Pruned anew each epoch, and popularity tables.
    "freedom": ("baseline", "freedom,popularity"),
    "mci": ("baseline", "mci"),
    # Without negatives, and with.
    "bm3": ("baseline", "bm3"),
    "bm3,dns": ("baseline", "bm3,dns"),
    "mgcn": ("baseline", "mgcn"),
    "smore": ("baseline", "smore"),
    "dns": ("baseline", "lightgcn,dns"),
    "dens": ("baseline", "lightgcn,dens"),
    "in_batch": ("baseline", "lightgcn,in_batch"),
    "softmax": ("baseline", "mf,softmax"),
    "neggen": ("neggen", "lightgcn"),
    "published": ("neggen", "lightgcn,published"),
    "gdnsm": ("gdnsm", "mci"),
    "both": ("neggen", "mci,gdnsm"),
    "all": ("neggen", "lightgcn,gdnsm,mixgcf"),
}
# Every exchange; the rest of the pairs is slow.
QUICK = {
    ("lightgcn", "4x2-all-ring"),
    ("freedom", "4x2-all-pull"),
    ("mgcn", "1x8-ring"),
}


@functools.cache
def learn(experiment: str, data: int, model: int, tables: str, exchange: str):
    """Loss terms over three steps, and the run."""
    file, argument = EXPERIMENTS[experiment]
    config = make_config(
        argument,
        CONFIGS / f"{file}.py",
        train__ema=0.75,
        mesh__tables=tables,
        mesh__exchange=exchange,
    )
    config.mesh.data, config.mesh.model = data, model
    # Generated negatives count from the first step on.
    if "generated" in config.negatives:
        config.negatives.generated.start = 0
    devices = jax.devices()[: data * model]
    run = Run.make(config, make_rewritten(), devices)
    state, _ = run.start()
    inputs = jax.jit(run.program.prepare)(run.inputs, jnp.int32(0))
    stack = next(run.batches(0))
    count = run.partition.put(np.int32(3))
    state, report = jax.jit(run.program.dispatch)(state, inputs, stack, count)
    return jax.device_get(report.means), run


@pytest.mark.parametrize(
    ("experiment", "layout"),
    [
        pytest.param(
            experiment,
            layout,
            marks=() if (experiment, layout) in QUICK else pytest.mark.slow,
        )
        for experiment in EXPERIMENTS
        for layout in LAYOUTS
    ],
)
def test_losses_are_the_same_on_any_mesh(experiment, layout):
    """Batches, negatives and pruning do not depend on the devices.

    What is left are sums of some thousand terms in another order, over three
    steps: errors like the root of their number, some ten roundings; a
    hundred is generous.
    """
    want, _ = learn(experiment, 1, 1, "model", "gather")
    got, run = learn(experiment, *LAYOUTS[layout])
    assert run.partition.mesh.size == 8
    assert want.keys() == got.keys()
    for name, value in want.items():
        # Adam divides by gradients: where they are as small as the epsilon
        # beside them, their roundings are a part of the step.
        bound = 1e-3 if name == "update_norm" else 100 * EPS
        np.testing.assert_allclose(
            got[name], value, rtol=bound, atol=100 * EPS, err_msg=name
        )
