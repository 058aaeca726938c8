"""Pages: links lead somewhere, code runs, and what is quoted is there."""

import asyncio
import functools
import pathlib
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_catalog
from shopkeeper import Shopkeeper
from training import make_config

from neggen_jax import reference
from neggen_jax.data import prepare as preparing
from neggen_jax.data.sources import registry
from neggen_jax.generation.tasks import Task
from neggen_jax.run import Run

ROOT = pathlib.Path(__file__).parents[1]
# Those that git knows or would take: not what an environment brings.
_LISTED = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
    cwd=ROOT,
    capture_output=True,
    text=True,
)
PAGES = [ROOT / name for name in _LISTED.stdout.split()] or [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/*.md"),
    *ROOT.glob("launch/*.md"),
]
FENCED = re.compile(r"^```.*?^```", re.M | re.S)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


@functools.cache
def anchors(path):
    """What headings are called in links, as GitHub does."""
    text = FENCED.sub("", path.read_text("utf-8"))
    out: dict[str, int] = {}
    for heading in re.findall(r"^#+ +(.+?) *$", text, re.M):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        name = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        out[name] = out.get(name, -1) + 1
    return {
        n if not k else f"{n}-{k}"
        for n, last in out.items()
        for k in range(last + 1)
    }


def links(path):
    """Links of a page, but those that lead away."""
    text = FENCED.sub("", path.read_text("utf-8"))
    return [
        link
        for link in LINK.findall(re.sub(r"`[^`]*`", "", text))
        if not re.match(r"\w+:", link)
    ]


@pytest.mark.parametrize(
    "page", PAGES, ids=lambda path: str(path.relative_to(ROOT))
)
def test_links_lead_somewhere(page):
    for link in links(page):
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_a_broken_link_would_be_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b` c, d\n[x](#a-b-c-d) [y](none.md)\n```\n[z](q)\n```\n"
    )
    assert links(page) == ["#a-b-c-d", "none.md"]
    assert anchors(page) == {"a-b-c-d"}


def test_every_page_is_in_the_index():
    listed = {
        (ROOT / "docs" / link).resolve()
        for link in links(ROOT / "docs/README.md")
    }
    pages = {*ROOT.glob("docs/*.md")} - {ROOT / "docs/README.md"}
    assert pages <= listed


# --- the reference of config keys --------------------------------------------


def test_the_reference_is_what_the_code_says():
    written = (ROOT / "docs" / "config.md").read_text("utf-8")
    made = reference.page()
    assert written == made, "python -m neggen_jax.reference > docs/config.md"


def test_every_key_has_a_meaning():
    rows = [
        line.removesuffix(" |").rpartition(" | ")
        for line in reference.page().splitlines()
        if line.startswith("| `")
    ]
    assert len(rows) > 100
    assert not [row for row, _, meaning in rows if not meaning.strip()]


def test_meanings_are_read_off_docstrings():
    class Base:
        """One.

        Attributes:
          size: of it;
            in metres.
          a, b: both.
        """

    class More(Base):
        """Two.

        Attributes:
          size: another.

        Not: this.
        """

    assert reference.meanings(Base)["size"] == "of it; in metres."
    assert reference.meanings(More) == {
        "size": "another.",
        "a": "both.",
        "b": "both.",
    }


# --- what is quoted ----------------------------------------------------------


def test_troubleshooting_quotes_messages_that_there_are():
    page = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    quoted = re.findall(r'^\| "([^"]+)" \|', page, re.M)
    assert len(quoted) > 25
    code = " ".join(
        path.read_text("utf-8") for path in ROOT.glob("neggen_jax/**/*.py")
    )
    # A message may stand in the code as several strings.
    code = re.sub(r'"\s+f?"', "", code)
    assert not [said for said in quoted if said not in code]


# --- the code of docs/extending.md -------------------------------------------


def code(heading, number=0):
    """A block of the page, run."""
    page = (ROOT / "docs" / "extending.md").read_text("utf-8")
    section = page.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    block = re.findall(r"```python\n(.*?)```", section, re.S)[number]
    return block


@pytest.fixture
def mine(monkeypatch):
    """The module "mine", with a source and a loss in it."""
    module = types.ModuleType("mine")
    for heading in ("A source of negatives", "A loss"):
        exec(code(heading), vars(module))
    monkeypatch.setitem(sys.modules, "mine", module)
    return module


def test_a_source_and_a_loss_of_ones_own_take_a_step(mine):
    config = make_config("mf")
    config.mesh.data = 1
    with config.unlocked():
        for heading in ("A source of negatives", "A loss"):
            exec(code(heading, 1), {"config": config})
    run = Run.make(config, make_catalog(), jax.devices()[:1])
    state, _ = run.start()
    stack = next(run.batches(0))
    after, report = run.program.trainer(state)(
        state, run.inputs, stack, jnp.int32(2)
    )
    assert report.bad_step == -1
    assert int(after.step) == 2
    # Embeddings begin small: nothing is apart by more than the margin yet.
    assert float(report.means["bpr"]) == pytest.approx(0.5, abs=0.3)


def test_a_source_of_data_of_ones_own(tmp_path, monkeypatch):
    known = {**registry.SOURCES}
    monkeypatch.setattr(registry, "SOURCES", known)
    monkeypatch.setattr(preparing, "SOURCES", known)
    exec(code("A source of data"), {})
    rng = np.random.default_rng(0)
    pairs = {(u, i) for u in range(12) for i in rng.choice(20, 6, False)}
    text = "\n".join(f"user{u};item{i}" for u, i in sorted(pairs))
    (tmp_path / "log.txt").write_text(text)
    out = tmp_path / "data"
    catalog = preparing.prepare(
        "pairs", tmp_path / "log.txt", out, separator=";"
    )
    assert catalog.num_users == 12
    assert sum(map(len, catalog.splits.values())) == len(pairs)


def test_a_backend_of_ones_own_writes():
    made: dict = {}
    exec(code("A backend"), made)
    keeper = Shopkeeper()

    def model(prompt, image):
        asked = prompt.removeprefix("user: ")
        return keeper({"messages": [{"role": "user", "content": asked}]})

    text = "Hollisk romantic scarf in crimson, woven cotton."
    task = Task(3, "id3", "text", text, {}, {"kind": "scarf"})
    record = asyncio.run(made["writer"](model).write(task))
    assert not record.error
    assert record.backend == "mine"
    assert record.model == "my-model-7b"
    (only,) = record.negatives
    assert only.text != text
    assert "scarf" in only.text
