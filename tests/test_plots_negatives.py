"""The figure of a source: the data that is drawn is what the log holds."""

import numpy as np
import pytest
from logs import make_run, write_log
from matplotlib.colors import to_rgba

from neggen_jax import history, plots, plots_negatives

LEVELS = ["1-text", "2-image", "10-text+image"]
MEASURES = ["hardness", "score", "distance", "false_negatives", "diversity"]
RANGES = ["0-4", "5-9", "10-14"]
# Epoch that a level is first drawn in; two lines are logged an epoch.
START = {"1-text": 1, "2-image": 3, "10-text+image": 6}
EPOCHS = 12


def key(measure, label):
    return f"train/odd/{measure}/{label}"


def make_log(seed=0):
    """A run whose source "odd" lets levels in one after another."""
    generator = np.random.default_rng(seed)
    log = []
    for half in range(1, 2 * EPOCHS + 1):
        entry = {"step": 5 * half, "epoch": half / 2}
        entry["train/odd"] = entry["train/loss"] = 1.0
        entry["train/odd/admitted"] = float(min(6, half // 3))
        names = [key("score", "positive"), key("score", "uniform")]
        names += [key("denoiser", span) for span in RANGES]
        for level, start in START.items():
            if entry["epoch"] > start - 1:
                names += [key(measure, level) for measure in MEASURES]
        values = generator.random(len(names)).tolist()
        log.append(entry | dict(zip(names, values, strict=True)))
    return log


def reference(log, name, epochs=range(1, EPOCHS + 1)):
    """(epoch, mean) of each epoch that has values."""
    out = []
    for epoch in epochs:
        values = [
            e[name]
            for e in log
            if name in e and epoch - 1 < e["epoch"] <= epoch
        ]
        if values:
            out.append((epoch, np.mean(values)))
    return np.array(out)


def panels(figure):
    """Title -> panel."""
    return {axes.get_title("left"): axes for axes in figure.axes}


def drawn(axes):
    """Label -> data, without marks and what has no label."""
    return {
        line.get_label(): line.get_xydata()
        for line in axes.lines
        if not line.get_label().startswith("_")
        and line.get_label() != "best step"
    }


def test_every_line_is_the_mean_by_epoch_of_what_was_logged():
    log = make_log()
    at = panels(plots_negatives.by_level(log, "odd", "run"))
    bars, *titles = at
    assert bars == "hardness by level, epochs 8-12"
    assert titles == [
        *(plots_negatives.TITLES[measure] for measure in MEASURES),
        "denoiser loss by range of timesteps",
        "negatives admitted",
    ]
    want = {m: LEVELS for m in MEASURES} | {"denoiser": RANGES}
    want["score"] = [*LEVELS, "positive", "uniform"]
    for title, (measure, labels) in zip(titles, want.items(), strict=False):
        lines = drawn(at[title])
        # Ranges and levels are numbers: "10-14" comes after "5-9".
        assert list(lines) == labels
        for label in labels:
            # Means of two.
            np.testing.assert_allclose(
                lines[label], reference(log, key(measure, label)), rtol=1e-14
            )
    (admitted,) = at["negatives admitted"].lines
    np.testing.assert_allclose(
        admitted.get_xydata(), reference(log, "train/odd/admitted")
    )


def test_levels_look_alike_in_all_panels_and_the_legend():
    figure = plots_negatives.by_level(make_log(), "odd", "run", 40)
    looks = {}
    legend = figure.legends[0]
    assert len(figure.legends) == 1
    entries = [text.get_text() for text in legend.get_texts()]
    assert entries == [*LEVELS, "positive", "uniform", "best step"]
    for line in legend.get_lines() + [
        line
        for axes in figure.axes
        for line in axes.lines
        if line.get_label() in entries
    ]:
        look = line.get_color(), line.get_linestyle()
        looks.setdefault(line.get_label(), set()).add(look)
    assert looks.keys() == set(entries)
    assert all(len(look) == 1 for look in looks.values())
    assert len({look.pop() for look in looks.values()}) == len(entries)
    bars = figure.axes[0].patches
    colours = [bar.get_facecolor() for bar in bars]
    lines = [line.get_color() for line in legend.get_lines()[:3]]
    assert colours == [to_rgba(colour) for colour in lines]


def test_more_levels_than_colours_are_told_apart():
    labels = [f"{n}-level" for n in range(1, 11)]
    entry = {key("hardness", label): 0.5 for label in labels}
    log = [{"step": 1, "epoch": 1.0, **entry}]
    figure = plots_negatives.by_level(log, "odd", "run")
    lines = figure.legends[0].get_lines()
    assert len({(x.get_color(), x.get_linestyle()) for x in lines}) == 10
    # Their names do not fit below the bars; their numbers do.
    ticks = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert ticks == [str(n) for n in range(1, 11)]


@pytest.mark.parametrize(
    ("step", "first", "last"),
    [
        (None, 8, 12),
        (1000, 8, 12),
        (110, 7, 11),
        # The last level came in epoch 6, and is compared from there on.
        (80, 6, 8),
        (60, 6, 6),
        # It has not come yet.
        (50, 3, 5),
    ],
)
def test_bars_are_means_of_the_same_few_epochs_up_to_the_best(
    step, first, last
):
    log = make_log()
    figure = plots_negatives.by_level(log, "odd", "run", step)
    axes = figure.axes[0]
    span = f"epochs {first}-{last}" if first < last else f"epoch {first}"
    assert axes.get_title("left") == f"hardness by level, {span}"
    heights = [bar.get_height() for bar in axes.patches]
    texts = [
        text.get_text() for text in axes.texts if text.get_text()[0] in "0n"
    ]
    for level, height, text in zip(LEVELS, heights, texts, strict=True):
        means = reference(log, key("hardness", level), range(first, last + 1))
        if START[level] > last:
            assert (height, text) == (0, "none")
            continue
        assert len(means) == last - first + 1
        # A mean of a few means.
        np.testing.assert_allclose(height, means[:, 1].mean(), rtol=1e-14)
        assert text == f"{height:.2f}"
    ticks = [text.get_text() for text in axes.get_xticklabels()]
    assert ticks == ["1\ntext", "2\nimage", "10\ntext+image"]


def test_the_best_step_is_marked_in_its_epoch_in_every_panel():
    # Step 35 ends in the middle of epoch 4.
    figure = plots_negatives.by_level(make_log(), "odd", "run", 35)
    for axes in figure.axes[1:]:
        (best,) = (x for x in axes.lines if x.get_label() == "best step")
        assert best.get_xdata() == [4, 4]
    figure = plots_negatives.by_level(make_log(), "odd", "run")
    labels = {x.get_label() for axes in figure.axes for x in axes.lines}
    assert "best step" not in labels


def test_hardness_marks_0_and_1_and_early_noise_does_not_hide_the_rest():
    log = make_log()
    log[0][key("hardness", "1-text")] = -1e4
    log[-1][key("hardness", "2-image")] = 3.0
    figure = plots_negatives.by_level(log, "odd", "run")
    bars, lines = figure.axes[:2]
    for axes in (bars, lines):
        marks = [
            x.get_ydata()[0] for x in axes.lines if len(x.get_ydata()) == 2
        ]
        assert marks == [1, 0]
        assert "as the\npositive" in {text.get_text() for text in axes.texts}
        low, high = axes.get_ylim()
        assert -0.5 < low < 0
        assert 1 < high < 3
    # The mean of the epoch, of 3 and another, is in view.
    assert drawn(lines)["2-image"][-1, 1] < lines.get_ylim()[1]
    # Out of view, but drawn.
    assert drawn(lines)["1-text"][0, 1] < -4e3


def test_a_level_may_be_absent_from_a_measure():
    log = [
        {k: v for k, v in e.items() if k != key("diversity", "2-image")}
        for e in make_log()
    ]
    at = panels(plots_negatives.by_level(log, "odd", "run"))
    lines = drawn(at[plots_negatives.TITLES["diversity"]])
    assert list(lines) == ["1-text", "10-text+image"]
    other = at["hardness"].lines, at[plots_negatives.TITLES["diversity"]].lines
    colours = [
        {x.get_label(): x.get_color() for x in each}["10-text+image"]
        for each in other
    ]
    assert colours[0] == colours[1]


def test_a_gap_is_no_point():
    log = make_log()
    for entry in log:
        if 4 < entry["epoch"] <= 6:
            del entry[key("hardness", "1-text")]
    at = panels(plots_negatives.by_level(log, "odd", "run"))
    epochs = drawn(at["hardness"])["1-text"][:, 0]
    assert epochs.tolist() == [1, 2, 3, 4, *range(7, EPOCHS + 1)]


def test_a_single_epoch_is_drawn_as_dots():
    log = [
        {"step": 1, "epoch": 1.0, key("hardness", "user"): -0.5},
    ]
    figure = plots_negatives.by_level(log, "odd", "run", 1)
    bars, lines = figure.axes
    assert bars.get_title("left") == "hardness by level, epoch 1"
    assert bars.patches[0].get_height() == -0.5
    (dot,) = (x for x in lines.lines if x.get_label() == "user")
    assert dot.get_marker() == "o"
    np.testing.assert_allclose(dot.get_xydata(), [(1, -0.5)])
    left, right = lines.get_xlim()
    ticks = [t for t in lines.xaxis.get_ticklocs() if left <= t <= right]
    assert ticks == [1]
    assert lines.get_ylim()[0] < -0.5


def test_a_source_that_has_drawn_nothing_yet_has_what_it_logged():
    entry = {key("score", "positive"): 0.4, key("denoiser", "0-4"): 1.0}
    log = [{"step": 1, "epoch": 1.0, "train/odd/admitted": 0.0, **entry}]
    at = panels(plots_negatives.by_level(log, "odd", "run"))
    assert list(at) == [
        plots_negatives.TITLES["score"],
        "denoiser loss by range of timesteps",
        "negatives admitted",
    ]


def test_any_measure_of_any_source_has_a_panel():
    log = make_log()
    for entry in log:
        entry["train/other/new_measure/easy"] = 2.0
    assert plots_negatives.sources(log) == ["odd", "other"]
    (axes,) = plots_negatives.by_level(log, "other", "run").axes
    assert axes.get_title("left") == "new measure"
    assert set(drawn(axes)) == {"easy"}
    titles = panels(plots_negatives.by_level(log, "odd", "run"))
    assert "new measure" not in titles


def test_no_name_that_was_logged_is_drawn_nowhere():
    log = make_log()
    logged = {k for e in log for k in e if k.startswith("train/")}
    _, *terms = plots.learning_curves(log, "run").axes
    names = {axes.get_title("left") for axes in terms}
    found = plots_negatives.Logged.of(log, "odd", None)
    names |= {
        key(measure, label)
        for measure, labels in (found.measures | found.ranges).items()
        for label in labels
    }
    assert names == logged


def test_terms_without_levels_make_no_source():
    log = [{"step": 1, "epoch": 1.0, "train/odd/admitted": 2.0}]
    log += [{"step": 1, "epoch": 1.0, "valid/a/b/c": 1.0, "train/loss": 1.0}]
    assert plots_negatives.sources(log) == []


def test_a_resumed_log_counts_the_later_value(tmp_path):
    workdir = make_run(tmp_path)
    log, again = make_log(), make_log(1)
    # Killed in the middle of epoch 9, and gone on from the end of epoch 7.
    write_log(workdir, [*log[:17], *again[14:], '{"step": 125, "tr'])
    at = panels(
        plots_negatives.by_level(history.read_metrics(workdir), "odd", "run")
    )
    want = log[:14] + again[14:]
    for level, data in drawn(at["hardness"]).items():
        np.testing.assert_allclose(
            data, reference(want, key("hardness", level)), rtol=1e-14
        )
