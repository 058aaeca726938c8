"""The arithmetic of cost, from logs that the real writers of logs made."""

import json

import pytest

from neggen_jax.errors import InputError
from neggen_jax.generation import cost
from neggen_jax.generation.backends import Reply
from neggen_jax.generation.backends.request_log import RequestLog


def make_log(path, items=10, seconds=0.25):
    """Each item is masked twice, once in vain, and described once."""
    log = RequestLog(path)
    for item in range(items):
        described = Reply("", True, 700, 50)
        log.add(f"item {item} image: describe", 1, 200, 2 * seconds, described)
        label = f"item {item} text: mask"
        masked = Reply("", True, 400, 100, 300)
        log.add(label, 1, 500, seconds, problem="HTTP 500")
        log.add(label, 2, 200, seconds, masked)
    log.totals.elapsed = 5.0
    log.close()


def test_sums_are_of_all_runs_and_shards(tmp_path):
    for shard in (0, 1):
        make_log(tmp_path / f"requests-{shard}-of-2.jsonl")
    make_log(tmp_path / "requests-0-of-2.jsonl")  # again: retried items
    found = cost.read(sorted(tmp_path.glob("requests-*")))
    assert sorted(found.steps) == ["image: describe", "text: mask"]
    assert (found.items, found.elapsed) == (10, 15.0)
    mask = found.steps["text: mask"]
    assert (mask.requests, mask.answered) == (60, 30)
    assert (mask.prompt_tokens, mask.cached_tokens) == (12_000, 9_000)
    assert (found.sum("requests"), found.sum("reply_tokens")) == (90, 4_500)
    assert found.sum("seconds") == pytest.approx(30 * (0.5 + 0.25 + 0.25))


def test_many_items_are_told_from_few(tmp_path, capsys):
    make_log(tmp_path / "requests-0-of-1.jsonl")
    cost.main([str(tmp_path), "--items=1000000"])
    said = capsys.readouterr().out
    # 3 requests, 1100 and 150 tokens an item; 10 items in 5 seconds.
    assert "an item: 3.00 requests, 1,100 tokens read, 150 written" in said
    assert "a second: 6.00 requests, 2,200 tokens read" in said
    assert "1,000,000 items: 3,000,000 requests" in said
    assert "1,100.0 million tokens read, 150.0 written" in said
    # 500,000 seconds.
    assert "138.9 hours of one server" in said
    (line,) = [line for line in said.splitlines() if "text: mask" in line]
    assert line.split()[-6:] == ["20", "10", "400", "75%", "100", "0.25"]


def test_what_a_kill_left_is_read(tmp_path, capsys):
    path = tmp_path / "requests-0-of-1.jsonl"
    make_log(path)
    whole = path.read_bytes().splitlines(keepends=True)
    # Neither totals nor the end of the last line.
    path.write_bytes(b"".join(whole[:-2]) + whole[-2][:20] + b"\n[]\nnull\n")
    cost.main([str(tmp_path)])
    said = capsys.readouterr().out
    assert "10 items: " in said
    assert "hours" not in said


@pytest.mark.parametrize("text", [None, "", json.dumps({"totals": {}})[:9]])
def test_without_a_log_there_is_no_cost(tmp_path, text, capsys):
    if text is not None:
        (tmp_path / "requests-0-of-1.jsonl").write_text(text)
    with pytest.raises(SystemExit) as caught:
        cost.main([str(tmp_path)])
    assert caught.value.code == 2
    assert "no log of requests" in capsys.readouterr().err
    with pytest.raises(InputError):
        cost.read([])
