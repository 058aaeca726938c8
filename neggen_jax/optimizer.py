"""Optimisers and learning-rate schedules, from a config."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from neggen_jax.errors import InputError, nearest
from neggen_jax.ops import adam, native

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
class Optimizer:
    """An optimiser, and how a step of it is made.

    Attributes:
      transform: of optax; the state is its, whoever makes the steps.
      adam: the config, if it is one Adam for all parameters.
      schedule: of its learning rate.
    """

    transform: optax.GradientTransformation
    adam: ConfigDict | None = None
    schedule: optax.Schedule | None = None

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
        config = self.adam
        if config is None:
            return self._by_optax(gradients, state, params)
        if not config.get("lazy", False) and not native.alone():
            return self._by_optax(gradients, state, params)
        return self._by_adam(gradients, state, params)

    def _by_optax(self, gradients: Any, state: Any, params: Any) -> Applied:
        updates, state = self.transform.update(gradients, state, params)
        return Applied(
            optax.apply_updates(params, updates),
            state,
            jax.tree.map(adam.squared, gradients),
            jax.tree.map(adam.squared, updates),
        )

    def _by_adam(self, gradients: Any, state: Any, params: Any) -> Applied:
        config: Any = self.adam
        (_, done), *_ = optax.tree_utils.tree_get_all_with_path(state, "count")
        count = optax.safe_increment(done)
        clip = jnp.ones(())
        if config.clip_norm:
            squares = jax.tree.map(adam.squared, gradients)
            norm = jnp.sqrt(sum(jax.tree.leaves(squares)))
            clip = config.clip_norm / jnp.maximum(norm, config.clip_norm)
        beta1, beta2 = (jnp.float32(x) for x in (config.beta1, config.beta2))
        schedule: Any = self.schedule
        rates = adam.Rates(
            clip=clip,
            beta1=beta1,
            beta2=beta2,
            unbias1=1 / (1 - beta1**count),
            unbias2=1 / (1 - beta2**count),
            epsilon=jnp.float32(config.epsilon),
            rate=jnp.float32(schedule(done)),
            decay=jnp.float32(config.weight_decay),
        )
        lazy = config.get("lazy", False)
        tree = jax.tree.structure(params)
        moments = [optax.tree_utils.tree_get(state, x) for x in ("mu", "nu")]
        given = (gradients, *moments, params)
        made = [
            adam.apply(g, adam.Moments(mean, square), p, rates, lazy)
            for g, mean, square, p in zip(
                *map(jax.tree.leaves, given), strict=True
            )
        ]
        leaves = [
            (p, m.mean, m.square, s.gradient, s.update) for p, m, s in made
        ]
        params, mu, nu, of_gradients, of_updates = (
            jax.tree.unflatten(tree, column)
            for column in zip(*leaves, strict=True)
        )
        state = optax.tree_utils.tree_set(state, mu=mu, nu=nu, count=count)
        return Applied(params, state, of_gradients, of_updates)


def make(config: ConfigDict, total_steps: int) -> Optimizer:
    """Adam, with weight decay and clipping where they are asked for.

    Args:
      config: see `configs`; `groups` maps the beginning of a parameter's
        path ("sources_diffusion", say) to keys that differ for it. The
        longest beginning that fits counts; each group is clipped by itself.
      total_steps: of the run.

    Raises:
      InputError: for a bad schedule, an unknown key in a group, groups of a
        lazy optimiser, and (when the optimiser meets the parameters) a group
        that fits none.
    """
    if not config.groups:
        rate = learning_rate(config, total_steps)
        return Optimizer(_adam(config, total_steps), config, rate)
    if config.get("lazy", False):
        raise InputError(
            "A lazy optimiser has no groups of parameters.",
            where="config.optimizer.groups",
            expected="none",
            found=", ".join(config.groups),
            fix="leave them out, or set --config.optimizer.lazy=False",
        )
    transforms = {"": _adam(config, total_steps)}
    for prefix, changes in config.groups.items():
        known = set(config) - {"groups"}
        for key in set(changes) - known:
            raise InputError(
                f"A group of parameters has no key {key!r}.",
                where=f"config.optimizer.groups.{prefix}.{key}",
                fix=nearest(key, known),
            )
        merged = ConfigDict({**config.to_dict(), **changes.to_dict()})
        transforms[prefix] = _adam(merged, total_steps)
    return Optimizer(
        optax.multi_transform(
            transforms, lambda params: _labels(params, tuple(config.groups))
        )
    )


def _adam(config: ConfigDict, steps: int) -> optax.GradientTransformation:
    parts = []
    if config.clip_norm:
        parts.append(optax.clip_by_global_norm(config.clip_norm))
    rate = learning_rate(config, steps)
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
