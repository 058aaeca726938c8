"""What the tests of recommendations share: a run, opened without a workdir."""

import numpy as np
from etils import epath
from training import Small, small

from neggen_jax.catalog import ItemRecords
from neggen_jax.recommend.asked import Names
from neggen_jax.recommend.trained import Trained


def made_up(count: int) -> ItemRecords:
    """Records of items that have names, and every other one a title."""
    return ItemRecords(
        [f"i{n}" for n in range(count)],
        [f"Thing {n}" if n % 2 else "" for n in range(count)],
        [""] * count,
        [{} for _ in range(count)],
        [""] * count,
    )


def opened(argument: str, mesh=(1, 1), **changes) -> Trained:
    """A run at step 0 on the catalogue of `conftest`."""
    one: Small = small(argument, mesh, **changes)
    run, params = one.run, one.state.evaluated
    users, items = run.encode(params)
    records = made_up(run.catalog.num_items)
    names = [f"u{n}" for n in range(run.catalog.num_users)]
    return Trained(
        workdir=epath.Path("nowhere"),
        run=run,
        params=params,
        step=0,
        users=users,
        items=items,
        user_names=Names(names, len(names)),
        item_names=Names(records.ids, len(records)),
        titles=records.titles,
        records=records,
    )


def own_items(trained: Trained, user: int, *splits: str) -> np.ndarray:
    """What a user has in some splits."""
    catalog = trained.run.catalog
    parts = [
        catalog.splits[s].items[catalog.splits[s].users == user] for s in splits
    ]
    return np.sort(np.concatenate(parts))
