"""What the tests of launch scripts share.

No cloud is asked. Where a script calls `gcloud`, `srun` or the trainer, a
stand-in comes first in PATH; all else, on this side and on that of the
workers, is real.
"""

import os
import pathlib
import subprocess
import time

ROOT = pathlib.Path(__file__).parents[1]
PLACE = "--name=pod", "--zone=there"
CONFIG = "--config=configs/baseline.py:lightgcn"

# Trains for as long as there is no file `go`, saves when told to stop.
TRAINER = """
import pathlib, signal, sys, time
print("arguments", *sys.argv[1:], flush=True)
flags = dict(x.lstrip("-").split("=", 1) for x in sys.argv[1:] if "=" in x)
workdir = pathlib.Path(flags["workdir"])
def stop(*_):
    (workdir / "checkpoints" / flags.get("step", "7")).mkdir(
        parents=True, exist_ok=True)
    print("told to stop", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
workdir.mkdir(exist_ok=True)
print("begun", flush=True)
# Not for ever, if the test that started it fails.
end = time.monotonic() + 60
while not (workdir / "go").exists() and time.monotonic() < end:
    time.sleep(0.02)
(workdir / "results.json").write_text("{}")
sys.exit(int((workdir / "go").read_text() or 0))
"""


def run(*words, env=None, status=0):
    """Runs a launch script; what it says on either output."""
    done = subprocess.run(
        [f"launch/{words[0]}", *map(str, words[1:])],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout if not status else done.stdout + done.stderr


def program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def until(holds, seconds=20):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
