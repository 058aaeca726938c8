"""Several processes that train one model: who speaks, and how they agree.

On a pod, and wherever devices belong to several processes, each process runs
the same program on its own devices. Process 0 writes and prints; what it
refuses, all refuse, with the same error. Nobody waits for ever: where one fails
or does not come, all end, and say at what.

With one process everything here does what its name says, and nothing else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import functools
import itertools
import json
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from neggen_jax.errors import InputError
from neggen_jax.storage import first_line

# Seconds that a process waits for the others.
PATIENCE = int(os.environ.get("NEGGEN_PATIENCE", "600"))
# How many times as long where one of them may be compiling, or read much.
SLOW = 6

_TOLD = ("problem", "where", "expected", "found", "fix")
# Processes come to the same meetings in the same order.
_meetings = itertools.count()
# Where the first one that fails tells why.
_FAILED = "neggen/failed"


def start(address: str, count: int, index: int) -> None:
    """Joins the processes of a run; before anything touches a device.

    Args:
      address: `host:port` of process 0; "auto" asks the machine (TPU pods,
        Slurm, Open MPI, Kubernetes), and "" stays alone.
      count: of processes; more than one need an address.
      index: of this one, from 0.

    Raises:
      InputError: if the arguments contradict each other, or not all came.
    """
    if not address and (count, index) != (1, 0):
        raise InputError(
            "Several processes do not know where to find each other.",
            where="--coordinator",
            expected="host:port of process 0, or auto",
            found=f"none, with --processes={count} --process={index}",
            fix="give all of them the same --coordinator, or neither flag",
        )
    if not address:
        return
    given: dict[str, Any] = {}
    expected = "a machine that tells of its processes"
    if address != "auto":
        expected = f"{count} processes within {PATIENCE} s"
        if not re.fullmatch(r"\S+:\d+", address) or not 0 <= index < count:
            raise InputError(
                "The flags do not say which process this is.",
                where="--coordinator, --processes, --process",
                expected="host:port, how many, and a number below that",
                found=f"{address}, {count}, {index}",
            )
        given = {
            "coordinator_address": address,
            "num_processes": count,
            "process_id": index,
        }
    # Between processes without accelerators; with them it is not read.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            initialization_timeout=PATIENCE,
            # Where one has failed the others cannot leave in order, and JAX
            # would have them wait for five minutes.
            shutdown_timeout_seconds=30,
            heartbeat_timeout_seconds=min(100, PATIENCE),
            **given,
        )
    except (ValueError, RuntimeError) as error:
        raise InputError(
            "The processes did not find each other.",
            where=f"--coordinator={address}",
            expected=expected,
            found=first_line(error),
            fix="start all of them, with the same address and count",
        ) from error


def first() -> bool:
    """Whether this is the process that writes and prints."""
    return bool(jax.process_index() == 0)


def lead(name: str, work: Callable[[], Any]) -> Any:
    """Has process 0 do what is to be done once, while the others wait.

    Either takes as long as the phase allows, from here on.

    Args:
      name: of what is done, for the error if it is not.
      work: called by process 0 alone; what it returns, JSON can hold.

    Returns:
      What `work` returned, in all processes; through JSON where it comes from
      another one.

    Raises:
      InputError: that of `work`, in all processes; for any other exception
        of it, one that tells the others.
    """
    if jax.process_count() == 1:
        return work()
    key = f"neggen/{next(_meetings)}/{name}"
    alive()
    if not first():
        seconds = _now.seconds or PATIENCE
        try:
            said = _client().blocking_key_value_get(key, seconds * 1000)
        except jax.errors.JaxRuntimeError as error:
            raise _missing(name, error, seconds) from error
        alive()
        told = json.loads(said)
        if "problem" in told:
            raise _told(told)
        return told["result"]
    try:
        result = work()
        told = json.dumps({"result": result})
    except Exception as error:
        refusal = _refusal(error, f"Process 0 failed in: {name}.")
        _client().key_value_set(key, json.dumps(refusal))
        raise
    _client().key_value_set(key, told)
    alive()
    return result


def anywhere(flag: bool) -> jax.Array:
    """Whether a flag is set in any process; all of them have to ask.

    Returns:
      bool scalar, the same everywhere. It is computed on the devices;
      reading it waits for them.
    """
    either, sharding = _either()
    own = np.array([flag])
    return either(
        jax.make_array_from_callback(
            (jax.device_count(),), sharding, lambda _: own
        )
    )


@functools.cache
def _either() -> tuple[Any, NamedSharding]:
    mesh = Mesh(jax.devices(), ("all",))
    whole = NamedSharding(mesh, PartitionSpec())
    return (
        jax.jit(jnp.any, out_shardings=whole),
        NamedSharding(mesh, PartitionSpec("all")),
    )


def largest(name: str, values: Sequence[int]) -> list[int]:
    """The largest of what the processes give, number by number.

    Args:
      name: of what is being agreed on, for the error if somebody is missing.
      values: as many in every process.
    """
    if jax.process_count() == 1:
        return list(values)
    before = _now
    phase(name, slow=True)
    # Devices may know no longer integers than int32.
    halves = np.asarray(values, np.int64).view(np.int32)
    every = np.asarray(multihost_utils.process_allgather(halves))
    phase(before.name, slow=before.seconds > PATIENCE)
    return every.view(np.int64).max(axis=0).tolist()


@dataclasses.dataclass
class _Phase:
    """What a process is at.

    Attributes:
      name: for the error if it does not get on.
      seconds: that may pass between two signs of life.
      since: when the last one was.
    """

    name: str
    seconds: int
    since: float


_now = _Phase("", 0, 0.0)


def phase(name: str, slow: bool = False) -> None:
    """Says what this process does from here on; see `watch`.

    Args:
      name: for the error if it does not get on.
      slow: it compiles, or reads or writes much at once, and may take
        `SLOW` times as long as what only computes.
    """
    global _now
    seconds = PATIENCE * (SLOW if slow else 1)
    _now = _Phase(name, seconds, time.monotonic())


def alive() -> None:
    """Says that something has been finished; see `watch`."""
    _now.since = time.monotonic()


@contextlib.contextmanager
def watch(orderly: type[Exception]) -> Iterator[None]:
    """Has all processes end soon, and with one error, where one cannot go on.

    A process that has died is noticed by `jax.distributed`. One that fails,
    or lives and does not come, leaves the others inside a collective, from
    which no exception can call them back. So a thread ends this process,
    with exit status 2, when another one has told of its failure, and when
    there was no sign of life for too long: neither `phase` nor `alive`.

    Args:
      orderly: exceptions that all processes raise at the same place.

    Raises:
      InputError: that of the process that failed first, if what failed here
        may have followed from it.
    """
    if jax.process_count() == 1:
        yield
        return
    phase("start", slow=True)
    over = threading.Event()
    thread = threading.Thread(target=_listen, args=(over,), daemon=True)
    thread.start()
    try:
        try:
            yield
        finally:
            over.set()
            # It may be asking a process that is not there any more.
            thread.join(10)
    except orderly:
        raise
    except BaseException as error:
        failed = f"Process {jax.process_index()} failed in: {_now.name}."
        refusal = _refusal(error, failed)
        first = _tell(refusal)
        follows = isinstance(error, (InputError, jax.errors.JaxRuntimeError))
        if first != refusal and follows:
            raise _told(first) from error
        raise


def _listen(over: threading.Event) -> None:
    """Ends this process if another one has failed, or does not come."""
    while not over.wait(1):
        said, now = _heard(), _now
        if said is None and time.monotonic() - now.since > now.seconds:
            stuck = _missing(
                now.name, TimeoutError("no sign of life"), now.seconds
            )
            said = _tell({**_refusal(stuck, ""), "stuck": True})
        if said is not None:
            break
    else:
        return
    print(f"error: {_told(said)}", file=sys.stderr)
    if "stuck" in said:
        index = jax.process_index()
        print(f"process {index} is at: {_now.name}", file=sys.stderr)
        faulthandler.dump_traceback()
    leave(SystemExit(2))


def leave(error: BaseException) -> None:
    """Ends this process at once if it is one of several, and has failed.

    What it computes may wait for a process that is gone, or for one that is
    leaving too, and the interpreter would wait for what is computed.

    Args:
      error: that it ends by; what a `SystemExit` means has been said already,
        and of status 0 it is no failure.
    """
    status = 1
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else bool(error.code)
    if not jax.distributed.is_initialized() or not status:
        return
    if not isinstance(error, SystemExit):
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    # In order, which tells those apart that died; unless that takes long.
    threading.Timer(10, os._exit, (status,)).start()
    with contextlib.suppress(Exception):
        jax.distributed.shutdown()
    os._exit(status)


def _tell(refusal: dict[str, Any]) -> dict[str, Any]:
    """Tells all why this process ends; returns what was told first."""
    try:
        _client().key_value_set(_FAILED, json.dumps(refusal))
    except jax.errors.JaxRuntimeError:
        # Another one was faster, or there is nobody left to tell.
        return _heard() or refusal
    return refusal


def _heard() -> dict[str, Any] | None:
    """Why another process has ended, if one has."""
    try:
        return dict(json.loads(_client().key_value_try_get(_FAILED)))
    except jax.errors.JaxRuntimeError:
        return None


def _refusal(error: BaseException, problem: str) -> dict[str, Any]:
    """An error, as it is told to other processes.

    Args:
      error: whatever was raised.
      problem: says it for those that are no `InputError`.
    """
    if isinstance(error, InputError):
        return {k: str(v) for k in _TOLD if (v := getattr(error, k))}
    found = f"{type(error).__name__}: {first_line(error)}"
    return {"problem": problem, "found": found}


def _told(refusal: dict[str, Any]) -> InputError:
    return InputError(**{k: v for k, v in refusal.items() if k in _TOLD})


def _missing(name: str, error: Exception, seconds: int) -> InputError:
    return InputError(
        f"Not all processes came to: {name}.",
        where=f"process {jax.process_index()} of {jax.process_count()}",
        expected=f"all of them within {seconds} s",
        found=first_line(error),
        fix="see what the others said; give the same command again to resume",
    )


def _client() -> Any:
    from orbax.checkpoint import multihost

    return multihost.get_jax_distributed_client()
