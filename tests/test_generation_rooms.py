"""The rooms of generation: data flows one way, and nothing heavy is loaded."""

import ast
import pathlib
import pkgutil
import subprocess
import sys

import pytest

import neggen_jax.generation as generation

ROOT = pathlib.Path(generation.__path__[0])
# Each may import what stands before it, and itself.
ORDER = (
    "records",
    "values",
    "tasks",
    "backends",
    "cost",
    "writers",
    "sets",
    "inspection",
)


def imported(path):
    """The rooms that a file imports, at its head or when it is used."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("neggen_jax.generation."):
                yield name.split(".")[2]


@pytest.mark.parametrize("room", ORDER)
def test_data_flows_one_way(room):
    files = [ROOT / f"{room}.py", *(ROOT / room).rglob("*.py")]
    files = [path for path in files if path.exists()]
    assert files
    known = ORDER[: ORDER.index(room) + 1]
    for path in files:
        assert set(imported(path)) <= set(known), path


def test_there_are_no_other_rooms():
    assert {m.name for m in pkgutil.iter_modules([str(ROOT)])} == set(ORDER)


def test_no_room_loads_what_only_some_need():
    """Generation runs where the language model runs."""
    modules = [
        m.name
        for m in pkgutil.walk_packages([str(ROOT)], "neggen_jax.generation.")
    ]
    assert len(modules) > 30
    heavy = {"jax", "tensorflow", "torch", "sklearn", "openai", "transformers"}
    code = f"import sys, {', '.join(modules)}\n" + (
        f"sys.exit(', '.join({heavy} & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
