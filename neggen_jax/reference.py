"""The reference of all config keys, made from the code: docs/config.md.

    python -m neggen_jax.reference > docs/config.md

Keys and defaults are those of `config.base` and of the parts that a config
may name; what they mean is what stands beside them in the code: the comments
in `config.py`, and the docstrings of encoders, sources and losses.
"""

from __future__ import annotations

import ast
import inspect
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from neggen_jax import config as configs
from neggen_jax.losses import LOSSES
from neggen_jax.models import ENCODERS
from neggen_jax.negatives import SOURCES
from neggen_jax.recommender import GIVEN

_ROOT = pathlib.Path(__file__).parents[1]
# Files whose words are told, and the arguments whose values are compared with
# the defaults of parts.
_FILES = {
    "baseline": (
        *("lightgcn", "mf", "vbpr", "freedom", "mci", "bm3", "mgcn", "smore"),
        *("popularity", "dns", "dns_mn", "ahns", "mixgcf", "dens", "in_batch"),
        "softmax",
    ),
    "gdnsm": ("mci", "no_diffusion"),
    "neggen": ("lightgcn",),
}
_OPENING = """# Config keys

Made by `python -m neggen_jax.reference > docs/config.md`; not to be edited.
Every key can be given to `launch/train.py` as `--config.KEY=VALUE`, such as
`--config.optimizer.learning_rate=3e-4`. Unknown keys, and values of another
type, are refused with the nearest that is known.
"""
# Section of a config, its title, what it has, and what each is called.
_PARTS: tuple[tuple[str, str, Mapping[str, Any], str], ...] = (
    ("encoder", "Encoders", ENCODERS, "Encoder"),
    ("negatives", "Sources of negatives", SOURCES, "Source"),
    ("losses", "Losses", LOSSES, "Loss"),
)
_ABOUT = {
    "encoder": """`config.encoder` has the `name` of one, or `MODULE:NAME` of
your own, and its keys: [encoders.md](encoders.md). In this table and those
below, the fourth column has what files in configs/ give instead of the default.
""",
    "negatives": """Each part of `config.negatives` has the `name` of a source,
or `MODULE:NAME`, and its keys: [negatives.md](negatives.md),
[neggen.md](neggen.md), [gdnsm.md](gdnsm.md).
""",
    "losses": """Each part of `config.losses` has the `name` of a loss, or
`MODULE:NAME`, its keys, and a `weight` that it is multiplied by.
""",
}


def page() -> str:
    """The whole reference, as Markdown."""
    lines = [_OPENING, "## Of every experiment\n"]
    lines.append(
        "A run may be resumed with other values of those with an asterisk.\n"
    )
    lines += _table(("key", "type", "default", ""), _common())
    set_by = _values()
    for section, title, registry, kind in _PARTS:
        lines += [f"\n## {title}\n", _ABOUT[section]]
        for name, part in registry.items():
            lines += [f"### {kind} `{name}`\n", _first(part)]
            rows = _part(part, set_by[section].get(name, {}))
            if rows:
                heads = ("key", "type", "default", "in configs/", "")
                lines += _table(heads, rows)
            lines.append("")
    lines.append("## Words of the files in configs/\n")
    for file in _FILES:
        path = _ROOT / "configs" / f"{file}.py"
        told = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
        # Lines of a command that the docstring continues.
        told = re.sub(r"(?<=\S) {8,}--", r" \\\n        --", told)
        lines += [f"### configs/{file}.py\n", "```", told, "```\n"]
    return "\n".join(lines).rstrip() + "\n"


def comments() -> dict[str, str]:
    """Key of `config.base` -> the comment that stands above it."""
    source = inspect.getsource(configs.base)
    out, said = {}, []
    for line in map(str.strip, source.splitlines()):
        if line.startswith("#"):
            said.append(line.removeprefix("#").strip())
        elif found := re.match(r"config\.([\w.]+) = ", line):
            out[found[1]] = " ".join(said)
            said = []
        else:
            said = []
    return out


def _common() -> Iterator[tuple[str, ...]]:
    said = comments()
    for key, value in configs.flatten(configs.base()).items():
        section = key.partition(".")[0]
        if section in ("encoder", "negatives", "losses"):
            continue
        mark = "*" if key in configs.RESUMABLE else ""
        yield _code(key) + mark, *_typed(value), said[key]
    # Which are empty, and so have no keys.
    yield "`optimizer.groups`", "dict", "`{}`", said["optimizer.groups"]
    for key in ("encoder", "negatives", "losses"):
        yield _code(key), "dict", "below", said[key]


def _part(
    part: Callable[..., Any], given: Mapping[str, Any]
) -> list[tuple[str, ...]]:
    said = meanings(part)
    rows: list[tuple[str, ...]] = []
    for key, parameter in inspect.signature(part).parameters.items():
        if key in GIVEN or key == "batch":
            continue
        default = parameter.default
        kind, shown = _kind(parameter.annotation), "needed"
        if default is not inspect.Parameter.empty:
            shown = _typed(default)[1]
        values = [v for v in given.get(key, ()) if v != _plain(default)]
        instead = ", ".join(_code(v) for v in dict.fromkeys(map(_show, values)))
        rows.append((_code(key), kind, shown, instead, said.get(key, "")))
    return rows


def meanings(part: Callable[..., Any]) -> dict[str, str]:
    """Key -> what a docstring says of it, those of a class' bases included."""
    out: dict[str, str] = {}
    bases = reversed(part.__mro__) if isinstance(part, type) else [part]
    for one in bases:
        # Not what is inherited.
        text = inspect.cleandoc(one.__doc__ or "")
        found = re.search(
            r"^(?:Attributes|Args):\n((?:(?:  .*)?\n?)*)", text, re.M
        )
        entries = re.split(r"^  (?=\w)", found[1] if found else "", flags=re.M)
        for entry in filter(None, map(str.strip, entries)):
            names, _, meaning = entry.partition(":")
            for name in names.split(","):
                out[name.strip()] = " ".join(meaning.split())
    return out


def _values() -> dict[str, dict[str, dict[str, list[Any]]]]:
    """Section -> part's name -> key -> values that configs/ give it."""
    out: dict[str, dict[str, dict[str, list[Any]]]] = {
        "encoder": {},
        "negatives": {},
        "losses": {},
    }
    for file, words in _FILES.items():
        for word in words:
            config = configs.load(f"{_ROOT / 'configs' / file}.py:{word}")
            parts = [("encoder", config.encoder)]
            for section in ("negatives", "losses"):
                parts += [(section, x) for x in config[section].values()]
            for section, one in parts:
                known = out[section].setdefault(one.name, {})
                for key, value in one.items():
                    known.setdefault(key, []).append(_plain(value))
    return out


def _plain(value: Any) -> Any:
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if hasattr(value, "unfreeze"):
        value = value.unfreeze()
    return list(value) if isinstance(value, tuple) else value


def _show(value: Any) -> str:
    value = _plain(value)
    if isinstance(value, dict):
        return ", ".join(f"{k}: {v}" for k, v in value.items())
    return repr(tuple(value)) if isinstance(value, list) else repr(value)


def _typed(value: Any) -> tuple[str, str]:
    name = type(_plain(value)).__name__
    shown = _show(value)
    return {"list": "tuple"}.get(name, name), _code(shown) if shown else "`{}`"


def _kind(annotation: Any) -> str:
    name = annotation if isinstance(annotation, str) else annotation.__name__
    if "Mapping" in name:
        return "dict"
    return "tuple" if name.startswith("tuple") else name


def _first(part: Callable[..., Any]) -> str:
    """The first paragraph of a docstring."""
    return (inspect.getdoc(part) or "").partition("\n\n")[0] + "\n"


def _table(
    heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]
) -> list[str]:
    lines = [heads, ("---",) * len(heads), *rows]
    # A bar would end the cell.
    cells = [[x.replace("|", "\\|") for x in line] for line in lines]
    return [f"| {' | '.join(line)} |" for line in cells]


def _code(text: str) -> str:
    return f"`{text}`"


if __name__ == "__main__":
    print(page(), end="")
