"""How fast a server is asked, and how long it is waited for."""

import asyncio
import email.utils
import time

import pytest

from neggen_jax.generation.backends.pacing import (
    Gate,
    backoff,
    retry_after,
)

# ---- pacing


def test_a_burst_of_refusals_halves_the_limit_once():
    async def run():
        gate = Gate(8)
        entered = []
        async with gate.enter() as first, gate.enter() as second:
            entered += [first, second]
        for moment in entered:
            gate.refused(moment, 0.0)
        once = gate.limit
        async with gate.enter() as third:
            gate.refused(third, 0.0)
        return once, gate.limit

    assert asyncio.run(run()) == (4, 2)


def test_the_limit_recovers_and_stays_within_bounds():
    async def run():
        gate = Gate(2)
        for _ in range(5):
            async with gate.enter() as entered:
                gate.refused(entered, 0.0)
        low = gate.limit
        for _ in range(50):
            gate.answered()
        return low, gate.limit

    assert asyncio.run(run()) == (1, 2)


def test_a_cancelled_request_leaves_its_place():
    async def run():
        gate = Gate(1)
        async with gate.enter():
            waiting = asyncio.create_task(gate.enter().__aenter__())
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        async with asyncio.timeout(1), gate.enter():
            return True

    assert asyncio.run(run())


def test_waits_double_up_to_their_bound():
    for tried, whole in ((1, 1.0), (2, 2.0), (4, 8.0), (9, 60.0), (10**6, 60)):
        waits = [backoff(tried, 1.0, 60.0) for _ in range(200)]
        assert whole / 2 <= min(waits) <= max(waits) <= whole
        # 200 draws over a half of the whole lie not all in its middle.
        assert max(waits) - min(waits) > whole / 4


def test_retry_after_in_all_its_forms():
    date = email.utils.formatdate(time.time() + 100, usegmt=True)
    past = email.utils.formatdate(time.time() - 100, usegmt=True)
    assert retry_after({}) is None
    assert retry_after({"retry-after": "7"}) == 7
    assert retry_after({"retry-after": "0.5"}) == 0.5
    assert retry_after({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    # The date has whole seconds.
    assert 98 < retry_after({"retry-after": date}) <= 100
    assert retry_after({"retry-after": past}) == 0
    for nonsense in ("", "soon", "nan", "inf", "-inf", "Mon, 99 Foo"):
        assert retry_after({"retry-after": nonsense}) is None
