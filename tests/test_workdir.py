"""A workdir belongs to one run, and its log says everything once."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import textwrap

import pytest
from conftest import make_catalog
from training import digests, make_config

from neggen_jax import workdir
from neggen_jax.config import RESUMABLE, flatten
from neggen_jax.errors import InputError


@pytest.fixture
def claimed(tmp_path, catalog):
    config = make_config("lightgcn")
    assert workdir.claim(tmp_path / "run", config, catalog) == tmp_path / "run"
    return tmp_path / "run", config


def test_the_same_run_may_come_back(claimed, catalog):
    directory, config = claimed
    before = digests(directory)
    workdir.claim(directory, config, catalog)
    assert digests(directory) == before
    told = workdir.read_identity(directory)
    assert told["fingerprint"] == catalog.fingerprint
    assert told["config"]["encoder"]["name"] == "lightgcn"


def changed(value):
    """Another value of the same type."""
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, bool):
        return not value
    return [*value, 7] if isinstance(value, list) else value + 1


@pytest.mark.parametrize("key", sorted(flatten(make_config("lightgcn"))))
def test_every_key_but_the_resumable_ones_ties_the_workdir(
    claimed, catalog, key
):
    directory, config = claimed
    before = digests(directory)
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict({key: changed(flatten(config)[key])})
    if key in RESUMABLE:
        workdir.claim(directory, config, catalog)
        told = flatten(workdir.read_identity(directory)["config"])
        assert told[key] == flatten(config)[key]
        return
    with pytest.raises(InputError) as caught:
        workdir.claim(directory, config, catalog)
    assert caught.value.found.startswith(f"{key}: ")
    assert ";" not in caught.value.found, "only one key has changed"
    assert digests(directory) == before


def test_a_run_of_before_there_was_a_key_may_go_on(claimed, catalog):
    """At the key's default, which is what that version did."""
    directory, config = claimed
    path = directory / "run.json"
    identity = json.loads(path.read_text())
    del identity["config"]["train"]["batches_per_step"]
    path.write_text(json.dumps(identity))
    workdir.claim(directory, config, catalog)
    path.write_text(json.dumps(identity))
    config.train.batches_per_step = 2
    with pytest.raises(InputError, match="batches_per_step: 1 -> 2"):
        workdir.claim(directory, config, catalog)


def test_names_all_keys_that_differ(claimed, catalog):
    directory, _ = claimed
    with pytest.raises(InputError) as caught:
        workdir.claim(directory, make_config("mci", seed=3), catalog)
    found = str(caught.value.found)
    for text in (
        "encoder.name: 'lightgcn' -> 'mci'",
        "encoder.item_layers: None -> 1",
        "losses.align.weight: None -> 0.01",
        "seed: 0 -> 3",
    ):
        assert text in found


@pytest.mark.parametrize("reader", ["optimizer", "ramp"])
def test_the_length_of_a_run_is_tied_where_something_reads_it(
    tmp_path, catalog, reader
):
    config = make_config("mf")
    if reader == "optimizer":
        config.optimizer.schedule = "cosine"
    else:
        with config.unlocked():
            config.negatives.more = {"name": "ramped_uniform", "unit": "run"}
    workdir.claim(tmp_path / "run", config, catalog)
    config.train.epochs += 1
    with pytest.raises(InputError, match=r"train\.epochs: 3 -> 4"):
        workdir.claim(tmp_path / "run", config, catalog)


def test_refuses_other_data(claimed, catalog):
    directory, config = claimed
    before = digests(directory)
    other = make_catalog(seed=1)
    with pytest.raises(InputError, match="other data") as caught:
        workdir.claim(directory, config, other)
    assert catalog.fingerprint in caught.value.expected
    assert other.fingerprint in caught.value.found
    assert digests(directory) == before
    # A name is not data.
    renamed = dataclasses.replace(catalog, name="another")
    workdir.claim(directory, config, renamed)


def test_refuses_what_is_not_a_run(tmp_path, catalog):
    config = make_config("mf")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("text")
    for name, message in (("full", "not a run"), ("file", "is a file")):
        before = digests(tmp_path)
        with pytest.raises(InputError, match=message):
            workdir.claim(tmp_path / name, config, catalog)
        assert digests(tmp_path) == before
    with pytest.raises(InputError, match="cannot be written"):
        workdir.claim(tmp_path / "file" / "below", config, catalog)
    with pytest.raises(InputError, match="no run here"):
        workdir.read_identity(tmp_path / "full")


def test_a_kill_while_claiming_does_not_lock_the_workdir(tmp_path, catalog):
    (tmp_path / "run.partial").write_text('{"dataset": ')
    workdir.claim(tmp_path, make_config("mf"), catalog)
    assert workdir.read_identity(tmp_path)["dataset"] == catalog.name
    assert os.listdir(tmp_path) == ["run.json"]


@pytest.mark.parametrize("text", ["{", "[]", '{"dataset": "x"}', "\udcff"])
def test_a_damaged_workdir_is_told(claimed, catalog, text):
    directory, config = claimed
    path = directory / "run.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError) as caught:
        workdir.claim(directory, config, catalog)
    assert caught.value.where == path


def lines(directory):
    text = (directory / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_a_resumed_log_takes_back_what_comes_again(tmp_path):
    log = workdir.Log(tmp_path, 0)
    for step in (1, 2, 3):
        log.write(step, {"train/loss": 1 / step})
    # A kill: the file is not closed, and its last line is not whole.
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "trai')
    log = workdir.Log(tmp_path, 2)
    log.write(3, {"train/loss": 0.25})
    log.close()
    assert lines(tmp_path) == [
        {"step": 1, "train/loss": 1.0},
        {"step": 2, "train/loss": 0.5},
        {"step": 3, "train/loss": 0.25},
    ]


def test_numbers_are_read_back_as_they_were(tmp_path):
    log = workdir.Log(tmp_path, 0)
    log.write(1, {"valid/recall@20": 0.1 + 0.2})
    log.close()
    assert lines(tmp_path)[0]["valid/recall@20"] == 0.1 + 0.2


@pytest.mark.parametrize("line", ["{}", "nonsense", "[1]", "\udcff"])
def test_a_damaged_log_is_told_and_left_alone(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    text = f'{{"step": 1}}\n{line}\n{{"step": 2}}\n'
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    before = digests(tmp_path)
    with pytest.raises(InputError, match="damaged") as caught:
        workdir.Log(tmp_path, 1)
    assert caught.value.where == path
    assert digests(tmp_path) == before


def test_a_full_disk_is_told(tmp_path):
    """/dev/full takes nothing, for anybody."""
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    log = workdir.Log(tmp_path, 0)
    log._file.close()
    log._file = os.fdopen(os.open("/dev/full", os.O_WRONLY), "w")
    with pytest.raises(InputError, match="No space left"):
        log.write(1, {"train/loss": 1.0})
    with pytest.raises(InputError, match="make room"):
        log.close()


def test_a_run_of_another_order_of_batches_is_refused(claimed, catalog):
    directory, config = claimed
    path = directory / "run.json"
    told = json.loads(path.read_text())
    told.pop("order")
    path.write_text(json.dumps(told))
    with pytest.raises(InputError, match="draws other batches") as caught:
        workdir.claim(directory, config, catalog)
    assert caught.value.found == "order 1"


def test_what_logs_has_no_use_for_is_not_imported(tmp_path):
    """tensorboardX takes torch along, which is large."""
    script = textwrap.dedent(
        f"""
        import sys
        from neggen_jax import storage
        from neggen_jax.workdir import Log
        log = Log(storage.path({str(tmp_path)!r}), 0)
        log.write(1, {{"train/loss": 0.5}})
        log.close()
        print("torch" in sys.modules)
        """
    )
    told = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=pathlib.Path(__file__).parents[1],
    )
    assert told.stdout == "False\n"
    assert list((tmp_path / "tensorboard").iterdir())
