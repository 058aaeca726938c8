"""Figures of a set: what is drawn is what the summary holds."""

import numpy as np
import pytest

from neggen_jax.generation.inspection import plots

BINS = 8


def spread(low, counts):
    return {
        "number": sum(counts),
        "mean": 0.5,
        "quantiles": {},
        "histogram": counts,
        "from": low,
    }


def make_figures(**parts):
    text = {
        "reasons": {f"reason {i} of $x^2": 20 - i for i in range(12)},
        "changed": {"colour": 30, "brand": 10},
        "words_changed": spread(0.0, [0, 4, 12, 0, 0, 0, 0, 0]),
        "similarity": spread(-1.0, [0, 0, 0, 0, 0, 0, 4, 12])
        | {"items": spread(-1.0, [0, 0, 0, 8, 8, 0, 0, 0])},
    }
    image = {
        "reasons": {"reason 3 of $x^2": 100},
        "changed": {"colour": 40, "cut": 5},
        "words_changed": spread(0.0, [0, 0, 0, 9, 1, 0, 0, 0]),
        "similarity": None,
    }
    return {"modalities": {"text": text | parts, "image": image | parts}}


def panel(title, **parts):
    (axes,) = plots.panels(make_figures(**parts))[title].axes
    return axes


def bars_of(axes):
    """Label -> width of each modality's bar."""
    labels = [t.get_text().replace("\n", " ") for t in axes.get_yticklabels()]
    found = {}
    for label, *parts in zip(labels, *axes.containers, strict=True):
        found[label] = [part.get_width() for part in parts]
    return found


def test_bars_are_the_counts_of_both_modalities():
    assert bars_of(panel("attributes changed")) == {
        "colour": [30, 40],
        "brand": [10, 0],
        "cut": [0, 5],
    }


def test_the_rarest_reasons_go_together():
    axes = panel("why records failed")
    found = bars_of(axes)
    labels = list(found)
    # A dollar sign begins no formula.
    assert labels[0] == r"reason 3 of \$x^2"
    assert found[labels[0]] == [17, 100]
    assert labels[-1] == "4 others"
    assert found["4 others"] == [12 + 11 + 10 + 9, 0]
    assert len(labels) == plots._BARS + 1
    # The first one is on top, and its number beside both of its parts.
    low, high = axes.get_ylim()
    assert low > high
    assert "117" in [text.get_text() for text in axes.texts]
    assert axes.get_xlim()[1] > 117


@pytest.mark.parametrize(
    ("title", "labels", "first", "ends"),
    [
        ("words changed", ["text", "image"], [0, 0.25, 0.75], (0.125, 0.625)),
        (
            "similarity to the description",
            ["text", "text, random items"],
            [0] * 6 + [0.25, 0.75],
            (-0.25, 1),
        ),
    ],
)
def test_steps_are_shares_and_nothing_is_cut_off(title, labels, first, ends):
    axes = panel(title)
    drawn = [patch for patch in axes.patches if patch.get_label() in labels]
    assert [patch.get_label() for patch in drawn] == labels
    values, edges, _ = drawn[0].get_data()
    np.testing.assert_allclose(values[: len(first)], first)
    assert values.sum() == pytest.approx(1)
    assert len(edges) == BINS + 1
    assert edges[-1] == pytest.approx(1)
    low, high = axes.get_xlim()
    assert low < ends[0] < ends[1] < high
    assert low > ends[0] - 0.1
    assert axes.get_ylim()[1] > max(values)


def test_what_there_is_not_has_no_panel():
    assert list(plots.panels(make_figures())) == [
        "why records failed",
        "attributes changed",
        "words changed",
        "similarity to the description",
    ]
    nothing = {
        "reasons": {},
        "changed": {},
        "words_changed": None,
        "similarity": None,
    }
    assert plots.panels(make_figures(**nothing)) == {}
    assert plots.panels({"modalities": {}}) == {}


def test_legends_hide_nothing():
    for figure in plots.panels(make_figures()).values():
        (axes,) = figure.axes
        figure.draw_without_rendering()
        legend = axes.get_legend()
        if legend is not None:
            # Below the panel's own ground.
            assert legend.get_window_extent().y1 < axes.get_window_extent().y0
            assert legend.get_window_extent().y0 >= 0
