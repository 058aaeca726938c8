"""Other programs' timings beside ours."""

import json
import sys

import numpy as np
import pytest
from conftest import make_catalog

from neggen_jax import benchmark, mmrec
from neggen_jax.catalog import SPLITS
from neggen_jax.data.export import write_mmrec
from neggen_jax.data.sources.mmrec import read_mmrec
from neggen_jax.errors import InputError

LOG = """
22 Nov 03:00 INFO epoch 0 training [time: 9.12s, train loss: 40.1]
22 Nov 03:00 INFO epoch 0 evaluating [time: 4.50s, valid_score: 0.01]
22 Nov 03:01 INFO epoch 1 training [time: 1.50s, train loss: 40.0]
22 Nov 03:01 INFO epoch 1 evaluating [time: 4.00s, valid_score: 0.02]
22 Nov 03:02 INFO epoch 2 training [time: 2.50s, train loss: 39.0]
22 Nov 03:02 INFO epoch 2 evaluating [time: 3.00s, valid_score: 0.02]
threads 2
peak 2048
"""
# In the place of the toolbox: says what it was asked for, and a log.
STAND_IN = f'''
import json, os

def quick_start(model, dataset, config_dict, save_model):
    files = sorted(os.listdir(config_dict["data_path"] + dataset))
    with open(os.environ["ASKED"], "w") as file:
        json.dump([model, config_dict, files], file)
    if config_dict["epochs"] > 5:
        raise RuntimeError("out of patience")
    print("""{LOG}""")
'''


def test_what_is_written_is_what_was_read(tmp_path):
    catalog = make_catalog()
    write_mmrec(catalog, tmp_path)
    again = read_mmrec(tmp_path, cold_users="drop").validate()
    for split in SPLITS:
        for column in ("users", "items"):
            np.testing.assert_array_equal(
                getattr(again.splits[split], column),
                getattr(catalog.splits[split], column),
            )
    for name, features in catalog.features.items():
        np.testing.assert_array_equal(
            np.load(tmp_path / f"{name}_feat.npy"), features.values
        )


def test_a_log_is_read():
    said = mmrec.read_log(LOG)
    # Without the first epoch.
    assert said["seconds_per_epoch"] == 2
    assert said["evaluation_seconds"] == 3.5
    assert said["epochs"] == [9.12, 1.5, 2.5]
    assert said["valid"] == [[1, 0.01], [2, 0.02], [3, 0.02]]
    assert said["peak_memory_mib"] == 2
    assert said["threads"] == 2
    with pytest.raises(ValueError, match="fewer than two epochs"):
        mmrec.read_log(LOG[:200])


def test_a_toolbox_is_run_on_our_data(tmp_path, monkeypatch):
    utils = tmp_path / "clone" / "src" / "utils"
    utils.mkdir(parents=True)
    (utils / "quick_start.py").write_text(STAND_IN)
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "torch.py").write_text(
        "class Tensor: pass\n"
        "class cuda: is_available = staticmethod(lambda: True)\n"
        "get_num_threads = lambda: 2\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(modules))
    monkeypatch.setenv("ASKED", str(tmp_path / "asked.json"))
    catalog = make_catalog()
    spec = "configs/baseline.py:lightgcn"

    def measure(epochs, clone=tmp_path / "clone", spec=spec):
        return mmrec.measure(spec, catalog, epochs, clone, sys.executable)

    assert measure(5)["seconds_per_epoch"] == 2
    model, config, files = json.loads((tmp_path / "asked.json").read_text())
    assert model == "LightGCN"
    assert config["epochs"] == 5
    assert config["n_layers"] == [2]
    assert {config["inter_file_name"], config["text_feature_file"]} < set(files)
    # The clone stays as it was.
    assert [x.name for x in (tmp_path / "clone" / "src").iterdir()] == ["utils"]
    with pytest.raises(InputError, match="ended with status 1") as error:
        measure(6)
    assert "out of patience" in str(error.value)
    with pytest.raises(InputError, match="There is no MMRec"):
        measure(2, tmp_path)
    with pytest.raises(InputError, match="no model"):
        measure(2, spec="configs/gdnsm.py:mci")


def test_time_to_equal_quality():
    def row(seconds, valid):
        return {
            "seconds_per_epoch": seconds,
            "evaluation_seconds": 1.0,
            "valid": [[n, value] for n, value in enumerate(valid, 1)],
        }

    ours, theirs = row(1.0, [0.1, 0.3, 0.5]), row(3.0, [0.05, 0.1, 0.3, 0.2])
    # Both reach .3: ours after two epochs of 2 s, theirs after three of 4 s.
    assert benchmark.quality_ratio(ours, theirs) == 3
    assert benchmark.quality_ratio(theirs, ours) == 1 / 3
    assert benchmark.quality_ratio(ours, {}) is None
    short = theirs | {"evaluation_seconds": None}
    assert benchmark.quality_ratio(ours, short) is None
    # Evaluated every other epoch: .3 is there after four, and two evaluations.
    seldom = ours | {"valid": [[2, 0.1], [4, 0.3]]}
    assert benchmark.quality_ratio(seldom, theirs) == 2


def test_timings_beside_ours(tmp_path):
    path = tmp_path / "other.json"
    path.write_text('{"size": "baby", "rows": {"a": {"seconds_per_epoch": 3}}}')
    beside = benchmark.read_beside(str(path), "baby")
    ours = {key: 1.5 for key, _, _ in benchmark.COLUMNS}
    table = benchmark.table({"a": ours, "b": ours}, "title", beside)
    epoch, evaluation, _, quality = table.columns[-4:]
    assert list(quality.cells) == ["-", "-"]
    assert list(epoch.cells) == ["2.0", "-"]
    assert list(evaluation.cells) == ["-", "-"]
    with pytest.raises(InputError, match="another size"):
        benchmark.read_beside(str(path), "sports")
    for text in ("", "[]", '{"size": "baby"}'):
        path.write_text(text)
        with pytest.raises(InputError, match="no timings"):
            benchmark.read_beside(str(path), "baby")


def test_a_catalogue_that_is_there_is_timed(tmp_path):
    known = tmp_path / "demo"
    benchmark.write("demo", known)
    before = (known / "catalog.json").stat().st_mtime_ns
    benchmark.write("demo", known)
    assert (known / "catalog.json").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="not the catalogue") as raised:
        benchmark.write("baby", known)
    assert "--size=baby" in str(raised.value)
