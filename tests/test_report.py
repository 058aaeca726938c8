import io
import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from neggen_jax import report
from neggen_jax.errors import InputError

RECALLS = [0.05, 0.12, 0.16, 0.15]


def make_run(parent, name="neggen", scale=1.0, **changes):
    """A workdir as `train.py` and `evaluate.py` leave it."""
    workdir = parent / name
    workdir.mkdir(parents=True)
    lines = []
    for epoch, recall in enumerate(RECALLS, 1):
        step = 10 * epoch
        line = {"step": step, "epoch": float(epoch)}
        lines += [{**line, "train/loss": 1 / step, "train/bpr": 0.5 / step}]
        valid = {"valid/recall@20": scale * recall}
        lines += [{**line, **valid, "valid/ndcg@20": scale * recall / 2}]
    write_log(workdir, [json.dumps(line) for line in lines])
    results = {
        "dataset": "bazaar",
        "config": {
            "encoder": {"name": "lightgcn", "dim": 64},
            "negatives": {"sampled": {"name": "uniform", "count": 1}},
        },
        "step": 30,
        "valid": {"recall@20": scale * 0.16},
        "test": {
            "recall@10": scale * 0.1,
            "recall@20": scale * 0.15,
            "ndcg@10": scale * 0.05,
            "ndcg@20": scale * 0.07,
            "coverage@20": 0.5,
            "gini@20": scale * 0.4,
        },
        "deciles": {
            "recall@20": [None, *np.linspace(0, 0.3, 9).tolist()],
            "heldout": [0, *range(10, 19)],
        },
        "timing": {"seconds_per_epoch": 1.5},
    } | changes
    (workdir / "results.json").write_text(json.dumps(results))
    return workdir


def write_log(workdir, lines):
    (workdir / "metrics.jsonl").write_text("\n".join(lines))


def ink(path):
    """Share of pixels that are not white."""
    pixels = np.asarray(Image.open(path).convert("L"))
    return (pixels < 250).mean()


def test_plot_run_writes_two_images(tmp_path):
    workdir = make_run(tmp_path)
    paths = report.plot_run(workdir)
    plots = workdir / "plots"
    assert paths == [
        plots / "learning_curves.png",
        plots / "recall_by_popularity.png",
    ]
    assert all(0.01 < ink(path) < 0.5 for path in paths)


def test_a_run_in_progress_has_learning_curves_only(tmp_path):
    workdir = make_run(tmp_path)
    (workdir / "results.json").unlink()
    paths = report.plot_run(workdir)
    assert [path.name for path in paths] == ["learning_curves.png"]


@pytest.mark.parametrize("lines", [[], ['{"step": 1, "train/loss": 2.0}']])
def test_a_run_without_validation_can_be_drawn(tmp_path, lines):
    workdir = make_run(tmp_path)
    write_log(workdir, lines)
    assert ink(report.plot_run(workdir)[0]) > 0
    report.plot_comparison([workdir], tmp_path / "all.png")
    assert ink(tmp_path / "all.png") > 0


def test_learning_curves_show_every_term_and_mark_the_best_step(tmp_path):
    log = report.read_metrics(make_run(tmp_path))
    validation, *terms = report._learning_curves(log, "run").axes
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


def test_bars_are_recalls_and_an_empty_decile_says_so(tmp_path):
    results = report.read_results(make_run(tmp_path))
    (axes,) = report._popularity_bars(results["deciles"], "run").axes
    heights = [bar.get_height() for bar in axes.patches]
    assert heights == [0, *results["deciles"]["recall@20"][1:]]
    texts = [text.get_text() for text in axes.texts]
    assert texts[0] == "none\nheld out"
    assert texts[9] == "0.300"
    assert axes.get_xticklabels()[9].get_text() == "10\n18"


def test_a_resumed_log_counts_the_later_value_and_drops_a_cut_line(tmp_path):
    workdir = make_run(tmp_path)
    lines = [
        '{"step": 20, "epoch": 2.0, "train/loss": 0.9}',
        '{"step": 10, "epoch": 1.0, "train/loss": 1.0}',
        '{"step": 20, "epoch": 2.0, "valid/recall@20": 0.1}',
        '{"step": 20, "epoch": 2.0, "train/loss": 0.8}',
    ]
    write_log(workdir, [*lines, '{"step": 30, "tra'])
    assert report.read_metrics(workdir) == [
        {"step": 10, "epoch": 1.0, "train/loss": 1.0},
        {"step": 20, "epoch": 2.0, "train/loss": 0.8, "valid/recall@20": 0.1},
    ]
    write_log(workdir, [lines[0], "nonsense", lines[1]])
    with pytest.raises(InputError, match="line 2"):
        report.read_metrics(workdir)
    write_log(workdir, ['{"train/loss": 1.0}', lines[1]])
    with pytest.raises(InputError, match="line 1"):
        report.read_metrics(workdir)


def test_missing_and_broken_files_say_what_to_run(tmp_path):
    workdir = make_run(tmp_path)
    (workdir / "results.json").write_text('{"test": ')
    with pytest.raises(InputError, match=r"launch/train\.py"):
        report.read_results(workdir)
    (workdir / "results.json").write_text("[]")
    with pytest.raises(InputError, match="JSON object"):
        report.read_results(workdir)
    with pytest.raises(InputError, match=r"no results\.json"):
        report.compare([tmp_path / "nowhere"])
    with pytest.raises(InputError, match=r"no metrics\.jsonl"):
        report.plot_run(tmp_path / "nowhere")


def test_comparison_as_markdown(tmp_path):
    weak = make_run(tmp_path, "mf", scale=0.5, timing={})
    sources = {"easy": {"name": "uniform"}, "hard": {"name": "diffusion"}}
    config = {"encoder": {"name": "mci"}, "negatives": sources}
    strong = make_run(tmp_path, "gdnsm", config=config)
    title, _, header, rule, *rows = report.comparison_markdown(
        [weak, strong]
    ).splitlines()
    assert "bazaar" in title
    assert header.count("|") == rule.count("|") == 11
    # Gini is better when smaller; a value seen once is the best of nothing.
    assert rows == [
        "| mf | lightgcn | uniform | 0.0500 | 0.0750 | 0.0250 | 0.0350 "
        "| **0.500** | **0.200** | - |",
        "| gdnsm | mci | uniform + diffusion | **0.1000** | **0.1500** "
        "| **0.0500** | **0.0700** | **0.500** | 0.400 | 1.50 |",
    ]


def test_comparison_in_the_terminal_keeps_every_number(tmp_path):
    runs = [make_run(tmp_path, "mf", scale=0.5), make_run(tmp_path, "[red]")]
    console = Console(width=80, file=io.StringIO())
    console.print(report.compare(runs))
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    for cell in ("bazaar", "[red]", "0.1000", "0.1500", "0.0700", "1.50"):
        assert cell in text


def test_runs_on_different_data_are_not_compared(tmp_path):
    runs = [make_run(tmp_path, "a"), make_run(tmp_path, "b", dataset="hm")]
    with pytest.raises(InputError, match="different data"):
        report.compare(runs)
    with pytest.raises(InputError, match="different data"):
        report.comparison_markdown(runs)


def test_runs_of_the_same_name_are_told_apart(tmp_path):
    runs = [make_run(tmp_path / "one"), make_run(tmp_path / "two")]
    rows = report.comparison_markdown(runs).splitlines()[4:]
    assert [row.split(" | ")[0] for row in rows] == [
        "| one/neggen",
        "| two/neggen",
    ]


def test_comparison_plot_tells_more_runs_than_colours_apart(tmp_path):
    runs = [
        make_run(tmp_path, f"run{n}", scale=1 + n / 20)
        for n in range(2 * len(report.COLOURS))
    ]
    (axes,) = report._comparison_curves(runs).axes
    curves, bests = axes.lines[::2], axes.lines[1::2]
    looks = {(line.get_color(), line.get_linestyle()) for line in curves}
    assert len(looks) == len(runs)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels[0] == "run13  0.2640"
    assert labels[-1] == "run0  0.1600"
    np.testing.assert_allclose(curves[-1].get_xdata(), [1, 2, 3, 4])
    np.testing.assert_allclose(curves[-1].get_ydata(), RECALLS)
    np.testing.assert_allclose(bests[-1].get_xydata(), [(3, 0.16)])
    report.plot_comparison(runs, tmp_path / "plots" / "all.png")
    assert ink(tmp_path / "plots" / "all.png") > 0.01
