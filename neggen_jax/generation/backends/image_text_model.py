"""A model of Transformers that reads pictures and texts, and its words.

Used by `transformers.py`, which decides what is asked together. Only
what Transformers' Auto classes promise of every such model is relied on.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from neggen_jax.data.encoders_neural import first_line, loading
from neggen_jax.errors import InputError
from neggen_jax.generation.backends import Reply, Request, RequestError

if TYPE_CHECKING:
    from PIL.Image import Image

    Asked = tuple[Request, Image | None]

_INSTALL = "pip install -r requirements-mllm.txt"
# Settings of a generation config that mean nothing when nothing is drawn.
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p")


class ImageTextModel:
    """A model, its processor and its chat template.

    Args:
      path: a directory that `save_pretrained` wrote, or a name on the Hugging
        Face hub.
      device: of PyTorch.
      dtype: of weights and arithmetic; see `Transformers` for both.

    Attributes:
      device: where it is.

    Raises:
      InputError: if it cannot be loaded, or not be asked about a picture.
    """

    _processor: Any
    _tokenizer: Any
    _model: Any

    def __init__(
        self,
        path: str | os.PathLike[str],
        device: str = "auto",
        dtype: str = "auto",
    ):
        self._path = os.fspath(path)
        self.device, self._dtype = _device_of(device, dtype)
        with loading(self._path):
            self._load()
        self._try_out()

    def generate(self, batch: Sequence[Asked]) -> list[Reply | Exception]:
        """Asks the model.

        Args:
          batch: requests with their pictures, all with one or all without.

        Returns:
          A reply to each, or why there is none.
        """
        inputs = self._read(batch)
        lengths = inputs["attention_mask"].sum(1).tolist()
        longest = [
            length + request.max_tokens
            for length, (request, _) in zip(lengths, batch, strict=True)
        ]
        fits = [length <= self._limit for length in longest]
        if not all(fits):
            kept = [b for b, fit in zip(batch, fits, strict=True) if fit]
            replies = iter(self.generate(kept) if kept else [])
            return [
                next(replies)
                if fit
                else RequestError(
                    f"{length} tokens with the reply, and the model's context "
                    f"holds {self._limit}"
                )
                for fit, length in zip(fits, longest, strict=True)
            ]
        rows = self._continue(inputs, max(r.max_tokens for r, _ in batch))
        return [
            self._reply(row, request.max_tokens, length)
            for row, (request, _), length in zip(
                rows, batch, lengths, strict=True
            )
        ]

    def _read(self, batch: Sequence[Asked]) -> Any:
        """What the model reads, padded on the left."""
        return self._processor.apply_chat_template(
            [self._conversation(*asked) for asked in batch],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            # A text of the catalogue cannot end its turn, nor bring an image.
            sanitize_control_tokens=self._guarded,
            processor_kwargs={"padding": True},
        )

    def _continue(self, inputs: Any, max_tokens: int) -> list[list[int]]:
        """The new tokens of each row."""
        import torch

        length = inputs["input_ids"].shape[1]
        inputs = inputs.to(self.device, dtype=self._model.dtype)
        with torch.inference_mode():
            tokens = self._model.generate(**inputs, max_new_tokens=max_tokens)
        return tokens[:, length:].tolist()

    def _reply(self, row: list[int], max_tokens: int, length: int) -> Reply:
        """The words of one row, up to the end it chose or was allowed."""
        ends = [i for i, token in enumerate(row) if token in self._ends]
        finished = bool(ends) and ends[0] < max_tokens
        # The token that ends a reply is written too.
        row = row[: ends[0] + 1] if finished else row[:max_tokens]
        text = self._tokenizer.decode(row, skip_special_tokens=True)
        return Reply(text, finished, length, len(row))

    def _conversation(
        self, request: Request, picture: Image | None
    ) -> list[dict[str, Any]]:
        """A request as chat templates take it.

        Some templates have no system's turn, or none beside a picture; then
        its words open the first user's.
        """
        import jinja2

        turns = list(request.messages)
        messages = _to_messages(turns, picture)
        if turns[0][0] != "system" or len(turns) == 1:
            return messages
        try:
            self._processor.apply_chat_template(messages, tokenize=False)
        except jinja2.TemplateError:
            (_, system), (role, text) = turns[:2]
            turns[:2] = [(role, f"{system}\n\n{text}")]
            messages = _to_messages(turns, picture)
        return messages

    # ---- setting up

    def _load(self) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self._processor = AutoProcessor.from_pretrained(self._path)
        self._tokenizer = getattr(self._processor, "tokenizer", None)
        template = getattr(self._processor, "chat_template", None)
        if self._tokenizer is None or not hasattr(
            self._processor, "image_processor"
        ):
            raise self._unfit("a processor of texts and pictures", "neither")
        if not (template or getattr(self._tokenizer, "chat_template", None)):
            raise self._unfit(
                "a chat template, as instruction-tuned models have",
                "a processor without one",
            )
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            self._path, dtype=self._dtype, output_loading_info=True
        )
        model, report = loaded
        if lost := sorted(report["missing_keys"]):
            raise self._unfit(
                "all of its weights", f"{len(lost)} missing, e.g. {lost[0]}"
            )
        self._model = model.eval().to(self.device)
        self._settle()

    def _settle(self) -> None:
        """Greedy whatever the model's own settings are; padded on the left."""
        settings, tokenizer = self._model.generation_config, self._tokenizer
        settings.update(do_sample=False, num_beams=1)
        settings.update(**dict.fromkeys(_SAMPLING))
        ends = settings.eos_token_id
        if ends is None:
            ends = tokenizer.eos_token_id
        self._ends = set(ends if isinstance(ends, list | tuple) else [ends])
        self._ends -= {None}
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        settings.pad_token_id = tokenizer.pad_token_id
        tokenizer.padding_side = "left"
        config = self._model.config.get_text_config()
        limits = (
            getattr(config, "max_position_embeddings", None),
            tokenizer.model_max_length,
        )
        self._limit = int(min(limit for limit in limits if limit))

    def _try_out(self) -> None:
        """Asks about a picture once, so that what cannot work fails now."""
        from PIL import Image

        # With what only the guard of control tokens makes a text.
        words = f"What is {self._tokenizer.eos_token}?"
        turns = (("system", "Be brief."), ("user", words))
        asked = Request(turns, max_tokens=1), Image.new("RGB", (64, 64), "grey")
        reply: Reply | Exception
        for self._guarded in (True, False):  # few processors have no guard
            try:
                (reply,) = self.generate([asked])
                break
            except Exception as error:  # processors raise all kinds of errors
                reply = error
        if not isinstance(reply, Reply):
            raise self._unfit(
                "an answer about a picture",
                f"{type(reply).__name__}: {first_line(reply)}",
            ) from reply
        if reply.reply_tokens != 1:
            raise self._unfit(
                "a model that goes on where its prompt ends",
                f"{reply.reply_tokens} tokens beyond it instead of 1",
            )

    def _unfit(self, expected: str, found: str) -> InputError:
        return InputError(
            "The model cannot write counterfactuals.",
            where=self._path,
            expected=expected,
            found=found,
            fix="take an instruction-tuned vision-language model, e.g. a "
            "LLaVA, a Llama Vision or a Qwen VL",
        )


def _to_messages(
    turns: Sequence[tuple[str, str]], picture: Image | None
) -> list[dict[str, Any]]:
    """Turns as chat templates take them, the picture before a user's words."""
    messages: list[dict[str, Any]] = []
    for role, text in turns:
        content: list[dict[str, Any]] = [{"type": "text", "text": text}]
        if picture is not None and role == "user":
            content.insert(0, {"type": "image", "image": picture})
            picture = None
        messages.append({"role": role, "content": content})
    return messages


def _device_of(device: str, dtype: str) -> tuple[str, Any]:
    """Where to compute and with what, for "auto" and for names."""
    try:
        import torch
    except ImportError as error:
        raise InputError(
            "The backend 'transformers' needs PyTorch.",
            found=error,
            fix=_INSTALL,
        ) from error
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype == "auto":
        dtype = "float32"
        if device.startswith("cuda"):
            bf16 = torch.cuda.is_bf16_supported()
            dtype = "bfloat16" if bf16 else "float16"
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype):
        raise InputError(
            "PyTorch has no such type of numbers.",
            where="dtype",
            expected="auto, float32, bfloat16 or float16",
            found=dtype,
        )
    return device, found
