"""Told to stop: a signal, and the same answer to it in every process.

Schedulers and pods send SIGTERM some time before they kill, a person sends
SIGINT. Either is noted, and heard where a run can end in order. Of several
processes it is enough that one is told: all of them hear it at the same
question, and so stop at the same step.
"""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jax

# jax is imported late: commands that need none know these names too.
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """A run was told to stop and has stopped in order; it is no error.

    Attributes:
      step: of the checkpoint that the same command goes on from; None if
        nothing is saved yet.
      interrupted: whether it was by SIGINT, and in this process.
    """

    def __init__(self, step: int | None = None, interrupted: bool = False):
        super().__init__(step, interrupted)
        self.step, self.interrupted = step, interrupted

    def __str__(self) -> str:
        if self.step is None:
            return (
                "told to stop before anything was saved; "
                "the same command begins again"
            )
        return (
            f"told to stop; step {self.step} is saved, "
            "and the same command goes on from there"
        )


class Preemption:
    """Listens for signals to stop while it is entered.

    Handlers are those of before once it is left. Python handles signals in
    the main thread alone: entered in another one, nothing is heard here, but
    other processes are. Enter it after `jax.distributed.initialize`, which
    listens for SIGTERM itself.

    A second SIGINT does what it did before, which is to interrupt at once. A
    second SIGTERM changes nothing: schedulers may send several.

    Attributes:
      saved: the step that `Stopped` names; whoever saves sets it.
    """

    def __init__(self) -> None:
        self.saved: int | None = None
        self._heard = self._agreed = self._interrupted = False
        self._asked: jax.Array | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Preemption:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                # As `nohup` and background jobs of shells want it.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    before = signal.signal(number, self._hear)
                    # None: it was not Python that handled it.
                    self._before[number] = before or signal.SIG_DFL
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: object) -> None:
        self._heard = True
        if number == signal.SIGINT:
            self._interrupted = True
            signal.signal(number, self._before[signal.SIGINT])

    def told(self) -> bool:
        """Whether to stop; every process asks at the same places.

        With several processes this answers the question before: it went
        through the devices while the host did something else, so that asking
        costs no waiting. A signal is heard one question later.
        """
        import jax

        if self._agreed:
            return True
        if jax.process_count() == 1:
            self._agreed = self._heard
        else:
            from neggen_jax import hosts

            before, self._asked = self._asked, hosts.anywhere(self._heard)
            self._agreed = before is not None and bool(before)
        return self._agreed

    def heed(self) -> None:
        """Stops here, if told to.

        Raises:
          Stopped: with the step that is saved.
        """
        if self.told():
            raise self.stopped()

    def stopped(self) -> Stopped:
        """What a run that was told to stop ends by."""
        return Stopped(self.saved, self._interrupted)
