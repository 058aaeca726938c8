"""Descriptions whose masks are known, and replies made from them."""

import dataclasses
import json

import pytest
from hypothesis import strategies as st

from neggen_jax.generation.writers.masked import Masked
from neggen_jax.generation.writers.replies import Refused, check_masks

KEPT = {"product_type": "Laptop sleeves"}
MOST = 4

# Attribute -> values that differ from each other; none is in a filler.
VALUES = {
    "colour": ["red", "Dark Blue", "off-white", "grün", "rosé"],
    "material": ["felt", "cotton & wool", "ABS plastic", "leather"],
    "size": ["13 inch", "2.5 litres", "XL", "8½ inch"],
    "audience": ["commuters", "school children", "women"],
    "brand": ["Hollisk", "O'Neill", "H&M+", "Øre"],
}
FILLERS = ["a", "slim", "laptop sleeve", "with", "the", "“soft”", "—", "zip,"]


@dataclasses.dataclass
class Truth:
    """A description as pieces: fillers, and attributes by name."""

    pieces: list[str]
    values: dict[str, str]
    numbers: dict[str, int]

    def text(self, put):
        words = [
            put(name) if name in self.values else name for name in self.pieces
        ]
        return " ".join(words) + "."

    @property
    def description(self):
        return self.text(self.values.__getitem__)

    @property
    def masked(self):
        return self.text(lambda name: f"[MASK_{self.numbers[name]}]")

    @property
    def names(self):
        return sorted(self.numbers, key=self.numbers.__getitem__)

    @property
    def reply(self):
        return {
            "masks": [
                {"attribute": name, "value": self.values[name]}
                for name in self.names
            ],
            "masked": self.masked,
        }

    def check(self, reply=None, **fields):
        reply = self.reply | fields if reply is None else reply
        text = reply if isinstance(reply, str) else json.dumps(reply)
        return check_masks(text, self.description, KEPT, MOST)

    def refused(self, said, reply=None, **fields):
        with pytest.raises(Refused) as caught:
            self.check(reply, **fields)
        assert said in caught.value.reason, caught.value.reason


@st.composite
def truths(draw, least=1):
    names = draw(
        st.lists(
            st.sampled_from(sorted(VALUES)),
            min_size=least,
            max_size=MOST,
            unique=True,
        )
    )
    fillers = draw(st.lists(st.sampled_from(FILLERS), min_size=1, max_size=8))
    pieces = draw(st.permutations([*names, *fillers, "laptop sleeve"]))
    values = {name: draw(st.sampled_from(VALUES[name])) for name in names}
    order = draw(st.permutations(names))
    return Truth(
        list(pieces), values, {name: k for k, name in enumerate(order, 1)}
    )


@st.composite
def contrasts(draw, truth, number):
    """As many lists of other values, no two the same."""
    choices = [
        st.sampled_from([x for x in VALUES[name] if x != truth.values[name]])
        for name in truth.names
    ]
    lists = st.lists(st.tuples(*choices), min_size=number, max_size=number)
    return draw(lists.filter(lambda made: len(set(made)) == number))


TEXT = "A red laptop sleeve of felt"
RED = Masked(
    TEXT, {"colour": "red", "material": "felt"}, ((2, 5, 0), (23, 27, 1))
)
