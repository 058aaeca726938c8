"""Which other values an attribute could have, beside a plain search."""

import itertools
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neggen_jax.generation.values import contrast, seen

LEVELS = [("kind",), ()]
GROUPS = [("colour",), ("colour", "look")]
VALUES = st.sampled_from(
    [
        "blue",
        "dark blue",
        "navy",
        "red",
        "t-shirt",
        "tshirt",
        "t shirt",
        "red shirts",
        "Unknown",
        "other blue",
        "-",
        "",
    ]
)
ITEMS = st.lists(
    st.fixed_dictionaries(
        {"kind": st.sampled_from("ab")},
        optional={"colour": VALUES, "look": VALUES},
    ),
    min_size=1,
    max_size=12,
)


def differ(one, other):
    """2 for another value, 1 for one that says more, 0 for the same."""
    words = [set(contrast.normalised(v).split()) for v in (one, other)]
    if contrast.same_value(one, other):
        return 0
    return 1 if words[0] <= words[1] or words[1] <= words[0] else 2


def searched(items, group, own, item):
    """`Combinations.others`, by comparing each with each."""
    names = [name for name in group if name in own]
    for level in LEVELS:
        there = [
            tuple(other.get(name, "") for name in names)
            for other in items
            if all(other.get(n, "") == item.get(n, "") for n in level)
        ]
        counts = Counter(v for v in there if not any(map(seen.vague, v)))
        far = {v: sum(map(differ, v, map(own.get, names))) for v in counts}
        most = max(far.values(), default=0)
        if most:
            return [
                (dict(zip(names, v, strict=True)), counts[v])
                for v in sorted(v for v in counts if far[v] == most)
            ]
    return []


@pytest.mark.parametrize("kept", [seen._KEPT, 3])
@given(items=ITEMS, group=st.sampled_from(GROUPS))
def test_others_are_those_of_a_plain_search(kept, items, group):
    known = seen.Combinations(items, group, LEVELS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seen, "_KEPT", kept)
        for item in items:
            own = {
                name: item[name]
                for name in group
                if not seen.vague(item.get(name, ""))
            }
            if own:
                want = searched(items, group, own, item)
                assert known.others(own, item) == want


def test_a_catalogue_of_many_brands_takes_neither_days_nor_all_memory(
    monkeypatch,
):
    monkeypatch.setattr(seen, "_KEPT", 50_000)
    brands = map("".join, itertools.product("bdfgkl", "aeiou", repeat=3))
    items = [{"brand": brand} for brand in itertools.islice(brands, 3_000)]
    known = seen.Combinations(items, ("brand",), [()])
    begun = time.process_time()
    for item in items:
        assert len(known.others(item, item)) > 2_900
    # Half a second is usual; to compare each with each takes a minute.
    assert time.process_time() - begun < 10
    assert sum(map(len, known._known.values())) <= 50_000
