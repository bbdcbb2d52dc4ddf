"""The configuration's models. Unknown keys are errors; every field says what it is and its unit.

A data set, backbone, method or generator is described by its ``kind`` and its ``options``; the options' model
lives in the module of that kind (``forceuq/methods/bll.py`` and so on), so a new kind is a new file and
nothing here changes.
"""

import hashlib
import json
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, create_model, field_validator, model_validator

from forceuq import backbones, methods
from forceuq.backbones.small.options import Options as SmallOrbTraining
from forceuq.calibration_kinds import CALIBRATION_KINDS, CalibrationKind
from forceuq.configuration.benchmark import (
    Members,
    Seeds,
    all_forms,
    check_labels,
    check_methods,
    each_once,
    for_dataset,
    joined_tasks,
    known,
)
from forceuq.configuration.features import FeaturesConfig, check_shards
from forceuq.configuration.names import Model, Name
from forceuq.configuration.plain_values import with_device, without_nulls
from forceuq.data import generators, sources
from forceuq.data.download import Source
from forceuq.data.splits import Task


def identity(value: Any) -> str:
    """Return the first eight hexadecimal digits of the SHA-256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _by_kind(base: type[BaseModel], kinds: tuple[str, ...], package: str) -> Any:
    """Return the union of ``base`` specialised to each kind, told apart by ``kind``."""
    members: list[type[BaseModel]] = []
    for kind in kinds:
        options = import_module(f"{package}.{kind}").Options
        try:
            default: Any = options()
        except ValueError:  # a kind with a required option
            default = ...
        members.append(
            create_model(
                f"{kind.title().replace('_', '')}{base.__name__}",
                __base__=base,
                __doc__=options.__doc__,
                kind=(Literal[kind], Field(description=f"`{kind}`: {package}.{kind}")),  # type: ignore[arg-type]
                options=(options, Field(default=default, description="Settings of this kind.")),
            )
        )
    union: Any = members[0]
    for member in members[1:]:
        union = union | member
    return Annotated[union, Field(discriminator="kind")] if len(members) > 1 else union


class GeneratorConfig(Model):
    """Raw data made by the workflow itself, in the format of a published data set."""

    kind: str
    options: BaseModel


class ExpectedSize(Model):
    """How large a data set is, as published."""

    structures: int = Field(ge=1, description="Structures in it.")
    atoms: int = Field(ge=1, description="Atoms of all structures together.")


class DatasetConfig(Model):
    """A data set: where its raw file comes from and how it is read and split."""

    kind: str
    options: BaseModel
    label: str = Field(description="Name in tables and figures.")
    download: Source | None = Field(default=None, description="Published raw file.")
    evaluate_with: tuple[Name, ...] = Field(
        default=(),
        description="Data sets whose tasks are evaluated on all of this one, as one more split;"
        " nothing is trained on it.",
    )
    expected: ExpectedSize | None = Field(
        default=None,
        description="Its size, for what jobs ask a cluster for; nothing else depends on it. null: 20,000 structures"
        " of 15 atoms.",
    )

    @model_validator(mode="after")
    def _one_origin(self) -> "DatasetConfig":
        generate = getattr(self, "generate", None)
        if (self.download is None) == (generate is None):
            state = "both are" if generate is not None else "neither is"
            raise ValueError(
                f"give exactly one of 'download' and 'generate'; {state} given (an overlay takes one away "
                "by setting it to null)"
            )
        return self

    @property
    def origin(self) -> dict[str, Any]:
        """Where the raw bytes come from, as plain values."""
        if self.download is not None:
            return {"download": self.download.model_dump(mode="json")}
        generate: GeneratorConfig = self.generate  # type: ignore[attr-defined]
        return {"generate": {"kind": generate.kind, "options": generate.options.model_dump(mode="json")}}

    @property
    def content_options(self) -> dict[str, Any]:
        """The options that decide the structures and their parts, but not what is trained on which."""
        fields = type(self.options).model_fields
        return {
            key: value
            for key, value in self.options.model_dump(mode="json").items()
            if not (isinstance(extra := fields[key].json_schema_extra, dict) and extra.get("task_only"))
        }

    @property
    def size(self) -> ExpectedSize:
        """The expected size, or that of a few thousand small molecules."""
        return self.expected or ExpectedSize(structures=20_000, atoms=300_000)

    @property
    def identity(self) -> str:
        """Digest of what the cached structures and parts depend on."""
        origin = self.origin if self.download is None else {"download": self.download.content}
        return identity([self.kind, origin, self.content_options])


class BackboneConfig(Model):
    """The pretrained model whose node features are cached."""

    kind: str
    options: BaseModel
    name: Name = Field(description="Name in folders and tables.")
    weights: Source = Field(description="The weights file.")

    @property
    def identity(self) -> str:
        """Digest of what the cached features depend on."""
        return identity([self.kind, self.options.model_dump(mode="json"), self.weights.content])


class CombinationConfig(Model):
    """Which fits of another method are combined."""

    method: Name = Field(description="Entry of `methods` whose predictions are combined.")
    members: Members = Field(
        description="The seeds of each ensemble, or these by data set; the first ensemble counts as seed 0, and so on."
    )
    sizes: tuple[int, ...] = Field(
        default=(),
        description="Sizes of smaller ensembles, each of an ensemble's first so many members: for the figure of the"
        " metrics over the number of members.",
    )

    @field_validator("members")
    @classmethod
    def _at_least_two(cls, value: Members) -> Members:
        for seeds in (seeds for ensembles in all_forms(value) for seeds in ensembles):
            if len(set(seeds)) < 2 or len(set(seeds)) < len(seeds):
                raise ValueError(f"{list(seeds)} is not an ensemble: at least two different seeds are needed")
        return value

    @model_validator(mode="after")
    def _smaller(self) -> "CombinationConfig":
        lengths = {len(seeds) for ensembles in all_forms(self.members) for seeds in ensembles}
        whole = min(lengths)
        if self.sizes and len(lengths) > 1:
            raise ValueError("'sizes' compares ensembles of one size: give all 'members' the same number of seeds")
        wrong = [size for size in self.sizes if not 2 <= size < whole]
        if wrong or len(set(self.sizes)) != len(self.sizes):
            raise ValueError(f"sizes {list(self.sizes)}: each once, from 2 to {whole - 1}, below that of 'members'")
        for size, ensembles in ((size, each) for size in self.sizes for each in all_forms(self.members)):
            first = [seeds[:size] for seeds in ensembles]
            if len(set(first)) != len(first):
                raise ValueError(
                    f"two ensembles have the same first {size} members and would count as two of that size"
                )
        return self

    def smaller(self, size: int) -> "CombinationConfig":
        """Return the combination of each ensemble's first ``size`` members."""

        def first(ensembles: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
            return tuple(seeds[:size] for seeds in ensembles)

        members = self.members
        cut = {name: first(own) for name, own in members.items()} if isinstance(members, dict) else first(members)
        return CombinationConfig(method=self.method, members=cut)


class MethodConfig(Model):
    """One row of the benchmark: a method with its settings."""

    kind: str
    options: BaseModel
    label: str = Field(description="Name in tables and figures.")
    starts_from: Name | None = Field(
        default=None,
        description="Another entry of `methods` whose fit (same task, same seed) this one starts from.",
    )
    seeds: Seeds | None = Field(
        default=None, description="Seeds of this method, or these by data set, where they differ from the run's."
    )
    datasets: tuple[Name, ...] | None = Field(
        default=None, min_length=1, description="The data sets that it is fitted to; null: all that are trained on."
    )
    combines: CombinationConfig | None = Field(
        default=None, description="For kinds that combine fits of another entry: which."
    )
    evaluate: bool = Field(
        default=True, description="Whether it is in metrics, tables and figures; members of an ensemble need not be."
    )
    in_tables: bool = Field(
        default=True, description="Whether it has rows in the tables and lines in the figures; its metrics are kept."
    )

    @model_validator(mode="after")
    def _combination(self) -> "MethodConfig":
        if methods.combines_members(self.kind) != (self.combines is not None):
            raise ValueError(
                f"kind '{self.kind}' combines fits of another method: say which under 'combines'"
                if self.combines is None
                else f"kind '{self.kind}' is fitted itself: 'combines' has no meaning for it"
            )
        if self.combines is not None and (self.seeds is not None or self.starts_from is not None):
            raise ValueError("the seeds of a combination are its 'members', and it starts from nothing else")
        return self


class SurfaceConfig(Model):
    """Figure 1: the validation NLL over log10 a and log10 b."""

    methods: tuple[Name, ...] = Field(
        default=(),
        description="Entries of `methods` that are shown, each with its first seed; none: all in tables.",
    )
    log10_a: tuple[float, float] = Field(default=(-2.0, 2.0), description="Range of log10 a.")
    log10_b: tuple[float, float] = Field(default=(-2.0, 7.0), description="Range of log10 b.")
    points: int = Field(default=61, ge=3, description="Grid points along each axis.")


class FiguresConfig(Model):
    """What the figures show."""

    surface: SurfaceConfig | None = Field(default=None, description="Figure 1.")
    recalibration_methods: tuple[Name, ...] = Field(
        default=(), description="Entries of `methods` in Figure 2, a page each; none: all in the tables."
    )


if TYPE_CHECKING:
    Dataset = DatasetConfig
    Backbone = BackboneConfig
    Method = MethodConfig
else:
    Generator = _by_kind(GeneratorConfig, generators.kinds(), "forceuq.data.generators")

    class _DatasetWithGenerator(DatasetConfig):
        generate: Generator | None = Field(
            default=None, description="Raw file made by the workflow itself, in the published format."
        )

    _DatasetWithGenerator.__name__ = "Dataset"
    Dataset = _by_kind(_DatasetWithGenerator, sources.kinds(), "forceuq.data.sources")
    Backbone = _by_kind(BackboneConfig, backbones.kinds(), "forceuq.backbones")
    Method = _by_kind(MethodConfig, methods.kinds(), "forceuq.methods")


class Configuration(Model):
    """A run of the benchmark."""

    run: Name = Field(description="Name of the run: its results are in `<results>/<run>/`.")
    results: str = Field(
        default="results", min_length=1, description="Folder of results and caches, shared by all runs."
    )
    seeds: Seeds = Field(default=(0,), description="Seeds of the fits, or these by data set.")
    device: Literal["cpu", "cuda"] | None = Field(
        default=None,
        description="Where backbones run and methods are trained, for every entry that has a `device` and does not"
        " give one. On cuda such a job asks a cluster for a GPU, and stops where it finds none. null: their defaults.",
    )
    datasets: dict[Name, Dataset] = Field(default={}, description="The data sets, by name.")
    backbone: Backbone | None = Field(default=None, description="The pretrained model.")
    features: FeaturesConfig = Field(default=FeaturesConfig(), description="The feature cache.")
    methods: dict[Name, Method] = Field(default={}, description="The methods, by name.")
    calibrations: Annotated[tuple[CalibrationKind, ...], AfterValidator(each_once)] = Field(
        default=CALIBRATION_KINDS, min_length=1, description="Post-hoc rescalings of the covariance."
    )
    bootstrap_draws: int = Field(
        default=400, ge=100, description="Draws of structures that say which methods differ (bold in the tables)."
    )
    figures: FiguresConfig = Field(default=FiguresConfig(), description="What the figures show.")
    compare_with_paper: bool = Field(
        default=False, description="Put the paper's own numbers beside ours in the tables."
    )
    train_backbone: SmallOrbTraining | None = Field(
        default=None, description="Train `forceuq-small`; only for config/backbone-small.yaml."
    )

    @model_validator(mode="before")
    @classmethod
    def _plain_values(cls, values: Any) -> Any:
        """Leave out what overlays took away; give ``device`` to every entry that has one and does not say."""
        if not isinstance(values, dict):
            return values
        left = without_nulls(values)
        device = left.get("device")
        # Any other is refused once, where it was given, and not again at every entry.
        return with_device(left, device) if device in ("cpu", "cuda") else left

    @field_validator("run")
    @classmethod
    def _own_folder(cls, value: str) -> str:
        if value.lower() == "cache":  # some file systems do not tell the case
            raise ValueError("the folder of this name holds what all runs share; take another")
        return value

    @field_validator("results")
    @classmethod
    def _no_wildcard(cls, value: str) -> str:
        if "{" in value or "}" in value:
            raise ValueError("braces stand for wildcards in a workflow's paths; take a folder without them")
        return value

    @field_validator("methods")
    @classmethod
    def _smaller_ensembles(cls, value: dict[str, MethodConfig]) -> dict[str, MethodConfig]:
        """Add the smaller ensembles that `sizes` asks for, as methods of their own."""
        added = {}
        for name, method in value.items():
            if (combination := method.combines) is None:
                continue
            for size in combination.sizes:
                smaller = combination.smaller(size)
                label = f"{method.label}, {size} members"
                entry = method.model_copy(update={"combines": smaller, "label": label, "in_tables": False})
                if value.get(key := smaller_ensemble(name, size), entry) != entry:
                    raise ValueError(f"methods.{key}: the name is that of a smaller '{name}'; take another")
                added[key] = entry
        return {**value, **added}

    @model_validator(mode="after")
    def _whole(self) -> "Configuration":
        if self.train_backbone is not None:
            return self
        for key in ("datasets", "backbone", "methods"):
            if not getattr(self, key):
                raise ValueError(f"'{key}' is missing: a benchmark needs data sets, a backbone and methods")
        check_methods(self)
        check_labels(self)
        check_shards(self.features, self.datasets)
        shown = {name: method for name, method in self.methods.items() if method.evaluate and method.in_tables}
        if not shown:
            raise ValueError("'methods' has nothing to show in the tables")
        for name in self.figures.surface.methods if self.figures.surface is not None else ():
            known("figures.surface.methods", name, shown)
        for name in self.figures.recalibration_methods:
            known("figures.recalibration_methods", name, shown)
        return self

    @cached_property
    def tasks(self) -> dict[tuple[str, str], Task]:
        """Every task by (data set, name), with all that it is evaluated on."""
        return joined_tasks(self.datasets)

    def seeds_of(self, method: str, dataset: str) -> tuple[int, ...]:
        """Return the seeds of a method on a data set; none where it is not fitted to it."""
        entry = self.methods[method]
        if entry.datasets is not None and dataset not in entry.datasets:
            return ()
        if entry.combines is not None:
            return tuple(range(len(self.members_of(method, dataset))))
        seeds = self.seeds if entry.seeds is None else entry.seeds
        return for_dataset(seeds, dataset, self.seeds) or ()

    def members_of(self, method: str, dataset: str) -> tuple[tuple[int, ...], ...]:
        """Return the members' seeds of each ensemble of a combination on a data set."""
        entry = self.methods[method]
        if entry.combines is None or (entry.datasets is not None and dataset not in entry.datasets):
            return ()
        return for_dataset(entry.combines.members, dataset) or ()


def smaller_ensemble(name: str, size: int) -> str:
    """Return the name of an ensemble's smaller version."""
    return f"{name}-{size}"
