"""Who writes records: the writers by name, loaded when one is asked for.

prompted.py    a language model: describe -> mask -> complete, in the words
               of prompts.py; what its replies must be is in replies.py,
               and where masks stand in a description in masked.py
attributes.py  a rule without a model, which edits texts by edits.py
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from neggen_jax.catalog import ItemRecords
from neggen_jax.errors import InputError, nearest
from neggen_jax.generation.backends import Backend, model_name
from neggen_jax.generation.records import Record
from neggen_jax.generation.tasks import Plan, Task

_PROMPTED = (
    "prompts",
    "alternatives",
    "retries",
    "changes",
    "max_words",
    "description_words",
)
# Backend -> options of the model, then those of the writer.
_MODELS: dict[str, tuple[str, ...]] = {
    "openai": (
        "model",
        "base_url",
        "api_key_env",
        "concurrency",
        "timeout",
        "seed",
        "sampling",
        "image_side",
        "max_tokens_field",
    ),
    "transformers": ("model", "batch_size", "image_side", "device", "dtype"),
}
OPTIONS: dict[str, tuple[str, ...]] = {
    "attributes": (
        "words",
        "alternatives",
        "changes",
        "contrast",
        "probe",
        "seed",
    ),
    **{name: (*own, *_PROMPTED) for name, own in _MODELS.items()},
}


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
    if backend != "attributes":
        return _prompted(backend, given)
    from neggen_jax.generation.writers.attributes import Attributes

    writer = Attributes(records, plan, **given)
    return Choice(writer.settings(), lambda log: writer)


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


def _prompted(name: str, given: dict[str, Any]) -> Choice:
    """A language model behind the three templates."""
    from neggen_jax.generation.writers import prompted, prompts

    if not given.get("model"):
        raise InputError(
            f"The backend {name!r} does not know what model to ask.",
            where="--model",
            expected="a path or hub name, or the server's name for it",
        )
    templates = prompts.load(given.pop("prompts", None))
    own = {n: given.pop(n) for n in _MODELS[name] if n in given}
    if "changes" in given:
        given["max_masks"] = given.pop("changes")
    options = prompted.Options(**given)
    model = own["model"]
    settings = {
        "backend": name,
        "model": model_name(model) if name == "transformers" else model,
        "prompt_version": templates.version,
        **({"seed": own.get("seed", 0)} if name == "openai" else {}),
        # How often it tries again shapes nothing that is good.
        "alternatives": options.alternatives,
        "max_masks": options.max_masks,
        "max_words": options.max_words,
    }
    for extra in ("sampling", "image_side", "description_words"):
        # Named where they are given: sets begun without them go on.
        if extra in own | given:
            settings[extra] = (own | given)[extra]

    def load(log: Path) -> Writer:
        if name == "openai":
            from neggen_jax.generation.backends.openai import OpenAI

            backend: Backend = OpenAI(log=log, **own)
        else:
            from neggen_jax.generation.backends.transformers import Transformers

            backend = Transformers(log=log, **own)
        return prompted.Prompted(backend, templates, options)

    return Choice(settings, load)
