"""Figures of runs: the data that is drawn is what the log holds."""

import numpy as np
from logs import RECALLS, make_run

from neggen_jax import history, plots


def test_learning_curves_show_every_term_and_mark_the_best_step(tmp_path):
    log = history.read_metrics(make_run(tmp_path))
    validation, *terms = plots.learning_curves(log, "run").axes
    assert [axes.get_title("left") for axes in terms] == [
        "train/loss",
        "train/bpr",
    ]
    (loss,) = terms[0].lines
    np.testing.assert_allclose(
        loss.get_xydata(), [(s, 1 / s) for s in (10, 20, 30, 40)]
    )
    recall, ndcg, best = validation.lines
    np.testing.assert_allclose(recall.get_ydata(), RECALLS)
    np.testing.assert_allclose(ndcg.get_ydata(), np.array(RECALLS) / 2)
    np.testing.assert_allclose(best.get_xydata(), [(30, 0.16)])
    (said,) = (t.get_text() for t in validation.texts if "best" in t.get_text())
    assert said == "best: 0.1600\nat step 30, epoch 3"


def test_learning_curves_leave_levels_to_their_source():
    log = [
        {
            "step": 1,
            "train/loss": 1.0,
            "train/odd": 2.0,
            "train/odd/admitted": 3.0,
            "train/odd/hardness/1-text": 4.0,
        }
    ]
    _, *terms = plots.learning_curves(log, "run").axes
    drawn = {
        axes.get_title("left"): axes.lines[0].get_ydata()[0] for axes in terms
    }
    assert drawn == {
        "train/loss": 1.0,
        "train/odd": 2.0,
        "train/odd/admitted": 3.0,
    }


def test_bars_are_recalls_and_an_empty_decile_says_so(tmp_path):
    deciles = history.read_results(make_run(tmp_path))["deciles"]
    (axes,) = plots.popularity_bars(deciles, "run").axes
    heights = [bar.get_height() for bar in axes.patches]
    assert heights == [0, *deciles["recall@20"][1:]]
    texts = [text.get_text() for text in axes.texts]
    assert texts[0] == "none\nheld out"
    assert texts[9] == "0.300"
    assert axes.get_xticklabels()[9].get_text() == "10\n18"


def test_comparison_tells_more_runs_than_colours_apart():
    count = 2 * len(plots.COLOURS)
    curves = [
        (f"run{n}", [1, 2, 3, 4], [r * (1 + n / 20) for r in RECALLS])
        for n in range(count)
    ]
    (axes,) = plots.comparison_curves(curves).axes
    lines, bests = axes.lines[::2], axes.lines[1::2]
    looks = {(line.get_color(), line.get_linestyle()) for line in lines}
    assert len(looks) == count
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels[0] == "run13  0.2640"
    assert labels[-1] == "run0  0.1600"
    np.testing.assert_allclose(lines[-1].get_xdata(), [1, 2, 3, 4])
    np.testing.assert_allclose(lines[-1].get_ydata(), RECALLS)
    np.testing.assert_allclose(bests[-1].get_xydata(), [(3, 0.16)])
