"""The public Amazon reviews as a TFDS dataset, for everybody's tools.

    tfds build neggen_jax/data/sources/amazon/amazon_reviews.py \
        --config=Baby --manual_dir=DIR --data_dir=DIR

One example an interaction, in the splits train, valid and test. It is read by
the same code as `launch/prepare.py --source=amazon`, which makes a dataset
directory to train on. Other categories and rules are a config of one's own:
`AmazonReviews(config=AmazonConfig(name="Toys", category="Toys_and_Games"))`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from neggen_jax.catalog import SPLITS, Catalog
from neggen_jax.data.sources.amazon.source import read_amazon


@dataclasses.dataclass
class AmazonConfig(tfds.core.BuilderConfig):
    """Which category, and what is done with it.

    Attributes:
      category: as in the names of the files.
      core: k of the k-core; 0 for everything.
      split: "random", "leave_last_out" or "temporal".
      seed: of the random split.
    """

    category: str = ""
    core: int = 5
    split: str = "random"
    seed: int = 0


class AmazonReviews(tfds.core.GeneratorBasedBuilder):
    """Interactions of one category of the public Amazon reviews."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    The manual directory has the files as they are downloaded, for example by
    `python launch/fetch_amazon.py --category=Baby --release=2014
    --output=MANUAL_DIR`: reviews (reviews_Baby_5.json.gz, or those of 2018 or
    2023), and perhaps metadata (meta_Baby.json.gz).
    """
    BUILDER_CONFIGS = [  # noqa: RUF012 - TFDS looks for a list
        AmazonConfig(name=name, category=category)
        for name, category in (
            ("Baby", "Baby"),
            ("Sports", "Sports_and_Outdoors"),
            ("Clothing", "Clothing_Shoes_and_Jewelry"),
            ("Office", "Office_Products"),
            ("Baby_Products", "Baby_Products"),
            ("All_Beauty", "All_Beauty"),
        )
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description="Who reviewed what and when.",
            features=tfds.features.FeaturesDict(
                {
                    "user_id": text,
                    "item_id": text,
                    "item_title": text,
                    "timestamp": np.int64,
                }
            ),
            supervised_keys=None,
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Any]:
        config = self.builder_config
        catalog = read_amazon(
            dl_manager.manual_dir,
            scratch=None,
            category=config.category,
            core=config.core,
            split=config.split,
            seed=config.seed,
        ).validate()
        return {
            split: self._generate_examples(catalog, split) for split in SPLITS
        }

    def _generate_examples(
        self, catalog: Catalog, split: str
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        part = catalog.splits[split]
        items = catalog.item_names()
        users = catalog.user_ids
        titles = (
            catalog.records.titles if catalog.records else [""] * len(items)
        )
        assert part.timestamps is not None
        columns = (part.users, part.items, part.timestamps)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        for key, (user, item, time) in enumerate(rows):
            yield (
                key,
                {
                    "user_id": users[user] if users else str(user),
                    "item_id": items[item],
                    "item_title": titles[item],
                    "timestamp": time,
                },
            )
