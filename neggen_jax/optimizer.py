"""Optimisers and learning-rate schedules, from a config."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from neggen_jax.errors import InputError, nearest
from neggen_jax.ops import adam

SCHEDULES = ("constant", "cosine", "exponential")


def learning_rate(config: ConfigDict, total_steps: int) -> optax.Schedule:
    """The learning rate by step.

    Args:
      config: `learning_rate`, `schedule` (one of `SCHEDULES`),
        `warmup_steps` and `final_scale`, which cosine ends at and
        exponential reaches, as a factor on the learning rate.
      total_steps: that the schedule stretches over.

    Raises:
      InputError: for an unknown schedule, and for an exponential one that is
        to reach zero.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    length = max(1, total_steps - warmup)
    if config.schedule == "constant":
        main = optax.constant_schedule(peak)
    elif config.schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, length, config.final_scale)
    elif config.schedule == "exponential":
        if config.final_scale <= 0:
            # Which optax would silently take as no decay at all.
            raise InputError(
                "An exponential schedule never reaches zero.",
                where="config.optimizer.final_scale",
                expected="more than 0",
                found=config.final_scale,
            )
        main = optax.exponential_decay(peak, length, config.final_scale)
    else:
        raise InputError(
            f"Unknown schedule {config.schedule!r}.",
            where="config.optimizer.schedule",
            fix=nearest(config.schedule, SCHEDULES),
        )
    if not warmup:
        return main
    ramp = optax.linear_schedule(0.0, peak, warmup)
    return optax.join_schedules([ramp, main], [warmup])


class Applied(NamedTuple):
    """What a step leaves.

    Attributes:
      params: after it.
      state: of the optimiser.
      gradients: as parameters, sums of squares of their gradients.
      updates: the same of what was added to them.
    """

    params: Any
    state: Any
    gradients: Any
    updates: Any


@dataclasses.dataclass(frozen=True)
class Group:
    """Parameters that have an Adam of their own.

    Attributes:
      config: of it.
      schedule: of its learning rate.
    """

    config: ConfigDict
    schedule: optax.Schedule

    def rates(self, done: jax.Array, gradients: Sequence[jax.Array]) -> Any:
        """Of one step.

        Args:
          done: int32 scalar, steps before it.
          gradients: of the group, which are clipped together.
        """
        config, count = self.config, optax.safe_increment(done)
        clip = jnp.ones(())
        if config.clip_norm:
            norm = jnp.sqrt(sum(map(adam.squared, gradients)))
            clip = config.clip_norm / jnp.maximum(norm, config.clip_norm)
        beta1, beta2 = jnp.float32(config.beta1), jnp.float32(config.beta2)
        return adam.Rates(
            clip=clip,
            beta1=beta1,
            beta2=beta2,
            rest1=jnp.float32(1 - config.beta1),
            rest2=jnp.float32(1 - config.beta2),
            unbias1=1 / (1 - beta1**count),
            unbias2=1 / (1 - beta2**count),
            epsilon=jnp.float32(config.epsilon),
            rate=jnp.float32(self.schedule(done)),
            decay=jnp.float32(config.weight_decay),
        )


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optimiser, and how a step of it is made.

    Attributes:
      transform: of optax; the state is its, whoever makes the steps.
      groups: those of Adam by their names; empty if it is something else.
      lazy: see `adam.apply`.
      one_cpu: alike.
    """

    transform: optax.GradientTransformation
    groups: Mapping[str, Group] = dataclasses.field(default_factory=dict)
    lazy: bool = False
    one_cpu: bool = False

    def init(self, params: Any) -> Any:
        """The state of step 0."""
        return self.transform.init(params)

    def apply(self, gradients: Any, state: Any, params: Any) -> Applied:
        """Makes a step.

        Args:
          gradients: of all parameters.
          state: from `init`, or of the step before.
          params: before it.
        """
        if self.groups and (self.lazy or self.one_cpu):
            return self._by_adam(gradients, state, params)
        updates, state = self.transform.update(gradients, state, params)
        return Applied(
            optax.apply_updates(params, updates),
            state,
            jax.tree.map(adam.squared, gradients),
            jax.tree.map(adam.squared, updates),
        )

    def _by_adam(self, gradients: Any, state: Any, params: Any) -> Applied:
        leaves, tree = jax.tree.flatten(params)
        slopes = jax.tree.leaves(gradients)
        sums: list[Any] = [None] * len(leaves)
        after = {}
        for name, group in self.groups.items():
            part = _part(state, name)
            (kept,) = filter(_is_adam, jax.tree.leaves(part, is_leaf=_is_adam))
            done = kept.count
            # Where a parameter is of another group, there are no moments.
            (means, masked), (squares, _) = (
                jax.tree.flatten(
                    moments, is_leaf=lambda x: isinstance(x, optax.MaskedNode)
                )
                for moments in (kept.mu, kept.nu)
            )
            mine = [
                n
                for n, mean in enumerate(means)
                if not isinstance(mean, optax.MaskedNode)
            ]
            rates = group.rates(done, [slopes[n] for n in mine])
            for n in mine:
                moments = adam.Moments(means[n], squares[n])
                leaves[n], moments, sums[n] = adam.apply(
                    slopes[n],
                    moments,
                    leaves[n],
                    rates,
                    self.lazy,
                    self.one_cpu,
                )
                means[n], squares[n] = moments.mean, moments.square
            after[name] = _counted(
                part,
                optax.ScaleByAdamState(
                    count=optax.safe_increment(done),
                    mu=jax.tree.unflatten(masked, means),
                    nu=jax.tree.unflatten(masked, squares),
                ),
            )
        return Applied(
            jax.tree.unflatten(tree, leaves),
            _joined(state, after),
            jax.tree.unflatten(tree, [x.gradient for x in sums]),
            jax.tree.unflatten(tree, [x.update for x in sums]),
        )


def _is_adam(state: Any) -> bool:
    return isinstance(state, optax.ScaleByAdamState)


def _counted(part: Any, after: optax.ScaleByAdamState) -> Any:
    """The state of a group with another Adam's, and its schedule's count."""

    def replaced(state: Any) -> Any:
        if _is_adam(state):
            return after
        if isinstance(state, optax.ScaleByScheduleState):
            return state._replace(count=after.count)
        return state

    def is_known(state: Any) -> bool:
        known = optax.ScaleByAdamState, optax.ScaleByScheduleState
        return isinstance(state, known)

    return jax.tree.map(replaced, part, is_leaf=is_known)


def _part(state: Any, name: str) -> Any:
    """The state of one group."""
    if isinstance(state, optax.MultiTransformState):
        masked: Any = state.inner_states[name]
        return masked.inner_state
    return state


def _joined(state: Any, after: dict[str, Any]) -> Any:
    """The state with others in the place of its groups'."""
    if not isinstance(state, optax.MultiTransformState):
        return after[""]
    inner: Any = state.inner_states
    return state._replace(
        inner_states={
            name: inner[name]._replace(inner_state=part)
            for name, part in after.items()
        }
    )


def make(
    config: ConfigDict, total_steps: int, one_cpu: bool = False
) -> Optimizer:
    """Adam, with weight decay and clipping where they are asked for.

    Args:
      config: see `configs`; `groups` maps the beginning of a parameter's
        path ("sources_diffusion", say) to keys that differ for it. The
        longest beginning that fits counts; each group is clipped by itself.
      total_steps: of the run.
      one_cpu: whether the run is on one device, and that a CPU.

    Raises:
      InputError: for a bad schedule, an unknown key in a group, and (when
        the optimiser meets the parameters) a group that fits none.
    """
    groups = {"": config}
    for prefix, changes in config.groups.items():
        known = set(config) - {"groups", "lazy"}
        for key in set(changes) - known:
            raise InputError(
                f"A group of parameters has no key {key!r}.",
                where=f"config.optimizer.groups.{prefix}.{key}",
                fix=nearest(key, known),
            )
        groups[prefix] = ConfigDict({**config.to_dict(), **changes.to_dict()})
    made = {
        name: Group(part, learning_rate(part, total_steps))
        for name, part in groups.items()
    }
    transforms = {name: _adam(group) for name, group in made.items()}
    transform = transforms[""]
    if config.groups:
        transform = optax.multi_transform(
            transforms, lambda params: _labels(params, tuple(config.groups))
        )
    # Runs of earlier versions do not have the key.
    return Optimizer(transform, made, config.get("lazy", False), one_cpu)


def _adam(group: Group) -> optax.GradientTransformation:
    config, rate = group.config, group.schedule
    parts = []
    if config.clip_norm:
        parts.append(optax.clip_by_global_norm(config.clip_norm))
    parts.append(
        optax.adamw(
            rate,
            b1=config.beta1,
            b2=config.beta2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
        )
        if config.weight_decay
        else optax.adam(
            rate, b1=config.beta1, b2=config.beta2, eps=config.epsilon
        )
    )
    return optax.chain(*parts)


def _labels(params: Any, prefixes: tuple[str, ...]) -> Any:
    def name(path: Any) -> str:
        return "/".join(str(getattr(part, "key", part)) for part in path)

    def label(path: Any, _: Any) -> str:
        fitting = [p for p in prefixes if name(path).startswith(p)]
        return max(fitting, key=len, default="")

    labels = jax.tree_util.tree_map_with_path(label, params)
    unused = set(prefixes).difference(jax.tree.leaves(labels))
    if unused:
        paths = jax.tree_util.tree_leaves_with_path(params)
        raise InputError(
            "A group of parameters is empty.",
            where=f"config.optimizer.groups.{min(unused)}",
            fix=nearest(min(unused), {name(path) for path, _ in paths}),
        )
    return labels
