"""Searches: what is refused, pruned, resumed and chosen.

Trials are runs of a stand-in that leaves what a run leaves, at once; the last
tests are of real ones.
"""

import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest
from launching import until

from neggen_jax import trials
from neggen_jax.errors import InputError
from neggen_jax.search import finals, plots, spec, study

pytest.importorskip("optuna", reason="pip install -r requirements-search.txt")

ROOT = pathlib.Path(__file__).parents[1]
BASELINE = ROOT / "configs" / "baseline.py"
TEXT = f"""
config = "{BASELINE}:mf"
set = ["train.epochs=6", "encoder.dim=8"]
best = 2
seeds = [1, 2]

[space]
"optimizer.learning_rate" = {{ low = 1e-4, high = 1e-1, log = true }}
"losses.l2.weight" = {{ low = 0.0, high = 0.1, step = 0.025 }}
"train.batch_size" = {{ low = 64, high = 256, step = 64 }}
"optimizer.schedule" = ["constant", "cosine"]

[sampler]
startup = 3

[pruner]
startup = 2
"""
GRID = """
[space]
"optimizer.learning_rate" = [0.01, 0.02, 0.0001, 0.9, 0.012]
[sampler]
name = "grid"
[pruner]
startup = 2
"""

# Best at a rate of 1e-2. Bad ones take long, so that somebody has to end
# them; 0.9 diverges. The one that a file `hold` names stays at epoch 3.
TRAINER = """
import json, math, pathlib, signal, sys, time
import numpy as np
from neggen_jax import config as configs
flags = [x.lstrip("-").split("=", 1) for x in sys.argv[1:]]
config = configs.load(dict(flags)["config"])
configs.override(config, [
    f"{k.removeprefix('config.')}={v}" for k, v in flags if "config." in k])
workdir = pathlib.Path(dict(flags)["workdir"])
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
workdir.mkdir(parents=True, exist_ok=True)
with (workdir / "starts").open("a") as file:
    file.write("x")
rate = config.optimizer.learning_rate
if rate == 0.9:
    sys.exit("error: Training diverged at step 1.")
path = workdir / "metrics.jsonl"
done = len(path.read_text().splitlines()) if path.exists() else 0
level = 0.5 - 0.1 * (math.log10(rate) + 2) ** 2
level += 0.01 * (config.optimizer.schedule == "cosine")
hold = workdir.parents[1] / "hold"
held = hold.exists() and hold.read_text() == workdir.name
def stay(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end and not told:
        time.sleep(0.01)
    if told:
        sys.exit(0)
with path.open("a") as file:
    for epoch in range(done + 1, config.train.epochs + 1):
        line = {"step": 10 * epoch, "epoch": epoch,
            "valid/recall@20": level * (1 - 0.5 ** epoch)}
        file.write(json.dumps(line) + "\\n")
        file.flush()
        stay(60 * (epoch == 3 and held))
        stay(30 * (epoch == 2 and rate == 0.0001))
recall = level * (1 + 0.001 * config.seed * np.arange(20))
np.savez(workdir / "per_user_test.npz", users=np.arange(20),
    **{"recall@20": recall, "ndcg@20": recall / 2})
(workdir / "results.json").write_text(json.dumps({
    "config": config.to_dict(), "dataset": {"name": "toy"},
    "valid": {"recall@20": level + 0.001 * config.seed}, "test": {}}))
"""

# A search in a process of its own, to be killed.
SEARCH = """
import pathlib, sys
from neggen_jax import trials
from neggen_jax.search import spec, study
file, output, trainer = map(pathlib.Path, sys.argv[1:])
with trials.claim(output):
    made = study.Study(spec.read(file), output)
    study.run(made, "data", output, trainer, 6)
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "search.toml"
    path.write_text(TEXT)
    return path


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    path = tmp_path / "trainer.py"
    path.write_text(TRAINER)
    return path


def on_grid(file):
    head, _ = TEXT.split("[space]")
    file.write_text(head + GRID)
    return spec.read(file)


def test_what_is_asked_for(file):
    search = spec.read(file)
    rate, weight, batch, schedule = search.space.values()
    assert (rate.low, rate.high, rate.log, rate.values) == (
        1e-4,
        0.1,
        True,
        None,
    )
    assert weight.values == pytest.approx([0, 0.025, 0.05, 0.075, 0.1])
    assert batch.values == [64, 128, 192, 256]
    assert all(type(value) is int for value in batch.values)
    assert schedule.values == ("constant", "cosine")
    assert search.sampler == spec.Sampler("tpe", 0, 3)
    # Dotted keys may stand without quotes, and a name for a whole table.
    plain = TEXT.replace('"optimizer.learning_rate"', "optimizer.learning_rate")
    plain = plain.replace("[pruner]\nstartup = 2", "")
    file.write_text('pruner = "none"\n' + plain)
    other = spec.read(file)
    assert other.space == search.space
    assert other.pruner.name == "none"
    made = study.make(search, "d", pathlib.Path("o"), 3, {"encoder.dim": 4})
    assert made.config.encoder.dim == 4
    assert made.config.train.metric == "recall@20"
    assert made.flags[-1] == "--workdir=o/trials/trial-003"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("= [", "= [[", "no search to read"),
        ("best = 2", "bets = 2", "did you mean 'best'"),
        ("best = 2", "best = 0", "Bad value of 'best'"),
        ("best = 2", 'metric = "test/recall@20"', "does not read test"),
        ("best = 2", 'metric = "recal@20"', "did you mean 'recall@20'"),
        ("best = 2", 'metric = "recall@7"', "Unknown metric"),
        ("[1, 2]", "[0, 1]", "made again with the seed they had"),
        (f'config = "{BASELINE}:mf"', "", "needs 'config'"),
        ("train.epochs=6", "train.epoch=6", "Unknown config key"),
        ("train.epochs=6", "data.path=x", "sets 'data.path' itself"),
        ("train.epochs=6", "train.batch_size=6", "'train.batch_size' cannot"),
        ("learning_rate", "learning_rat", "learning_rate'"),
        ('"losses.l2.weight"', '"seed"', "which is luck"),
        ("high = 1e-1", "high = 1e-5", "low below high"),
        ("high = 1e-1", "hihg = 1e-1", "did you mean 'high'"),
        ("low = 1e-4", "low = 0", "low above 0"),
        ("step = 0.025", "step = 0.03", "a whole number of steps"),
        ("step = 0.025", "step = -0.025", "a step above 0"),
        ("low = 64", "low = 64.5", "integers"),
        ("high = 0.1", "high = inf", "finite"),
        ("step = 64", "step = 64, log = true", "not both"),
        ('["constant", "cosine"]', "{low = 1, high = 2}", "a list of values"),
        ('["constant", "cosine"]', "[1, 2]", "Bad value of 'optimizer.sch"),
        ('["constant", "cosine"]', "[]", "different values"),
        ("[sampler]", '[sampler]\nname = "tep"', "did you mean 'tpe'"),
        ("[sampler]", '[sampler]\nname = "grid"', "for a grid"),
        ("[pruner]\nstartup", "[pruner]\nstart", "did you mean 'startup'"),
    ],
)
def test_what_is_wrong_is_named(file, old, new, message):
    assert old in TEXT
    file.write_text(TEXT.replace(old, new, 1))
    with pytest.raises(InputError, match=re.escape(message)):
        spec.read(file)


def test_a_study_belongs_to_one_search(file, bazaar, tmp_path):
    search = spec.read(file)
    spec.claim(search, bazaar, tmp_path)
    spec.claim(search, bazaar, tmp_path)
    # The seeds of afterwards may still be decided on.
    spec.claim(dataclasses.replace(search, seeds=(7,)), bazaar, tmp_path)
    file.write_text(
        TEXT.replace("1e-4", "1e-3").replace("epochs=6", "epochs=7")
    )
    with pytest.raises(InputError) as error:
        spec.claim(spec.read(file), bazaar, tmp_path)
    assert "config train.epochs: 6 -> 7" in str(error.value)
    assert (
        "space optimizer.learning_rate: 0.0001 to 0.1, log -> 0.001 to 0.1"
        in str(error.value)
    )


def test_two_searches_do_not_share_an_output(tmp_path):
    with (
        trials.claim(tmp_path),
        pytest.raises(InputError, match=f"process {os.getpid()}"),
        trials.claim(tmp_path),
    ):
        pass


def test_a_grid_with_a_hopeless_trial_and_one_that_fails(
    file, trainer, tmp_path
):
    search, output = on_grid(file), tmp_path / "out"
    output.mkdir()
    made, said = study.Study(search, output), []
    wrong = study.run(made, "data", output, trainer, 30, said.append)
    assert study.done(made, 30)
    assert [x.state for x in made.tried] == [
        *("finished", "finished", "pruned", "failed", "finished"),
    ]
    # It was ended, not waited for.
    assert not (output / "trials/trial-002/results.json").exists()
    assert list(made.tried[2].curve) == [1]
    assert wrong == [
        "trial-003: status 1, Training diverged at step 1. See "
        f"{output}/logs/trial-003.log"
    ]
    assert "[1/5] trial-000 finished: optimizer.learning_rate=0.01" in said[0]
    assert said[-1].endswith("best 0.4922, trial 0")
    first = study.best(made.tried)[0]
    assert (first.number, first.epoch) == (0, 6)
    assert first.value == pytest.approx(0.5 * (1 - 0.5**6))
    # Nothing is left to be done.
    assert study.run(made, "data", output, trainer, 30, said.append) == []
    starts = [x.read_text() for x in sorted(output.glob("trials/*/starts"))]
    assert starts == ["x"] * 5


def test_a_killed_search_goes_on_as_if_it_had_not_been(file, trainer, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for output in (whole, broken):
        output.mkdir()
    made = study.Study(spec.read(file), whole)
    assert study.run(made, "data", whole, trainer, 6, print) == []
    held = next(x for x in made.tried[2:] if x.state == "finished")
    name = f"trial-{held.number:03}"
    (broken / "hold").write_text(name)
    words = [sys.executable, "-c", SEARCH, file, broken, trainer]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as process:
        curve = broken / "trials" / name / "metrics.jsonl"
        until(lambda: curve.exists() and curve.read_text().count("\n") == 3, 60)
        process.kill()
    # As a kill in the midst of writing would leave it.
    with (broken / "study.journal").open("a") as journal:
        journal.write('{"op_code": 5, "wor')
    again, said = study.Study(spec.read(file), broken), []
    begun = [x.number for x in again.tried if x.state == "begun"]
    assert begun == [held.number]
    assert not study.done(again, held.number + 1)
    (broken / "hold").unlink()
    assert study.run(again, "data", broken, trainer, 6, said.append) == []
    assert any("which still runs it" in line for line in said)
    assert (broken / "trials" / name / "starts").read_text() == "xx"
    assert again.tried == made.tried
    shares = again.importances()
    assert shares == made.importances()
    assert sum(shares.values()) == pytest.approx(1)
    figure = plots.draw(again.tried, again.search, shares, "Toy")
    assert len(figure.axes) == 2 + len(again.search.space)


def test_the_choice_is_made_on_valid_and_test_is_read_of_it_alone(
    file, trainer, tmp_path
):
    search = on_grid(file)
    tried = [
        study.Tried(
            n, "finished", {"optimizer.learning_rate": rate}, {1: value}
        )
        for n, (rate, value) in enumerate(
            [(0.005, 0.3), (0.02, 0.4), (0.01, 0.35), (0.03, 0.1)]
        )
    ]
    made = finals.make(search, "data", tmp_path, tried)
    assert [x.name for x in made] == ["trial-001", "trial-002", "default"]
    assert finals.choose(search, made) is None
    assert finals.run(made, trainer, tmp_path, print) == []
    chosen = finals.choose(search, made)
    # The best over seeds, not the one that had been.
    assert chosen.name == "trial-002"
    assert {run.config.seed for run in chosen.runs} == {1, 2}
    assert {run.config.optimizer.learning_rate for run in chosen.runs} == {0.01}
    for run in made[0].runs:
        (run.workdir / "per_user_test.npz").unlink()
    rows = finals.tested(search, made, chosen)
    assert [row["method"] for row in rows] == ["default", "trial-002"]
    # The rate of the default, 1e-3, is ten times too low.
    assert rows[1]["recall@20"]["mean_difference"] == pytest.approx(0.1, 0.02)


def test_nothing_but_failures_is_not_gone_on_with(file, trainer, tmp_path):
    search = on_grid(file)
    trainer.write_text("import sys; sys.exit('no such module')")
    made = study.Study(search, tmp_path)
    wrong = study.run(made, "data", tmp_path, trainer, 30, print)
    assert len(wrong) == 4
    assert wrong[-1] == "3 trials in a row were not finished"
    assert "no such module" in wrong[0]


def test_a_trial_that_is_always_killed_fails_in_the_end(
    file, trainer, tmp_path
):
    search = on_grid(file)
    trainer.write_text("import os; os.kill(os.getpid(), 9)")
    made = study.Study(search, tmp_path)
    for time in range(3):
        assert [x.state for x in made.tried] == ["begun"] * 3 * bool(time)
        study.run(made, "data", tmp_path, trainer, 3, print)
    assert {x.state for x in made.tried} == {"failed"}
    assert made.tried[0].reason == "killed 3 times, by signal 9."
    assert study.done(made, 3)


def test_a_trial_of_which_nothing_is_finite_fails(file, trainer, tmp_path):
    search = on_grid(file)
    text = trainer.read_text()
    trainer.write_text(text.replace("level * (1 - 0.5 ** epoch)", "math.nan"))
    made = study.Study(search, tmp_path)
    study.run(made, "data", tmp_path, trainer, 1, print)
    assert made.tried[0].state == "failed"
    assert made.tried[0].reason == "recall@20 was never finite."


def test_a_look_at_a_search_writes_nothing(file, trainer, bazaar, tmp_path):
    search = spec.read(file)
    spec.claim(search, str(bazaar), tmp_path)
    made = study.Study(search, tmp_path)
    study.run(made, str(bazaar), tmp_path, trainer, 1, print)
    journal = tmp_path / "study.journal"
    # Another process may be in the midst of a line.
    journal.write_bytes(journal.read_bytes() + b'{"op_code": 5, "wor')
    before = journal.read_bytes()
    (seen,) = study.peek(search, str(bazaar), tmp_path)
    assert seen.state == "finished"
    assert journal.read_bytes() == before


def test_steps_end_where_they_should():
    found = spec.Range(0.1, 0.3, step=0.1).values
    assert found == [0.1, 0.2, 0.3]


def test_without_optuna(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r"requirements-search\.txt"):
        study.available()


def call(*flags):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.run(
        [sys.executable, "launch/search.py", *map(str, flags)],
        cwd=ROOT,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


REAL = f"""
config = "{BASELINE}:mf"
set = ["train.epochs=4", "encoder.dim=8", "train.batch_size=64"]
seeds = [SEEDS]
best = 1
pruner = "none"
[space]
"optimizer.learning_rate" = {{ low = 1e-3, high = 1e-1, log = true }}
"""


@pytest.mark.slow
def test_a_search_over_a_bazaar(bazaar, tmp_path):
    """One real trial; given again, the page alone."""
    (tmp_path / "search.toml").write_text(REAL.replace("SEEDS", ""))
    flags = (
        f"--search={tmp_path}/search.toml",
        f"--data={bazaar}",
        f"--output={tmp_path}/out",
        "--trials=1",
    )
    done = call(*flags, "--dry-run")
    assert "0 trials; 1 to be made" in done.stdout, done.stderr
    assert not (tmp_path / "out").exists()
    done = call(*flags)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[1/1] trial-000 finished: optimizer.learning_rate=" in done.stdout
    found = json.loads((tmp_path / "out/best.json").read_text())
    results = json.loads(
        (tmp_path / "out/trials/trial-000/results.json").read_text()
    )
    assert found["valid"] == results["valid"]["recall@20"]
    assert "test" not in found
    rate = results["config"]["optimizer"]["learning_rate"]
    assert f"--config.optimizer.learning_rate={rate!r} " in found["command"]
    page = (tmp_path / "out/study.md").read_text()
    assert found["command"] in page
    assert (tmp_path / "out/plots/study.png").exists()
    done = call(*flags)
    assert done.stdout == page + "\n"


@pytest.mark.slow
def test_a_search_is_killed_and_goes_on(bazaar, tmp_path):
    """Against one that was not killed: the same trials and the same best."""
    (tmp_path / "search.toml").write_text(
        REAL.replace("SEEDS", "").replace("epochs=4", "epochs=30")
    )
    flags = (
        f"--search={tmp_path}/search.toml",
        f"--data={bazaar}",
        "--trials=2",
    )
    whole = call(*flags, f"--output={tmp_path}/whole")
    assert whole.returncode == 0, whole.stdout + whole.stderr
    broken = tmp_path / "broken"
    words = [sys.executable, "launch/search.py", *flags, f"--output={broken}"]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    with subprocess.Popen(
        words, cwd=ROOT, env={**environment, "PYTHONPATH": str(ROOT)}
    ) as process:
        saved = broken / "trials/trial-001/checkpoints"
        until(lambda: any(x.name.isdigit() for x in saved.glob("*")), 300)
        process.kill()
    # The whole machine, as it were.
    left = broken / "logs/trial-001.process"
    os.kill(int(left.read_text()), signal.SIGKILL)
    done = call(*flags, f"--output={broken}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "trial-000" not in done.stdout.split("# Search")[0]
    said = (broken / "logs/trial-001.log").read_text()
    assert "going on from epoch" in said
    pages = [
        (tmp_path / name / "study.md").read_text()
        for name in ("whole", "broken")
    ]
    assert pages[0] == pages[1]
    assert "## Best" in pages[0]
