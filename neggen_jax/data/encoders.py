"""Encoders that need no weights: TF-IDF for text, descriptors for images.

`data/features.py` decides which items have content and what becomes of the
vectors; an encoder here, or in `data/encoders_neural.py`, turns content into
vectors. Both of these compute a library's sparse or wide descriptors and
then compress them by the same damped singular value decomposition.

What an encoder learns from a catalogue it learns from a bounded sample, and
it works in blocks, so memory does not grow with the catalogue.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from neggen_jax.data.images import open_image
from neggen_jax.errors import InputError

DIM = 256
SEEDS = 2**32  # what NumPy's and scikit-learn's generators take


def untracked(steps: Iterable[Any], label: str) -> Iterable[Any]:
    """Shows no progress; the other kind is in `data/features.py`."""
    del label
    return steps


@dataclasses.dataclass
class Encoder:
    """Turns contents - texts or image files - into vectors.

    Attributes:
      model: path or hub name of weights, for encoders that have any.
      dim: width of the vectors; None for the encoder's own.
      batch_size: contents that a neural network is given at a time.
      seed: of whatever the encoder draws.
      track: wraps the steps of long work, to show how far it is.
    """

    model: str | None = None
    dim: int | None = None
    batch_size: int = 64
    seed: int = 0
    track: Callable[[Iterable[Any], str], Iterable[Any]] = untracked

    libraries: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if self.model is not None:
            raise InputError(
                "This encoder has no weights to load.",
                found=f"the model {self.model!r}",
                fix="leave the model out, or choose 'transformers'",
            )

    def fit_transform(self, contents: Sequence[Any]) -> np.ndarray:
        """Learns from a catalogue's contents and encodes them.

        Args:
          contents: texts, or image files that are known to open.

        Returns:
          float32 `[n, f]`; the lengths of the rows mean nothing, but a zero
          row says that the encoder found nothing in that content.

        Raises:
          InputError: if nothing can be learned from them.
        """
        raise NotImplementedError

    def transform(self, contents: Sequence[Any]) -> np.ndarray:
        """Encodes other contents into the same space, float32 `[n, f]`."""
        raise NotImplementedError

    def about(self) -> dict[str, Any]:
        """What a manifest says: versions, and all that shaped the vectors."""
        versions = {name: metadata.version(name) for name in self.libraries}
        return {
            "version": versions[self.libraries[0]],
            "libraries": versions,
            "parameters": self.parameters(),
        }

    def parameters(self) -> dict[str, Any]:
        """Everything that was chosen, ready for JSON."""
        raise NotImplementedError


class DampedSVD:
    """Truncated SVD whose axes are scaled by s**-1/2, s the singular values.

    Without damping a few strong axes - departments, backgrounds - decide
    every cosine; with it finer traits are heard too. (The exponent is that
    of Caron, "Experiments with LSA scoring", 2001.)
    """

    def __init__(self, dim: int | None, seed: int):
        self.dim, self.seed = dim, seed

    def fit(self, matrix: Any) -> DampedSVD:
        """Finds the axes of `matrix`, dense or sparse, `[n, f]`.

        Raises:
          InputError: if it has fewer axes than were asked for, or none.
        """
        from sklearn.utils.extmath import randomized_svd
        from threadpoolctl import threadpool_limits

        most = min(matrix.shape)
        if abs(matrix).max() == 0:
            raise InputError(
                "Nothing tells the items apart.",
                expected="at least two items with different content",
                found=f"{matrix.shape[0]} items that look alike",
            )
        # Sums depend on how many threads share them; features must not.
        with threadpool_limits(1, "blas"):
            _, strength, axes = randomized_svd(
                matrix,
                min(self.dim or DIM, most),
                n_iter=5,
                random_state=self.seed,
            )
        # What is weaker than this is rounding in float32.
        sound = strength > 1e-5 * strength.max()
        if self.dim is not None and self.dim > sound.sum():
            raise InputError(
                f"The content does not fill {self.dim} dimensions.",
                expected=f"dim <= {sound.sum()} for these items",
                fix="leave dim out to take as many as there are",
            )
        self._axes = axes[sound].T / np.sqrt(strength[sound])
        return self

    def transform(self, matrix: Any) -> np.ndarray:
        """Coordinates of the rows of `matrix`, float32 `[n, dim]`."""
        from threadpoolctl import threadpool_limits

        with threadpool_limits(1, "blas"):
            return np.asarray(matrix @ self._axes, np.float32)


class Tfidf(Encoder):
    """TF-IDF over words, compressed; scikit-learn's.

    On fashion and office products: logarithmic counts helped, pairs of
    words did not, nor did a list of stop words or leaving out rare words.
    """

    libraries = ("scikit-learn", "numpy")
    sample = 200_000  # texts that words and axes are learned from
    block = 8_192
    vocabulary = 2**17

    def fit_transform(self, contents: Sequence[str]) -> np.ndarray:
        """See `Encoder`."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        order = _sample_first(len(contents), self.sample, self.seed)
        known = [contents[i] for i in order[: self.sample]]
        self._vectorizer = TfidfVectorizer(
            token_pattern=r"\b\w+\b",
            sublinear_tf=True,
            max_features=self.vocabulary,
            dtype=np.float32,
        )
        try:
            matrix = self._vectorizer.fit_transform(known)
        except ValueError as error:  # an empty vocabulary
            raise InputError(
                "No text holds a word.", expected="words", found=repr(known[0])
            ) from error
        self._svd = DampedSVD(self.dim, self.seed).fit(matrix)
        return self.transform(contents)

    def transform(self, contents: Sequence[str]) -> np.ndarray:
        """See `Encoder`."""
        starts = range(0, len(contents), self.block)
        return np.concatenate(
            [
                self._svd.transform(
                    self._vectorizer.transform(contents[i : i + self.block])
                )
                for i in self.track(starts, "texts")
            ]
        )

    def parameters(self) -> dict[str, Any]:
        """See `Encoder`."""
        return {
            "seed": self.seed,
            "token_pattern": r"\b\w+\b",
            "sublinear_tf": True,
            "vocabulary": self.vocabulary,
            "sample": self.sample,
            "damping": 0.5,
        }


class Pixels(Encoder):
    """Shape, colours and their layout, compressed; scikit-image's.

    Three blocks, each centred and scaled to the same total variance before
    weighting: histograms of oriented gradients, the square root of a joint
    histogram in Lab space, and mean Lab colours on a coarse grid.
    """

    libraries = ("scikit-image", "scikit-learn", "pillow", "numpy")
    sample = 20_000  # images that means and axes are learned from
    block = 1_024
    side = 128
    cell = 16  # of gradients and of the grid, in pixels
    bins = 8
    weights: ClassVar = {"gradients": 2.0, "colours": 1.0, "layout": 1.0}

    def fit_transform(self, contents: Sequence[Path]) -> np.ndarray:
        """See `Encoder`."""
        order = _sample_first(len(contents), self.sample, self.seed)
        known, others = order[: self.sample], order[self.sample :]
        blocks = self._describe([contents[i] for i in known])
        self._mean, self._scale = {}, {}
        for name, block in blocks.items():
            mean = block.mean(0, dtype=np.float64)
            spread = np.sqrt(block.var(0, dtype=np.float64).sum())
            # A block that says the same of every image is left out.
            alike = spread <= 1e-5 * np.linalg.norm(mean)
            self._mean[name] = mean.astype(np.float32)
            self._scale[name] = 0.0 if alike else self.weights[name] / spread
        matrix = self._standardise(blocks)
        self._svd = DampedSVD(self.dim, self.seed).fit(matrix)
        first = self._svd.transform(matrix)
        values = np.empty((len(contents), first.shape[1]), np.float32)
        values[known] = first
        if len(others):
            values[others] = self.transform([contents[i] for i in others])
        return values

    def transform(self, contents: Sequence[Path]) -> np.ndarray:
        """See `Encoder`."""
        parts = []
        for start in range(0, len(contents), self.block):
            blocks = self._describe(contents[start : start + self.block])
            parts.append(self._svd.transform(self._standardise(blocks)))
        return np.concatenate(parts)

    def parameters(self) -> dict[str, Any]:
        """See `Encoder`."""
        return {
            "seed": self.seed,
            "side": self.side,
            "cell": self.cell,
            "bins": self.bins,
            "weights": self.weights,
            "sample": self.sample,
            "damping": 0.5,
        }

    def _standardise(self, blocks: dict[str, np.ndarray]) -> np.ndarray:
        return np.concatenate(
            [
                (block - self._mean[name]) * self._scale[name]
                for name, block in blocks.items()
            ],
            axis=1,
        )

    def _describe(self, paths: Sequence[Path]) -> dict[str, np.ndarray]:
        """Block name -> float32 `[n, width]`."""
        rows: dict[str, list[np.ndarray]] = {name: [] for name in self.weights}
        for path in self.track(paths, "images"):
            for name, row in self._describe_one(path).items():
                rows[name].append(row.ravel().astype(np.float32))
        return {name: np.stack(block) for name, block in rows.items()}

    def _describe_one(self, path: Path) -> dict[str, np.ndarray]:
        from PIL.Image import Resampling
        from skimage.color import rgb2lab
        from skimage.feature import hog

        size = (self.side, self.side)
        picture = open_image(path, size).resize(size, Resampling.BICUBIC)
        rgb = np.asarray(picture)
        lab = rgb2lab(rgb).astype(np.float32)
        histogram, _ = np.histogramdd(
            lab.reshape(-1, 3),
            self.bins,
            ((0, 100), (-80, 80), (-80, 80)),  # few colours are beyond
        )
        grid = self.side // self.cell
        tiles = lab.reshape(grid, self.cell, grid, self.cell, 3)
        return {
            "gradients": hog(
                rgb,
                pixels_per_cell=(self.cell, self.cell),
                cells_per_block=(2, 2),
                channel_axis=-1,
            ),
            "colours": np.sqrt(histogram / self.side**2),
            "layout": tiles.mean((1, 3)),
        }


def _sample_first(number: int, sample: int, seed: int) -> np.ndarray:
    """An order of `number` positions that starts with a random sample.

    The natural order where the sample is everything.
    """
    if number <= sample:
        return np.arange(number)
    return np.random.default_rng(seed).permutation(number)
