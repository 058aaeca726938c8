"""Has the causal effect found the causes? On a bazaar they are known.

The causal module is trained on items that were rewritten in several
attributes at once. Here it is asked what it makes of a change of a single
one: a set of *probes* has, for each item and attribute, the item with that
attribute changed and nothing else. Whether the attribute moves anybody, and
whom, stands in `truth.npz`, which nothing that trains reads.

Of item i and attribute a, with P and h as in `models/causal.py`,

    effect(i, a) = P(h_i - h~_ia) - P(0)

is what the module takes the item's value of a to be worth; P(0), what it
answers where nothing is changed, says nothing of any attribute. Of a module
whose effect is the content, c = P(h), it is P(h_i) - P(h~_ia).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from neggen_jax import history, metrics, storage
from neggen_jax.catalog import Counterfactuals, Interactions
from neggen_jax.checkpoint import write_json
from neggen_jax.data import counterfactuals as sets
from neggen_jax.data import store
from neggen_jax.data.bazaar.truth import Truth
from neggen_jax.errors import InputError
from neggen_jax.probes import Probe, ask, check_space, probes_of, source_of
from neggen_jax.run import Run, reopen
from neggen_jax.step import State

# How attributes are ordered, and what that is. e_u are users, and E u the mean
# of all: what everybody would rather have is no taste, and in catalogues it is
# what goes with popularity.
STATISTICS = {
    "score": "mean of <e_u - E u, effect> over the users concerned",
    "raw_score": "mean of <e_u, effect> over the users concerned",
    "spread": "standard deviation of <e_u, effect> over all users",
    "size": "length of the effect",
    "distance": "length of what the texts' vectors differ by: no learning",
}
# These are also asked of a module as it was before training. Users learned
# beside the trained one, which began there: the score is not quite blind.
_LEARNED = ("score", "spread", "size")
STATISTICS |= {
    f"{name}_untrained": f"{name}, of the module before training"
    for name in _LEARNED
}
# The most telling of each question. A cause is worth much to some users and
# little to others, which spread shows without knowing whom; of one user, it is
# the sign that is asked for.
CHOSEN = {"items": "spread", "users": "score"}
_BLOCK = 65_536  # pairs of users and items that are scored at a time


def report(
    workdir: str | os.PathLike[str],
    set_name: str = "",
    *,
    data: str | None = None,
    split: str = "test",
    encode: bool = False,
) -> dict[str, Any]:
    """Measures a run, and writes `causes.json` and its figure.

    Args:
      workdir: of a finished run.
      set_name: of the probes in the dataset directory; "" for the set that
        the run was trained on, if that holds probes, and else for "probes".
      data: where the dataset is now, if it has moved.
      split: whose users are asked; see `measure`.
      encode: encode the probes first, anew, by the encoder that encoded the
        set that the run was trained on.

    Returns:
      What was written.

    Raises:
      InputError: if it is no run with counterfactuals on a bazaar, the set
        holds no probes, or vectors of the two sets cannot be compared.
    """
    from neggen_jax import plots, plots_causes

    run, state, step = reopen(workdir, data)
    directory = Path(run.config.data.path).absolute()
    if not (directory / "truth.npz").exists():
        raise InputError(
            "The causes are not known.",
            where=directory,
            expected="truth.npz, as a bazaar has it",
            fix="measure a run on a bazaar of launch/prepare.py",
        )
    truth = Truth.load(directory / "truth.npz")
    # Checked first: whether there is a causal module.
    source_of(run)
    trained_on = run.catalog.counterfactuals
    assert trained_on is not None
    set_name = set_name or usual_set(trained_on)
    if encode and set_name != trained_on.name:
        _encode(directory, set_name, trained_on)
    # Also where it is the same set: those of the run may be shuffled.
    probes = sets.read(
        directory,
        set_name,
        run.catalog.num_items,
        store.items_digest(store.describe(directory)),
    )
    found = {
        "set": probes.name,
        "trained_on": trained_on.name,
        "step": step,
        **measure(run, state, probes, truth, split),
    }
    path = storage.path(workdir)
    write_json(path / "causes.json", found)
    (name,) = history.names([workdir])
    plots.save(plots_causes.causes(found, name), path / "plots" / "causes.png")
    return found


def usual_set(trained_on: Counterfactuals) -> str:
    """The name of the probes: of the set itself, if it has any."""
    return trained_on.name if trained_on.manifest.get("probes") else "probes"


def _encode(directory: Path, set_name: str, like: Counterfactuals) -> None:
    # Imported here: whoever only reads needs no encoders.
    from neggen_jax.generation.sets import encode

    known = like.manifest["encoding"]
    if known["encoder"] == "transformers":
        raise InputError(
            "A neural network is the same whatever set it encodes.",
            where=f"counterfactuals {like.name!r}",
            found=known.get("model"),
            fix=f"encode them by it: launch/generate.py --set={set_name} "
            "--merge --encoder=transformers, and leave --encode out",
        )
    encode.encode(directory, set_name, encoder=known["encoder"], like=like.name)


def measure(
    run: Run,
    state: State,
    probes: Counterfactuals,
    truth: Truth,
    split: str = "test",
) -> dict[str, Any]:
    """How well causes are told from what merely goes with them.

    Each of `STATISTICS` orders the probes of an item, and its AUC is the
    share of pairs of a cause and another attribute in which the cause comes
    first; 0.5 is chance. There are two questions:

    - `items`: which attributes move anybody (`Truth.causal`)? The users
      concerned are those of the item in the split; a mean over items.
    - `users`: which attributes are the reasons of this user to take this
      item? Those that move the user, and of which the item has a value that
      the user likes. Of each (user, item) of the split; a mean over users of
      the mean over their items.

    Intervals are percentile bootstraps over items, or users.

    Args:
      run: composed.
      state: whose averaged or plain parameters are asked.
      probes: a set whose manifest names "probes".
      truth: of the bazaar.
      split: of the interactions that are asked about. Those of "test" and
        "valid" were not trained on.

    Returns:
      Ready for JSON: "auc", question -> statistic -> mean and interval;
      "advantage", question -> statistic -> by how much the AUC of the one in
      `CHOSEN` is larger; "by_modality", the AUC of "spread" for items among
      the probes of each; "probes", for each, means over items: "score",
      "spread" and "size" times lambda, as they enter a ranking.

    Raises:
      InputError: see `report`.
    """
    name = source_of(run)
    asked_of = run.catalog.counterfactuals
    assert asked_of is not None
    _check_truth(run, truth)
    check_space(asked_of, probes)
    which = probes_of(run, probes, truth)
    pairs = run.catalog.splits[split]
    by_item, by_pair, changed = _answers(run, state, name, probes, which, pairs)
    concerned = np.bincount(pairs.items, minlength=len(changed)) > 0
    asked = changed & concerned[:, None]
    causal = truth.causal[[probe.column for probe in which]]
    reasons = _reasons(truth, which, pairs.users, pairs.items)
    found = {
        "items": {
            key: auc(by_item[key], causal[None], asked) for key in STATISTICS
        },
        "users": {
            key: _by_user(
                auc(
                    by_pair.get(key, by_item[key][pairs.items]),
                    reasons,
                    changed[pairs.items],
                ),
                pairs.users,
            )
            for key in STATISTICS
        },
    }
    strength = run.program.recommender.sources[name].strength
    return {
        "split": split,
        "statistics": STATISTICS,
        "chosen": CHOSEN,
        "auc": {
            question: {key: _mean(part[key]) for key in STATISTICS}
            for question, part in found.items()
        },
        "advantage": {
            question: {
                key: _mean(part[CHOSEN[question]] - part[key])
                for key in STATISTICS
                if key != CHOSEN[question]
            }
            for question, part in found.items()
        },
        "by_modality": {
            modality: _mean(
                auc(
                    by_item[CHOSEN["items"]],
                    causal[None],
                    asked & np.array([p.modality == modality for p in which]),
                )
            )
            for modality in sorted({probe.modality for probe in which})
        },
        "probes": [
            {
                "modality": probe.modality,
                "attribute": probe.attribute,
                "causal": bool(causal[a]),
                "items": int(asked[:, a].sum()),
                "distance": _mean(by_item["distance"][asked[:, a], a]),
            }
            | {
                key: _mean(strength * by_item[key][asked[:, a], a])
                for key in _LEARNED
            }
            for a, probe in enumerate(which)
        ],
    }


def _answers(
    run: Run,
    state: State,
    name: str,
    probes: Counterfactuals,
    which: list[Probe],
    pairs: Interactions,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]:
    """`STATISTICS` by item `[I, A]`, those that depend on users by pair.

    Also returns bool `[I, A]`: which items have which probes.
    """
    users = np.asarray(run.encode(state.evaluated)[0], np.float64)
    users = users[: run.catalog.num_users]
    untrained, _ = run.start()
    by_item, by_pair = {"distance": _distances(run, probes, which)}, {}
    for suffix, params in (
        ("", state.evaluated),
        ("_untrained", untrained.evaluated),
    ):
        answer = ask(run, params, name, probes, which, users.shape[1])
        moved = answer.effects.astype(np.float64)
        by_item[f"size{suffix}"] = np.linalg.norm(moved, axis=2)
        by_item[f"spread{suffix}"] = _spread(users, moved)
        for key, whose in (
            (f"score{suffix}", users - users.mean(axis=0)),
            (f"raw_score{suffix}", users),
        ):
            by_pair[key] = _scores(whose, moved, pairs.users, pairs.items)
            by_item[key] = _by_item(by_pair[key], pairs.items, len(moved))
    return by_item, by_pair, answer.changed


# -- what is compared --------------------------------------------------------


def auc(
    values: np.ndarray, positive: np.ndarray, valid: np.ndarray
) -> np.ndarray:
    """Share of pairs of a positive and another in which it is the larger.

    Args:
      values: float `[n, A]`.
      positive: bool, broadcast to `[n, A]`.
      valid: bool `[n, A]`; others are not compared.

    Returns:
      float64 `[n]`, ties counted as half; NaN where a row has no such pair.
    """
    one = np.broadcast_to(positive, values.shape) & valid
    other = ~np.broadcast_to(positive, values.shape) & valid
    won, all_pairs = np.zeros((2, len(values)))
    for a in range(values.shape[1]):
        over = values[:, a, None] - values
        half = np.where(over == 0, 0.5, over > 0)
        here = one[:, a, None] & other
        won += (half * here).sum(axis=1)
        all_pairs += here.sum(axis=1)
    return np.where(all_pairs > 0, won / np.maximum(all_pairs, 1), np.nan)


def _spread(users: np.ndarray, effects: np.ndarray) -> np.ndarray:
    """Standard deviation of <e_u, effect> over users, `[I, A]`."""
    about = np.cov(users, rowvar=False, bias=True).reshape(users.shape[1], -1)
    square = np.einsum("iad,de,iae->ia", effects, about, effects, optimize=True)
    return np.sqrt(np.maximum(square, 0))


def _scores(
    users: np.ndarray, effects: np.ndarray, who: np.ndarray, what: np.ndarray
) -> np.ndarray:
    """<e_u, effect> of each pair and probe, float64 `[n, A]`."""
    out = np.empty((len(who), effects.shape[1]))
    for start in range(0, len(who), _BLOCK):
        some = slice(start, start + _BLOCK)
        out[some] = np.einsum(
            "nd,nad->na", users[who[some]], effects[what[some]]
        )
    return out


def _distances(
    run: Run, probes: Counterfactuals, which: list[Probe]
) -> np.ndarray:
    """How far the texts' vectors move, as the module sees them, `[I, A]`."""
    columns = []
    for probe in which:
        part = probes.modalities[probe.modality]
        moved = part.counterfactual[:, probe.slot] - part.factual
        factor = np.asarray(run.inputs.counterfactuals.factor[probe.modality])
        length = np.linalg.norm(moved.astype(np.float64), axis=1) * factor
        columns.append(np.where(part.present[:, probe.slot], length, 0))
    return np.stack(columns, axis=1)


def _reasons(
    truth: Truth, which: list[Probe], who: np.ndarray, what: np.ndarray
) -> np.ndarray:
    """Whether each probed attribute is a reason of each pair, `[n, A]`."""
    offsets = np.cumsum([0, *(len(names) for names in truth.values)])
    columns = [probe.column for probe in which]
    value = offsets[columns] + truth.item_values[what][:, columns]
    liked = np.take_along_axis(truth.preferences[who], value, axis=1) > 0
    return liked & truth.causes[who][:, columns]


def _by_item(values: np.ndarray, items: np.ndarray, count: int) -> np.ndarray:
    """Means of rows by item, `[count, A]`; zero for an item without any."""
    total = np.zeros((count, values.shape[1]))
    np.add.at(total, items, values)
    number = np.bincount(items, minlength=count)
    return total / np.maximum(number, 1)[:, None]


def _by_user(values: np.ndarray, users: np.ndarray) -> np.ndarray:
    """Each user's mean of what is not NaN, `[U]`; NaN where all is."""
    fine = np.isfinite(values)
    size = int(users.max(initial=-1)) + 1
    count = np.bincount(users[fine], minlength=size)
    total = np.bincount(users[fine], values[fine], minlength=size)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _mean(values: np.ndarray) -> dict[str, Any]:
    """Mean, bootstrap interval of 95 % and number of what is not NaN."""
    values = values[np.isfinite(values)]
    if not len(values):
        return {"mean": None, "low": None, "high": None, "n": 0}
    mean = metrics.summarize({"mean": values})["mean"]
    low = high = mean
    if len(values) > 1:
        test = metrics.paired_test(values, np.zeros_like(values))
        low, high = test["ci_low"], test["ci_high"]
    return {"mean": mean, "low": low, "high": high, "n": len(values)}


# -- what must hold ----------------------------------------------------------


def _check_truth(run: Run, truth: Truth) -> None:
    ours = run.catalog.num_users, run.catalog.num_items
    theirs = len(truth.causes), len(truth.item_values)
    if ours != theirs:
        raise InputError(
            "The truth is that of another bazaar.",
            expected=f"{ours[0]} users and {ours[1]} items",
            found=f"{theirs[0]} users and {theirs[1]} items",
        )
