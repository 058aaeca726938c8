"""The writer with a language model: describe, mask, complete.

It asks a backend in the words of `prompts.py`, has replies checked by
`replies.py`, says why one is refused and asks again, a bounded number of
times. What comes of a task is always a record.
"""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from neggen_jax.data.images import check_images
from neggen_jax.errors import InputError
from neggen_jax.generation.backends import Backend, Request, RequestError
from neggen_jax.generation.records import Record
from neggen_jax.generation.tasks import Task
from neggen_jax.generation.values.contrast import UNKNOWN, normalised
from neggen_jax.generation.writers.prompts import Prompts, Template
from neggen_jax.generation.writers.replies import (
    LONGEST_WORD,
    Refused,
    alternatives_schema,
    check_alternatives,
    check_description,
    check_masks,
    masks_schema,
)

T = TypeVar("T")

_LONGEST_SHOWN = 4000  # Characters of a refused reply that are said again.
_LONGEST_REASON = 500
_CUT_OFF = (
    "It was cut off because it was too long. Answer more briefly, and say "
    "nothing else."
)


class _Failed(Exception):
    """A task of which nothing comes; its text is the record's error."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How a language model is asked.

    Attributes:
      alternatives: counterfactuals of a record.
      retries: how often a step may be asked again.
      max_masks: attributes that are masked, at most.
      max_words: of a text; a longer one is cut before it is masked.
      description_words: what the description of a picture is asked to have
        at most; it is accepted up to `max_words`.

    Raises:
      InputError: for numbers that cannot be.
    """

    alternatives: int = 1
    retries: int = 3
    max_masks: int = 4
    max_words: int = 120
    description_words: int = 60

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            least = 0 if name == "retries" else 1
            if value < least:
                raise InputError(
                    f"A writer with {name}={value} writes nothing.",
                    where=name,
                    expected=f"{least} or more",
                    found=value,
                )


class Prompted:
    """Writes records with a language model. See `Writer`.

    Args:
      backend: who answers; it asks one request at a time for each task.
      prompts: what is asked.
      options: how.
    """

    def __init__(
        self, backend: Backend, prompts: Prompts, options: Options | None = None
    ):
        self.name, self.model = backend.name, backend.model
        self.prompt_version = prompts.version
        self.concurrency = backend.concurrency
        self.backend, self.prompts = backend, prompts
        self.options = options or Options()

    async def write(self, task: Task) -> Record:
        """Writes the counterfactuals of a task, or why there are none.

        Raises:
          InputError: if the backend can answer nothing any more.
        """
        return await _Work(self, task).done()

    async def close(self) -> None:
        """Gives back what the backend holds."""
        await self.backend.close()


class _Work:
    """One task on its way; the record holds what there is of it so far."""

    def __init__(self, writer: Prompted, task: Task):
        self._backend, self._prompts = writer.backend, writer.prompts
        self._options, self._task = writer.options, task
        self._record = Record(
            item=task.item,
            id=task.id,
            modality=task.modality,
            backend=writer.name,
            model=writer.model,
            prompt_version=writer.prompt_version,
        )

    async def done(self) -> Record:
        """Does all steps, or as many as can be done."""
        try:
            await self._do()
        except _Failed as failed:
            error = _one_line(str(failed))[:_LONGEST_REASON]
            self._note(negatives=(), error=error)
        return self._record

    def _note(self, **fields: Any) -> None:
        self._record = dataclasses.replace(self._record, **fields)

    async def _do(self) -> None:
        options, task, prompts = self._options, self._task, self._prompts
        if task.modality == "image":
            description = await self._describe()
        else:
            description = cut(task.text, options.max_words)
            if not description:
                raise _Failed("the item has no text")
        self._note(description=description)
        if "[mask" in description.lower():
            raise _Failed("the text has a mask in it to begin with")
        masked = await self._ask(
            "mask",
            prompts.mask.messages(
                description=description,
                kept=_listed(task.kept, ", ") or "as the description says",
                masks=options.max_masks,
            ),
            lambda reply: check_masks(
                reply, description, task.kept, options.max_masks
            ),
            # The description once more, of short tokens if need be, and the
            # list of masks.
            max_tokens=128
            + 48 * options.max_masks
            + len(description.encode()) // 2,
            schema=masks_schema(options.max_masks),
        )
        self._note(attributes=masked.attributes, masked=masked.text)
        number, wanted = len(masked.attributes), options.alternatives
        negatives = await self._ask(
            "complete",
            prompts.complete.messages(
                masked=masked.text,
                values=_listed(masked.attributes, "\n", numbered=True),
                alternatives=wanted,
                count=number,
            ),
            lambda reply: check_alternatives(reply, masked, wanted),
            max_tokens=128 + wanted * (16 + 32 * number),
            schema=alternatives_schema(number, wanted),
        )
        self._note(negatives=negatives)

    async def _describe(self) -> str:
        """Asks what the picture shows."""
        options, task = self._options, self._task
        words = min(options.description_words, options.max_words)
        if not task.image:
            raise _Failed("the item has no picture")
        # Before the backend tries, and tries again: it will not get better.
        _, problems = await asyncio.to_thread(check_images, [Path(task.image)])
        if problems:
            raise _Failed(f"the picture cannot be read: {problems[0]}")
        known = cut(task.text, options.max_words) or _listed(task.kept, "\n")
        return await self._ask(
            "describe",
            self._prompts.describe.messages(
                known=known or "nothing more", words=words
            ),
            lambda reply: check_description(reply, options.max_words),
            image=task.image,
            # Of English, a word is less than two tokens.
            max_tokens=max(160, 40 + 2 * words),
        )

    async def _ask(
        self,
        step: str,
        messages: tuple[tuple[str, str], ...],
        check: Callable[[str], T],
        **fields: Any,
    ) -> T:
        """Asks until a reply passes, or it has been asked often enough.

        Args:
          step: what is done, for logs and errors.
          messages: the question.
          check: takes what is wanted out of a reply; raises `Refused`.
          **fields: others of `Request`.

        Raises:
          _Failed: with the last reason.
        """
        label = f"item {self._task.item} {self._task.modality}: {step}"
        request, reason = Request(messages, label=label, **fields), ""
        for _ in range(1 + self._options.retries):
            self._note(attempts=self._record.attempts + 1)
            try:
                reply = await self._backend.ask(request)
            except RequestError as error:
                # The backend has tried all that there is to try.
                reason = f"the request failed: {error}"
                break
            try:
                if not reply.finished:
                    raise Refused(_CUT_OFF)
                return check(reply.text)
            except Refused as refused:
                reason = refused.reason
            # Only the last of several refused replies is said again: it is
            # the one to mend, and a model's context is not endless.
            correction = _correction(
                self._prompts.correction, reply.text, reason
            )
            request = dataclasses.replace(
                request, messages=(*messages, *correction)
            )
        raise _Failed(f"{step}: {reason}")


def cut(text: str, max_words: int) -> str:
    """Cuts a text after `max_words` words, or as many letters as those have.

    Args:
      text: whatever is to be cut; in scripts without spaces it has few words
        in this sense.
      max_words: how many are left at most.

    Returns:
      The beginning of the text; a word is cut only where it alone is too
      long.
    """
    text = text.strip()
    ends = [match.end() for match in re.finditer(r"\S+", text)]
    longest = max_words * LONGEST_WORD
    fitting = [end for end in ends[:max_words] if end <= longest]
    if len(fitting) == len(ends):
        return text
    return text[: fitting[-1]] if fitting else text[:longest]


def _correction(
    template: Template, reply: str, reason: str
) -> tuple[tuple[str, str], ...]:
    """The turns that follow a reply that was refused."""
    shown = _writable(reply.strip())[:_LONGEST_SHOWN] or "(nothing)"
    said = template.messages(reason=_one_line(reason))
    return (("assistant", shown), *said)


def _listed(
    values: Mapping[str, str], between: str, numbered: bool = False
) -> str:
    """Names and values in words, those that say nothing left out."""
    parts = [
        f"{name.replace('_', ' ')}: {value}"
        for name, value in values.items()
        if numbered or normalised(value) != UNKNOWN
    ]
    if numbered:
        parts = [f"{k}. {part}" for k, part in enumerate(parts, start=1)]
    return between.join(parts)


def _one_line(text: str) -> str:
    return _writable(" ".join(text.split()))


def _writable(text: str) -> str:
    """Halves of surrogate pairs, which no file takes, become "?"."""
    return text.encode("utf-8", "replace").decode("utf-8")
