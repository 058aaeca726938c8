"""How the commands in `launch/` begin, and how they refuse.

Whatever a person can put right - a flag, a config key, data, a workdir -
ends in one message on stderr and exit status 2, without a traceback. A run
that was told to stop, and has, ends in one line; by SIGTERM with exit status 0,
by Ctrl-C with 130, as if nobody had caught it.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

from absl import app, flags, logging

from neggen_jax import cache
from neggen_jax import config as configs
from neggen_jax.errors import InputError, nearest_key, reported
from neggen_jax.preemption import Stopped

_KINDS = {int: "an integer", float: "a number", bool: "True or False"}


def run(main: Callable[[list[str]], None]) -> None:
    """Parses the flags and calls `main`; the last line of every command."""
    _make_threads()
    cache.keep_programs()
    try:
        with reported(), _stopping():
            app.run(main, flags_parser=_parse)
    except BaseException as error:
        # A command that did not import it is alone.
        if hosts := sys.modules.get("neggen_jax.hosts"):
            hosts.leave(error)
        raise


def _make_threads() -> None:
    """Gives virtual devices enough threads; before they are made.

    XLA's client for CPUs has one for each device. Where programs wait for
    others in two collectives at once, a few devices can take all of them,
    and nobody gets on.
    """
    given = os.environ.get("XLA_FLAGS", "")
    if found := re.search(r"host_platform_device_count=(\d+)", given):
        os.environ.setdefault("NPROC", str(4 * int(found[1])))


@contextlib.contextmanager
def _stopping() -> Iterator[None]:
    try:
        yield
    except Stopped as stopped:
        from neggen_jax import hosts

        if hosts.first():
            print(stopped, flush=True)
        if stopped.interrupted:
            _interrupt()


def _interrupt() -> NoReturn:
    """Ends by SIGINT: whoever called this, as a loop of a shell, ends too.

    A shell that has heard Ctrl-C asks how the command ended, and goes on
    where that is by itself, whatever the status.
    """
    import jax

    # Of several processes each leaves in order.
    if not jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    sys.exit(128 + signal.SIGINT)


def _parse(argv: list[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
        if "config" in flags.FLAGS and flags.FLAGS.config is not None:
            # A config file that could not be read says so when it is used.
            flags.FLAGS.config.lock()
    except Exception as error:
        raise _explained(argv, error) from error
    verbosity = flags.FLAGS["verbosity"]
    if verbosity.using_default_value:
        # Otherwise Orbax narrates every checkpoint at length; what goes
        # wrong there is an error of ours.
        verbosity.value = logging.FATAL
        verbosity.using_default_value = False
    return rest


def _explained(argv: list[str], error: Exception) -> InputError:
    """What is wrong with the flags.

    `config_flags` wraps errors of config files in tracebacks, and names an
    unknown key without saying where it stood; so both are looked for again.
    """
    spec = next((a for a in argv if re.match("--?config=", a)), "")
    try:
        known = configs.flatten(configs.load(spec.partition("=")[2]))
    except InputError as better:
        return better if spec else _bad_flag(error)
    for argument in argv:
        found = re.match(r"--?config\.([^=]+)", argument)
        if found and not any(
            f"{key}.".startswith(f"{found[1]}.") for key in known
        ):
            return InputError(
                f"Unknown config key {found[1]!r}.",
                where=argument,
                fix=nearest_key(found[1], known),
            )
        kind = type(known.get(found[1])) if found else None
        if kind in _KINDS and f"{argument}: " in str(error):
            return InputError(
                "A config value cannot be read.",
                where=argument,
                expected=_KINDS[kind],
                found=argument.partition("=")[2],
            )
    return _bad_flag(error)


def _bad_flag(error: Exception) -> InputError:
    return InputError(
        "The flags of the command are wrong.",
        found=str(error).strip(),
        fix="--help tells what there is",
    )
