"""The plots of a run, and tables and plots that compare runs."""

import io

import pytest
from logs import ink, make_run, write_log
from rich.console import Console

from neggen_jax.errors import InputError
from neggen_jax.reporting import comparison, figures


def test_plot_run_writes_two_images(tmp_path):
    workdir = make_run(tmp_path)
    paths = figures.plot_run(workdir)
    plots = workdir / "plots"
    assert paths == [
        plots / "learning_curves.png",
        plots / "recall_by_popularity.png",
    ]
    assert all(0.01 < ink(path) < 0.5 for path in paths)


def test_a_run_in_progress_has_learning_curves_only(tmp_path):
    workdir = make_run(tmp_path)
    (workdir / "results.json").unlink()
    paths = figures.plot_run(workdir)
    assert [path.name for path in paths] == ["learning_curves.png"]


def make_leveled(parent, name, **changes):
    """A run with two sources that log by level."""
    workdir = make_run(parent, name, **changes)
    lines = [
        {
            "step": step,
            "epoch": step / 10,
            "train/odd/hardness/1-text": step / 50,
            "train/even/score/positive": 1.0,
            "valid/recall@20": 0.3 - abs(step - 30) / 100,
        }
        for step in range(10, 50, 10)
    ]
    write_log(workdir, lines)
    return workdir


def test_each_source_that_logs_by_level_has_a_figure(tmp_path):
    paths = figures.plot_run(make_leveled(tmp_path, "run"))
    assert [path.name for path in paths] == [
        "learning_curves.png",
        "negatives_even.png",
        "negatives_odd.png",
        "recall_by_popularity.png",
    ]
    assert all(0.01 < ink(path) < 0.5 for path in paths)


def test_the_step_that_was_chosen_is_the_one_of_the_results(tmp_path):
    """The metric of early stopping may be another than the one drawn."""
    images = []
    # The same name, as it is part of the title.
    for parent, step in (("a", 30), ("b", 20), ("c", None)):
        workdir = make_leveled(tmp_path / parent, "run", step=step, deciles={})
        if step is None:
            (workdir / "results.json").unlink()
        images.append(figures.plot_run(workdir)[2].read_bytes())
    # Without results, the log says that step 30 was best.
    assert images[0] == images[2] != images[1]


@pytest.mark.parametrize("lines", [[], ['{"step": 1, "train/loss": 2.0}']])
def test_a_run_without_validation_can_be_drawn(tmp_path, lines):
    workdir = make_run(tmp_path)
    write_log(workdir, lines)
    assert ink(figures.plot_run(workdir)[0]) > 0
    comparison.plot_comparison([workdir], tmp_path / "all.png")
    assert ink(tmp_path / "all.png") > 0


def test_missing_files_say_what_to_run(tmp_path):
    with pytest.raises(InputError, match=r"no results\.json"):
        comparison.compare([tmp_path / "nowhere"])
    with pytest.raises(InputError, match=r"no metrics\.jsonl"):
        figures.plot_run(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no metrics\.jsonl"):
        comparison.plot_comparison([tmp_path / "nowhere"], tmp_path / "all.png")


def test_comparison_as_markdown(tmp_path):
    weak = make_run(tmp_path, "mf", scale=0.5, timing={})
    sources = {"easy": {"name": "uniform"}, "hard": {"name": "diffusion"}}
    config = {"encoder": {"name": "mci"}, "negatives": sources}
    strong = make_run(tmp_path, "gdnsm", config=config)
    title, _, header, rule, *rows = comparison.comparison_markdown(
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
    console.print(comparison.compare(runs))
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    for cell in ("bazaar", "[red]", "0.1000", "0.1500", "0.0700", "1.50"):
        assert cell in text


def test_a_narrow_terminal_breaks_no_words(tmp_path):
    both = {"ours": {"name": "uniform"}, "neggen": {"name": "counterfactual"}}
    config = {"encoder": {"name": "lightgcn"}, "negatives": both}
    runs = [make_run(tmp_path, "lightgcn_dns", scale=0.5)]
    runs.append(make_run(tmp_path, "neggen", config=config))
    console = Console(width=80, file=io.StringIO())
    console.print(comparison.compare(runs, console.width))
    text = console.file.getvalue()
    for cell in ("lightgcn_dns", "counterfactual", "0.1500", "0.0700"):
        assert cell in text
    assert "@10" not in text


def test_runs_on_different_data_are_not_compared(tmp_path):
    runs = [make_run(tmp_path, "a"), make_run(tmp_path, "b", dataset="hm")]
    with pytest.raises(InputError, match="different data"):
        comparison.compare(runs)
    with pytest.raises(InputError, match="different data"):
        comparison.comparison_markdown(runs)


def test_runs_of_the_same_name_are_told_apart(tmp_path):
    runs = [make_run(tmp_path / "one"), make_run(tmp_path / "two")]
    rows = comparison.comparison_markdown(runs).splitlines()[4:]
    assert [row.split(" | ")[0] for row in rows] == [
        "| one/neggen",
        "| two/neggen",
    ]


def test_comparison_plot_reads_every_run(tmp_path):
    runs = [make_run(tmp_path, "mf"), make_run(tmp_path, "mci", scale=0.5)]
    for count in (1, 2):
        comparison.plot_comparison(
            runs[:count], tmp_path / f"plots/{count}.png"
        )
    one, two = (ink(tmp_path / f"plots/{count}.png") for count in (1, 2))
    assert 0.01 < one < two
