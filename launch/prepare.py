"""Makes a dataset directory from raw files, or from nothing at all.

    python launch/prepare.py --source=mmrec --input=DIR --output=DIR
    python launch/prepare.py --source=amazon --category=Baby --input=DIR \
        --output=DIR
    python launch/prepare.py --source=bazaar --users=3000 --items=2000 \
        --output=DIR
    python launch/prepare.py --source=csv --input=FILE --extends=DIR \
        --output=DIR

docs/data.md tells what each source reads. Flags that are not given are left to
`neggen_jax/data/prepare.py`; one that the source has no use for is refused.
"""

from absl import flags

from neggen_jax import command
from neggen_jax.errors import InputError

_WORDS = {
    "source": "mmrec, amazon, csv, parquet, tfds, diffmm or bazaar.",
    "input": "File or directory to read.",
    "output": "Dataset directory to make.",
    "text": "Text vectors: auto, file, tfidf, transformers or none.",
    "text_model": "Path or hub name of a sentence encoder.",
    "image": "Image vectors: auto, file, pixels, transformers or none.",
    "image_model": "Path or hub name of an image encoder.",
    "extends": "Dataset directory that this is added to, in a new one.",
    "order": "Of users and items: given, or dealt (for large meshes).",
    "bad_images": "Images that cannot be read: error or absent.",
    "file": "Which file of the directory has the interactions.",
    "name": "What the catalogue is called; tfds: which dataset.",
    "duplicates": "Pairs that occur again: error, or keep the first.",
    "cold_users": "Users of valid and test only: error or drop.",
    "split": "random, leave_last_out, temporal, or given (the source's).",
    "category": "amazon: which one, as in the files' names.",
    "release": "amazon: 2014, 2018, 2023, or auto to tell by the contents.",
    "user_column": "csv, parquet, tfds: what the users' column is called.",
    "item_column": "csv, parquet, tfds: likewise.",
    "rating_column": "csv, parquet, tfds: likewise.",
    "time_column": "csv, parquet, tfds: likewise.",
    "split_column": "csv, parquet: likewise.",
    "items_file": "csv, parquet: what is known of the items.",
    "title_column": "csv, parquet: what it is called in the items' file.",
    "text_column": "csv, parquet: likewise.",
    "image_column": "csv, parquet: likewise; of the pictures' files.",
    "data_dir": "tfds: where datasets are.",
    "features": "bazaar: render (texts and pictures) or direct (vectors).",
}
_NUMBERS = {
    "core": "Fewest interactions of a user and of an item; 0 for all.",
    "seed": "Of the random split; of the bazaar.",
    "users": "bazaar: how many.",
    "items": "bazaar: how many.",
    "interactions": "bazaar: how many.",
    "image_size": "bazaar: side of a picture in pixels.",
}
_EMBEDDING = flags.DEFINE_multi_string(
    "embedding", [], "Vectors of one's own: modality=FILE; may be repeated."
)
_TEXT_ATTRIBUTES = flags.DEFINE_list(
    "text_attributes", None, "Attributes that texts tell: a,b,c; all if unset."
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace the output.")
_GIVEN = [flags.DEFINE_string(name, None, doc) for name, doc in _WORDS.items()]
_GIVEN += [flags.DEFINE_integer(n, None, doc) for n, doc in _NUMBERS.items()]
_GIVEN += [
    flags.DEFINE_float("min_rating", None, "Leave out what is rated lower."),
    flags.DEFINE_list("ratios", None, "Of train, valid, test: 0.8,0.1,0.1."),
]


def main(argv: list[str]) -> None:
    """Calls `prepare` with the flags that were given."""
    del argv
    given = {f.name: f.value for f in _GIVEN if f.value is not None}
    given.setdefault("input", None)
    if given["source"] == "bazaar":
        for name in ("users", "items", "interactions"):
            if name in given:
                given[f"num_{name}"] = given.pop(name)
    from neggen_jax.data.prepare import prepare
    from neggen_jax.data.summary import summarise

    catalog = prepare(
        **given,
        embeddings=_embeddings(),
        text_attributes=_TEXT_ATTRIBUTES.value,
        overwrite=_OVERWRITE.value,
    )
    summarise(catalog, given["output"])


def _embeddings() -> dict[str, str]:
    pairs = [word.partition("=") for word in _EMBEDDING.value]
    for modality, _, file in pairs:
        if not modality.isidentifier() or not file:
            raise InputError(
                "An embedding is not given as modality=FILE.",
                where=f"--embedding={modality}",
                fix="such as --embedding=text=vectors.npy",
            )
    return {modality: file for modality, _, file in pairs}


if __name__ == "__main__":
    flags.mark_flags_as_required(["source", "output"])
    command.run(main)
