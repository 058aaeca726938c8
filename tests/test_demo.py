"""The demo, on a bazaar that is small enough for a test."""

import json

from neggen_jax import demo
from neggen_jax.demo import Experiment

SMALL = {"num_users": 60, "num_items": 60, "interactions_per_user": 8.0}


def test_from_nothing_to_a_comparison_and_again(tmp_path, capsys):
    experiments = {
        "base": Experiment("configs/baseline.py:lightgcn,smoke"),
        "neggen": Experiment("configs/neggen.py:lightgcn,smoke", "base"),
    }
    text = demo.run(tmp_path / "demo", experiments, **SMALL)
    assert text == (tmp_path / "demo" / "comparison.md").read_text()
    assert "| base" in text
    assert "| neggen" in text
    for name in ("comparison.png", "measures.png", "counterfactuals.html"):
        assert (tmp_path / "demo" / name).stat().st_size > 1000
    results = tmp_path / "demo" / "neggen" / "results.json"
    told = json.loads(results.read_text())
    assert told["config"]["train"]["start_from"].endswith("base")
    # Again: nothing is done anew.
    before = results.stat().st_mtime_ns
    assert demo.run(tmp_path / "demo", experiments, **SMALL) == text
    assert results.stat().st_mtime_ns == before


def test_each_begins_with_one_before_it_and_of_its_encoder():
    seen = {}
    for name, experiment in demo.EXPERIMENTS.items():
        encoder = demo.configs.load(experiment.config).encoder.to_dict()
        if experiment.start_from:
            assert seen[experiment.start_from] == encoder
        seen[name] = encoder
