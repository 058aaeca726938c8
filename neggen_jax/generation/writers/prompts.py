"""The templates of `prompts.toml`, or of a file of the user's own.

Read once by `launch/generate.py`; `writer.py` fills them in.
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
_FIX = "start from a copy of generation/writers/prompts.toml"

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
          (role, text) of each message, as in `backends.Request`.
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
    if path is None:
        own = importlib.resources.files("neggen_jax.generation.writers")
        return _parse(own.joinpath("prompts.toml").read_bytes(), "prompts.toml")
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(
            "The file of templates cannot be read.",
            where=path,
            found=error.strerror or error,
            fix=_FIX,
        ) from error
    return _parse(data, os.fspath(path))


def _parse(data: bytes, where: str) -> Prompts:
    try:
        text = data.decode().replace("\r\n", "\n")
        tables = tomllib.loads(text)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(
            "The file of templates is not TOML.", where=where, found=error
        ) from error
    declared = tables.pop("version", None)
    if not isinstance(declared, str) or not re.fullmatch(r"\S+", declared):
        raise InputError(
            "The file of templates does not say its version.",
            where=where,
            expected='a line like version = "2", before the first template',
            found=repr(declared) if declared is not None else "no version",
        )
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
        **{name: _template(name, tables, where) for name in _PLACEHOLDERS},
    )


def _template(name: str, tables: Mapping[str, Any], where: str) -> Template:
    """Checks the template `name` and takes it out of what the file holds."""
    table = tables.get(name)
    if not isinstance(table, dict) or table.get("user", "") == "":
        raise InputError(
            f"The template {name!r} is missing.",
            where=where,
            expected=f'a table [{name}] with a text user = """..."""',
            found=f"a table of {', '.join(table) or 'nothing'}"
            if isinstance(table, dict)
            else f"templates {', '.join(tables) or '(none)'}",
            fix=_FIX,
        )
    for key, value in table.items():
        if key not in ("user", "system") or not isinstance(value, str):
            raise InputError(
                f"The template {name!r} holds something else.",
                where=f"{where}: {name}.{key}",
                expected="texts `user` and, if wanted, `system`",
                found=repr(value),
            )
    if name == "correction" and "system" in table:
        raise InputError(
            "A correction comes after a reply, where no system text may be.",
            where=f"{where}: correction.system",
            fix="say it in the text `user`",
        )
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
            raise InputError(
                f"The template {name!r} lacks a placeholder.",
                where=where,
                expected=f"{{{{{placeholder}}}}} somewhere in it",
                found=", ".join(f"{{{{{word}}}}}" for word in sorted(used))
                or "no placeholders",
            )
    return template
