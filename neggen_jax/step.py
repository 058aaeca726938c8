"""One optimiser step, and many of them in one dispatch to the devices.

Everything here is a pure function of its arguments: `State` goes in and
comes out, random numbers follow from the run's seed and the step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from neggen_jax.data.inputs import Inputs
from neggen_jax.negatives.source import Clock
from neggen_jax.optimizer import Optimizer
from neggen_jax.partition import Partition
from neggen_jax.recommender import Recommender

Terms = dict[str, jax.Array]
Stack = dict[str, jax.Array]


@flax.struct.dataclass
class State:
    """What training changes.

    Attributes:
      step: int32 scalar, steps done.
      params: of the recommender.
      opt_state: of the optimiser.
      variables: what sources of negatives keep beside parameters (a bank,
        running statistics), by Flax collection.
      average: running average of `params`, or None where none is kept.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    variables: Any
    average: Any

    @property
    def evaluated(self) -> Any:
        """The parameters that rankings are made with."""
        return self.params if self.average is None else self.average


@flax.struct.dataclass
class Report:
    """What a dispatch tells of its steps.

    Attributes:
      means: of each loss term and metric over the steps in which it is
        finite: a metric may have nothing to measure in some, or in all.
      bad_step: int32, the first step whose loss, gradient or update is not
        finite; -1.
      bad_terms: the terms of that step.
    """

    means: Terms
    bad_step: jax.Array
    bad_terms: Terms


@dataclasses.dataclass(frozen=True)
class Program:
    """The pure functions of one run.

    Attributes:
      recommender: what is trained.
      optimizer: how.
      partition: where.
      seed: of everything random.
      steps_per_epoch: for schedules that count epochs.
      epochs: of the whole run, for schedules that stretch over it.
      dtype: of activations; parameters and losses stay float32.
      decay: of the running average; 0 keeps none.
      batches: that one step reads; they share one propagation.
    """

    recommender: Recommender
    optimizer: Optimizer
    partition: Partition
    seed: int
    steps_per_epoch: int
    epochs: int
    dtype: str = "float32"
    decay: float = 0.0
    batches: int = 1

    def key(self, purpose: int) -> jax.Array:
        """An independent key for each purpose."""
        return jax.random.fold_in(jax.random.key(self.seed), purpose)

    def clock(self, step: jax.Array) -> Clock:
        """How far the run is after `step` steps."""
        return Clock.at(step, self.steps_per_epoch, self.epochs)

    def init(self, inputs: Inputs, batch: Stack) -> State:
        """The state of step 0, with axes named where modules named them."""
        params_key, draw_key = jax.random.split(self.key(0))
        inputs = self.recommender.prepare(inputs, self.key(1))
        batch = jax.tree.map(lambda x: x[0], self._cut(batch))
        variables = self.recommender.init(
            {
                "params": params_key,
                "negatives": draw_key,
                "dropout": draw_key,
            },
            inputs,
            batch,
            self.clock(jnp.zeros((), jnp.int32)),
        )
        params = variables.pop("params")
        return State(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=self.optimizer.init(params),
            variables=variables,
            average=params if self.decay else None,
        )

    def place(self, inputs: Inputs, batch: Stack) -> tuple[State, State]:
        """Makes the state of step 0 where it belongs, never elsewhere.

        Returns:
          The state and its abstract form, shapes and shardings alone.
        """
        abstract = self.abstract(inputs, batch)
        make = jax.jit(
            lambda *args: nn.unbox(self.init(*args)),
            out_shardings=_shardings(abstract),
        )
        return make(inputs, batch), abstract

    def abstract(self, inputs: Inputs, batch: Stack) -> State:
        """The state's shapes and shardings; so may the arguments be."""
        boxed = jax.eval_shape(self.init, inputs, batch)

        def placed(sharding: Any, part: Any) -> Any:
            # Where the optimiser masks a parameter, there is no array.
            return jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(
                    x.shape, x.dtype, sharding=sharding
                ),
                part,
            )

        shardings = self.partition.tree_shardings(boxed)
        return jax.tree.map(placed, shardings, nn.unbox(boxed))

    def trainer(self, state: State) -> Any:
        """`dispatch`, ready to be lowered; the state stays where it is.

        Args:
          state: arrays, or their abstract form.
        """
        # Whatever the compiler would prefer.
        return jax.jit(
            self.dispatch,
            donate_argnums=0,
            out_shardings=(_shardings(state), None),
        )

    def prepare(self, inputs: Inputs, epoch: jax.Array) -> Inputs:
        """The inputs of one epoch."""
        key = jax.random.fold_in(self.key(1), epoch)
        return self.recommender.prepare(inputs, key)

    def encode(
        self, params: Any, inputs: Inputs
    ) -> tuple[jax.Array, jax.Array]:
        """Final vectors of all users and items, in float32."""
        encoded: Any = self.recommender.apply(
            {"params": params}, inputs, method="encode"
        )
        return encoded.users, encoded.items

    def step(
        self, state: State, inputs: Inputs, batch: Stack
    ) -> tuple[State, Terms]:
        """One optimiser step: on one batch, or on several at once.

        Args:
          state: before it.
          inputs: as prepared for the epoch.
          batch: int32 `[batches * B]` each.
        """
        gradient = self._gradient if self.batches == 1 else self._mean_gradient
        grads, terms, variables = gradient(state, inputs, batch)
        made = self.optimizer.apply(grads, state.opt_state, state.params)
        average = state.average
        if average is not None:
            average = optax.incremental_update(
                made.params, average, 1 - self.decay
            )
        terms["gradient_norm"] = _root(made.gradients)
        parts = by_modality(made.gradients, modalities(inputs))
        for name, part in parts.items():
            terms[f"gradient_norm/{name}"] = _root(part)
        terms["update_norm"] = _root(made.updates)
        after = State(
            state.step + 1, made.params, made.state, variables, average
        )
        return after, terms

    def _gradient(
        self, state: State, inputs: Inputs, batch: Stack
    ) -> tuple[Any, Terms, Any]:
        """The gradient of one batch, its terms, and variables after it."""
        clock = self.clock(state.step)
        rngs = self._rngs(state.step)

        def loss(params):
            (total, terms), variables = self.recommender.apply(
                {"params": self._cast(params), **state.variables},
                inputs,
                batch,
                clock,
                rngs=rngs,
                mutable=list(state.variables),
            )
            return total, (terms, variables)

        grads, (terms, variables) = jax.grad(loss, has_aux=True)(state.params)
        return grads, terms, variables

    def _mean_gradient(
        self, state: State, inputs: Inputs, batch: Stack
    ) -> tuple[Any, Terms, Any]:
        """The gradient of the mean loss of several batches.

        All see the same parameters, so users and items are embedded once.
        The gradients with respect to these embeddings are added up over the
        batches, one after another, and then go back through the encoder
        once. Each batch draws its own negatives, and what sources keep goes
        from batch to batch.
        """
        clock = self.clock(state.step)
        rngs = self._rngs(state.step)

        def apply(params, variables, rngs, method, *args):
            return self.recommender.apply(
                {"params": self._cast(params), **variables},
                *args,
                rngs=rngs,
                mutable=list(variables),
                method=method,
            )

        def embed(params):
            return apply(params, state.variables, rngs, "embed", inputs)

        def loss(read, variables, batch, rngs):
            encoded, others = read
            (total, terms), variables = apply(
                others, variables, rngs, "loss", encoded, inputs, batch, clock
            )
            return total / self.batches, (terms, variables)

        def body(carry, at):
            variables, sums = carry
            grads, (terms, variables) = jax.grad(loss, has_aux=True)(
                read, variables, *at
            )
            return (variables, jax.tree.map(jnp.add, sums, grads)), terms

        # Losses read what the encoder gives, never its parameters.
        others = {k: v for k, v in state.params.items() if k != "encoder"}
        encoder = {k: v for k, v in state.params.items() if k == "encoder"}
        encoded, backward, variables = jax.vjp(embed, encoder, has_aux=True)
        read = encoded, others
        keys = {
            name: jax.random.split(key, self.batches)
            for name, key in rngs.items()
        }
        (variables, (sums, grads)), terms = jax.lax.scan(
            body,
            (variables, jax.tree.map(jnp.zeros_like, read)),
            (self._cut(batch), keys),
        )
        (through,) = backward(sums)
        return {**through, **grads}, _over_batches(terms), variables

    def _rngs(self, step: jax.Array) -> dict[str, jax.Array]:
        """The keys of one step, by what is drawn; evaluation has none."""
        purposes = {"negatives": 2, "dropout": 3}
        return {
            name: jax.random.fold_in(self.key(number), step)
            for name, number in purposes.items()
        }

    def _cut(self, batch: Stack) -> Stack:
        """Cuts what a step reads into its batches, `[batches, B]` each."""

        def cut(x):
            # Every n-th example is of the same batch: each device cuts what
            # it holds, and nothing moves.
            return x.reshape(-1, self.batches, *x.shape[1:]).swapaxes(0, 1)

        return jax.tree.map(cut, batch)

    def dispatch(
        self, state: State, inputs: Inputs, stack: Stack, count: jax.Array
    ) -> tuple[State, Report]:
        """Runs the first `count` batches of a stack.

        Args:
          state: donated.
          inputs: as prepared for the epoch.
          stack: int32 `[S, batches * B]` each.
          count: int32 scalar, at most S; not static, so that a short stack
            at the end of an epoch needs no program of its own.
        """

        def body(index, carry):
            state, sums, seen, bad_step, bad_terms = carry
            batch = jax.tree.map(lambda x: x[index], stack)
            at = state.step
            state, terms = self.step(state, inputs, batch)
            sums, seen = _add(sums, seen, terms)
            # The loss is that of the parameters before the step; the update
            # tells whether those after it are fit to be saved.
            norms = terms["gradient_norm"] + terms["update_norm"]
            first_bad = ~jnp.isfinite(terms["loss"] + norms) & (bad_step < 0)
            bad_step = jnp.where(first_bad, at, bad_step)
            bad_terms = jax.tree.map(
                lambda new, old: jnp.where(first_bad, new, old),
                terms,
                bad_terms,
            )
            return state, sums, seen, bad_step, bad_terms

        first = jax.tree.map(lambda x: x[0], stack)
        _, shapes = jax.eval_shape(self.step, state, inputs, first)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        start = (state, zeros, zeros, jnp.full((), -1, jnp.int32), zeros)
        state, sums, seen, bad_step, bad_terms = jax.lax.fori_loop(
            0, count, body, start
        )
        means = jax.tree.map(jnp.divide, sums, seen)
        return state, Report(means, bad_step, bad_terms)

    def _cast(self, tree: Any) -> Any:
        def cast(x):
            return x.astype(self.dtype) if x.dtype == jnp.float32 else x

        return jax.tree.map(cast, tree)


def _root(squares: Any) -> jax.Array:
    """The norm of all that sums of squares are of."""
    return jnp.sqrt(sum(jax.tree.leaves(squares)))


def _shardings(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.sharding, tree)


def by_modality(tree: Any, names: Iterable[str]) -> dict[str, list[jax.Array]]:
    """The leaves of a tree whose path names a modality.

    A part of a path names one if it is its name, or has it between
    underscores: of "causal/embed_text/kernel", the second names "text". Of
    "embed_long_text" it would be "long_text", if there were such a modality;
    leaves that name two are nobody's.

    Args:
      tree: of parameters, or of their gradients.
      names: of the modalities.

    Returns:
      Modality -> leaves, of those modalities that have any.
    """
    found: dict[str, list[jax.Array]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        text = jax.tree_util.keystr(path, simple=True, separator="/")
        words = f"_{text.replace('/', '_/_')}_"
        named = [name for name in names if f"_{name}_" in words]
        # Not those that are only a part of a longer one's name.
        whole = [
            name
            for name in named
            if not any(name != n and f"_{name}_" in f"_{n}_" for n in named)
        ]
        if len(whole) == 1:
            found.setdefault(whole[0], []).append(leaf)
    return dict(sorted(found.items()))


def modalities(inputs: Inputs) -> set[str]:
    """Those that a step reads."""
    names = {*inputs.features}
    if inputs.counterfactuals is not None:
        names |= {*inputs.counterfactuals.mean}
    return names


def _over_batches(terms: Terms) -> Terms:
    """Means over the batches of a step, `[n]` each.

    A metric's is over those batches that had something to measure; but a
    loss that is not finite in one of them is not finite in the mean.
    """
    fine = jnp.isfinite(terms["loss"]).all()

    def mean(x):
        there = jnp.isfinite(x)
        some = jnp.where(there, x, 0).sum() / there.sum()
        return jnp.where(fine, some, x.mean())

    return jax.tree.map(mean, terms)


def _add(sums: Terms, seen: Terms, terms: Terms) -> tuple[Terms, Terms]:
    """Adds up finite values, and counts them."""
    fine = jax.tree.map(jnp.isfinite, terms)
    sums = jax.tree.map(
        lambda s, x, ok: s + jnp.where(ok, x, 0), sums, terms, fine
    )
    return sums, jax.tree.map(jnp.add, seen, fine)
