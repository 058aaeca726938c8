"""Downloads the public Amazon reviews of a category.

    python launch/fetch_amazon.py --release=2014 --category=Baby --output=DIR

Run again, it goes on where it stopped. What came is written to
`downloads.json` with its SHA-256, and compared with that when it is read by
`launch/prepare.py --source=amazon --input=DIR`.
"""

from absl import flags

from neggen_jax import command

_RELEASE = flags.DEFINE_string("release", "2014", "2014, 2018 or 2023.")
_CATEGORY = flags.DEFINE_string(
    "category", None, "As in the files' names, such as Sports_and_Outdoors."
)
_OUTPUT = flags.DEFINE_string("output", None, "Directory to download to.")
_PARTS = flags.DEFINE_list(
    "parts",
    [],
    "Of core (the 5-core), full, meta and images (2014); by default the "
    "5-core if there is one, meta and images.",
)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Only say what would be done.")
flags.DEFINE_alias("dry-run", "dry_run")


def main(argv: list[str]) -> None:
    """Calls `fetch` with the addresses of the files."""
    del argv
    from neggen_jax.data.sources.amazon.fetch import fetch
    from neggen_jax.data.sources.amazon.public import addresses

    parts = tuple(_PARTS.value)
    urls = addresses(_CATEGORY.value, _RELEASE.value, parts)
    fetch(urls, _OUTPUT.value, dry_run=_DRY_RUN.value)


if __name__ == "__main__":
    flags.mark_flags_as_required(["category", "output"])
    command.run(main)
