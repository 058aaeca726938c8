"""The pipeline in real processes: killed, stopped, sharded, gone on with."""

import contextlib
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from chat_server import ChatServer, Fault
from contents import make_records
from shopkeeper import Shopkeeper
from test_tasks import SHOP, SHOWN

from neggen_jax.catalog import SPLITS, Catalog, Interactions, ItemRecords
from neggen_jax.data import store
from neggen_jax.errors import InputError
from neggen_jax.generation import records
from neggen_jax.generation.sets.generate import Scope, generate

ROOT = pathlib.Path(__file__).parents[1]
MANY = 3_000
COLOURS = ("red", "blue", "green", "teal", "ivory")
STYLES = ("plain", "striped", "dotted")


def save(shop: ItemRecords, path: pathlib.Path) -> pathlib.Path:
    """A dataset directory of some items, and of a user who has three."""
    one = {
        split: Interactions(np.array([0], np.int32), np.array([i], np.int32))
        for i, split in enumerate(SPLITS)
    }
    catalog = Catalog("shop", 1, len(shop), one, {}, shop).validate()
    store.save(catalog, path, source={})
    return path


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """So many items that there is time to kill a process in."""
    attributes = [
        {"category": kind, "colour": colour, "look": look}
        for _, kind, colour, look in zip(
            range(MANY),
            itertools.cycle(["mug", "bowl", "vase", "jug"]),
            itertools.cycle(COLOURS),
            itertools.cycle(STYLES),
            strict=False,
        )
    ]
    texts = [f"A {a['look']} {a['category']}" for a in attributes]
    shop = make_records(texts, attributes=attributes)
    return save(shop, tmp_path_factory.mktemp("many") / "data")


@pytest.fixture
def shop(tmp_path):
    """The dataset directory of a few clothes, without their pictures."""
    return save(SHOP, tmp_path / "data")


def arguments(data, *flags):
    command = [sys.executable, "launch/generate.py", f"--data={data}"]
    return [*command, *flags]


def call(data, *flags):
    return subprocess.run(
        arguments(data, *flags), cwd=ROOT, capture_output=True, text=True
    )


def refused(done):
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: "), done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def folder(data, name="attributes"):
    return data / "counterfactuals" / name


def contents(data, name="attributes"):
    return (folder(data, name) / "records.jsonl").read_bytes()


def keys(journal):
    return [
        records.parse(line, journal).key
        for line in journal.read_bytes().splitlines(keepends=True)
        if line.endswith(b"\n")
    ]


def begun(process, journal, lines):
    """Waits until a process has written some records more."""
    size = journal.stat().st_size if journal.exists() else 0
    while not journal.exists() or journal.stat().st_size < size + 200 * lines:
        assert process.poll() is None, "it has ended too soon"
        time.sleep(0.002)


@contextlib.contextmanager
def started(data, *flags):
    process = subprocess.Popen(
        arguments(data, *flags),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


# -- real processes ----------------------------------------------------------


def test_killed_and_gone_on_with_it_is_as_if_nothing_had_been(many):
    generate(many, set_name="whole", encode=False)
    journal = folder(many, "killed") / "records-0-of-1.jsonl"
    flags = ("--set=killed", "--noencode")
    for _ in range(3):
        with started(many, *flags) as process:
            begun(process, journal, 300)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        found = keys(journal)
        # Whatever it was at, no record is there twice.
        assert len(set(found)) == len(found) > 0
        assert not (folder(many, "killed") / "manifest.json").exists()
    assert len(found) < MANY
    done = call(many, *flags)
    assert done.returncode == 0, done.stderr
    assert f"of which {len(found):,} are there" in done.stdout
    assert contents(many, "killed") == contents(many, "whole")
    assert keys(journal) == [(item, 0) for item in range(MANY)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_says_how_to_go_on(many, number):
    name = f"stopped-{number.name}"
    journal = folder(many, name) / "records-0-of-1.jsonl"
    with started(many, f"--set={name}", "--noencode") as process:
        begun(process, journal, 100)
        process.send_signal(number)
        out, errors = process.communicate()
    assert process.returncode == 128 + number
    assert errors == ""
    found = len(keys(journal))
    assert f"stopped: {found:,} of {MANY:,} records are in {journal}" in out
    assert "the same command goes on" in out
    assert journal.read_bytes().endswith(b"\n")


def test_two_shards_merged_are_one_run(many):
    generate(many, set_name="unsharded", encode=False)
    flags = ("--set=shards", "--noencode")
    with started(many, *flags, "--shard=0/2") as other:
        done = call(many, *flags, "--shard=1/2")
        out, _ = other.communicate()
    assert (other.returncode, done.returncode) == (0, 0), done.stderr
    for text, shard in ((out, "0/2"), (done.stdout, "1/2")):
        assert f"shard {shard} is complete" in text
        assert "--set=shards --merge" in text
    assert not (folder(many, "shards") / "records.jsonl").exists()
    done = call(many, *flags, "--merge")
    assert done.returncode == 0, done.stderr
    assert contents(many, "shards") == contents(many, "unsharded")


def test_two_processes_do_not_write_one_shard(many):
    journal = folder(many, "twice") / "records-0-of-1.jsonl"
    with started(many, "--set=twice", "--noencode") as process:
        begun(process, journal, 50)
        os.kill(process.pid, signal.SIGSTOP)
        message = refused(call(many, "--set=twice", "--noencode"))
    assert "Another process writes this shard" in message
    assert f"process {process.pid} on" in message


def test_from_items_to_vectors_by_one_command(shop):
    done = call(
        shop,
        "--modalities=text",
        f"--image-attributes={','.join(SHOWN)}",
        "--alternatives=2",
    )
    assert done.returncode == 0, done.stderr
    assert "96 of 96 accepted (100.0%), 96 counterfactuals" in done.stdout
    assert "season 96" in done.stdout
    made = store.load(shop, counterfactuals="attributes").counterfactuals
    # There is but one other season.
    assert made.modalities["text"].present.tolist() == [[True]] * 96
    again = call(
        shop,
        "--modalities=text",
        f"--image-attributes={','.join(SHOWN)}",
        "--alternatives=2",
    )
    assert "it is encoded already" in again.stdout


def test_a_set_is_encoded_as_before_unless_told_otherwise(shop):
    generate(shop, modalities=["text"])
    generate(
        shop,
        set_name="b",
        seed=1,
        modalities=["text"],
        encoder_like="attributes",
    )
    manifest = generate(shop, set_name="b", merge=True)
    assert manifest["encoding"]["like"]["set"] == "attributes"
    file = folder(shop) / "manifest.json"
    known = json.loads(file.read_text())
    known["encoding"] |= {"encoder": "transformers", "model": {"name": "mini"}}
    file.write_text(json.dumps(known))
    for merge in (False, True):
        with pytest.raises(InputError, match=r"found: +mini"):
            generate(shop, modalities=["text"], merge=merge)
        assert json.loads(file.read_text()) == known
    manifest = generate(shop, merge=True, encoder="tfidf")
    assert manifest["encoding"]["encoder"] == "tfidf"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--backend=attribute"], "did you mean 'attributes'"),
        (["--kept=catgory"], "did you mean 'category'"),
        (["--contrast=radnom"], "did you mean 'random'"),
        (["--model=some"], "has no option 'model'"),
        (["--backend=openai"], "--model"),
        (["--shard=2/2"], "i from 0 to n - 1"),
        (["--items=3000"], "below 3000"),
        (["--items=7-3"], "0,5,7-9"),
        (["--limit=0"], "at least 1"),
        (["--limit=some"], "--help"),
        (["--set=../x"], "plain word"),
        (["--modalities=image"], "No item has the modality 'image'"),
        (["--image_attributes=colour"], "No item has a picture"),
        (["--merge", "--set=none"], "no shards to merge"),
        (["--words=none.toml"], "file of words cannot be read"),
    ],
)
def test_bad_flags_are_refused(many, flags, words):
    with pytest.raises(InputError) as caught:
        refuse(many, flags)
    assert words in str(caught.value)


def refuse(data, flags):
    """What the command would say; in this process, for it is many times."""
    given = dict(flag.lstrip("-").partition("=")[::2] for flag in flags)
    if given.get("limit", "").isalpha():
        raise InputError(refused(call(data, *flags)))
    scope = {n: given.pop(n) for n in ("shard", "items") if n in given}
    if "limit" in given:
        scope["limit"] = int(given.pop("limit"))
    for name in ("kept", "modalities", "image_attributes"):
        if name in given:
            given[name] = given[name].split(",")
    given["set_name"] = given.pop("set", "refused")
    given["merge"] = "merge" in given
    generate(data, scope=Scope(**scope), encode=False, **given)


def test_pictures_of_which_nobody_knows_what_they_show(shop):
    with pytest.raises(InputError, match="what the pictures show") as caught:
        generate(shop, encode=False)
    assert "--image_attributes" in str(caught.value)
    assert "pattern" in str(caught.value)


# -- which records -----------------------------------------------------------


def test_some_first_and_then_the_rest_are_the_whole(shop, capsys):
    options = {"image_attributes": SHOWN, "encode": False}
    generate(shop, set_name="whole", **options)
    for scope in (
        Scope(limit=7),
        Scope(items="90-95,3"),
        Scope(items="0-10", limit=3),
        Scope(limit=50),
    ):
        assert generate(shop, set_name="parts", scope=scope, **options) is None
    said = capsys.readouterr().out
    found = keys(folder(shop, "parts") / "records-0-of-1.jsonl")
    assert found[:7] == [(i // 2, i % 2) for i in range(7)]
    assert found[7:9] == [(3, 1), (90, 0)]
    assert len(found) == 7 + 13 + 3 + 50
    assert "119 of 192 records are still to be written" in said
    assert generate(shop, set_name="parts", **options) is not None
    assert contents(shop, "parts") == contents(shop, "whole")


def test_items_without_content_have_a_record_that_says_so(tmp_path):
    attributes = [{"colour": c} for c in ("red", "blue", "teal")]
    some = make_records(["a", "b", ""], ["", "1.png", ""], "/x", attributes)
    data = save(some, tmp_path / "data")
    manifest = generate(
        data,
        image_attributes=["colour"],
        told=[],
        kept=[],
        encode=False,
        changeable=["colour"],
        text_attributes=["colour"],
    )
    assert manifest["counts"]["image"]["accepted"] == 1
    assert manifest["counts"]["image"]["reasons"] == {
        "the item has no picture": 2
    }
    assert manifest["counts"]["text"]["reasons"] == {"the item has no text": 1}


def test_the_bazaar_knows_what_its_pictures_show(bazaar_shop):
    manifest = generate(bazaar_shop, encode=False)
    shown = manifest["shown"]
    assert shown["image"] == [
        "category",
        "colour",
        "pattern",
        "cut",
        "backdrop",
    ]
    assert shown["text"] == [
        "category",
        "colour",
        "material",
        "style",
        "brand",
        "season",
    ]
    assert manifest["kept"] == ["category"]
    assert manifest["mined"] == []
    lines = contents(bazaar_shop).splitlines()
    text, image = (records.parse(line, "here") for line in lines[:2])
    # The texts of a bazaar tell their attributes in sentences.
    assert "colour:" not in text.description
    assert image.description.endswith(".")


@pytest.fixture(scope="module")
def bazaar_shop(tmp_path_factory):
    from neggen_jax.data.prepare import prepare

    path = tmp_path_factory.mktemp("bazaar") / "data"
    sizes = {"num_users": 8, "num_items": 24, "image_size": 16}
    more = {"interactions_per_user": 6.0}
    prepare("bazaar", None, path, text="none", image="none", **sizes, **more)
    return path


def test_random_contrasts_have_a_set_of_their_own(shop):
    """The one that configs look for; not among the others."""
    generate(
        shop, contrast="random", image_attributes=list(SHOWN), encode=False
    )
    assert folder(shop, "random").is_dir()
    assert not folder(shop, "attributes").exists()


def test_probes_have_a_set_of_their_own(bazaar_shop):
    manifest = generate(bazaar_shop, probe=True)
    assert manifest["probes"]["image"] == [
        "colour",
        "pattern",
        "cut",
        "backdrop",
    ]
    made = store.load(bazaar_shop, counterfactuals="probes").counterfactuals
    image, text = made.modalities["image"], made.modalities["text"]
    assert image.alternatives == text.alternatives == 5
    assert image.present.tolist() == [[True] * 4 + [False]] * 24
    assert text.present.all()


# -- a language model --------------------------------------------------------


def test_what_failed_is_asked_again_if_wanted(shop, capsys):
    pytest.importorskip(
        "openai", reason="pip install -r requirements-openai.txt"
    )
    options = {
        "backend": "openai",
        "model": "shop-vl",
        "modalities": ["text"],
        "retries": 0,
        "concurrency": 8,
        "encode": False,
    }
    items = Scope(items="0-19")
    with ChatServer(Shopkeeper(bad=0.5)) as server:
        url = server.url
        assert generate(shop, base_url=url, scope=items, **options) is None
    journal = folder(shop, "openai") / "records-0-of-1.jsonl"
    first = {
        record.key: record
        for record in (
            records.parse(line, "here")
            for line in journal.read_bytes().splitlines()
        )
    }
    failed = {key for key, record in first.items() if record.error}
    assert 0 < len(failed) < 20
    log = folder(shop, "openai") / "requests-0-of-1.jsonl"
    requests = len(log.read_bytes().splitlines())
    with ChatServer(Shopkeeper()) as server:
        url = server.url
        # Nobody has asked for another try.
        generate(shop, base_url=url, scope=items, **options)
        assert not server.requests
        again = Scope(items="0-19", retry_failed=True)
        generate(shop, base_url=url, scope=again, **options)
        # Two requests a task: what was accepted is not asked for again.
        assert len(server.requests) == 2 * len(failed)
        manifest = generate(shop, base_url=url, **options)
    assert len(log.read_bytes().splitlines()) > requests
    assert manifest["counts"]["text"]["accepted"] == len(SHOP)
    for line in contents(shop, "openai").splitlines():
        record = records.parse(line, "here")
        if record.key in first and record.key not in failed:
            assert record == first[record.key]
    assert manifest["model"] == "shop-vl"
    assert "prompt_version" in manifest


def test_a_server_that_is_gone_loses_nothing(shop):
    pytest.importorskip(
        "openai", reason="pip install -r requirements-openai.txt"
    )
    count = itertools.count()

    def fault(number, body):
        return Fault("status", 401) if next(count) > 30 else None

    options = {
        "backend": "openai",
        "model": "shop-vl",
        "modalities": ["text"],
        "concurrency": 4,
        "encode": False,
    }
    gone = pytest.raises(InputError, match="key")
    with ChatServer(Shopkeeper(), fault=fault) as server, gone:
        generate(shop, base_url=server.url, **options)
    journal = folder(shop, "openai") / "records-0-of-1.jsonl"
    found = keys(journal)
    assert 0 < len(found) < len(SHOP)
    with ChatServer(Shopkeeper()) as server:
        manifest = generate(shop, base_url=server.url, **options)
        # Two requests a task, and none for those that are there.
        assert len(server.requests) == 2 * (len(SHOP) - len(found))
    assert manifest["counts"]["text"]["accepted"] == len(SHOP)
