"""Who writes: the backends by name, loaded when one is asked for."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from neggen_jax.catalog import ItemRecords
from neggen_jax.errors import InputError, nearest
from neggen_jax.generation.backends import Backend
from neggen_jax.generation.records import Record
from neggen_jax.generation.tasks import Plan, Task


class Writer(Protocol):
    """Writes records of tasks.

    Attributes:
      name: of the kind of backend.
      model: as its server or hub calls it; "" without one.
      prompt_version: of the templates; "" without them.
      concurrency: tasks worth having in flight.
    """

    name: str
    model: str
    prompt_version: str
    concurrency: int

    async def write(self, task: Task) -> Record:
        """Writes what might have been of a task, or why not.

        Raises:
          InputError: if going on with others is pointless too.
        """

    async def close(self) -> None:
        """Gives back what it holds."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """A writer that has been chosen, and is not yet loaded.

    Attributes:
      settings: all that shapes what it writes, as JSON.
      load: makes the writer, given where to log requests.
    """

    settings: dict[str, Any]
    load: Callable[[Path], Writer]


def choose(
    backend: str,
    records: ItemRecords,
    plan: Plan,
    options: Mapping[str, Any],
) -> Choice:
    """Chooses a writer.

    Args:
      backend: of `OPTIONS`.
      records: the items.
      plan: what may be changed.
      options: of `OPTIONS[backend]`; those that are left out or None have
        the writer's own values.

    Raises:
      InputError: for unknown words, or options that cannot be.
    """
    check(backend, options)
    given = {name: v for name, v in options.items() if v is not None}
    return _CHOICES[backend](records, plan, given)


def check(backend: str, options: Mapping[str, Any]) -> None:
    """Refuses what no backend, or not this one, is told.

    Raises:
      InputError: for unknown words.
    """
    if backend not in OPTIONS:
        raise InputError(
            f"There is no backend {backend!r}.",
            where="--backend",
            fix=nearest(backend, OPTIONS),
        )
    for name, value in options.items():
        if value is not None and name not in OPTIONS[backend]:
            raise InputError(
                f"The backend {backend!r} has no option {name!r}.",
                where=f"--{name}={value}",
                fix=nearest(name, OPTIONS[backend]),
            )


def _attributes(
    records: ItemRecords, plan: Plan, given: dict[str, Any]
) -> Choice:
    from neggen_jax.generation.writers.attributes import Attributes

    writer = Attributes(records, plan, **given)
    return Choice(writer.settings(), lambda log: writer)


def _prompted(
    name: str,
    backend: Callable[..., Backend],
    ours: tuple[str, ...],
    shaping: tuple[str, ...],
    given: dict[str, Any],
) -> Choice:
    """A language model behind the three templates.

    Args:
      name: of the backend.
      backend: makes it.
      ours: options that it takes.
      shaping: of those, the ones that shape its replies.
      given: all options.
    """
    from neggen_jax.generation.writers import prompts
    from neggen_jax.generation.writers.prompted import Prompted

    if not given.get("model"):
        raise InputError(
            f"The backend {name!r} does not know what model to ask.",
            where="--model",
            expected="a path or hub name, or the server's name for it",
        )
    templates = prompts.load(given.pop("prompts", None))
    told = {n: given.pop(n) for n in ours if n in given}
    if "changes" in given:
        given["max_masks"] = given.pop("changes")
    defaults = inspect.signature(Prompted).parameters
    settings = {
        "backend": name,
        "model": os.fspath(told["model"]),
        "prompt_version": templates.version,
        **{n: told.get(n, 0) for n in shaping},
        **{n: given.get(n, defaults[n].default) for n in _SHAPING},
    }

    def load(log: Path) -> Writer:
        return Prompted(backend(log=log, **told), templates, **given)

    return Choice(settings, load)


def _openai(records: ItemRecords, plan: Plan, given: dict[str, Any]) -> Choice:
    from neggen_jax.generation.backends.openai import OpenAI

    return _prompted("openai", OpenAI, _OPENAI, ("seed",), given)


def _transformers(
    records: ItemRecords, plan: Plan, given: dict[str, Any]
) -> Choice:
    from neggen_jax.generation.backends.transformers import Transformers

    return _prompted("transformers", Transformers, _TRANSFORMERS, (), given)


_OPENAI = (
    "model",
    "base_url",
    "api_key_env",
    "concurrency",
    "timeout",
    "seed",
)
_TRANSFORMERS = ("model", "batch_size")
# Of `writer.Prompted`; how often it tries again shapes nothing that is good.
_SHAPING = ("alternatives", "max_masks", "max_words")
_PROMPTED = ("prompts", "alternatives", "retries", "changes", "max_words")

OPTIONS: dict[str, tuple[str, ...]] = {
    "attributes": (
        "words",
        "alternatives",
        "changes",
        "contrast",
        "probe",
        "seed",
    ),
    "openai": (*_OPENAI, *_PROMPTED),
    "transformers": (*_TRANSFORMERS, *_PROMPTED),
}
_CHOICES: dict[str, Callable[..., Choice]] = {
    "attributes": _attributes,
    "openai": _openai,
    "transformers": _transformers,
}
