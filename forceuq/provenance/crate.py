"""A run's records told in RO-Crate's terms: the Provenance Run Crate profile, version 0.5, on RO-Crate 1.1."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rocrate.model.contextentity import ContextEntity
from rocrate.rocrate import ROCrate

from forceuq.provenance.archive import BundledFile
from forceuq.provenance.chain import Chain
from forceuq.provenance.ledger import Ledger
from forceuq.provenance.schema import Artefact, Record
from forceuq.sources import configured_sources

PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": "Process Run Crate",
    "https://w3id.org/ro/wfrun/workflow/0.5": "Workflow Run Crate",
    "https://w3id.org/ro/wfrun/provenance/0.5": "Provenance Run Crate",
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": "Workflow RO-Crate",
}
LICENCE = "https://spdx.org/licenses/MIT"
# Terms that RO-Crate's own context does not have.
TERMS = {
    "sha256": "https://w3id.org/ro/terms/workflow-run#sha256",
    "resourceUsage": "https://w3id.org/ro/terms/workflow-run#resourceUsage",
}
MEDIA_TYPES = {
    ".csv": "text/csv",
    ".json": "application/json",
    ".md": "text/markdown",
    ".parquet": "application/vnd.apache.parquet",
    ".pdf": "application/pdf",
    ".png": "image/png",
    ".py": "text/x-python",
    ".smk": "text/plain",
    ".tex": "application/x-tex",
    ".txt": "text/plain",
    ".yaml": "application/yaml",
}


def write_crate(
    output: Path,
    chain: Chain,
    ledger: Ledger,
    files: Sequence[BundledFile],
    withheld: Mapping[str, str],
    main: str,
) -> None:
    """Write files as a zip archive with the metadata that says how they came to be.

    Each job is an action with the tool that it ran (a rule), what it took and what it made; a file that is not in the
    archive stands there with its digest alone.

    Args:
        output: the archive.
        chain: the records.
        ledger: of the run.
        files: what goes in.
        withheld: results that may not be passed on, and why.
        main: name of the workflow's main file among them.
    """
    crate = _Crate(chain, ledger, {file.name: file for file in files}, main)
    crate.describe(withheld)
    crate.rocrate.write_zip(output)


class _Crate:
    def __init__(self, chain: Chain, ledger: Ledger, files: Mapping[str, BundledFile], main: str) -> None:
        self.rocrate = ROCrate(version="1.1")
        self.rocrate.metadata.extra_terms.update(TERMS)
        self._chain = chain
        self._ledger = ledger
        self._files = {name: self._file(file) for name, file in files.items() if name != main}
        self._workflow = self.rocrate.add_workflow(
            files[main].source,
            main,
            main=True,
            lang="snakemake",
            properties={
                "@type": ["File", "SoftwareSourceCode", "ComputationalWorkflow", "HowTo"],
                "name": f"forceuq: {chain.run}",
                **_facts(files[main]),
            },
        )
        self._absent: dict[str, ContextEntity] = {}

    def describe(self, withheld: Mapping[str, str]) -> None:
        """Add everything but the files."""
        jobs = {path: self._chain.records[path] for path in sorted(self._ledger.records)}
        self._root(jobs, withheld)
        engine = self._entity("#snakemake", "SoftwareApplication", name="Snakemake", url="https://snakemake.github.io")
        by_rule: dict[str, list[tuple[str, Record]]] = defaultdict(list)
        for path, record in jobs.items():
            by_rule[record.rule].append((path, record))
        steps, tools, controls = [], [], []
        for position, (rule, members) in enumerate(by_rule.items(), start=1):
            tool = self._entity(f"#tool-{rule}", "SoftwareApplication", name=rule, description=_script(members[0][1]))
            step = self._entity(f"#step-{rule}", "HowToStep", name=rule, position=str(position), workExample=tool)
            tools.append(tool)
            steps.append(step)
            for path, record in members:
                action = self._action(path, record, tool)
                controls.append(
                    self._entity(
                        f"#control-{path}", "ControlAction", name=f"orchestrate {path}", instrument=step, object=action
                    )
                )
        self._workflow["hasPart"] = tools
        self._workflow["step"] = steps
        whole = self._entity(
            "#run",
            "CreateAction",
            name=f"Run of {self._chain.run}",
            instrument=self._workflow,
            startTime=min(record.usage.started for record in jobs.values()),
            endTime=max(record.usage.ended for record in jobs.values()),
            object=[self._files["configuration.yaml"], *self._sources()],
            result=[entity for name, entity in self._files.items() if _is_result(name, self._chain.run)],
        )
        self.rocrate.root_dataset["mentions"] = whole
        self._entity(
            "#organization", "OrganizeAction", name="Run by Snakemake", instrument=engine, object=controls, result=whole
        )

    def _root(self, jobs: Mapping[str, Record], withheld: Mapping[str, str]) -> None:
        crate = self.rocrate
        crate.name = f"forceuq: the run '{self._chain.run}'"
        told = "".join(f" Not passed on: {path}, because {reason}." for path, reason in withheld.items())
        crate.description = (
            "Tables, figures and metrics of a benchmark of the uncertainty of forces, with the records of the "
            f"{len(jobs)} jobs that they follow from. 'forceuq verify' checks it. Root digest of the records: "
            f"{self._ledger.root}.{told}"
        )
        crate.root_dataset["datePublished"] = max(record.usage.ended for record in jobs.values())
        crate.root_dataset["license"] = self._entity(LICENCE, "CreativeWork", name="MIT", description="MIT licence")
        crate.root_dataset["identifier"] = f"sha256:{self._ledger.root}"
        crate.root_dataset["conformsTo"] = [
            self._entity(url, "CreativeWork", name=name, version=url.rpartition("/")[2])
            for url, name in PROFILES.items()
        ]

    def _action(self, path: str, record: Record, tool: ContextEntity) -> ContextEntity:
        usage = [
            self._entity(
                f"#usage-{path}-{name}",
                "PropertyValue",
                name=name,
                propertyID=f"{TERMS['resourceUsage']}-{name}",
                unitCode=f"https://qudt.org/vocab/unit/{unit}",
                value=str(getattr(record.usage, name)),
            )
            for name, unit in (("seconds", "SEC"), ("cpu_seconds", "SEC"), ("peak_memory_bytes", "BYTE"))
        ]
        return self._entity(
            f"#{path}",
            "CreateAction",
            name=path.removesuffix(".json"),
            instrument=tool,
            startTime=record.usage.started,
            endTime=record.usage.ended,
            object=self._artefacts(record.inputs),
            result=self._artefacts(record.outputs),
            resourceUsage=usage,
            subjectOf=self._files[f"results/{path}"],
        )

    def _artefacts(self, artefacts: Sequence[Artefact]) -> list[Any]:
        entities = []
        for artefact in artefacts:
            inside = [f"results/{artefact.path}"]
            if artefact.directory:
                inside = [name for name in self._files if name.startswith(f"results/{artefact.path}/")]
            entities += [self._files[name] for name in inside if name in self._files] or [self._not_here(artefact)]
        return entities

    def _not_here(self, artefact: Artefact) -> ContextEntity:
        key = f"#sha256:{artefact.sha256}"
        if key not in self._absent:
            self._absent[key] = self._entity(
                key,
                "CreativeWork",
                name=artefact.path,
                sha256=artefact.sha256,
                contentSize=str(artefact.size),
                description="Not in this archive.",
            )
        return self._absent[key]

    def _sources(self) -> list[ContextEntity]:
        entities: list[ContextEntity] = []
        for source in configured_sources(self._ledger.configuration):
            facts = {"url": source.url, "sha256": source.sha256, "license": source.licence, "identifier": source.doi}
            given = {key: value for key, value in facts.items() if value is not None}
            given.update(name=source.name, description=source.kind)
            entities.append(self._entity(f"#source-{len(entities)}", "CreativeWork", **given))
        return entities

    def _file(self, file: BundledFile) -> Any:
        facts = {"name": file.name, "description": file.what, **_facts(file)}
        return self.rocrate.add_file(file.source, file.name, properties=facts)

    def _entity(self, identifier: str, kind: str, **properties: Any) -> ContextEntity:
        plain = {key: value for key, value in properties.items() if not _is_entity(value)}
        entity = self.rocrate.add(ContextEntity(self.rocrate, identifier, {"@type": kind, **plain}))
        for key, value in properties.items():
            if _is_entity(value):
                # One value stands alone, by RO-Crate's recommendation.
                entity[key] = value[0] if isinstance(value, list) and len(value) == 1 else value
        return entity


def _is_entity(value: Any) -> bool:
    return not isinstance(value, str)


def _facts(file: BundledFile) -> dict[str, str]:
    media = MEDIA_TYPES.get(Path(file.name).suffix)
    return {"sha256": file.sha256, "contentSize": str(file.size), **({"encodingFormat": media} if media else {})}


def _is_result(name: str, run: str) -> bool:
    return name.startswith(f"results/{run}/") and not name.startswith(f"results/{run}/records/")


def _script(record: Record) -> str:
    scripts = [name for name in record.code.modules if "/" in name]
    return f"Runs {', '.join(scripts)}" if scripts else "A job of the workflow"
