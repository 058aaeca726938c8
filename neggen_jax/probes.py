"""Asking a causal module: what if one attribute of an item were another?

A set of *probes* (`data/counterfactuals.py`) names attributes under "probes"
in its manifest: alternative k of a modality changes the k-th of them alone.
`causes.py` compares what the module answers with what is true.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from neggen_jax.catalog import Counterfactuals
from neggen_jax.catalog import Rewritten as Known
from neggen_jax.data import rewritten
from neggen_jax.data.bazaar.truth import Truth
from neggen_jax.data.rewritten import Rewritten
from neggen_jax.errors import InputError
from neggen_jax.negatives.counterfactual import Counterfactual
from neggen_jax.run import Run


@dataclasses.dataclass(frozen=True)
class Probe:
    """A question: what if one attribute were another in one modality?

    Attributes:
      modality: that tells of the change.
      attribute: that is changed.
      slot: which alternative of the modality's arrays.
      column: of the attribute in the truth.
    """

    modality: str
    attribute: str
    slot: int
    column: int

    @property
    def name(self) -> str:
        """Of its bar in a figure."""
        return f"{self.attribute} ({self.modality})"


@dataclasses.dataclass(frozen=True, eq=False)
class Asked:
    """What a causal module answers to A probes of I items.

    Attributes:
      before: float32 `[I, A, d]`, c of the item as it is; zero where nothing
        was changed.
      after: float32 `[I, A, d]`, of the item once it is changed.
      changed: bool `[I, A]`, whether there is such a probe of the item.
    """

    before: np.ndarray
    after: np.ndarray
    changed: np.ndarray

    @property
    def effects(self) -> np.ndarray:
        """What the module takes the value to be worth, `[I, A, d]`."""
        return self.before - self.after


def source_of(run: Run) -> str:
    """The source of negatives that has a causal module.

    Raises:
      InputError: if there is none.
    """
    for name, source in run.program.recommender.sources.items():
        if isinstance(source, Counterfactual):
            return name
    raise InputError(
        "The run learns no causal effects.",
        where="config.negatives",
        expected="a source 'counterfactual', as in configs/neggen.py",
        found=", ".join(run.program.recommender.sources),
    )


def probes_of(run: Run, probes: Counterfactuals, truth: Truth) -> list[Probe]:
    """The probes that the causal module can be asked.

    Raises:
      InputError: if the set names none, or not a cause and another.
    """
    told = probes.manifest.get("probes") or {}
    known = run.catalog.counterfactuals
    assert known is not None
    # Of these alone does the module read counterfactuals.
    source = run.program.recommender.sources[source_of(run)]
    read = {*(source.modalities or known.modalities)} & {*probes.modalities}
    found = [
        Probe(modality, attribute, slot, truth.attributes.index(attribute))
        for modality in sorted(read)
        for slot, attribute in enumerate(told.get(modality, ()))
        if attribute in truth.attributes
    ]
    kinds = {bool(truth.causal[probe.column]) for probe in found}
    if len(kinds) < 2:
        raise InputError(
            "There is nothing to tell apart.",
            where=f"counterfactuals {probes.name!r}",
            expected="probes of attributes that move users, and of others",
            found=", ".join(probe.name for probe in found) or "no probes",
            fix="make a set of them: python launch/generate.py --data=DIR "
            "--backend=attributes --probe --set=probes",
        )
    return found


def ask(
    run: Run,
    params: Any,
    name: str,
    probes: Counterfactuals,
    which: list[Probe],
    dim: int,
    items: np.ndarray | None = None,
) -> Asked:
    """Asks a causal module.

    With c = P(h - h~) an item is as it is where a change counts, and changed
    where none does.

    Args:
      run: composed.
      params: of the recommender, trained or not.
      name: of the source that has the module.
      probes: the set.
      which: probes of it.
      dim: width of the embeddings.
      items: rows of those that are asked about, I of them; None for all.
    """
    model, moments = run.program.recommender, run.inputs.counterfactuals
    source = model.sources[name]

    def call(module: Any, tables: dict[str, Rewritten]) -> Any:
        tables = rewritten.standardised(moments, tables)
        given = dataclasses.replace(moments, tables=tables)
        rows = rewritten.rows(given, {}, None)
        return module.sources[name].causal(rows, dim)

    effect = jax.jit(
        lambda params, tables: model.apply(
            {"params": params}, tables, method=call
        )
    )
    before: list[np.ndarray] = []
    after: list[np.ndarray] = []
    changed: list[np.ndarray] = []
    for probe in which:
        said = effect(params, _tables(run, probes, probe, items))
        # The same question without a change.
        nothing = effect(
            params, _tables(run, probes, probe, items, change=False)
        )
        there = np.asarray(said.present)[:, 0]
        if source.effect == "content":
            pair = nothing.counterfactual[:, 0], said.counterfactual[:, 0]
        else:
            pair = said.factual, nothing.factual
        for found, vectors in zip((before, after), pair, strict=True):
            found.append(np.where(there[:, None], np.asarray(vectors), 0))
        changed.append(there)
    return Asked(*(np.stack(part, axis=1) for part in (before, after, changed)))


def _tables(
    run: Run,
    probes: Counterfactuals,
    probe: Probe,
    items: np.ndarray | None,
    change: bool = True,
) -> dict[str, Rewritten]:
    """Items, of which one modality is told otherwise in one attribute.

    With `change` off it is told anew, and the same.
    """
    known = run.catalog.counterfactuals
    assert known is not None
    some: Any = slice(None) if items is None else items
    tables = {}
    for modality, part in known.modalities.items():
        if modality == probe.modality:
            part = probes.modalities[modality]
            slot = slice(probe.slot, probe.slot + 1)
            there = part.present[some, slot]
            other = part.counterfactual[some, slot]
        factual, described = part.factual[some], part.described[some]
        if modality != probe.modality:
            other = np.zeros((len(factual), 1, part.dim), np.float32)
            there = np.zeros((len(factual), 1), np.bool_)
        elif not change:
            other = factual[:, None]
        rows = (factual, described, other, there)
        tables[modality] = Rewritten(*(jnp.asarray(row) for row in rows))
    return tables


def check_space(ours: Counterfactuals, probes: Counterfactuals) -> None:
    """Refuses vectors that were not made by one and the same encoder."""
    if _same_encoder(ours.manifest, probes.manifest):
        return
    shared = [
        (ours.modalities[m], probes.modalities[m])
        for m in sorted({*ours.modalities} & {*probes.modalities})
    ]
    if shared and all(_same_vectors(*pair) for pair in shared):
        return
    raise InputError(
        "The probes' vectors are not of the space that was trained in.",
        where=f"counterfactuals {probes.name!r} beside {ours.name!r}",
        expected="texts of both encoded by one encoder",
        found="an encoder for each, which learned from its texts alone",
        fix="give --encode to encode the probes as the other set was, or "
        "encode both sets with --encoder=transformers",
    )


def _same_encoder(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    one, other = ours.get("encoding", {}), theirs.get("encoding", {})
    for key in ("encoder", "parameters"):
        if key not in one or one[key] != other.get(key):
            return False
    # A neural network is what it is; others learn from the texts of a set.
    learned_from = (other.get("like") or other).get("records")
    return one["encoder"] == "transformers" or (
        learned_from is not None and learned_from == one.get("records")
    )


def _same_vectors(ours: Known, theirs: Known) -> bool:
    """Whether what both describe has the same vectors."""
    both = ours.described & theirs.described
    if ours.dim != theirs.dim or not both.any():
        return False
    return np.allclose(ours.factual[both], theirs.factual[both], atol=1e-5)
