"""Two processes that find each other and run the same few lines."""

import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
# What each of them begins with: `rank`, `words` and `hosts`.
BEGIN = """
import os, signal, sys, time
rank, words = int(sys.argv[1]), sys.argv[3:]
from neggen_jax import hosts
hosts.start(f"localhost:{sys.argv[2]}", 2, rank)
"""


def together(script, *words, within=((), ()), **environment):
    """Runs a script in two processes of two virtual devices each.

    Args:
      script: what comes after `BEGIN`.
      words: for both.
      within: of each process, the command that it is run by, if any.
      environment: for both.

    Returns:
      Of each, its exit status and what it said on either output.
    """
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = str(listener.getsockname()[1])
    given = {**os.environ, **environment}
    given["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    given["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    processes = [
        subprocess.Popen(
            [
                *within[rank],
                *(sys.executable, "-c", BEGIN + script),
                *(str(rank), port, *map(str, words)),
            ],
            env=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120)[0] for process in processes]
    return [
        (process.returncode, text)
        for process, text in zip(processes, said, strict=True)
    ]
