"""A run as an archive: what is in it, what must not be, and that any change to it is found."""

import json
import os
import random
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import rocrate
from toy_runs import LOCK, STRUCTURES, Toy
from typer.testing import CliRunner

from forceuq.commands import app
from forceuq.errors import DataError
from forceuq.files import file_digest
from forceuq.provenance.audit import audit
from forceuq.provenance.bundle import Bundle, write_bundle
from forceuq.provenance.chain import load_chain
from forceuq.provenance.comparison import compare_runs
from forceuq.provenance.digests import bytes_digest
from forceuq.provenance.ledger import read_ledger
from forceuq.provenance.schema import file_bytes, sealed
from forceuq.provenance.verification import verify_bundle
from forceuq.provenance.withholding import withheld


def bundle(toy: Toy, archive: Path, *, predictions: bool = False) -> Bundle:
    workflow = ("Snakefile", "rules/data.smk", "workflow_scripts/run.py")
    return write_bundle(toy.results / "a", archive, project=toy.project, workflow=workflow, predictions=predictions)


@pytest.fixture(scope="session")
def archive(finished: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive of a run, with its predictions; not to be changed."""
    path = tmp_path_factory.mktemp("archive") / "a.zip"
    bundle(finished, path, predictions=True)
    return path


def rewritten(archive: Path, target: Path, change: Callable[[dict[str, bytes]], object]) -> Path:
    """Return an archive with some of its files changed."""
    with zipfile.ZipFile(archive) as opened:
        files = {name: opened.read(name) for name in opened.namelist()}
    change(files)
    with zipfile.ZipFile(target, "w") as opened:
        for name, content in files.items():
            opened.writestr(name, content)
    return target


def test_it_holds_results_records_configuration_and_workflow(archive: Path, finished: Toy) -> None:
    with zipfile.ZipFile(archive) as opened:
        names = set(opened.namelist())
        content = {name: opened.read(name) for name in names}
    for name in (
        "ro-crate-metadata.json",
        "configuration.yaml",
        "workflow/Snakefile",
        "workflow/rules/data.smk",
        "workflow/workflow_scripts/run.py",
        LOCK,
        "results/a/metrics.parquet",
        "results/a/tables/table2.md",
        "results/a/ledger.json",
        "results/a/predictions/free/seed0/id.parquet",
        "results/cache/records/download/nd-12345678.json",
    ):
        assert name in names
    assert not any(name.startswith(("results/a/fits", "results/b")) for name in names)
    assert read_ledger(finished.results, "a").root.encode() in content["ro-crate-metadata.json"]


def test_it_never_holds_structures(archive: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        for name in opened.namelist():
            assert STRUCTURES not in opened.read(name), name
            assert not name.startswith(("results/cache/datasets", "results/cache/features")), name


def test_licences_decide_about_predictions(finished: Toy, tmp_path: Path) -> None:
    made = bundle(finished, tmp_path / "with.zip", predictions=True)
    reasons = {path.split("/")[2]: reason for path, reason in made.withheld.items()}
    assert reasons == {
        "nd": "the licence of nd, CC-BY-NC-ND-4.0, allows no derivatives",
        "unstated": "the licence of unstated is not stated in the configuration",
    }
    assert len(made.withheld) == 4
    with zipfile.ZipFile(tmp_path / "with.zip") as opened:
        held = [name for name in opened.namelist() if "/predictions/" in name and "/records/" not in name]
        assert b"CC-BY-NC-ND-4.0, allows no derivatives" in opened.read("ro-crate-metadata.json")
    assert held == [f"results/a/predictions/free/seed{seed}/id.parquet" for seed in (0, 1)]
    made = bundle(finished, tmp_path / "without.zip")
    assert made.withheld == {}
    assert not any("/predictions/" in file.name and "/records/" not in file.name for file in made.files)


def test_the_licence_is_the_one_that_the_runs_configuration_states(finished: Toy) -> None:
    """A download stays when the text of its licence changes, and other runs may have stated another."""
    chain = load_chain(finished.results, "a")
    configuration = read_ledger(finished.results, "a").configuration

    def reasons(**licences: str | None) -> dict[str, str | None]:
        datasets = {name: {"download": {"licence": licence}} for name, licence in licences.items()}
        now = {**configuration, "datasets": {**configuration["datasets"], **datasets}}
        return {name: withheld(chain, f"a/records/predict/{name}_0.json", now) for name in licences}

    assert reasons(free="CC-BY-NC-ND-4.0", unstated="MIT", nd="CC-BY-4.0") == {
        "free": "the licence of free, CC-BY-NC-ND-4.0, allows no derivatives",
        "unstated": None,
        "nd": None,
    }
    # What the configuration does not state, the record of the download tells.
    assert withheld(chain, "a/records/predict/nd_0.json", {}) is not None
    assert withheld(chain, "a/records/predict/free_0.json", {}) is None


def test_what_is_not_as_recorded_is_not_bundled(toy: Toy, tmp_path: Path) -> None:
    table = toy.results / "a/tables/table2.md"
    table.write_bytes(b"| other |")
    with pytest.raises(DataError, match=r"table2\.md: is not what its record says"):
        bundle(toy, tmp_path / "a.zip")
    table.unlink()
    with pytest.raises(DataError, match=r"table2\.md: cannot be read"):
        bundle(toy, tmp_path / "a.zip")
    toy.job("a", "table2", ["a/metrics.parquet"], {"a/tables/table2.md": b"| new |"})
    with pytest.raises(DataError, match="not the one that the run's ledger names"):
        bundle(toy, tmp_path / "a.zip")
    (toy.results / "a/ledger.json").unlink()
    with pytest.raises(DataError, match=r"ledger\.json"):
        bundle(toy, tmp_path / "a.zip")
    assert not list(tmp_path.glob("*.zip")), "an archive was left"


def test_an_archive_is_verified_without_the_project(archive: Path, tmp_path: Path, finished: Toy) -> None:
    shutil.copy(archive, tmp_path / "elsewhere.zip")
    found = verify_bundle(tmp_path / "elsewhere.zip", root=read_ledger(finished.results, "a").root)
    assert found.faults == []
    assert (found.run, found.jobs) == ("a", 6 + 12 + 2)
    # Raw files and structures, fits, predictions that may not be passed on.
    assert found.absent == 6 + 6 + 4
    assert found.uncovered == ["workflow/Snakefile", "workflow/rules/data.smk"]
    assert verify_bundle(archive, root="0" * 64).faults == [f"the root digest is {found.root}, not {'0' * 64}"]


def test_a_changed_byte_in_any_file_is_found(archive: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        names = [name for name in opened.namelist() if name != "ro-crate-metadata.json"]
    kinds = {}  # one file of each kind: records of a rule, kept sources, results
    for name in names:
        kinds.setdefault(name.split("/")[3] if "/records/" in name else name, name)
    assert len(kinds) > 10
    for name in kinds.values():

        def flip(files: dict[str, bytes], name: str = name) -> None:
            content = bytearray(files[name])
            content[len(content) // 2] ^= 1
            files[name] = bytes(content)

        faults = verify_bundle(rewritten(archive, tmp_path / "changed.zip", flip)).faults
        assert any(name in fault for fault in faults), name


def test_an_edit_with_a_new_checksum_in_the_metadata_is_found(archive: Path, tmp_path: Path) -> None:
    name = "results/a/tables/table2.md"

    def edit(files: dict[str, bytes]) -> None:
        (tmp_path / "x").write_bytes(b"| better |")
        old, new = file_digest_of(files[name], tmp_path), file_digest(tmp_path / "x")
        files[name] = b"| better |"
        files["ro-crate-metadata.json"] = files["ro-crate-metadata.json"].replace(old.encode(), new.encode())

    faults = verify_bundle(rewritten(archive, tmp_path / "changed.zip", edit)).faults
    assert faults == [f"{name}: not what its record says"]


def file_digest_of(content: bytes, folder: Path) -> str:
    (folder / "content").write_bytes(content)
    return file_digest(folder / "content")


def put(files: dict[str, bytes], name: str, content: bytes) -> None:
    """Put a file into an archive, and into its metadata."""
    metadata = json.loads(files["ro-crate-metadata.json"])
    facts = {"@id": name, "@type": "File", "sha256": bytes_digest(content)}
    metadata["@graph"] = [entity for entity in metadata["@graph"] if entity["@id"] != name] + [facts]
    files.update({name: content, "ro-crate-metadata.json": json.dumps(metadata).encode()})


def with_another_table(files: dict[str, bytes], record: str, target: str) -> None:
    """Add a table, and a record that tells of it, made from another record."""
    put(files, "results/a/tables/new.md", b"| better |")
    values = json.loads(files[f"results/a/records/{record}.json"])
    del values["digest"]
    output = {"path": "a/tables/new.md", "sha256": bytes_digest(b"| better |"), "size": 10}
    added = {**values["outputs"][0], **output}
    values["outputs"] = [*values["outputs"], added] if record == target else [added]
    put(files, f"results/a/records/{target}.json", file_bytes(sealed(values)))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (
            lambda files: with_another_table(files, "table2/x", "table2/new"),
            "results/a/records/table2/new.json: the ledger does not name it: it was added",
        ),
        (
            lambda files: with_another_table(files, "ledger", "ledger"),
            "results/a/records/ledger.json: the ledger does not name it: it was added",
        ),
        (
            lambda files: put(files, "results/cache/records/x.json", files["results/a/records/table2/x.json"]),
            "results/cache/records/x.json: no record tells of it",
        ),
        (lambda files: put(files, "results/a/records/.kept/x", b""), "results/a/records/.kept/x: no record tells"),
        (lambda files: put(files, "README.md", b"better"), "README.md: belongs to no part of an archive"),
        (
            lambda files: put(files, "workflow/workflow_scripts/run.py", b"print(2)"),
            "workflow/workflow_scripts/run.py: not the script that the jobs of the run ran",
        ),
        (lambda files: put(files, LOCK, b"a==2\n"), f"{LOCK}: not a lock file that the jobs of the run found"),
        (lambda files: put(files, "envs/x.txt", b""), "envs/x.txt: not a lock file that the jobs of the run found"),
    ],
)
def test_what_was_added_or_altered_with_its_metadata_is_found(
    archive: Path, tmp_path: Path, change: Any, fault: str
) -> None:
    root = verify_bundle(archive).root
    faults = verify_bundle(rewritten(archive, tmp_path / "changed.zip", change), root=root).faults
    assert [found.startswith(fault) for found in faults] == [True]


@pytest.mark.parametrize("name", ["results/a/tables/table2.md", "results/a/./tables/table2.md"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_files_of_one_name_are_found(archive: Path, tmp_path: Path, name: str) -> None:
    content = zipfile.ZipFile(archive).read("results/a/tables/table2.md")
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as opened:
        opened.writestr(name, b"| better |")
        with zipfile.ZipFile(archive) as original:
            for each in original.namelist():
                opened.writestr(each, original.read(each))
    assert zipfile.ZipFile(tmp_path / "two.zip").read("results/a/tables/table2.md") == content
    faults = verify_bundle(tmp_path / "two.zip").faults
    assert "results/a/tables/table2.md: 2 files have this name" in faults


def test_scripts_go_in_as_the_jobs_ran_them(toy: Toy, tmp_path: Path) -> None:
    script = toy.project / "workflow_scripts/run.py"
    ran = script.read_bytes()
    script.write_bytes(b"print(2)\n")
    bundle(toy, tmp_path / "a.zip")
    assert zipfile.ZipFile(tmp_path / "a.zip").read("workflow/workflow_scripts/run.py") == ran
    assert verify_bundle(tmp_path / "a.zip").faults == []


def test_flipped_bits_of_an_archive_are_faults_or_an_error(archive: Path, tmp_path: Path) -> None:
    content, rng = archive.read_bytes(), random.Random(0)
    damaged = tmp_path / "damaged.zip"
    # In the packed bytes of the first files, and in the directory at the end.
    places = [rng.randrange(2000) for _ in range(40)] + [len(content) - 1 - rng.randrange(300) for _ in range(20)]
    said = []
    for place in places:
        damaged.write_bytes(content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :])
        try:
            verify_bundle(damaged)
        except DataError as error:
            said.append(str(error))
    assert len(said) > 10
    assert all(message.startswith(f"{damaged}: ") for message in said)


@pytest.mark.parametrize("metadata", [b"[]", b"{}", b'{"@graph": [1]}', b'{"@graph": [{"@id": [], "@type": 1}]}'])
def test_other_metadata_is_an_error(archive: Path, tmp_path: Path, metadata: bytes) -> None:
    def change(files: dict[str, bytes]) -> None:
        files["ro-crate-metadata.json"] = metadata

    with pytest.raises(DataError, match="no archive of a run"):
        verify_bundle(rewritten(archive, tmp_path / "changed.zip", change))


def test_a_configuration_that_is_no_text_is_a_fault(archive: Path, tmp_path: Path) -> None:
    path = rewritten(archive, tmp_path / "changed.zip", lambda files: put(files, "configuration.yaml", b"\xff: 1"))
    assert any(fault.startswith("configuration.yaml: cannot be read") for fault in verify_bundle(path).faults)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda values: values.pop("records"), "records"),
        (lambda values: values.pop("configuration"), "configuration"),
        (lambda values: values.update(records=[1]), "records"),
        (lambda values: values.update(records={"a": 1}), "records"),
        (lambda values: values.update(configuration="["), "configuration"),
        (lambda values: values.update(configuration="5"), "configuration"),
        (lambda values: values.update(configuration=5), "configuration"),
    ],
)
def test_a_ledger_of_another_form_is_an_error(toy: Toy, archive: Path, tmp_path: Path, change: Any, said: str) -> None:
    path = toy.results / "a/ledger.json"
    values = json.loads(path.read_bytes())
    del values["digest"]
    change(values)
    path.write_bytes(file_bytes(sealed(values)))
    for read in (
        lambda: read_ledger(toy.results, "a"),
        lambda: bundle(toy, tmp_path / "a.zip"),
        lambda: compare_runs(toy.results / "a", toy.results / "b"),
    ):
        with pytest.raises(DataError, match=rf"ledger\.json: .*{said}.*run the workflow"):
            read()
    assert any(finding.path == "a/ledger.json" for finding in audit(toy.results / "a").grave)
    put_ledger = rewritten(
        archive, tmp_path / "changed.zip", lambda files: put(files, "results/a/ledger.json", path.read_bytes())
    )
    assert any("results/a/ledger.json" in fault and said in fault for fault in verify_bundle(put_ledger).faults)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda files: files.pop("results/a/tables/table2.md"), "results/a/tables/table2.md: missing"),
        (lambda files: files.update({"results/a/tables/x.md": b"x"}), "results/a/tables/x.md: not in the metadata"),
        (
            lambda files: files.pop("results/cache/records/download/nd-12345678.json"),
            "results/cache/records/download/nd-12345678.json: missing, and the ledger names it",
        ),
        (lambda files: files.update({"configuration.yaml": b"run: b"}), "configuration.yaml: not the configuration"),
    ],
)
def test_missing_and_added_files_are_found(archive: Path, tmp_path: Path, change: Any, fault: str) -> None:
    faults = verify_bundle(rewritten(archive, tmp_path / "changed.zip", change)).faults
    assert any(fault in found for found in faults), faults


def test_what_is_no_archive_of_a_run_is_an_error(archive: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.zip"
    broken.write_bytes(b"no zip")
    with pytest.raises(DataError, match="no archive of a run"):
        verify_bundle(broken)
    rewritten(archive, broken, lambda files: files.pop("ro-crate-metadata.json"))
    with pytest.raises(DataError, match="no archive of a run"):
        verify_bundle(broken)
    rewritten(archive, broken, lambda files: files.pop("results/a/ledger.json"))
    with pytest.raises(DataError, match="ledgers of 0 runs"):
        verify_bundle(broken)
    rewritten(archive, broken, lambda files: files.update({"../outside": b"x"}))
    with pytest.raises(DataError, match="outside"):
        verify_bundle(broken)
    assert not (tmp_path.parent / "outside").exists()


def test_the_commands(finished: Toy, tmp_path: Path) -> None:
    target = tmp_path / "a.zip"
    run = str(finished.results / "a")
    made = CliRunner().invoke(
        app, ["bundle", run, "-o", str(target), "--predictions", "--project", str(finished.project)]
    )
    assert made.exit_code == 0, made.output
    assert "withheld: a/predictions/nd/seed0: the licence of nd" in made.output
    said = CliRunner().invoke(app, ["verify", str(target)])
    assert said.exit_code == 0
    assert "a: verified." in said.output
    assert "2 files of the workflow's definition have no record" in said.output
    said = CliRunner().invoke(app, ["verify", str(target), "--root", "0"])
    assert said.exit_code == 1
    with pytest.raises(DataError, match="--project"):
        CliRunner().invoke(app, ["bundle", run, "--project", str(tmp_path)], catch_exceptions=False)


def test_no_command_but_bundle_needs_the_packages_of_the_workflow(archive: Path, finished: Toy, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    block = "import sys; sys.modules.update(dict.fromkeys(['rocrate', 'snakemake', 'psutil', 'filelock', 'torch']))"

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        code = f"{block}; from forceuq.commands import main; sys.argv = {['forceuq', *arguments]!r}; main()"
        return subprocess.run(
            [sys.executable, "-c", code],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            check=False,
        )

    first, second = (str(finished.results / name) for name in ("a", "b"))
    assert "a: verified." in run("verify", str(archive)).stdout
    for arguments in (
        ["audit", first, "--allow", "code", "--allow", "configuration"],
        ["trace", f"{first}/tables/table2.md"],
        ["compare", first, second],
    ):
        done = run(*arguments)
        assert done.returncode == 0, done.stderr
    done = run("bundle", first, "-o", str(tmp_path / "a.zip"), "--project", str(finished.project))
    assert done.returncode == 2
    assert "pip install 'forceuq[workflow]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_where_an_archive_cannot_be_written(finished: Toy, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder; give the archive's file name"):
        bundle(finished, tmp_path)
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(DataError, match=r"a\.zip: cannot be written"):
        bundle(finished, tmp_path / "file" / "a.zip")


def test_the_public_validator_accepts_it(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against every requirement of the Provenance Run Crate profile, without the network.

    The one document that the validator would fetch is RO-Crate's context. The rocrate package ships that of RO-Crate
    1.3; version 1.1 has the same terms, those of Bioschemas under their former names.
    """
    from rocrate_validator import models, services
    from rocrate_validator.utils.http import HttpRequester

    shipped = json.loads((Path(rocrate.__file__).parent / "data/ro-crate.jsonld").read_text())["@context"]
    former = {
        term: meaning.replace("https://bioschemas.org/terms/", "https://bioschemas.org/")
        if isinstance(meaning, str)
        else meaning
        for term, meaning in shipped.items()
    }
    asked = []

    def get(self: HttpRequester, url: str, **_: object) -> SimpleNamespace:
        asked.append(url)
        document = {"@context": former}
        headers = {"Content-Type": "application/ld+json"}
        return SimpleNamespace(status_code=200, headers=headers, json=lambda: document, text=json.dumps(document))

    monkeypatch.setattr(HttpRequester, "get", get, raising=False)
    settings = models.ValidationSettings(
        rocrate_uri=str(archive),
        profile_identifier="provenance-run-crate",
        requirement_severity=models.Severity.REQUIRED,
        offline=True,
        cache_path=tmp_path / "http",
        skip_availability_check=True,
    )
    result = services.validate(settings)
    assert [f"{issue.check.identifier}: {issue.message}" for issue in result.get_issues()] == []
    assert result.passed()
    assert set(asked) == {"https://w3id.org/ro/crate/1.1/context"}
