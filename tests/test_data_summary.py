"""What is told of a dataset after it is prepared."""

import dataclasses

import numpy as np
import pytest
from conftest import ABSENT, ITEMS, UNSEEN, USERS

from neggen_jax.catalog import SPLITS
from neggen_jax.data import store, summary


def test_numbers(catalog):
    pairs = np.concatenate(
        [np.stack([p.users, p.items]) for p in catalog.splits.values()], axis=1
    )
    total = pairs.shape[1]
    by_user, by_item = summary.degrees(catalog)
    assert by_user.tolist() == [(pairs[0] == u).sum() for u in range(USERS)]
    assert by_item.tolist() == [(pairs[1] == i).sum() for i in range(ITEMS)]
    # A tenth of 41 items, rounded up.
    share = sorted(by_item.tolist())[-5:]
    assert summary.top_share(by_item) == pytest.approx(sum(share) / total)
    told = summary.describe(catalog)
    assert told["users"] == str(USERS)
    unseen = (np.bincount(catalog.train.items, minlength=ITEMS) == 0).sum()
    assert unseen >= len(UNSEEN)
    assert told["items"] == f"{ITEMS}; {unseen} of them not in train"
    for split in SPLITS:
        assert f"{split} {len(catalog.splits[split])}" in told["interactions"]
    assert told["density"] == f"{total / (USERS * ITEMS):.4%}"
    for name, counts in (("per user", by_user), ("per item", by_item)):
        assert f"least {counts.min()}" in told[name]
        assert f"most {counts.max()}" in told[name]
        assert f"mean {counts.mean():.1f}" in told[name]
    assert f"{sum(share) / total:.1%} of" in told["top decile"]
    assert told["times"] == "none"
    assert told["text"].endswith(f"; {len(ABSENT['text'])} items without")
    both = set(ABSENT["text"]) & set(ABSENT["image"])
    assert told["no modality"] == f"{len(both)} items"
    of_items, of_rows = summary.presence(catalog)["image"]
    assert of_items == pytest.approx(1 - len(ABSENT["image"]) / ITEMS)
    bare = by_item[list(ABSENT["image"])].sum()
    assert of_rows == pytest.approx(1 - bare / total)


@pytest.mark.parametrize("modalities", [2, 0])
def test_printed_and_drawn(catalog, tmp_path, capsys, modalities):
    from PIL import Image

    if not modalities:
        catalog = dataclasses.replace(catalog, features={})
    store.save(catalog, tmp_path / "data", source={})
    summary.summarise(catalog, tmp_path / "data")
    printed = capsys.readouterr().out
    for value in (*summary.describe(catalog).values(), catalog.fingerprint):
        assert value in printed
    with Image.open(tmp_path / "data" / summary.PLOT) as image:
        pixels = np.asarray(image.convert("L"))
    assert pixels.std() > 5
    # It is the dataset's, and goes with it.
    store.save(catalog, tmp_path / "data", source={}, overwrite=True)
    assert not (tmp_path / "data" / summary.PLOT).exists()


def test_every_user_is_in_a_bar():
    """Also those who have far more than the rest, or all the same."""
    from neggen_jax.plots_data import dataset

    for counts in ([3], [1, 1, 2], [*range(1, 300), 100_000], [70] * 9):
        figure = dataset("x", np.array(counts), np.array([5, 4, 1]), {})
        bars = [patch.get_height() for patch in figure.axes[1].patches]
        assert sum(bars) == len(counts)
        widths = {round(p.get_width(), 6) for p in figure.axes[1].patches}
        assert len(widths) == 1
