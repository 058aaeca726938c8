"""The templates of `prompts.toml`, or of a file of the user's own.

Read once for a run; `prompted.py` fills them in.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.resources
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neggen_jax.errors import InputError, nearest

_PLACEHOLDER = re.compile(r"\{\{\s*(\w+)\s*\}\}")

# Template -> placeholder -> whether the step makes no sense without it.
_PLACEHOLDERS: Mapping[str, Mapping[str, bool]] = {
    "describe": {"known": False, "words": False},
    "mask": {"description": True, "kept": True, "masks": False},
    "complete": {
        "masked": True,
        "values": True,
        "alternatives": True,
        "count": False,
    },
    "correction": {"reason": True},
}


@dataclasses.dataclass(frozen=True)
class Template:
    """What is said in one step.

    Attributes:
      user: the question, with `{{placeholders}}`.
      system: said before it; "" for nothing, which every chat template and
        server can do.
    """

    user: str
    system: str = ""

    def messages(self, **values: object) -> tuple[tuple[str, str], ...]:
        """Fills in the placeholders.

        Args:
          **values: for each placeholder the template has; those it lacks are
            not said.

        Returns:
          (role, text) of each message, as in `Request`.
        """

        # In one go: a description may hold what looks like a placeholder.
        def fill(text: str) -> str:
            return _PLACEHOLDER.sub(lambda found: str(values[found[1]]), text)

        user = ("user", fill(self.user))
        return (("system", fill(self.system)), user) if self.system else (user,)


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The templates of one file.

    Attributes:
      version: what the file declares, with a hash of what it holds; the
        `prompt_version` of records.
      describe: picture and known words -> description.
      mask: description -> attributes and masked description.
      complete: masked description and values -> other values.
      correction: why a reply was refused -> the same again.
    """

    version: str
    describe: Template
    mask: Template
    complete: Template
    correction: Template


def load(path: str | os.PathLike[str] | None = None) -> Prompts:
    """Reads templates.

    Args:
      path: a TOML file like `prompts.toml`; None for that itself.

    Raises:
      InputError: if the file cannot be read, or lacks a template or a
        placeholder, or has one that nobody knows.
    """
    own = importlib.resources.files("neggen_jax.generation.writers")
    where = "prompts.toml" if path is None else os.fspath(path)
    try:
        file = own.joinpath(where) if path is None else Path(path)
        text = file.read_bytes().decode().replace("\r\n", "\n")
        tables = tomllib.loads(text)
    except OSError as error:
        found = error.strerror or str(error)
        raise _refused("it cannot be read", where, found) from error
    except ValueError as error:
        raise _refused("it is not TOML", where, str(error)) from error
    declared = tables.pop("version", None)
    if not isinstance(declared, str) or not re.fullmatch(r"\S+", declared):
        problem = 'it needs a line like version = "2" before all templates'
        raise _refused(problem, where, repr(declared))
    if unknown := tables.keys() - _PLACEHOLDERS.keys():
        name = min(unknown)
        raise InputError(
            f"There is no template {name!r}.",
            where=where,
            fix=nearest(name, _PLACEHOLDERS),
        )
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return Prompts(
        version=f"{declared}-{digest}",
        **{
            name: _template(name, tables.get(name), where)
            for name in _PLACEHOLDERS
        },
    )


def _template(name: str, table: Any, where: str) -> Template:
    """Checks the template `name` and takes it out of what the file holds."""
    if not isinstance(table, dict) or table.get("user", "") == "":
        problem = f"{name!r} is missing: a table [{name}] with a text `user`"
        raise _refused(problem, where, repr(table))
    # A correction comes after a reply, where no system text may be.
    texts = ("user",) if name == "correction" else ("user", "system")
    for key, value in table.items():
        if key not in texts or not isinstance(value, str):
            problem = f"{name}.{key} is none of the texts {' and '.join(texts)}"
            raise _refused(problem, where, repr(value))
    template = Template(table["user"].strip(), table.get("system", "").strip())
    known = _PLACEHOLDERS[name]
    used = set(_PLACEHOLDER.findall(template.user + template.system))
    for placeholder in sorted(used - known.keys()):
        raise InputError(
            f"Nothing is known that {{{{{placeholder}}}}} could stand for.",
            where=f"{where}: {name}",
            fix=nearest(placeholder, known),
        )
    for placeholder, needed in known.items():
        if needed and placeholder not in used:
            problem = f"{name!r} lacks {{{{{placeholder}}}}}"
            raise _refused(problem, where, ", ".join(sorted(used)) or "none")
    return template


def _refused(problem: str, where: str, found: str) -> InputError:
    return InputError(
        f"The file of templates cannot be used: {problem}.",
        where=where,
        found=found,
        fix="start from a copy of generation/writers/prompts.toml",
    )
