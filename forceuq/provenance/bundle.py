"""A run as one archive that a paper can attach: its results, their records, configuration and lock file."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from forceuq.errors import DataError
from forceuq.files import file_digest, whole_file
from forceuq.provenance.chain import Chain, load_chain
from forceuq.provenance.crate import BundledFile, write_crate
from forceuq.provenance.ledger import Ledger, read_ledger
from forceuq.provenance.places import KEPT, LEDGER, RECORDS, Folder
from forceuq.provenance.schema import Artefact
from forceuq.provenance.withholding import withheld

CONFIGURATION = "configuration.yaml"
RESULTS = "results"
# Folders of a run whose files are large: never in, and in only when asked.
LARGE, PREDICTIONS = ("fits", "statistics"), "predictions"


@dataclass
class Bundle:
    """What went into an archive, and what did not."""

    files: list[BundledFile] = field(default_factory=list)
    withheld: dict[str, str] = field(default_factory=dict)
    """Result that may not be passed on -> why."""
    left_out: list[str] = field(default_factory=list)
    """Results that are not in, of which the records state the digests."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def write_bundle(
    folder: Path, output: Path, *, project: Path, workflow: tuple[str, ...], predictions: bool = False
) -> Bundle:
    """Write a finished run as a zip archive: an RO-Crate of the Provenance Run Crate profile.

    It holds no structures and no features of any data set: nothing of the caches but their records. Predictions,
    which hold the reference forces of single atoms, are in only on request, and never those on a data set whose
    licence forbids derivatives or is not stated.

    Args:
        folder: the run's folder of results.
        output: the archive.
        project: the project's folder, for the lock file and the workflow's definition.
        workflow: files of that definition, relative to the project, the main one first.
        predictions: whether the predictions go in.

    Raises:
        DataError: the run is not finished, or a file is not what its record says.
    """
    results, run = folder.resolve().parent, folder.resolve().name
    ledger, chain = read_ledger(results, run), load_chain(results, run)
    _sound(chain, ledger)
    bundle = Bundle()
    # The ledger cannot name the record of the job that wrote it.
    records = [*sorted(ledger.records), chain.makers[f"{run}/{LEDGER}"]]
    for path in records:
        _add(bundle, results / path, f"{RESULTS}/{path}", "record of a job")
        _add_outputs(bundle, chain, path, ledger.configuration if predictions else None)
    _add_kept(bundle, chain, records)
    for name in workflow:
        _add(bundle, project / name, f"workflow/{name}", "the workflow's definition")
    _add_lock(bundle, chain, records, project)
    with tempfile.TemporaryDirectory() as temporary:
        configuration = Path(temporary, CONFIGURATION)
        text = yaml.safe_dump(ledger.configuration, sort_keys=False, allow_unicode=True)
        configuration.write_text(text, encoding="utf-8")
        _add(bundle, configuration, CONFIGURATION, "every value of the run's configuration")
        with whole_file(output) as archive:
            write_crate(archive, chain, ledger, bundle.files, bundle.withheld, main=f"workflow/{workflow[0]}")
    return bundle


def _sound(chain: Chain, ledger: Ledger) -> None:
    if (path := f"{chain.run}/{LEDGER}") not in chain.makers:
        raise DataError("has no record; run the workflow to its end", file=chain.results / path)
    for finding in chain.findings:
        if finding.record in ledger.records:
            raise DataError(f"{finding.detail}; 'forceuq audit' says more", file=chain.results / finding.path)
    for path, digest in ledger.records.items():
        record = chain.records.get(path)
        if record is None:
            raise DataError("is missing; 'forceuq audit' says more", file=chain.results / path)
        if record.digest != digest:
            raise DataError(
                "is not the one that the run's ledger names: its job ran again since; run the workflow to its end",
                file=chain.results / path,
            )


def _add(bundle: Bundle, source: Path, name: str, what: str, sha256: str | None = None) -> None:
    try:
        found, size = file_digest(source), source.stat().st_size
    except OSError as error:
        raise DataError(f"cannot be read ({error})", file=source) from error
    if sha256 not in (None, found):
        raise DataError(f"is not what its record says: SHA-256 {found}, not {sha256}", file=source)
    bundle.files.append(BundledFile(name, source, found, size, what))


def _add_outputs(bundle: Bundle, chain: Chain, path: str, licences: Mapping[str, Any] | None) -> None:
    """Add what a job of the run made; predictions as the licences in a configuration allow, None: not at all."""
    record = chain.records[path]
    if record.run != chain.run:  # of the caches: structures, features, weights
        bundle.left_out += [output.path for output in record.outputs]
        return
    for output in record.outputs:
        kind = output.path.split("/")[1]
        if kind in LARGE or (kind == PREDICTIONS and licences is None):
            bundle.left_out.append(output.path)
        elif licences is not None and kind == PREDICTIONS and (reason := withheld(chain, path, licences)) is not None:
            bundle.withheld[output.path] = reason
        else:
            for name, sha256 in files_of_artefact(output).items():
                _add(bundle, chain.results / name, f"{RESULTS}/{name}", f"output of {record.rule}", sha256)


def files_of_artefact(artefact: Artefact) -> dict[str, str]:
    """Return the files of an output, relative to the results folder -> SHA-256."""
    if artefact.files is None:
        return {artefact.path: artefact.sha256}
    return {f"{artefact.path}/{file.path}": file.sha256 for file in artefact.files}


def _add_kept(bundle: Bundle, chain: Chain, records: list[str]) -> None:
    """Add the sources, differences to the commit and package lists that the records name by their digests."""
    wanted = set()
    for path in records:
        record = chain.records[path]
        named = {*record.code.modules.values(), record.software.packages, *filter(None, [record.git.diff])}
        wanted |= {(record.run, digest) for digest in named}
    for folder, digest in sorted(wanted):
        name = f"{folder}/{RECORDS}/{KEPT}/{digest}"
        source = Folder(chain.results, folder).records / KEPT / digest
        _add(bundle, source, f"{RESULTS}/{name}", "source or package list, by its digest", digest)


def _add_lock(bundle: Bundle, chain: Chain, records: list[str], project: Path) -> None:
    """Add the lock files that the jobs found, if they are still those."""
    locks = {(s.lock, s.lock_sha256) for path in records if (s := chain.records[path].software).lock}
    names = [name for name, _ in locks]
    for name, sha256 in sorted(locks, key=str):
        file = project / "envs" / str(name)
        if names.count(name) == 1 and file.is_file() and file_digest(file) == sha256:
            _add(bundle, file, f"envs/{name}", "versions of all packages", sha256)
        else:
            bundle.left_out.append(f"envs/{name} (changed since; the records hold each job's package list)")
