"""The one error a person sees when what they gave cannot be used.

`launch/` prints an `InputError` as it stands, without a traceback, and exits
with status 2. Anything else that escapes is a defect of this package and
keeps its traceback.
"""

from __future__ import annotations

import contextlib
import difflib
import sys
from collections.abc import Iterable, Iterator


class InputError(ValueError):
    """Bad input: what is wrong, where, what was expected, what to do.

    Attributes:
      problem: one sentence that says what is wrong.
      where: file, column, line or key at fault.
      expected: what would have been right.
      found: what was there instead.
      fix: what to do next.
    """

    def __init__(
        self,
        problem: str,
        *,
        where: object = None,
        expected: object = None,
        found: object = None,
        fix: str | None = None,
    ):
        self.problem = problem
        self.where = where
        self.expected = expected
        self.found = found
        self.fix = fix
        parts = [problem]
        for label in ("where", "expected", "found", "fix"):
            value = getattr(self, label)
            if value is not None:
                lines = str(value).replace("\n", "\n" + " " * 12)
                parts.append(f"  {label + ':':<10}{lines}")
        super().__init__("\n".join(parts))


# Words are taken for one another from this share of letters in common on.
_ALIKE = 0.5


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint that names the known word closest to `name`, and all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=_ALIKE)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known: {', '.join(names)}"


def nearest_key(name: str, known: Iterable[str]) -> str:
    """The same for dotted keys; of all of them, those beside the closest."""
    keys = sorted(known)
    close = difflib.get_close_matches(name, keys, n=1, cutoff=0.4)
    part = (close[0] if close else name).rpartition(".")[0]
    beside = [
        k.rpartition(".")[2] for k in keys if k.rpartition(".")[0] == part
    ]
    if not beside:
        return nearest(
            name.partition(".")[0], {k.partition(".")[0] for k in keys}
        )
    # That they stand in the same part makes no names alike.
    last = [key.removeprefix(f"{part}.") for key in (name, *close)]
    alike = difflib.get_close_matches(last[0], last[1:], cutoff=0.6)
    hint = f"did you mean {close[0]!r}? " if alike else ""
    return f"{hint}{part or 'the config'} has {', '.join(beside)}"


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Turns an `InputError` into a message on stderr and exit status 2."""
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
