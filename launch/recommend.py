"""Gives users the items that a trained run ranks first.

    python launch/recommend.py --workdir=DIR --users=FILE --k=20 \
        --output=lists.jsonl
    python launch/recommend.py --workdir=DIR --export=DIR

docs/recommend.md tells of the files, of users and items that are new, of
reasons and of what an export holds. The best step on valid is read; nothing
in the workdir changes.
"""

from absl import flags

from neggen_jax import command

_WORKDIR = flags.DEFINE_string("workdir", None, "Of a run that was trained.")
_DATA = flags.DEFINE_string("data", None, "Where the dataset is now.")
_USERS = flags.DEFINE_string(
    "users", None, "Who asks: a file of identifiers; all users if unset."
)
_K = flags.DEFINE_integer("k", 20, "Length of the lists.", lower_bound=1)
_OUTPUT = flags.DEFINE_string(
    "output", None, "A .jsonl or .parquet to write; a table if unset."
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace the output.")
_SEEN = flags.DEFINE_list(
    "seen", ["train"], "Splits whose items a user is not given again."
)
_UNKNOWN = flags.DEFINE_enum(
    "unknown", "error", ["error", "skip"], "Identifiers not in the dataset."
)
_ITEMS = flags.DEFINE_string("items", None, "A .jsonl of items that are new.")
_TEXT_MODEL = flags.DEFINE_string(
    "text_model", None, "Where the sentence encoder of the dataset is now."
)
_IMAGE_MODEL = flags.DEFINE_string(
    "image_model", None, "Where the image encoder of the dataset is now."
)
_REASONS = flags.DEFINE_integer(
    "reasons", 0, "Reasons of each kind for each item.", lower_bound=0
)
_PROBES = flags.DEFINE_string(
    "probes", "", "The counterfactuals that tell of attributes."
)
_EXPORT = flags.DEFINE_string(
    "export", None, "Directory for vectors, scorer and index."
)
_ANN = flags.DEFINE_string(
    "ann", "", "FAISS's description of an index to export, such as HNSW32."
)
_ANN_SEARCH = flags.DEFINE_string(
    "ann_search", "", "FAISS's parameters of searching, such as efSearch=64."
)
_SAVED_MODEL = flags.DEFINE_bool(
    "saved_model", False, "Also export a SavedModel of TensorFlow."
)
_MEASURE = flags.DEFINE_bool(
    "measure_folding", False, "Print what is lost when users are folded in."
)


def main(argv: list[str]) -> None:
    """Calls what the flags ask for."""
    del argv
    from neggen_jax.recommend import command as called

    trained = called.opened(
        _WORKDIR.value,
        _DATA.value,
        _ITEMS.value,
        {"text": _TEXT_MODEL.value, "image": _IMAGE_MODEL.value},
    )
    if _MEASURE.value:
        called.measure(trained)
    if _EXPORT.value:
        called.export(
            trained,
            _EXPORT.value,
            k=_K.value,
            ann=_ANN.value,
            ann_search=_ANN_SEARCH.value,
            saved_model=_SAVED_MODEL.value,
            overwrite=_OVERWRITE.value,
        )
    if _USERS.value or _OUTPUT.value or not (_MEASURE.value or _EXPORT.value):
        called.lists(
            trained,
            _USERS.value,
            _OUTPUT.value,
            k=_K.value,
            seen=_SEEN.value,
            unknown=_UNKNOWN.value,
            reasons=_REASONS.value,
            probes=_PROBES.value,
            overwrite=_OVERWRITE.value,
        )


if __name__ == "__main__":
    flags.mark_flag_as_required("workdir")
    command.run(main)
