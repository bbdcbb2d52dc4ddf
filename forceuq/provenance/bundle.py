"""A run as one archive that a paper can attach: its results, their records, configuration and lock file."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from forceuq.errors import ConfigurationError, DataError
from forceuq.files import file_digest, whole_file
from forceuq.provenance.archive import (
    CONFIGURATION,
    LOCKS,
    RESULTS,
    WORKFLOW,
    BundledFile,
    files_of_artefact,
    locks_of,
    scripts_of,
)
from forceuq.provenance.chain import Chain, load_chain
from forceuq.provenance.ledger import Ledger, named_records, read_ledger
from forceuq.provenance.places import KEPT, LEDGER, RECORDS, Folder
from forceuq.provenance.withholding import withheld

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
        DataError: the run is not finished, a file is not what its record says, or the archive cannot be written.
        ConfigurationError: the package that writes RO-Crates is not installed.
    """
    try:
        # Here only: whoever verifies or audits does without it.
        from forceuq.provenance.crate import write_crate
    except ImportError as error:
        raise ConfigurationError(
            f"an archive is written with a package that is not here ({error}); pip install 'forceuq[workflow]'"
        ) from error
    if output.is_dir():
        raise DataError("is a folder; give the archive's file name with -o", file=output)
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
    _add_workflow(bundle, chain, records, project, workflow)
    _add_lock(bundle, chain, records, project)
    with tempfile.TemporaryDirectory() as temporary:
        configuration = Path(temporary, CONFIGURATION)
        text = yaml.safe_dump(ledger.configuration, sort_keys=False, allow_unicode=True)
        configuration.write_text(text, encoding="utf-8")
        _add(bundle, configuration, CONFIGURATION, "every value of the run's configuration")
        try:
            with whole_file(output) as archive:
                write_crate(archive, chain, ledger, bundle.files, bundle.withheld, main=f"{WORKFLOW}/{workflow[0]}")
        except OSError as error:
            raise DataError(f"cannot be written ({error})", file=output) from error
    return bundle


def _sound(chain: Chain, ledger: Ledger) -> None:
    for path, named in named_records(chain, ledger).items():
        if path not in chain.records:
            raise DataError("is missing; 'forceuq audit' says more", file=chain.results / path)
        if chain.records[path].digest != named.digest:
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


def _add_workflow(bundle: Bundle, chain: Chain, records: list[str], project: Path, workflow: tuple[str, ...]) -> None:
    """Add the workflow's definition, with its scripts as the jobs ran them."""
    scripts = scripts_of(chain.records[path] for path in records)
    for name in workflow:
        ran, what, file = scripts.get(name, {}), "the workflow's definition", project / name
        if not ran or (file.is_file() and file_digest(file) in ran):
            _add(bundle, file, f"{WORKFLOW}/{name}", what)
        elif len(ran) == 1:
            ((digest, folder),) = ran.items()
            source = Folder(chain.results, folder).records / KEPT / digest
            _add(bundle, source, f"{WORKFLOW}/{name}", what, digest)
        else:
            bundle.left_out.append(
                f"{WORKFLOW}/{name} (changed while the run was made; the records hold what each ran)"
            )


def _add_lock(bundle: Bundle, chain: Chain, records: list[str], project: Path) -> None:
    """Add the lock files that the jobs found, if they are still those."""
    for name, found in sorted(locks_of(chain.records[path] for path in records).items()):
        file = project / LOCKS / name
        if len(found) == 1 and file.is_file() and file_digest(file) in found:
            _add(bundle, file, f"{LOCKS}/{name}", "versions of all packages", *found)
        else:
            bundle.left_out.append(f"{LOCKS}/{name} (changed since; the records hold each job's package list)")
