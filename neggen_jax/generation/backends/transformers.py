"""A multi-modal language model of Transformers, in this process.

One of the backends, for catalogues that one device writes in the time there
is; larger ones go to a server (`openai.py`). What is asked while the model is
at work is answered together, as one batch.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from neggen_jax.data.encoders_neural import first_line
from neggen_jax.errors import InputError
from neggen_jax.generation.backends import (
    Reply,
    Request,
    RequestError,
    check_arguments,
    model_name,
)
from neggen_jax.generation.backends.image_text_model import ImageTextModel
from neggen_jax.generation.backends.pictures import shrunk
from neggen_jax.generation.backends.request_log import RequestLog

if TYPE_CHECKING:
    from PIL.Image import Image

    Asked = tuple[Request, Image | None]

# Seconds that a batch waits for requests that are about to be made.
_LINGER = 0.01


@dataclasses.dataclass
class _Pending:
    """A request on its way: its picture, and who waits for its reply."""

    request: Request
    picture: Image | None
    answer: asyncio.Future[Reply]


class Transformers:
    """Asks a model in this process, greedily. See `Backend`.

    Which requests share a batch depends on when they come, and in bfloat16
    what shares a batch can tip a close choice between two words; in float32,
    hardly ever.

    Args:
      model: a directory that `save_pretrained` wrote, or a name on the
        Hugging Face hub; anything that AutoModelForImageTextToText loads,
        with its processor and chat template.
      batch_size: requests answered together at most; halved for good where
        the device's memory does not hold them.
      device: of PyTorch; "auto" takes a GPU if there is one.
      dtype: of weights and arithmetic; "auto" is bfloat16 on a GPU that has
        it, float16 on an older one, float32 on a CPU.
      image_side: longer side of a picture in pixels, at most, before the
        model's own processor resizes it.
      log: file for a line of JSON a request; None for none.

    Raises:
      InputError: if the model cannot be loaded or asked.
    """

    name = "transformers"

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        batch_size: int = 8,
        device: str = "auto",
        dtype: str = "auto",
        image_side: int = 768,
        log: str | os.PathLike[str] | None = None,
    ):
        self.model = model_name(model)
        self.batch_size = batch_size
        # A batch is answered while the next one comes together.
        self.concurrency = 2 * batch_size
        self._image_side = image_side
        check_arguments(
            self.name,
            (self.model, "model", "a directory or a name on the hub", "none"),
            (batch_size > 0, "batch_size", "at least 1", batch_size),
            (image_side > 15, "image_side", "at least 16 pixels", image_side),
        )
        self._model = ImageTextModel(os.fspath(model), device, dtype)
        self._pending: collections.deque[_Pending] = collections.deque()
        self._working: asyncio.Task[None] | None = None
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "generate")
        self._log = RequestLog(log)

    async def ask(self, request: Request) -> Reply:
        """See `Backend`; the request's schema is not enforced."""
        picture = None
        if request.image:
            picture = await asyncio.to_thread(
                shrunk, request.image, self._image_side
            )
        answer = asyncio.get_running_loop().create_future()
        self._pending.append(_Pending(request, picture, answer))
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())
        return await answer

    async def close(self) -> None:
        """Waits for the batch at work, and gives back its thread.

        Who still waits for a reply is told that there will be none.
        """
        if self._working is not None:
            self._working.cancel()
            await asyncio.gather(self._working, return_exceptions=True)
        for pending in self._pending:
            pending.answer.cancel()
        await asyncio.to_thread(self._thread.shutdown)
        self._log.close()

    # ---- batches

    async def _work(self) -> None:
        """Answers what is pending, batch after batch, until nothing is."""
        while self._pending:
            if len(self._pending) < self.batch_size:
                await asyncio.sleep(_LINGER)
            batch = self._take()
            begun = time.monotonic()
            replies = await self._replies(batch)
            seconds = time.monotonic() - begun
            for pending, reply in zip(batch, replies, strict=True):
                outcome = self._noted(pending.request, reply, seconds)
                if pending.answer.done():
                    continue
                if isinstance(outcome, Reply):
                    pending.answer.set_result(outcome)
                else:
                    pending.answer.set_exception(outcome)

    def _noted(
        self, request: Request, reply: Reply | Exception, seconds: float
    ) -> Reply | Exception:
        """Logs what became of a request; gives it, or why it cannot be."""
        try:
            if isinstance(reply, Reply):
                self._log.add(request.label, 1, "answered", seconds, reply)
            else:
                self._log.add(
                    request.label, 1, "failed", seconds, problem=str(reply)
                )
        except InputError as error:  # a full disk; who waits must hear of it
            return error
        return reply

    async def _replies(
        self, batch: Sequence[_Pending]
    ) -> Sequence[Reply | Exception]:
        """What becomes of a batch, in the thread where the model works."""
        asked = [(p.request, p.picture) for p in batch]
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, self._answer, asked)
        except Exception as error:  # ends the run, for who waits
            return [error] * len(batch)
        except asyncio.CancelledError:  # by close()
            for pending in batch:
                pending.answer.cancel()
            raise

    def _take(self) -> list[_Pending]:
        """The next batch: all with a picture, or all without.

        Few processors take a batch of both.
        """
        kind = self._pending[0].picture is None
        batch: list[_Pending] = []
        rest: collections.deque[_Pending] = collections.deque()
        while self._pending:
            pending = self._pending.popleft()
            fits = (pending.picture is None) == kind
            fits = fits and len(batch) < self.batch_size
            (batch if fits else rest).append(pending)
        self._pending = rest
        return batch

    def _answer(self, batch: Sequence[Asked]) -> list[Reply | Exception]:
        """Answers a batch; in parts where that fails, to the single request.

        So a request that the model cannot read fails alone.
        """
        import torch

        try:
            return self._model.generate(batch)
        except torch.OutOfMemoryError:
            problem = "the device's memory does not hold it"
            self._shrink(len(batch))
        except getattr(torch, "AcceleratorError", ()) as error:
            raise InputError(
                "The device has failed.",
                where=self._model.device,
                found=first_line(error),
                fix="run the same command again, which goes on where this "
                "ended",
            ) from error
        except Exception as error:  # processors raise all kinds of errors
            problem = f"{type(error).__name__}: {first_line(error)}"
        if len(batch) == 1:
            return [RequestError(f"the model cannot be asked this: {problem}")]
        part = (len(batch) + 1) // 2
        replies: list[Reply | Exception] = []
        while len(replies) < len(batch):
            # Even that may be found to be too many on the way.
            part = min(part, self.batch_size)
            begun = len(replies)
            replies += self._answer(batch[begun : begun + part])
        return replies

    def _shrink(self, size: int) -> None:
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        smaller = max(1, size // 2)
        if smaller < self.batch_size:
            print(
                f"note: {self._model.device} ran out of memory with a batch of "
                f"{size}; going on with {smaller}",
                file=sys.stderr,
                flush=True,
            )
            self.batch_size = smaller
