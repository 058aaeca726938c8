"""Directories appear whole or not at all."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from neggen_jax.data.directories import replacing
from neggen_jax.errors import InputError

OURS = re.compile(r"[ab]\.txt|sub")


def replace(target, content="new", overwrite=True):
    with replacing(target, overwrite=overwrite, ours=OURS) as partial:
        (partial / "sub").mkdir()
        (partial / "a.txt").write_text(content)


@pytest.fixture
def target(tmp_path):
    """A directory that is there already."""
    path = tmp_path / "target"
    path.mkdir()
    (path / "a.txt").write_text("old")
    (path / "b.txt").write_text("old")
    return path


def assert_untouched(target):
    assert {p.name: p.read_text() for p in target.iterdir()} == {
        "a.txt": "old",
        "b.txt": "old",
    }
    assert [p.name for p in target.parent.iterdir()] == [target.name]


def test_new(tmp_path):
    replace(tmp_path / "x/y", overwrite=False)
    assert (tmp_path / "x/y/a.txt").read_text() == "new"
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["y"]


def test_empty_directory_is_as_good_as_none(tmp_path):
    (tmp_path / "x").mkdir()
    replace(tmp_path / "x", overwrite=False)
    assert (tmp_path / "x/a.txt").read_text() == "new"


def test_an_existing_one_is_replaced_only_when_told(target):
    with pytest.raises(InputError, match=r"(?s)exists.*a\.txt.*--overwrite"):
        replace(target, overwrite=False)
    assert_untouched(target)
    replace(target)
    assert sorted(p.name for p in target.iterdir()) == ["a.txt", "sub"]
    assert (target / "a.txt").read_text() == "new"
    assert [p.name for p in target.parent.iterdir()] == ["target"]


def test_a_link_keeps_pointing_to_what_is_replaced(target, tmp_path_factory):
    link = tmp_path_factory.mktemp("elsewhere") / "link"
    link.symlink_to(target)
    replace(link)
    assert link.is_symlink()
    assert (target / "a.txt").read_text() == "new"


def test_what_others_put_there_is_never_deleted(target):
    (target / "mine").mkdir()
    with pytest.raises(InputError, match=r"(?s)would be lost.*found: +mine\n"):
        replace(target)
    (target / "mine").rmdir()
    assert_untouched(target)


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "x").write_text("mine")
    with pytest.raises(InputError, match="must be a directory"):
        replace(tmp_path / "x")
    assert (tmp_path / "x").read_text() == "mine"


def test_an_error_changes_nothing(target):
    def fail():
        with replacing(target, overwrite=True, ours=OURS) as partial:
            (partial / "a.txt").write_text("new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert_untouched(target)


def test_a_failed_rename_puts_the_old_one_back(target):
    def fail():
        with replacing(target, overwrite=True, ours=OURS) as partial:
            partial.rmdir()

    with pytest.raises(FileNotFoundError):
        fail()
    assert_untouched(target)


def test_a_killed_process_changes_nothing(target):
    program = """if True:
        import os, re, signal, sys
        from neggen_jax.data.directories import replacing
        ours = re.compile(r"[ab]\\.txt")
        with replacing(sys.argv[1], overwrite=True, ours=ours) as partial:
            (partial / "a.txt").write_text("new")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run(
        [sys.executable, "-c", program, str(target)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert done.returncode == -signal.SIGKILL
    [left] = [p for p in target.parent.iterdir() if p != target]
    assert re.fullmatch(r"\.target\.\d+\.partial", left.name)
    (left / "a.txt").unlink()
    left.rmdir()
    assert_untouched(target)


def test_a_place_that_cannot_be_written():
    with pytest.raises(InputError, match="could not be written"):
        replace("/proc/nothing/here")
