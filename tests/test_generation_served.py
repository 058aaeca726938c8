"""From a dataset to records, with a server that misbehaves in all ways."""

import base64
import collections
import io
import itertools
import json

import pytest
from chat_server import (
    ChatServer,
    Fault,
    picture_of,
    seeded,
    status,
    words_of,
)
from contents import make_records, paint
from PIL import Image
from shopkeeper import Shopkeeper
from test_counterfactuals import call, refused, save

from neggen_jax.generation import tasks
from neggen_jax.generation.backends.openai import OpenAI
from neggen_jax.generation.backends.pacing import Retry
from neggen_jax.generation.sets import pipeline
from neggen_jax.generation.writers import prompts
from neggen_jax.generation.writers.prompted import Options, Prompted

pytest.importorskip("openai", reason="pip install -r requirements-openai.txt")

ITEMS = 24
FAULTS = [
    status(429),
    status(429, retry_after="0.02"),
    status(500),
    status(503, retry_after="0"),
    Fault("slow", seconds=9.0),
    Fault("drop"),
    Fault("truncate"),
    Fault("garbage"),
    Fault("refusal"),
    Fault("empty"),
    Fault("length"),
]


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """A tiny shop with texts and pictures."""
    root = tmp_path_factory.mktemp("shop")
    colours = ("red", "green", "blue", "yellow")
    materials = ("cotton", "velvet", "linen")
    kinds = ("Cardigan", "Skirt")
    texts, attributes = [], []
    names = [f"{item:02d}.png" for item in range(ITEMS)]
    for item, (kind, colour, material) in enumerate(
        itertools.product(kinds, colours, materials)
    ):
        paint(root / names[item], colour, stripes=item % 2, seed=item)
        texts.append(
            f"{kind} number {item}. Softly woven {material}, coloured {colour}."
        )
        attributes.append({"category": kind, "material": material})
    return make_records(texts, names, root, attributes)


def write(records, server, timeout=20.0, **options):
    """All records, in the order in which they came."""
    plan = tasks.plan(records)
    backend = OpenAI(
        "shop-vl",
        base_url=server.url,
        concurrency=12,
        timeout=timeout,
        retry=Retry(tries=3, first=0.01, longest=0.05),
        **options,
    )
    written = []
    stopped = pipeline.run(
        tasks.make(records, plan),
        Prompted(backend, prompts.load(), Options(alternatives=2, retries=2)),
        written.append,
    )
    assert not stopped
    return written


def check_whole(written):
    """Every task once; each accepted, or failed with a reason."""
    keys = sorted(record.key for record in written)
    assert keys == [(item, m) for item in range(ITEMS) for m in (0, 1)]
    for record in written:
        assert bool(record.error) != bool(record.negatives)
        if record.accepted:
            assert len(record.negatives) == 2
            assert record.attempts >= (3 if record.modality == "image" else 2)


def test_a_good_server_writes_all(records):
    keeper = Shopkeeper()
    with ChatServer(keeper) as server:
        written = write(records, server)
    check_whole(written)
    assert all(record.accepted for record in written)
    assert keeper.asked == {"describe": ITEMS, "mask": 2 * ITEMS} | {
        "complete": 2 * ITEMS
    }
    described = [r.description for r in written if r.modality == "image"]
    # The pictures differ, and it is they that are described.
    assert len({text.split("looks")[1] for text in described}) > 1


@pytest.mark.parametrize("seed", [0, 1])
def test_a_bad_server_writes_what_it_can(records, seed, tmp_path):
    log = tmp_path / "requests.jsonl"
    keeper = Shopkeeper(bad=0.25, seed=seed)
    fault = seeded(seed, 0.3, FAULTS)
    with ChatServer(keeper, fault=fault, structured=False) as server:
        written = write(records, server, timeout=1.5, log=log)
    check_whole(written)
    accepted = sum(record.accepted for record in written)
    # Three tries of each step, each spoilt now and then: most come through.
    assert 2 * ITEMS // 2 < accepted <= 2 * ITEMS
    assert keeper.spoilt > 10
    met = {key for key in server.statuses if key != 200}
    assert met >= {429, 500, 503, "drop", "truncate", "garbage", "slow"}
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    sent = collections.Counter(line.get("status") for line in lines[:-1])
    assert sum(sent.values()) == lines[-1]["totals"]["requests"]
    # What timed out may not have come so far as to be counted there.
    lost = sum(sent.values()) - len(server.requests)
    assert 0 <= lost <= sent["timeout"]


def test_the_same_faults_write_the_same_records(records):
    """What passes leaves no trace; the order of arrival does not matter."""
    lines = []
    for faults in ((), (status(429), status(500), Fault("drop"))):
        fault = seeded(0, 0.4 if faults else 0.0, faults or FAULTS, most=2)
        with ChatServer(Shopkeeper(bad=0.2), fault=fault) as server:
            written = write(records, server)
        check_whole(written)
        lines.append(sorted(record.to_line() for record in written))
    assert lines[0] == lines[1]


def test_flags_of_the_command_reach_the_server(records, tmp_path):
    data = save(records, tmp_path / "data")
    sampling = '{"temperature": 0.7, "seed": null}'
    with ChatServer(Shopkeeper()) as server:
        flags = (
            "--backend=openai",
            "--model=shop-vl",
            f"--base_url={server.url}",
            "--image_side=16",
            "--description_words=33",
            "--max_tokens_field=max_completion_tokens",
            "--items=0",
        )
        done = call(data, *flags, f"--sampling={sampling}")
        assert done.returncode == 0, done.stderr
        refusals = [
            refused(call(data, *flags, f"--sampling={text}"))
            for text in ('{"temperature": 1}', "0.7")
        ]
    assert "another setting of 'sampling'" in refusals[0]
    assert "no fields of a request" in refusals[1]
    pictures = []
    for body in server.requests:
        assert body["temperature"] == 0.7
        assert "max_completion_tokens" in body
        assert not {"seed", "max_tokens"} & set(body)
        if url := picture_of(body):
            assert "at most 33 words" in words_of(body)
            data = base64.b64decode(url.partition(",")[2])
            pictures.append(Image.open(io.BytesIO(data)).size)
    assert [max(size) for size in pictures] == [16]
