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
      InputError: for an unknown schedule.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    length = max(1, total_steps - warmup)
    if config.schedule == "constant":
        main = optax.constant_schedule(peak)
    elif config.schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, length, config.final_scale)
    elif config.schedule == "exponential":
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
        path ("sources_diffusion", say) to keys that differ for it.
      total_steps: of the run.
    """
    if not config.groups:
        return _adam(config, total_steps)
    transforms = {"": _adam(config, total_steps)}
    for prefix, changes in config.groups.items():
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
    def label(path: Any, _: Any) -> str:
        name = "/".join(str(getattr(part, "key", part)) for part in path)
        return next((p for p in prefixes if name.startswith(p)), "")

    return jax.tree_util.tree_map_with_path(label, params)
