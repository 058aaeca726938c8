"""What is to be written: one task for each modality of each item.

The work list is a function of the dataset and the options alone, in the
order of the items, so that any shard and any later run agree on it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Task:
    """One modality of one item, to be described and rewritten.

    Attributes:
      item: index of the item.
      id: the source's own identifier.
      modality: "text" or "image".
      text: for "text", what is to be rewritten; for "image", what is known
        of the item in words, which helps to describe its picture. "" where
        there is nothing.
      attributes: structured attributes that this modality shows.
      kept: the attributes that say what kind of thing it is; never changed.
      image: path of the picture, for "image"; "" where there is none.
    """

    item: int
    id: str
    modality: str
    text: str
    attributes: Mapping[str, str]
    kept: Mapping[str, str]
    image: str = ""
