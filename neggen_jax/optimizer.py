"""Optimisers and learning-rate schedules, from a config."""

from __future__ import annotations

from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from neggen_jax.errors import InputError, nearest

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


def make(config: ConfigDict, total_steps: int) -> optax.GradientTransformation:
    """Adam, with weight decay and clipping where they are asked for.

    Args:
      config: see `configs`; `groups` maps the beginning of a parameter's
        path ("sources_diffusion", say) to keys that differ for it. The
        longest beginning that fits counts; each group is clipped by itself.
      total_steps: of the run.

    Raises:
      InputError: for a bad schedule, an unknown key in a group, and (when
        the optimiser meets the parameters) a group that fits none.
    """
    if not config.groups:
        return _adam(config, total_steps)
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
    return optax.multi_transform(
        transforms, lambda params: _labels(params, tuple(config.groups))
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
