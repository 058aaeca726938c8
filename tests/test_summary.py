"""Figures of a set: they equal plain ones."""

import dataclasses
import json
import re

import numpy as np
import pytest
from conftest import ITEMS
from inspected import FAILED, make_records

from neggen_jax.catalog import Counterfactuals, Rewritten
from neggen_jax.generation.inspection import summary as figures_of
from neggen_jax.generation.inspection.summary import percent, summary
from neggen_jax.generation.records import Alternative, Record

# Figures --------------------------------------------------------------------


def test_counts_equal_plain_ones():
    made = make_records()
    figures = summary(iter(made))
    assert figures["records"] == len(made) == 2 * ITEMS
    assert figures["failed"] == len(FAILED)
    assert figures["accepted"] == len(made) - len(FAILED)
    assert figures["rate"] == pytest.approx(1 - len(FAILED) / len(made))
    assert figures["attempts"] == sum(r.attempts for r in made)
    assert figures["items"] == {"1": len(FAILED), "2": ITEMS - len(FAILED)}
    assert figures["balance"] is None
    text = figures["modalities"]["text"]
    assert (text["records"], text["failed"]) == (ITEMS, len(FAILED))
    odd = sum(item % 2 for item in FAILED)
    assert text["reasons"] == {"length": odd, "no words": len(FAILED) - odd}
    accepted = [r for r in made if r.modality == "text" and r.accepted]
    both = sum(r.item % 3 == 0 for r in accepted)
    assert text["attributes_changed"] == {
        "1": len(accepted) - both,
        "2": both,
    }
    assert text["changed"] == {"colour": len(accepted), "<i>stuff</i>": both}
    assert text["described"] == ITEMS - 2
    assert text["different_descriptions"] == ITEMS - 2
    assert text["different"] == text["counterfactuals"] == len(accepted)
    image = figures["modalities"]["image"]
    assert image["rate"] == 1
    assert image["reasons"] == {}
    assert json.loads(json.dumps(figures)) == figures


def test_words_changed_equal_plain_ones():
    made = [r for r in make_records() if r.modality == "image"]
    known = summary(made)["modalities"]["image"]["words_changed"]
    shares = []
    for record in made:
        before = re.findall(r"\w+", record.description)
        # One word of each is replaced by another.
        shares.append(1 - 2 * (len(before) - 1) / (2 * len(before)))
    assert known["number"] == len(shares)
    assert known["mean"] == pytest.approx(np.mean(shares))
    for q, value in known["quantiles"].items():
        assert value == pytest.approx(np.percentile(shares, float(q)))
    counts, _ = np.histogram(shares, figures_of.BINS, (0, 1))
    assert known["histogram"] == counts.tolist()


def test_repeated_texts_are_counted():
    changes = {"colour": ("red", "blue")}
    made = [
        Record(
            item,
            "A",
            "text",
            description="a red dress" if item < 2 else f"dress {item}",
            negatives=tuple(Alternative(text, changes) for text in texts),
        )
        for item, texts in enumerate(
            [
                ("a blue dress", "a  Blue dress"),  # the same, but for letters
                ("a blue dress", "A RED dress"),  # of another, of its own
                ("x",),
            ]
        )
    ]
    known = summary(made)["modalities"]["text"]
    assert known["counterfactuals"] == 5
    assert known["different"] == 3
    assert known["repeated"] == 1
    assert known["unchanged"] == 1
    assert known["different_descriptions"] == 2


def make_vectors(seed, items=30, alternatives=2, width=5, spread=0.1):
    rng = np.random.default_rng(seed)
    described = rng.random(items) < 0.9
    present = (rng.random((items, alternatives)) < 0.7) & described[:, None]
    factual = rng.normal(size=(items, width)) * described[:, None]
    made = factual[:, None] + spread * rng.normal(
        size=(items, alternatives, width)
    )
    made *= present[..., None]

    def unit(x):
        length = np.linalg.norm(x, axis=-1, keepdims=True)
        return (x / np.where(length > 0, length, 1)).astype(np.float32)

    return Rewritten(unit(factual), described, unit(made), present)


def test_similarities_equal_plain_ones(monkeypatch):
    monkeypatch.setattr(figures_of, "_BLOCK", 7)
    rows = {"text": make_vectors(1), "image": make_vectors(2, spread=0.7)}
    made = Counterfactuals("rule", rows).validate(30)
    figures = summary(make_records(30), made, seed=4)
    distances = {}
    for modality, part in rows.items():
        cosines = [
            np.dot(
                part.factual[i].astype(float),
                part.counterfactual[i, k].astype(float),
            )
            for i, k in np.argwhere(part.present)
        ]
        known = figures["modalities"][modality]["similarity"]
        assert known["number"] == len(cosines)
        # float32 products of unit vectors.
        assert known["mean"] == pytest.approx(np.mean(cosines), abs=1e-6)
        for q, value in known["quantiles"].items():
            want = np.percentile(cosines, float(q))
            assert value == pytest.approx(want, abs=1e-6)
        assert sum(known["histogram"]) == len(cosines)
        distances[modality] = known["distance"]
        assert known["distance"] == pytest.approx(
            1 - np.mean(cosines), abs=1e-6
        )
        # Items that are not described are not compared: all have a length.
        assert known["items"]["number"] == part.described.sum() - 1
        assert abs(known["items"]["mean"]) < known["mean"]
    balance = figures["balance"]
    assert balance["distance"] == distances
    want = distances["text"] / distances["image"]
    assert balance["ratio"] == pytest.approx(want)
    assert 0 < want < 0.5


def test_a_modality_that_stays_has_no_balance():
    part = make_vectors(1)
    same = dataclasses.replace(
        part,
        counterfactual=part.factual[:, None] * part.present[..., None],
    )
    made = Counterfactuals("rule", {"text": same, "image": same})
    figures = summary(make_records(30), made)
    assert figures["balance"]["ratio"] is None or figures["balance"][
        "ratio"
    ] == pytest.approx(1, rel=0.5)
    one = Counterfactuals("rule", {"text": part})
    assert summary(make_records(30), one)["balance"]["ratio"] is None


def test_costly_figures_are_of_a_random_sample(monkeypatch):
    monkeypatch.setattr(figures_of, "SAMPLE", 10)
    made = [
        Record(
            item,
            "A",
            "text",
            description="a b c d",
            negatives=(
                Alternative(
                    "a b c x" if item < 200 else "a y z x", {"a": ("d", "x")}
                ),
            ),
        )
        for item in range(400)
    ]
    several = [summary(made, seed=s)["modalities"]["text"] for s in range(40)]
    assert {about["counterfactuals"] for about in several} == {400}
    assert {about["words_changed"]["number"] for about in several} == {10}
    means = [about["words_changed"]["mean"] for about in several]
    # Shares are 1/4 and 3/4 alike: of 400 drawn, the mean has a deviation of
    # 0.25 / 20.
    assert np.mean(means) == pytest.approx(0.5, abs=0.05)
    assert len(set(means)) > 1
    again = summary(made, seed=3)["modalities"]["text"]
    assert again["words_changed"]["mean"] == means[3]


def test_nothing_at_all_has_figures_too():
    figures = summary([])
    assert figures["rate"] is None
    assert figures["modalities"] == {}
    assert figures_of.lines(figures) == []


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (None, "-"),
        (0, "0.0%"),
        (1, "100.0%"),
        (0.5, "50.0%"),
        (0.12345, "12.3%"),
        (1 - 1e-6, "> 99.9%"),
        (1e-6, "< 0.1%"),
    ],
)
def test_rounding_hides_no_failure(share, text):
    assert percent(share) == text
