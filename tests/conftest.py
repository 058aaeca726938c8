"""What all tests share: eight virtual devices and a tiny catalogue."""

import os
import pathlib
import signal
import subprocess
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import compiling

# Before anything imports jax.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        *compiling.QUICKLY,
    ]
).strip()
# See `command._make_threads`.
os.environ["NPROC"] = "32"
# Most of the time is spent on compiling: programs that were met before, in
# this process or another, are not compiled again.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(
    pathlib.Path(__file__).parents[1] / ".pytest_cache" / "jax"
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

# A shell's background jobs ignore SIGINT, and so would all that tests start.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

import hypothesis
import jax
import numpy as np
import pytest

from neggen_jax.catalog import SPLITS, Catalog, Features, Interactions
from neggen_jax.ops import routes
from neggen_jax.partition import Partition, make_partition

# An example may compile, so none has a deadline; and the same examples are
# tried each time, so that a red run can be run again.
hypothesis.settings.register_profile("tests", deadline=None, derandomize=True)
hypothesis.settings.load_profile("tests")

# data x model. Neither size of the catalogue below divides by 2 or by 8.
MESHES = ((1, 1), (8, 1), (4, 2), (1, 8))


def some(cases: Iterable[Any], *quick: Any) -> list[Any]:
    """Values of a parameter; with those not named, a test is slow."""
    return [
        pytest.param(case, marks=() if case in quick else pytest.mark.slow)
        for case in cases
    ]


# Two axes at once tell the most; one at a time costs as much.
SOME_MESHES = some(MESHES, (1, 1), (4, 2))
USERS, ITEMS = 61, 41
# Items that lack one modality or both, and items that nobody has in train.
ABSENT = {"text": (5, 17), "image": (5, 8, 30)}
UNSEEN = (8, 39, 40)


def on_mesh(data: int, model: int) -> Partition:
    """A mesh of the first `data * model` devices."""
    return make_partition(data, model, jax.devices()[: data * model])


@pytest.fixture(scope="session")
def one() -> Partition:
    """A mesh of one device."""
    return on_mesh(1, 1)


@pytest.fixture(scope="session")
def eight() -> Partition:
    """A mesh of eight devices that cuts every table into eight."""
    return on_mesh(1, 8)


@pytest.fixture(
    scope="session",
    params=SOME_MESHES,
    ids=lambda mesh: "x".join(map(str, mesh)),
)
def partition(request: pytest.FixtureRequest) -> Partition:
    """Each of the meshes, in turn."""
    return on_mesh(*request.param)


@pytest.fixture(scope="module")
def small_rounds() -> Iterator[None]:
    """Has small tables take several rounds of the exchange "pull"."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(routes, "ROUND", 8)
        yield


@pytest.fixture(scope="session")
def catalog() -> Catalog:
    """A few users and items under popularity bias, and two modalities."""
    return make_catalog()


def make_catalog(seed: int = 0) -> Catalog:
    """The catalogue of the fixture; other seeds give others like it."""
    rng = np.random.default_rng(seed)
    columns: dict[str, tuple[list, list]] = {
        split: ([], []) for split in SPLITS
    }
    odds = 1.0 / np.arange(3, ITEMS + 3)
    odds[list(UNSEEN)] = 0
    odds /= odds.sum()
    for user in range(USERS):
        degree = rng.integers(1, 15)
        items = rng.choice(ITEMS, degree + 2, replace=False, p=odds)
        for split, chosen in zip(
            SPLITS, np.split(items, [degree, degree + 1]), strict=True
        ):
            columns[split][0].extend([user] * len(chosen))
            columns[split][1].extend(chosen)
    features = {}
    for modality, width in (("text", 12), ("image", 9)):
        values = rng.normal(size=(ITEMS, width)).astype(np.float32)
        present = ~np.isin(np.arange(ITEMS), ABSENT[modality])
        values[~present] = 0
        features[modality] = Features(values, present)
    splits = {
        split: Interactions(np.array(u, np.int32), np.array(i, np.int32))
        for split, (u, i) in columns.items()
    }
    return Catalog("tiny", USERS, ITEMS, splits, features).validate()


@pytest.fixture(scope="session")
def bazaar(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The dataset directory of a small bazaar; not to be changed."""
    from neggen_jax.data import store
    from neggen_jax.data.bazaar.make import Bazaar, make

    small = Bazaar(
        num_users=300,
        num_items=150,
        interactions_per_user=9.0,
        features="direct",
    )
    directory = tmp_path_factory.mktemp("bazaar") / "data"
    store.save(make(small)[0], directory, source={})
    return directory


@pytest.fixture
def small_disk(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A file system of one megabyte."""
    path = tmp_path / "small_disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"only root can mount a small disk: {error}")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.fixture
def offline(tmp_path: pathlib.Path) -> dict[str, str]:
    """An environment in which a call of the cloud's tools is a failure."""
    for name in ("gcloud", "kubectl", "srun", "scontrol"):
        tool = tmp_path / "none" / name
        tool.parent.mkdir(exist_ok=True)
        tool.write_text(f"#!/bin/sh\necho {name}; exit 99\n")
        tool.chmod(0o755)
    return {"PATH": f"{tmp_path / 'none'}:{os.environ['PATH']}"}


@pytest.fixture(scope="session")
def data_dir() -> pathlib.Path:
    """Real data that is no part of this repository."""
    root = pathlib.Path(__file__).parents[1]
    given = os.environ.get("NEGGEN_DATA")
    path = pathlib.Path(given) if given else root.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"no real data at {path}; set NEGGEN_DATA")
    return path
