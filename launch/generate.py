"""Writes counterfactuals of a dataset's items, or goes on with them.

    python launch/generate.py --data=DIR --backend=attributes
    python launch/generate.py --data=DIR --backend=openai --model=NAME \
        --base_url=http://localhost:8000/v1 --shard=0/4
    python launch/generate.py --data=DIR --set=openai --merge

Flags that are not given are left to
`neggen_jax/generation/sets/generate.py`.
"""

import dataclasses
import json
import re
import sys
from typing import Any

from absl import flags

from neggen_jax import command
from neggen_jax.errors import InputError

_WORDS = {
    "backend": "attributes (no model), transformers or openai.",
    "set": "Name of the set; by default the backend's, or random, or probes.",
    "model": "What to ask: a path or hub name, or the server's name for it.",
    "base_url": "openai: where the server is, with /v1.",
    "api_key_env": "openai: environment variable that holds the key.",
    "sampling": 'openai: fields of a request, as {"temperature": 0.7}.',
    "max_tokens_field": "openai: what the server calls a reply's length.",
    "device": "transformers: of PyTorch; by default a GPU if there is one.",
    "dtype": "transformers: auto, float32, bfloat16 or float16.",
    "contrast": "attributes: contrasting, or random (the ablation).",
    "words": "attributes: words to look for in texts; a file, or none.",
    "prompts": "Templates of your own, like generation/writers/prompts.toml.",
    "shard": "Part i of n, as i/n with i from 0.",
    "items": "Only these items: 0,5,7-9.",
    "encoder": "tfidf or transformers; by default as before, or tfidf.",
    "encoder_model": "Path or hub name of a sentence encoder.",
    "encoder_like": "Set whose texts teach the encoder; for probes.",
}
_NUMBERS = {
    "concurrency": "openai: requests in flight at most.",
    "batch_size": "transformers: requests answered together.",
    "alternatives": "K, counterfactuals an item and modality.",
    "retries": "Times that a reply that is no good is asked for again.",
    "changes": "Attributes changed at a time, at most.",
    "max_words": "Longest text that a model is given.",
    "description_words": "Longest description that a model is asked for.",
    "image_side": "Longer side of a picture in pixels, as a model is shown it.",
    "seed": "Another one draws others.",
    "limit": "Records to write in this call, at most.",
}
_LISTS = {
    "modalities": "Of text,image; by default those that there are.",
    "image_attributes": "What pictures show: a,b.",
    "text_attributes": "What texts tell; by default all others.",
    "kept": "Never changed; by default the item's kind.",
    "changeable": "Changed alone; by default all that do not tell the kind.",
    "told": "Told in the text beside title and description.",
}
_SWITCHES = {
    "probe": "attributes: one counterfactual for each single attribute.",
    "retry_failed": "Ask again what has failed.",
    "merge": "Write nothing; merge the shards that are there, and encode.",
}
_DATA = flags.DEFINE_string("data", None, "Dataset directory.")
_ENCODE = flags.DEFINE_bool("encode", True, "Encode the set when complete.")
_GIVEN: list[Any] = [
    flags.DEFINE_string(n, None, doc) for n, doc in _WORDS.items()
]
_GIVEN += [flags.DEFINE_integer(n, None, doc) for n, doc in _NUMBERS.items()]
_GIVEN += [flags.DEFINE_list(n, None, doc) for n, doc in _LISTS.items()]
_GIVEN += [flags.DEFINE_bool(n, None, doc) for n, doc in _SWITCHES.items()]
_GIVEN += [flags.DEFINE_float("timeout", None, "openai: seconds a request.")]


def main(argv: list[str]) -> None:
    """Calls `generate` with the flags that were given."""
    del argv
    given: dict[str, Any] = {
        f.name: f.value for f in _GIVEN if f.value is not None
    }
    if "set" in given:
        given["set_name"] = given.pop("set")
    if "sampling" in given:
        given["sampling"] = _fields(given["sampling"])
    from neggen_jax.generation.sets.generate import Scope, generate

    names = [field.name for field in dataclasses.fields(Scope)]
    scope = Scope(**{n: given.pop(n) for n in names if n in given})
    assert _DATA.value is not None
    generate(_DATA.value, scope=scope, encode=_ENCODE.value, **given)


def _fields(text: str) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise InputError(
            "These are no fields of a request.",
            where="--sampling",
            expected='a JSON object, such as {"temperature": 0.7}',
            found=text,
        )
    return fields


def _underscored(flag: str) -> str:
    return "--" + flag[2:].replace("-", "_")


if __name__ == "__main__":
    # --retry-failed is --retry_failed.
    sys.argv[1:] = [
        re.sub(r"^--\w[\w-]*", lambda flag: _underscored(flag[0]), word)
        for word in sys.argv[1:]
    ]
    flags.mark_flag_as_required("data")
    command.run(main)
