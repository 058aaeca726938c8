"""What the tests of generated negatives share: small runs that have them."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from conftest import make_catalog
from ml_collections import ConfigDict
from training import make_config

from neggen_jax.catalog import Catalog
from neggen_jax.data.inputs import Inputs
from neggen_jax.models.encoder import Encoded, Encoder
from neggen_jax.negatives.diffusion import Diffusion
from neggen_jax.negatives.source import Batch, Negatives
from neggen_jax.run import Run
from neggen_jax.step import State

# Small, and other than the defaults: three levels of two, let in by steps.
PART = {
    "name": "diffusion",
    "samples": 2,
    "start": 4.0,
    "unit": "steps",
    "first": ("text",),
    "scales": {"text": 1.5, "image": 2.0},
    "timesteps": 6,
    "hidden": 16,
    "drop": 0.1,
    "steps": 3,
    "eta": 1.0,
}
# One negative, from the beginning: what compiles soonest.
LEAST = {"levels": "joint", "samples": 1, "start": 0.0, "eta": 0.0}
# A step compiles for seconds; without LLVM's optimisations, for half of them.
QUICK = {"xla_backend_optimization_level": 0}


def with_generated(
    argument: str, part: Mapping[str, Any], **changes: Any
) -> ConfigDict:
    """An experiment of configs/baseline.py with generated negatives too.

    Args:
      argument: of the config file.
      part: keys of the source that differ from `PART`.
      **changes: dotted keys of the rest, with __ for the dots.
    """
    config = make_config(argument, **changes)
    with config.unlocked():
        config.negatives.generated = {**PART, **part}
        config.losses.generated = {
            "name": "bpr",
            "weight": 0.5,
            "source": "generated",
        }
    return config


@flax.struct.dataclass
class Seen:
    """Everything about the loss of one batch.

    Attributes:
      terms: losses and metrics.
      gradients: of the generator's loss, and of the rest of the total.
      encoded: embeddings.
      negatives: as the source gave them.
      variables: after the batch.
    """

    terms: dict[str, Any]
    gradients: tuple[Any, Any]
    encoded: Encoded
    negatives: Negatives
    variables: Any


@dataclasses.dataclass(frozen=True)
class Small:
    """A run at step 0, with batches of 64; nothing is donated."""

    run: Run
    state: State
    inputs: Inputs
    stack: Batch

    def batch(self, number: int) -> Batch:
        """One of the first three batches."""
        return {name: column[number] for name, column in self.stack.items()}

    def see(
        self,
        step: int = 0,
        state: State | None = None,
        inputs: Inputs | None = None,
        batch: Batch | None = None,
        draw: int = 0,
    ) -> Seen:
        """What a step would do.

        Args:
          step: that the clock shows.
          state: its parameters and variables.
          inputs: of the epoch.
          batch: of pairs.
          draw: number of the random draw; a real one takes the step's.
        """
        usual = self.state, self.inputs, self.batch(0)
        given = state or self.state, inputs or self.inputs, batch or usual[2]
        # Where the usual ones are, or it would be compiled anew.
        state, inputs, batch = jax.tree.map(
            lambda x, like: jax.device_put(x, like.sharding), given, usual
        )
        state = state.replace(
            step=jax.device_put(jnp.int32(step), state.step.sharding)
        )
        return jax.device_get(self._see(state, inputs, batch, jnp.int32(draw)))

    @functools.cached_property
    def _see(self) -> Any:
        program = self.run.program

        def see(state, inputs, batch, draw):
            def loss(params):
                (total, terms), after = program.recommender.apply(
                    {"params": params, **state.variables},
                    inputs,
                    batch,
                    program.clock(state.step),
                    rngs={
                        name: jax.random.fold_in(program.key(purpose), draw)
                        for name, purpose in (("negatives", 2), ("dropout", 3))
                    },
                    mutable=[*state.variables, "intermediates"],
                    capture_intermediates=lambda module, _: isinstance(
                        module, Encoder | Diffusion
                    ),
                )
                own = terms["generated/denoiser"]
                return (own, total - own), (terms, after)

            _, back, (terms, after) = jax.vjp(loss, state.params, has_aux=True)
            given = after.pop("intermediates")
            return Seen(
                terms,
                tuple(back(one)[0] for one in ((1.0, 0.0), (0.0, 1.0))),
                given["encoder"]["__call__"][0],
                given["sources_generated"]["__call__"][0],
                after,
            )

        return jax.jit(see, compiler_options=QUICK)


def start(
    config: ConfigDict, mesh=(1, 1), catalog: Catalog | None = None
) -> Small:
    """Composes a run on some of the virtual devices.

    Parameters are drawn by NumPy, the same on every mesh: to compile what
    really makes them takes longer than any of the tests.
    """
    catalog = catalog or make_catalog()
    config.mesh.data, config.mesh.model = mesh
    run = Run.make(config, catalog, jax.devices()[: mesh[0] * mesh[1]])
    stack = next(run.batches(0))
    batch = {name: column[0] for name, column in stack.items()}
    boxed = jax.eval_shape(run.program.init, run.inputs, batch)
    rng = np.random.default_rng(0)

    def fill(path, sharding, leaf):
        if not hasattr(leaf, "shape"):
            # Of a group of parameters that it is not in.
            return leaf
        name = jax.tree_util.keystr(path)
        value = np.zeros(leaf.shape, leaf.dtype)
        if name.startswith(".params"):
            rows = leaf.shape[0]
            if "['encoder']['users']" in name:
                rows = catalog.num_users
            if "['encoder']['items']" in name:
                rows = catalog.num_items
            size = (rows, *leaf.shape[1:])
            value[:rows] = rng.normal(size=size) / np.sqrt(size[-1])
        return jax.device_put(value, sharding)

    state = jax.tree_util.tree_map_with_path(
        fill, run.partition.tree_shardings(boxed), nn.unbox(boxed)
    )
    prepared = jax.jit(run.program.prepare)(run.inputs, jnp.int32(0))
    return Small(run, state, prepared, stack)
