"""How the feature cache is made."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from forceuq.configuration.benchmark import known
from forceuq.configuration.names import Model, Name
from forceuq.data.sources import load_source

if TYPE_CHECKING:
    from forceuq.configuration.models import DatasetConfig

Count = Annotated[int, Field(ge=1)]
Shards = Count | dict[str, Count]


class FeaturesConfig(Model):
    """How the atom features are computed and cached; of this only `precision` changes their values."""

    max_atoms_per_batch: int = Field(default=2048, ge=1, description="Atoms in one forward pass, at most.")
    max_edges_per_batch: int = Field(
        default=1_000_000, ge=1, description="Edges in one forward pass, at most: batches that have more are halved."
    )
    shards: dict[Name, Shards] = Field(
        default={},
        description="By data set, how many shards each of its parts is cut into, balanced by atoms, each made by a job"
        " of its own: one number for all parts, or numbers by part. 1 where nothing is said.",
    )
    statistics_by_shard: bool = Field(
        default=False,
        description="Make the statistics that a BLL fit needs of its training data by a job a shard, where its features"
        " are known before it (projection pretrained, or starts_from); otherwise the fit makes them, in its threads.",
    )
    atoms_per_file: int = Field(default=200_000, ge=1, description="Atoms in one Parquet file of a shard, at most.")
    precision: Literal["float32", "float16"] = Field(
        default="float32",
        description="Of the features as stored; `float16` halves the cache and changes the metrics: docs/scale.md.",
    )
    workers: int = Field(
        default=1, ge=0, description="Processes that build graphs beside the model; 0: in the job itself."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where the model runs; `auto` takes a GPU when there is one."
    )

    @property
    def execution(self) -> dict[str, int | str]:
        """How the cache is made, as plain values, without what decides its content."""
        return self.model_dump(exclude={"shards", "statistics_by_shard", "precision"})

    def shards_of(self, dataset: str, part: str) -> int:
        """Return the number of shards of a part."""
        shards = self.shards.get(dataset, 1)
        return shards if isinstance(shards, int) else shards.get(part, 1)


def check_shards(features: FeaturesConfig, datasets: "Mapping[str, DatasetConfig]") -> None:
    """Hold the names under ``shards`` to the data sets and their parts.

    Raises:
        ValueError: one that there is not.
    """
    for name, shards in features.shards.items():
        known("features.shards", name, datasets)
        dataset = datasets[name]
        parts = dict.fromkeys(load_source(dataset.kind).parts(dataset.options))
        for part in shards if isinstance(shards, dict) else ():
            known(f"features.shards.{name}", part, parts)
