"""Items that were not there in training, known by their content alone.

A shop's newest items come as a file, are encoded as those of the dataset
were, and reach an encoder (`Encoder.cold`) as `NewItems`: what `data/inputs.py`
has of known items, for these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from neggen_jax.catalog import Catalog, Features, ItemRecords
from neggen_jax.data import features as encoding
from neggen_jax.data import graphs
from neggen_jax.data.encoders_neural import MINILM
from neggen_jax.data.inputs import Needs, modalities
from neggen_jax.data.moments import moments
from neggen_jax.errors import InputError
from neggen_jax.partition import Partition

# Items whose vectors show whether two encoders are the same.
_CHECKED = 64


@flax.struct.dataclass
class Near:
    """Rows of an item-item graph, of items that are not in it.

    Attributes:
      items: int32 `[n, k]`, known items.
      weights: float32 `[n, k]`; 0 where there is no neighbour.
    """

    items: jax.Array
    weights: jax.Array

    def of(self, table: jax.Array) -> jax.Array:
        """The rows times a table of the known items, `[n, d]`."""
        return jnp.einsum("nk,nkd->nd", self.weights, table[self.items])


@flax.struct.dataclass
class NewItems:
    """What an encoder reads of new items.

    Attributes:
      features: modality -> float32 `[n, f]`, standardised like those known.
      item_item: modality (or "fused") -> their rows of the graph.
    """

    features: dict[str, jax.Array]
    item_item: dict[str, Near]


def place(
    catalog: Catalog,
    needs: Needs,
    vectors: Mapping[str, np.ndarray],
    partition: Partition,
    rows: np.ndarray | None = None,
) -> NewItems:
    """Makes what an encoder needs of new items.

    Args:
      catalog: of the known ones.
      needs: of the encoder.
      vectors: modality -> float32 `[n, f]`, as the catalogue's; a zero row
        is an item without.
      partition: devices that search for neighbours.
      rows: which known items they are, if known ones are to be seen as new.
    """
    features, near = {}, {}
    if needs.features:
        for name in modalities(catalog, needs):
            known = catalog.features[name]
            mean, scale = moments(name, known.values, known.present)
            here = vectors[name].any(axis=1, keepdims=True)
            values = np.where(here, (vectors[name] - mean) / scale, 0)
            features[name] = partition.put(values.astype(np.float32))
    if (graph := needs.item_item) is not None:
        for name in modalities(catalog, graph):
            near[name] = graphs.near_known(
                catalog.features[name],
                vectors[name],
                graph.neighbours,
                graph.values,
                partition,
                rows,
            )
        if graph.fuse is not None:
            shares = graphs.shares(near, graph.fuse)
            items = np.hstack([near[name][0] for name in near])
            weights = np.hstack([near[name][1] * shares[name] for name in near])
            near = {"fused": (items, weights)}
    return NewItems(
        features,
        {
            name: Near(*(partition.put(x) for x in row))
            for name, row in near.items()
        },
    )


def encode(
    known: Features,
    modality: str,
    records: ItemRecords | None,
    new: ItemRecords,
    model: str | None = None,
) -> np.ndarray:
    """Encodes new items' content as that of a dataset was encoded.

    An encoder without weights learns from the dataset's own items again; that
    it gives their vectors again is seen to.

    Args:
      known: the dataset's features of the modality.
      modality: "text" or "image".
      records: of the dataset.
      new: of the new items.
      model: where the weights of a neural encoder are now.

    Returns:
      float32 `[n, f]`; unit rows, or zero for items without.

    Raises:
      InputError: if the dataset's vectors came from elsewhere, or the encoder
        is not the one that made them.
    """
    about = known.manifest
    name = about.get("encoder")
    if name not in encoding.ENCODERS.get(modality, {}) or records is None:
        raise InputError(
            f"New items' {modality} cannot be encoded like that of the known.",
            where=f"features of the modality {modality!r}",
            expected="vectors that launch/prepare.py has made of content",
            found=f"encoder {name!r}",
            fix=f'give vectors: "vectors": {{"{modality}": [...]}}',
        )
    chosen = about["source"].get("attributes")
    if modality == "text":
        texts = (encoding.item_text(new, i, chosen) for i in range(len(new)))
        contents: list[Any] = [text or None for text in texts]
    else:
        contents, _ = encoding.contents_of(new, modality)
    having = np.array([content is not None for content in contents], bool)
    out = np.zeros((len(new), known.dim), np.float32)
    if not having.any():
        return out
    # As it was prepared: images that could not be read are absent.
    old, _ = encoding.contents_of(records, modality, chosen, "absent")
    coder, longest = _relearned(known, modality, name, old, model)
    rows = coder.transform([c for c in contents if c is not None])
    out[having] = encoding.unit_rows(rows, longest)
    return out


def _relearned(
    known: Features,
    modality: str,
    name: str,
    contents: list[Any],
    model: str | None,
) -> tuple[Any, float]:
    """The encoder as it was, and the length of its longest known vector."""
    about = known.manifest
    kind = encoding.ENCODERS[modality][name]
    seed = int(about.get("parameters", {}).get("seed", 0))
    neural = name == "transformers"
    # The width may have been asked for, or be what there was.
    for dim in (None,) if neural else (None, known.dim):
        coder = kind(_weights(about, model) if neural else None, dim, seed=seed)
        some = np.flatnonzero([content is not None for content in contents])
        if neural:
            some = some[:_CHECKED]
        rows = coder.fit_transform([contents[i] for i in some])
        longest = float(np.linalg.norm(rows, axis=1).max())
        check = slice(0, _CHECKED)
        made = encoding.unit_rows(rows[check], longest)
        want = known.values[some[check]]
        # Machines round otherwise; other encoders differ by far more.
        if made.shape == want.shape and np.allclose(made, want, atol=1e-3):
            return coder, longest
    raise InputError(
        "The dataset's vectors were made by another encoder.",
        where=f"features of the modality {modality!r}",
        expected={k: about.get(k) for k in ("encoder", "model", "parameters")},
        found={"encoder": name, **coder.about()},
        fix=f"name its weights (--{modality}_model), or give vectors",
    )


def _weights(about: Mapping[str, Any], model: str | None) -> str | None:
    name = (about.get("model") or {}).get("name")
    return model or (None if name == MINILM else name)
