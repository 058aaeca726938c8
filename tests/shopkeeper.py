"""Answers our templates by rule, well or badly, as a served model would.

The `answer` of a `chat_server.ChatServer`. It reads what the templates of
`prompts.toml` ask from the words of the request alone.
"""

import base64
import collections
import io
import json
import random
import re

from chat_server import picture_of
from PIL import Image, ImageStat

_NAMES = ("style", "material", "colour", "pattern")
# Ways to do it badly; each is refused by `replies.py` or has no end.
_BAD = ("prose", "cut", "other words", "same value", "too many", "nothing")


class Shopkeeper:
    """Does what is asked.

    Args:
      bad: share of replies that are no good.
      seed: of which ones.

    Attributes:
      asked: how often each step was asked.
      spoilt: how many replies were no good.
    """

    def __init__(self, bad=0.0, seed=0):
        self.bad, self.seed = bad, seed
        self.asked = collections.Counter()
        self.spoilt = 0

    def __call__(self, body):
        first = _question(body)
        if "with masks" in first or "[MASK_1] stand" in first:
            step, reply = "complete", _complete(first)
        elif "put masks in their place" in first:
            step, reply = "mask", _mask(first)
        else:
            step, reply = "describe", _describe(first, picture_of(body))
        self.asked[step] += 1
        # Whether a reply is bad depends on the request alone, so that any
        # order of arrival, and any run, has the same ones.
        draw = random.Random(f"{self.seed}:{json.dumps(body['messages'])}")
        if draw.random() < self.bad:
            self.spoilt += 1
            return _spoilt(reply, draw.choice(_BAD))
        return reply


def _question(body):
    """The first words of the user; corrections come after them."""
    content = next(m for m in body["messages"] if m["role"] == "user")
    content = content["content"]
    if isinstance(content, str):
        return content
    return next(part["text"] for part in content if part["type"] == "text")


def _after(text, *heads):
    """What follows the heads at the end of a template."""
    ours = text.split("Now yours\n")[1]
    pattern = "".join(rf"{re.escape(head)}(.*?)\n?" for head in heads)
    return re.fullmatch(pattern, ours, re.S).groups()


def _mask(question):
    kept, description = _after(question, "Kind, which stays: ", "Description: ")
    kind = {word[:4].lower() for word in re.findall(r"\w+", kept)}
    values = []
    for found in re.finditer(r"[^\W\d_]{4,}", description):
        word = found[0]
        new = word[:4].lower() not in kind
        if new and word.lower() not in {v.lower() for v in values}:
            values.append(word)
        if len(values) == 2:
            break
    masked = description
    for number, value in enumerate(values, start=1):
        masked = re.sub(rf"\b{value}\b", f"[MASK_{number}]", masked, count=1)
    masks = [
        {"attribute": name, "value": value}
        for name, value in zip(_NAMES, values, strict=False)
    ]
    return json.dumps({"masks": masks, "masked": masked})


def _complete(question):
    _, listed, wanted = _after(
        question, "Description: ", "Values:\n", "Alternatives: "
    )
    values = re.findall(r"^\d+\. [^:]+: (.*)$", listed, re.M)
    number = int(re.match(r"\d+", wanted)[0])
    lists = [
        [f"{'xyzuvw'[k]}{value[::-1].lower()}o" for value in values]
        for k in range(number)
    ]
    return json.dumps({"alternatives": lists})


def _describe(question, picture):
    data = base64.b64decode(picture.partition(",")[2])
    with Image.open(io.BytesIO(data)) as image:
        tone = ImageStat.Stat(image.convert("RGB")).mean
    names = ("reddish", "greenish", "bluish")
    colour = names[tone.index(max(tone))]
    depth = "bright" if sum(tone) > 3 * 128 else "gloomy"
    known = question.split("Known about the product:\n")[1].split()
    kind = known[0].strip(".,;:") if known else "product"
    return f"A {kind} that looks {depth} and {colour}, photographed upright."


def _spoilt(reply, way):
    if way == "prose":
        return "- I would rather\n- talk about the weather"
    if way == "cut":
        return reply[: len(reply) // 2].rstrip('"}]')
    if way == "nothing":
        return ""
    if way == "same value":
        return re.sub(r"\[\[.*\]\]", '[["same"]]', reply).replace(
            "[MASK_1]", "[MASK_2]"
        )
    if way == "too many":
        return reply * 40
    return reply.replace("MASK_1", "MASK_9").replace("alternatives", "values")
