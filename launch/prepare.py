"""Makes a dataset directory from raw files, or from nothing at all.

    python launch/prepare.py --source=mmrec --input=DIR --output=DIR
    python launch/prepare.py --source=bazaar --users=3000 --items=2000 \
        --output=DIR

Flags that are not given are left to `neggen_jax/data/prepare.py`.
"""

from absl import flags

from neggen_jax import command

_WORDS = {
    "source": "mmrec (files of the MMRec toolbox) or bazaar (synthetic).",
    "input": "Directory to read.",
    "output": "Dataset directory to make.",
    "text": "Text vectors: auto, file, tfidf, transformers or none.",
    "text_model": "Path or hub name of a sentence encoder.",
    "image": "Image vectors: auto, file, pixels, transformers or none.",
    "image_model": "Path or hub name of an image encoder.",
    "order": "Of users and items: given, or dealt (for large meshes).",
    "bad_images": "Images that cannot be read: error or absent.",
    "file": "mmrec: which .inter file.",
    "name": "mmrec: what the catalogue is called.",
    "duplicates": "mmrec: pairs that occur again; error, or keep the first.",
    "cold_users": "mmrec: users of valid and test only; error or drop.",
    "features": "bazaar: render (texts and pictures) or direct (vectors).",
}
_NUMBERS = {
    "users": "bazaar: how many.",
    "items": "bazaar: how many.",
    "interactions": "bazaar: how many.",
    "seed": "bazaar: another one makes another bazaar.",
    "image_size": "bazaar: side of a picture in pixels.",
}
_TEXT_ATTRIBUTES = flags.DEFINE_list(
    "text_attributes", None, "Attributes that texts tell: a,b,c; all if unset."
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace the output.")
_GIVEN = [flags.DEFINE_string(name, None, doc) for name, doc in _WORDS.items()]
_GIVEN += [flags.DEFINE_integer(n, None, doc) for n, doc in _NUMBERS.items()]


def main(argv: list[str]) -> None:
    """Calls `prepare` with the flags that were given."""
    del argv
    given = {f.name: f.value for f in _GIVEN if f.value is not None}
    given.setdefault("input", None)
    for name in ("users", "items", "interactions"):
        if name in given:
            given[f"num_{name}"] = given.pop(name)
    from neggen_jax.data.prepare import prepare, summarise

    catalog = prepare(
        **given,
        text_attributes=_TEXT_ATTRIBUTES.value,
        overwrite=_OVERWRITE.value,
    )
    summarise(catalog, given["output"])


if __name__ == "__main__":
    flags.mark_flags_as_required(["source", "output"])
    command.run(main)
