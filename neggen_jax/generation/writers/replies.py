"""What a reply of a language model must be to be accepted.

Stands between a backend, which brings words, and `prompted.py`, which asks
again when they are no good: a `Refused` says what is wrong with a reply in
terms the model can act on. The checks are those of METHODS 1.1; what passes
them all changes some values and nothing else.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from typing import Any

from neggen_jax.generation.records import Alternative
from neggen_jax.generation.values.contrast import (
    UNKNOWN,
    normalised,
    same_value,
)
from neggen_jax.generation.writers.masked import (
    MASK,
    Masked,
    Mismatch,
    align,
    in_case_of,
)

# In characters.
LONGEST_REPLY = 16384
LONGEST_NAME = 40
LONGEST_VALUE = 80
LONGEST_WORD = 12  # On average; for scripts that put no spaces.
_SHORTEST_DESCRIPTION = 8  # Letters; "a red hat" has seven.

# How much shorter or longer a counterfactual may be: twice, and a little
# more for a title of two words.
_RATIO, _SLACK = 2.0, 32


# Of a reply; each may be where its object starts, and is tried. Without a
# bound a reply of nothing else takes seconds.
_MOST_BRACES = 256


_DECODER = json.JSONDecoder(strict=False)  # Lines may end inside a string.
# A string that does not end goes on to the end of the reply: to look again
# behind each of its quotation marks would take minutes for a bad one.
_STRING_OR_COMMA = re.compile(
    r'"(?:\\.|[^"\\])*(?:"|\\?\Z)|,(?=\s*[}\]])', re.S
)
_THOUGHT = re.compile(r"^.*</think>", re.S)
_HEADING = re.compile(r"^(?:\W*)(?:product )?description\W*:\s*", re.I)
_LIST = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s", re.M)
_REFUSAL = re.compile(
    r"(?:i['\u2019]?m sorry|i am sorry|sorry|i can(?:no|['\u2019])t|i am unable"
    r"|i['\u2019]?m unable|unfortunately|as an ai)\b",
    re.I,
)
_UNWANTED = re.compile(r"[\x00-\x08\x0e-\x1f\x7f\ud800-\udfff]")
_NEGATION = re.compile(r"^(?:not|non|no|never|without)\b[\s-]*", re.I)
# Words of a kind that do not say the kind: "Bags and other accessories".
_CONNECTIVES = frozenset(
    ("and", "or", "of", "for", "with", "in", "the", "to", "other", "all")
)


class Refused(Exception):
    """A reply that cannot be used.

    Attributes:
      reason: what is wrong, in whole sentences said to the model.
    """

    def __init__(self, reason: str):
        self.reason = reason
        super().__init__(reason)


def masks_schema(masks: int) -> dict[str, Any]:
    """JSON schema of a reply with `masks` masks at most."""
    mask = _object(attribute={"type": "string"}, value={"type": "string"})
    return _object(masks=_array(mask, 1, masks), masked={"type": "string"})


def alternatives_schema(masks: int, alternatives: int) -> dict[str, Any]:
    """JSON schema of `alternatives` lists with `masks` values each."""
    values = _array({"type": "string"}, masks, masks)
    return _object(alternatives=_array(values, alternatives, alternatives))


def extract(reply: str, keys: Collection[str]) -> dict[str, Any]:
    """Finds the JSON object of a reply, whatever is said around it.

    A comma before a closing bracket is overlooked. Of several objects with
    the keys, the last one counts: models think aloud before they answer.

    Args:
      reply: a model's words.
      keys: that the object must have.

    Raises:
      Refused: if there is none.
    """
    if len(reply) > LONGEST_REPLY:
        raise Refused("The reply is far too long.")
    found, problem = None, ""
    starts = [match.start() for match in re.finditer(r"\{", reply)]
    for tidied in (False, True):
        end = 0
        for start in starts[-_MOST_BRACES:]:
            if start < end:
                continue
            text = reply[start:]
            if tidied:
                text = _STRING_OR_COMMA.sub(_without_comma, text)
            try:
                value, length = _DECODER.raw_decode(text)
            except (ValueError, RecursionError) as error:
                problem = problem or str(error)
                continue
            if all(key in value for key in keys):
                # Where a tidied one ends in the reply, nobody knows.
                found, end = value, start + (1 if tidied else length)
        if found is not None:
            return found
    names = " and ".join(f'"{key}"' for key in keys)
    because = f": {problem}" if problem else ""
    raise Refused(f"There is no JSON object with {names} in it{because}.")


def _without_comma(match: re.Match[str]) -> str:
    return "" if match[0] == "," else match[0]


def check_description(reply: str, max_words: int) -> str:
    """Takes the description out of a reply in free text.

    Args:
      reply: what a model says of a picture.
      max_words: of a description at most.

    Returns:
      Sentences in one line.

    Raises:
      Refused: if there is no description that can be used.
    """
    text = _THOUGHT.sub("", reply).strip().strip("`").strip()
    if text.startswith(("{", "[")):
        raise Refused("Describe the product in sentences, not in JSON.")
    if len(_LIST.findall(text)) > 1:
        raise Refused("Describe the product in sentences, not in a list.")
    text = " ".join(text.replace("**", "").split())
    text = _HEADING.sub("", text)
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1].strip()
    _check_letters(text, "The description")
    if sum(letter.isalnum() for letter in text) < _SHORTEST_DESCRIPTION:
        raise Refused("There is no description, or it says too little.")
    if _REFUSAL.match(text):
        raise Refused("This is no description. Say what there is to see.")
    words = len(text.split())
    if words > max_words or len(text) > max_words * LONGEST_WORD:
        raise Refused(
            f"The description has {words} words and {len(text)} characters; "
            f"at most {max_words} words are wanted."
        )
    return text


def check_masks(
    reply: str, description: str, kept: Mapping[str, str], max_masks: int
) -> Masked:
    """Takes masks out of a reply, and finds them in the description.

    Args:
      reply: of a model that was asked to mask.
      description: what it was to mask.
      kept: name -> value of the attributes whose words must stay.
      max_masks: how many there may be.

    Raises:
      Refused: unless the reply names 1 to `max_masks` values of attributes
        that are not kept, and masks these in the description and nothing
        else.
    """
    data = extract(reply, ("masks", "masked"))
    attributes = _attributes(data["masks"], max_masks)
    for number, (name, value) in enumerate(attributes.items(), start=1):
        _check_value(value, f"The value of mask {number}")
        _check_kept(name, value, number, kept)
    masked = data["masked"]
    if not isinstance(masked, str):
        raise Refused('"masked" must be a text.')
    _check_numbers(masked, len(attributes))
    try:
        made = align(description, masked, attributes)
    except Mismatch as error:
        raise Refused(str(error)) from None
    if not any(letter.isalnum() for letter in made.rest):
        raise Refused(
            "Nothing is left beside the masks. Mask fewer words: what kind "
            "of thing it is must stay."
        )
    return made


def check_alternatives(
    reply: str, masked: Masked, alternatives: int
) -> tuple[Alternative, ...]:
    """Takes other values out of a reply, and fills them in.

    Args:
      reply: of a model that was asked to complete.
      masked: what it was to complete.
      alternatives: how many it was to give.

    Raises:
      Refused: unless the reply gives so many lists of one value a mask, each
        a contrast to the original, no two lists the same.
    """
    lists = extract(reply, ("alternatives",))["alternatives"]
    number = len(masked.attributes)
    wanted = f"{alternatives} list{'s' * (alternatives > 1)} of {number}"
    if not isinstance(lists, list) or len(lists) != alternatives:
        found = len(lists) if isinstance(lists, list) else "none"
        raise Refused(
            f'"alternatives" must hold {wanted} values each, not {found}.'
        )
    made: list[tuple[str, ...]] = []
    for values in lists:
        if not isinstance(values, list) or len(values) != number:
            raise Refused(
                f'"alternatives" must hold {wanted} values each, in the '
                "order of the masks."
            )
        made.append(
            tuple(
                _contrast(value, k, masked)
                for k, value in enumerate(values, start=1)
            )
        )
        if any(_alike(made[-1], other) for other in made[:-1]):
            raise Refused("Two alternatives are the same; all must differ.")
    return tuple(_alternative(masked, values) for values in made)


def _attributes(masks: Any, max_masks: int) -> dict[str, str]:
    """Reads names and values of masks.

    Returns:
      Name -> value, spaces tidied and names in lower case.
    """
    if not isinstance(masks, list) or not 1 <= len(masks) <= max_masks:
        found = len(masks) if isinstance(masks, list) else "none"
        raise Refused(
            f'"masks" must be a list of 1 to {max_masks} masks, not {found}.'
        )
    attributes: dict[str, str] = {}
    for number, mask in enumerate(masks, start=1):
        if not isinstance(mask, dict) or not {"attribute", "value"} <= set(
            mask
        ):
            raise Refused(
                f'Mask {number} must be an object of "attribute" and "value".'
            )
        name = _text(mask["attribute"], f"The attribute of mask {number}")
        _check_value(name, f"The attribute of mask {number}", LONGEST_NAME)
        if any(same_value(name, other) for other in attributes):
            raise Refused(
                f"The attribute {name!r} is there twice; each needs a name "
                "of its own, or only one mask."
            )
        attributes[name.lower()] = _text(
            mask["value"], f"The value of mask {number}"
        )
    return attributes


def _check_kept(
    name: str, value: str, number: int, kept: Mapping[str, str]
) -> None:
    """Refuses to mask what says which kind of thing it is."""
    for kind, words in kept.items():
        if same_value(name, kind.replace("_", " ")):
            raise Refused(
                f"Mask {number} is of the attribute {kind!r}, which stays."
            )
        if shared := _telling(words) & _telling(value):
            raise Refused(
                f"Mask {number} hides {min(shared)!r}, which says what kind "
                f"of product it is ({words}) and stays."
            )


def _telling(text: str) -> set[str]:
    """The words that say something, in the form in which they compare."""
    words = [word for word in normalised(text).split() if len(word) > 1]
    return {normalised(word) for word in words if word not in _CONNECTIVES}


def _check_numbers(masked: str, masks: int) -> None:
    """Refuses a masked text unless it has masks 1 to `masks`, once each."""
    found = [int(number) for number in MASK.findall(masked)]
    if "[mask" in MASK.sub("", masked).lower():
        raise Refused(
            "The masked text has a mask that is none of [MASK_1] to "
            f"[MASK_{masks}]."
        )
    for number in found:
        if number > masks:
            raise Refused(f"[MASK_{number}] is not in the list of masks.")
    for number in range(1, masks + 1):
        if found.count(number) != 1:
            raise Refused(
                f"[MASK_{number}] is {found.count(number)} times in the "
                "masked text; it must be there exactly once."
            )


def _text(value: Any, what: str) -> str:
    """A text with tidy spaces; numbers will do."""
    if (isinstance(value, float) and math.isfinite(value)) or (
        isinstance(value, int) and not isinstance(value, bool)
    ):
        value = str(value)
    if not isinstance(value, str):
        raise Refused(f"{what} must be a text.")
    return " ".join(value.split())


def _check_letters(text: str, what: str) -> None:
    if _UNWANTED.search(text):
        raise Refused(f"{what} has characters that are no text.")
    if "[mask" in text.lower():
        raise Refused(f"{what} has a mask in it; give words.")


def _check_value(value: str, what: str, longest: int = LONGEST_VALUE) -> None:
    """Refuses what is no value, whichever attribute it is of."""
    if not any(letter.isalnum() for letter in value):
        raise Refused(f"{what} is empty.")
    _check_letters(value, what)
    if len(value) > longest:
        raise Refused(
            f"{what} has {len(value)} characters; it may have {longest}."
        )


def _contrast(value: Any, number: int, masked: Masked) -> str:
    """Checks a new value for mask `number` against the old one."""
    name, old = list(masked.attributes.items())[number - 1]
    what = f"The value for mask {number} ({name})"
    new = _text(value, what)
    _check_value(new, what)
    if normalised(new) == UNKNOWN:
        raise Refused(f"{what} says nothing; give a definite value.")
    if same_value(new, old):
        raise Refused(f"{what} is {new!r}, which means the same as {old!r}.")
    positive = _NEGATION.sub("", new)
    if positive != new and same_value(positive, old):
        raise Refused(f"{what} only negates {old!r}; say what it is instead.")
    return new


def _alike(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    return all(map(same_value, one, other))


def _alternative(masked: Masked, values: tuple[str, ...]) -> Alternative:
    text, length = masked.fill(values), len(masked.description)
    shortest = length / _RATIO - _SLACK
    if not shortest <= len(text) <= length * _RATIO + _SLACK:
        raise Refused(
            f"With these values the description has {len(text)} characters "
            f"instead of {length}; give values about as long as the original."
        )
    changes = {
        name: (old, in_case_of(old, new, old))
        for (name, old), new in zip(
            masked.attributes.items(), values, strict=True
        )
    }
    return Alternative(text, changes)


def _array(items: dict[str, Any], least: int, most: int) -> dict[str, Any]:
    return {
        "type": "array",
        "items": items,
        "minItems": least,
        "maxItems": most,
    }


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
