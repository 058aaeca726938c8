"""Downloads: connections that break, files that change, and what is kept."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from file_server import Files, serving

from neggen_jax.data.sources.amazon.fetch import (
    MANIFEST,
    check_downloads,
    fetch,
)
from neggen_jax.data.sources.amazon.public import FILES, addresses
from neggen_jax.errors import InputError

ROOT = Path(__file__).parents[1]
DATA = np.random.default_rng(0).bytes(3_000_000)


@pytest.fixture
def files():
    return Files(x=DATA, y=b"other")


@pytest.fixture
def server(files):
    with serving(files) as address:
        yield address


def left(root):
    return sorted(path.name for path in root.iterdir())


def test_files_come_and_are_written_down(server, files, tmp_path, capsys):
    root = tmp_path / "new" / "raw"
    paths = fetch([f"{server}/x", f"{server}/y"], root)
    assert [path.read_bytes() for path in paths] == [DATA, b"other"]
    assert left(root) == [MANIFEST, "x", "y"]
    known = json.loads((root / MANIFEST).read_text())["x"]
    digest = hashlib.sha256(DATA).hexdigest()
    assert known["url"] == f"{server}/x"
    assert (known["size"], known["sha256"]) == (len(DATA), digest)
    assert digest in capsys.readouterr().out
    # Again, nothing is asked for.
    files.asked.clear()
    fetch([f"{server}/x", f"{server}/y"], root)
    assert not files.asked
    check_downloads(paths)


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_change_is_noticed_later(server, tmp_path, damage):
    (path,) = fetch([f"{server}/x"], tmp_path)
    data = bytearray(DATA)
    data[2_000_000] ^= 1
    path.write_bytes(DATA[:-1] if damage == "cut" else data)
    for use in (
        lambda: check_downloads([path]),
        lambda: fetch([f"{server}/x"], tmp_path),
    ):
        with pytest.raises(InputError, match="not what was downloaded"):
            use()


def test_broken_connections_are_taken_up(server, files, tmp_path):
    files.cut = [1_000_000, 500_000, 0, 1]
    (path,) = fetch([f"{server}/x"], tmp_path, wait=0)
    assert path.read_bytes() == DATA
    starts = [1_000_000, 1_500_000, 1_500_000, 1_500_001]
    assert files.asked == [("/x", None)] + [
        ("/x", f"bytes={start}-") for start in starts
    ]
    assert left(tmp_path) == [MANIFEST, "x"]


def test_a_later_command_goes_on(server, files, tmp_path):
    files.cut = [2_000_000]
    with pytest.raises(
        InputError, match=r"(?s)could not be.*after 2,000,000 of"
    ):
        fetch([f"{server}/x"], tmp_path, retries=0)
    assert left(tmp_path) == ["x.partial", "x.partial.version"]
    (path,) = fetch([f"{server}/x"], tmp_path)
    assert path.read_bytes() == DATA
    assert files.asked[1:] == [("/x", "bytes=2000000-")]


def test_a_file_that_changed_meanwhile_begins_anew(server, files, tmp_path):
    files.cut = [2_000_000]
    with pytest.raises(InputError):
        fetch([f"{server}/x"], tmp_path, retries=0)
    files.contents["/x"] = DATA[::-1]
    (path,) = fetch([f"{server}/x"], tmp_path)
    assert path.read_bytes() == DATA[::-1]


@pytest.mark.parametrize("lack", ["ranges", "tag"])
def test_servers_that_cannot_go_on_begin_anew(server, files, tmp_path, lack):
    setattr(files, lack, False)
    files.cut = [2_000_000]
    (path,) = fetch([f"{server}/x"], tmp_path, wait=0)
    assert path.read_bytes() == DATA
    assert len(files.asked) == 2


def test_killed_between_the_last_byte_and_the_name(server, files, tmp_path):
    (tmp_path / "x.partial").write_bytes(DATA)
    (tmp_path / "x.partial.version").write_text(files.etag("/x"))
    (path,) = fetch([f"{server}/x"], tmp_path)
    assert path.read_bytes() == DATA
    assert files.asked == [("/x", f"bytes={len(DATA)}-")]


def test_a_server_in_trouble_is_asked_again(server, files, tmp_path):
    files.status = [503, 429]
    (path,) = fetch([f"{server}/x"], tmp_path, wait=0)
    assert path.read_bytes() == DATA
    files.status = [503] * 9
    with pytest.raises(InputError, match="HTTP 503"):
        fetch([f"{server}/y"], tmp_path, wait=0, retries=3)
    assert len(files.asked) == 3 + 4


def test_what_is_not_there(server, files, tmp_path):
    with pytest.raises(InputError, match=r"(?s)HTTP 404|could not.*404"):
        fetch([f"{server}/none"], tmp_path)
    assert len(files.asked) == 1
    with pytest.raises(InputError, match="could not be downloaded"):
        fetch(["http://127.0.0.1:9/x"], tmp_path, retries=1, wait=0)
    (tmp_path / "x").write_bytes(b"somebody's own")
    with pytest.raises(InputError, match="not downloaded by this command"):
        fetch([f"{server}/x"], tmp_path)
    assert (tmp_path / "x").read_bytes() == b"somebody's own"


def test_a_full_disk(server, small_disk):
    with pytest.raises(InputError, match=r"(?s)cannot be written.*make room"):
        fetch([f"{server}/x"], small_disk)


def test_dry_run(server, files, tmp_path, capsys):
    root = tmp_path / "raw"
    fetch([f"{server}/x"], root, dry_run=True)
    assert f"{server}/x -> {root / 'x'}" in capsys.readouterr().out
    assert not files.asked
    assert not root.exists()


def test_addresses():
    (core, meta, images) = addresses("Baby", "2014")
    assert core.endswith("/reviews_Baby_5.json.gz")
    assert meta.endswith("/meta_Baby.json.gz")
    assert images.endswith("/image_features_Baby.b")
    for release, parts in FILES.items():
        urls = addresses("Baby", release, tuple(parts))
        assert len(urls) == len(set(urls)) == len(parts)
        assert all(url.startswith("https://") for url in urls)
    for arguments, message in (
        (("Baby", "2015"), "no release '2015'"),
        (("Baby", "2014", ("cores",)), "did you mean 'core'"),
        (("../Baby", "2014"), "no name of a category"),
    ):
        with pytest.raises(InputError, match=message):
            addresses(*arguments)


def test_command(tmp_path):
    command = [sys.executable, str(ROOT / "launch/fetch_amazon.py")]
    command += ["--release=2023", "--category=Baby_Products", "--dry-run"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, f"--output={tmp_path / 'raw'}"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    assert "/meta_Baby_Products.jsonl.gz -> " in done.stdout
    assert not (tmp_path / "raw").exists()
