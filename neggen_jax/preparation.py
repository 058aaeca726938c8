"""The inputs of an epoch, without a copy of what it leaves as it is.

Whatever a compiled program gives is an array of its own, also what it was
given and did not touch. Most of the inputs are such: features that nobody
changes, graphs that nobody prunes. Here they are handed on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import Literal

from neggen_jax.data.inputs import Inputs


class Preparation:
    """A function of inputs and epoch, compiled for what it changes alone.

    Args:
      prepare: such as `Program.prepare`; pure.
      inputs: of a run; abstract ones will do.
      epoch: int32 scalar, alike.
    """

    def __init__(
        self,
        prepare: Callable[[Inputs, jax.Array], Inputs],
        inputs: Inputs,
        epoch: jax.Array,
    ):
        traced, shapes = jax.make_jaxpr(prepare, return_shape=True)(
            inputs, epoch
        )
        given = {v: n for n, v in enumerate(traced.jaxpr.invars[:-1])}
        self._from = [
            None if isinstance(variable, Literal) else given.get(variable)
            for variable in traced.jaxpr.outvars
        ]
        self._tree = jax.tree.structure(shapes)

        def change(inputs: Inputs, epoch: jax.Array) -> list[jax.Array]:
            return self._changed(prepare(inputs, epoch))

        # What differs, in the order of the leaves.
        self.change: Any = jax.jit(change)
        self.shapes = self._changed(shapes)

    def _changed(self, inputs: Inputs) -> list[Any]:
        leaves = jax.tree.leaves(inputs)
        pairs = zip(leaves, self._from, strict=True)
        return [leaf for leaf, number in pairs if number is None]

    def join(self, inputs: Inputs, changed: Sequence[Any]) -> Inputs:
        """What was prepared.

        Args:
          inputs: those that were given.
          changed: from `change`.
        """
        given, fresh = jax.tree.leaves(inputs), iter(changed)
        leaves = [next(fresh) if n is None else given[n] for n in self._from]
        prepared: Inputs = jax.tree.unflatten(self._tree, leaves)
        return prepared

    def compile(self, inputs: Inputs, epoch: jax.Array) -> Any:
        """The function itself, ready to be called."""
        change = self.change.lower(inputs, epoch).compile()
        return lambda inputs, epoch: self.join(inputs, change(inputs, epoch))
