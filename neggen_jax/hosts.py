"""Several processes that train one model: who speaks, and how they agree.

On a pod, and wherever devices belong to several processes, each process runs
the same program on its own devices. Process 0 writes and prints; what it
refuses, all refuse, with the same error. Nobody waits for ever: who does not
come to a meeting is named after `PATIENCE` seconds.

With one process everything here does what its name says, and nothing else.
"""

from __future__ import annotations

import contextlib
import faulthandler
import itertools
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax

from neggen_jax.errors import InputError

# Seconds that a process waits for the others.
PATIENCE = int(os.environ.get("NEGGEN_PATIENCE", "600"))

_TOLD = ("problem", "where", "expected", "found", "fix")
# Processes come to the same meetings in the same order.
_meetings = itertools.count()


def start(address: str, count: int, index: int) -> None:
    """Joins the processes of a run; before anything touches a device.

    Args:
      address: `host:port` of process 0; "auto" asks the machine (TPU pods,
        Slurm, Open MPI, Kubernetes), and "" stays alone.
      count: of processes; read with an address alone.
      index: of this one, from 0.

    Raises:
      InputError: if the arguments contradict each other, or not all came.
    """
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
            **given,
        )
    except (ValueError, RuntimeError) as error:
        raise InputError(
            "The processes did not find each other.",
            where=f"--coordinator={address}",
            expected=expected,
            found=_first_line(error),
            fix="start all of them, with the same address and count",
        ) from error


def first() -> bool:
    """Whether this is the process that writes and prints."""
    return bool(jax.process_index() == 0)


def lead(name: str, work: Callable[[], Any]) -> Any:
    """Has process 0 do what is to be done once, while the others wait.

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
    if not first():
        try:
            said = _client().blocking_key_value_get(key, PATIENCE * 1000)
        except jax.errors.JaxRuntimeError as error:
            raise _missing(name, error) from error
        told = json.loads(said)
        if "problem" in told:
            raise InputError(**told)
        return told["result"]
    try:
        result = work()
        told = json.dumps({"result": result})
    except Exception as error:
        refusal = {"problem": f"Process 0 failed in: {name}."}
        refusal["found"] = f"{type(error).__name__}: {_first_line(error)}"
        if isinstance(error, InputError):
            refusal = {k: str(v) for k in _TOLD if (v := getattr(error, k))}
        _client().key_value_set(key, json.dumps(refusal))
        raise
    _client().key_value_set(key, told)
    return result


def meet(name: str) -> None:
    """Returns when all processes have come here.

    Raises:
      InputError: if some have not within `PATIENCE` seconds.
    """
    if jax.process_count() == 1:
        return
    barrier = f"neggen/{next(_meetings)}/{name}"
    try:
        _client().wait_at_barrier(barrier, PATIENCE * 1000)
    except jax.errors.JaxRuntimeError as error:
        raise _missing(name, error) from error


@contextlib.contextmanager
def watch(name: str) -> Iterator[Callable[[], None]]:
    """Ends a process that waits for others in vain.

    A process that has died is noticed by `jax.distributed`. One that lives
    and does not come leaves the others inside a collective, from which no
    exception can call them back: so they are ended, with exit status 3.

    Args:
      name: of what is being done.

    Yields:
      What is to be called whenever something has been finished.
    """
    if jax.process_count() == 1:
        yield lambda: None
        return
    finished, over = threading.Event(), threading.Event()

    def wait() -> None:
        while finished.wait(PATIENCE):
            finished.clear()
            if over.is_set():
                return
        print(f"error: {_missing(name, TimeoutError())}", file=sys.stderr)
        faulthandler.dump_traceback()
        os._exit(3)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    try:
        yield finished.set
    finally:
        over.set()
        finished.set()
        thread.join()


def _missing(name: str, error: Exception) -> InputError:
    return InputError(
        f"Not all processes came to: {name}.",
        where=f"process {jax.process_index()} of {jax.process_count()}",
        expected=f"all of them within {PATIENCE} s",
        found=_first_line(error),
        fix="see what the others said; give the same command again to resume",
    )


def _client() -> Any:
    from orbax.checkpoint import multihost

    return multihost.get_jax_distributed_client()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
