"""Whatever is changed after a run is found, and named."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner

from forceuq.commands import app
from forceuq.errors import ConfigurationError, DataError
from forceuq.files import file_digest
from forceuq.provenance.audit import Report, audit
from forceuq.provenance.findings import Kind
from forceuq.provenance.jobs import recorded
from forceuq.provenance.ledger import read_ledger
from forceuq.provenance.schema import file_bytes, read_record, sealed
from tests.provenance.conftest import Tree

ROOT = Path(__file__).parents[2]
FIT = "bll/alloys/t/seed1"
# One file of each kind, relative to the results folder.
FILES = {
    "download": "cache/datasets/alloys/raw.json",
    "structures": "cache/datasets/alloys/structures.parquet",
    "weights": "cache/backbones/small/small.bin",
    "feature shard": "cache/features/small/alloys/train/part.bin",
    "fit": f"demo/fits/{FIT}/part.bin",
    "report": f"demo/fits/{FIT}/report.json",
    "prediction": f"demo/predictions/{FIT}/part.bin",
    "metrics": f"demo/metrics/{FIT}/part.bin",
    "merged metrics": "demo/metrics.parquet",
    "table": "demo/tables/table2.csv",
    "figure": "demo/figures/shift.png",
    "ledger": "demo/ledger.json",
    "record": f"demo/records/fit/{FIT}.json",
    "record of the cache": "cache/records/features/small/alloys/train.json",
    "record of a table": "demo/records/table2.json",
    "record of the ledger": "demo/records/ledger.json",
    "note": f"demo/records/.made/fits/{FIT}.json",
}


def kinds(report: Report) -> set[Kind]:
    return {finding.kind for finding in report.findings}


def flip(path: Path, rng: random.Random) -> None:
    """Flip one bit of one byte."""
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(content))


def reseal(path: Path, change: Callable[[dict], object]) -> str:
    """Edit a record and give it a digest that fits; return that."""
    values = orjson.loads(path.read_bytes())
    del values["digest"]
    change(values)
    values = sealed(values)
    path.write_bytes(file_bytes(values))
    return values["digest"]


def test_a_run_that_nobody_touched_is_verified(made: Tree) -> None:
    report = audit(made.run, ROOT)
    assert report.findings == []
    assert report.jobs == 4 + 4 * 3 + 5
    assert set(report.results) == {
        "demo/tables/table2.csv",
        "demo/tables/costs.csv",
        "demo/figures/shift.png",
        "demo/figures/shift.csv",
        "demo/ledger.json",
    }
    assert len(report.cells) == 2 * 2 * 2 * 4 + 2
    assert not any(report.results.values())
    assert not any(report.cells.values())
    assert report.root == read_ledger(made.results, "demo").root


@pytest.mark.parametrize("kind", FILES)
def test_a_flipped_bit_is_found(tree: Tree, kind: str) -> None:
    path = tree.results / FILES[kind]
    rng = random.Random(kind)
    original = path.read_bytes()
    for _ in range(3):
        flip(path, rng)
        report = audit(tree.run)
        assert Kind.ALTERED in kinds(report), f"{kind}: {path.read_bytes()!r}"
        assert FILES[kind] in {finding.path for finding in report.findings}
        path.write_bytes(original)
    assert audit(tree.run).findings == []


def test_a_record_that_tells_of_a_folder_that_is_not_there(tree: Tree) -> None:
    path = tree.results / FILES["record"]
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"demo/fits', b'"temo/fits'))
    assert path.read_bytes() != content
    report = audit(tree.run)
    assert FILES["record"] in {finding.path for finding in report.findings if finding.kind == Kind.ALTERED}


def test_a_flipped_bit_in_what_is_kept_is_found(tree: Tree) -> None:
    for folder in ("demo", "cache"):
        path = sorted((tree.results / folder / "records/.kept").iterdir())[0]
        flip(path, random.Random(0))
        (finding,) = audit(tree.run).grave
        assert finding.path == path.relative_to(tree.results).as_posix()
        flip(path, random.Random(0))


def test_only_what_follows_from_an_altered_file_is_broken(tree: Tree) -> None:
    flip(tree.results / f"demo/predictions/{FIT}/part.bin", random.Random(0))
    report = audit(tree.run)
    cells = {address for address, found in report.cells.items() if found}
    assert cells == {address for address in report.cells if address.startswith("table2:") and "BLL" in address}
    assert {name for name, found in report.results.items() if not found} == {"demo/tables/costs.csv"}


@pytest.mark.parametrize(
    "change",
    [
        lambda content: b"x" + content,
        lambda content: content + b"short\n",
        lambda content: content + b"long" + b",x" * 40 + b"\n",
        lambda content: content[:30],
        lambda content: b"",
        lambda content: b"\0" + content,
        lambda content: content + b"\xff",
        lambda content: content + b'"open',
    ],
)
def test_a_table_that_was_altered_is_named_and_has_no_cells(tree: Tree, change: Callable[[bytes], bytes]) -> None:
    for name in ("table2", "costs"):
        table = tree.run / f"tables/{name}.csv"
        content = table.read_bytes()
        table.write_bytes(change(content))
        report = audit(tree.run)
        assert [(f.kind, f.path) for f in report.findings] == [(Kind.ALTERED, f"demo/tables/{name}.csv")]
        assert report.results[f"demo/tables/{name}.csv"]
        assert {address.partition(":")[0] for address in report.cells} == {"table2", "costs"} - {name}
        assert any(f"the cells of demo/tables/{name}.csv: is not as its job" in what for what in report.unchecked)
        table.write_bytes(content)


@pytest.mark.parametrize("params", [{}, None, 5, "x", [["a"]], {"a": None}])
@pytest.mark.parametrize("name", ["table2", "costs", f"metrics/{FIT}", f"fit/{FIT}", "cache:download/alloys"])
def test_a_record_with_other_params_is_named_whatever_they_are(tree: Tree, name: str, params: Any) -> None:
    path = tree.record(name)
    values = orjson.loads(path.read_bytes())
    values["params"] = {key: params for key in values["params"]}
    path.write_bytes(file_bytes(values))
    report = audit(tree.run)
    assert [(f.kind, f.path) for f in report.findings] == [(Kind.ALTERED, path.relative_to(tree.results).as_posix())]
    if name != "costs":
        assert any(found for address, found in report.cells.items() if address.startswith("costs:")) == (
            name.startswith(("fit/", "cache:"))
        )


@pytest.mark.parametrize("odd", ["/abs", "../..", "", "\0", "x" * 5000, "demo/tables"])
@pytest.mark.parametrize("sealed_again", [False, True])
def test_a_record_that_tells_of_places_that_cannot_be_is_named(tree: Tree, odd: str, sealed_again: bool) -> None:
    path = tree.record(f"fit/{FIT}")
    content = path.read_bytes()

    def in_reference(values: dict) -> None:
        values["inputs"][0]["record"].update(path=odd, digest=odd)

    for change in (
        lambda values: values["code"]["modules"].update(forceuq=odd),
        lambda values: values["outputs"][0].update(path=odd, directory=False, files=None),
        lambda values: values["outputs"][0]["files"][0].update(path=odd),
        lambda values: values["inputs"][0].update(path=odd),
        in_reference,
    ):
        if sealed_again:
            reseal(path, change)
        else:
            values = orjson.loads(content)
            change(values)
            path.write_bytes(file_bytes(values))
        assert (Kind.ALTERED, f"demo/records/fit/{FIT}.json") in {(f.kind, f.path) for f in audit(tree.run).findings}
        path.write_bytes(content)


def test_an_edited_record_does_not_hide_from_the_cells_by_what_it_says_it_is_of(tree: Tree) -> None:
    path = tree.record(f"metrics/{FIT}")
    values = orjson.loads(path.read_bytes())
    values["wildcards"]["method"] = "other"
    path.write_bytes(file_bytes(values))
    cells = audit(tree.run).cells
    assert all(found for address, found in cells.items() if address.startswith("table2:") and "BLL" in address)


def test_a_table_whose_record_was_made_to_fit_it_has_no_cells_either(tree: Tree) -> None:
    table = tree.run / "tables/table2.csv"
    table.write_bytes(table.read_bytes() + b"long" + b",x" * 40 + b"\n")
    reseal(
        tree.record("table2"),
        lambda v: v["outputs"][0].update(sha256=file_digest(table), size=table.stat().st_size),
    )
    report = audit(tree.run)
    assert {f.path for f in report.grave} == {"demo/records/table2.json"}
    assert not any(address.startswith("table2:") for address in report.cells)


@pytest.mark.parametrize(
    "file", [f"demo/fits/{FIT}/part.bin", "demo/tables/table2.csv", "cache/datasets/alloys/raw.json"]
)
def test_a_file_that_is_gone_or_cut_short_is_found(tree: Tree, file: str) -> None:
    path = tree.results / file
    path.write_bytes(path.read_bytes()[:-1])
    assert (Kind.ALTERED, file) in {(f.kind, f.path) for f in audit(tree.run).findings}
    path.unlink()
    assert (Kind.MISSING, file) in {(f.kind, f.path) for f in audit(tree.run).findings}


@pytest.mark.parametrize("name", [f"fit/{FIT}", "cache:read_structures/alloys", "table2", "ledger"])
def test_a_record_that_is_gone_is_found(tree: Tree, name: str) -> None:
    tree.record(name).unlink()
    assert audit(tree.run).grave


@pytest.mark.parametrize(
    "file",
    [
        f"demo/fits/{FIT}/more.bin",
        "demo/tables/table9.csv",
        "demo/records/x.txt",
        "cache/features/small/alloys/train/y",
        "cache/features/small/alloys/train/sub/y",
        "cache/datasets/alloys/y",
        "demo/figures/sub/y",
    ],
)
def test_a_file_that_no_record_tells_of_is_found(tree: Tree, file: str) -> None:
    (tree.results / file).parent.mkdir(exist_ok=True)
    (tree.results / file).write_bytes(b"x")
    assert [(f.kind, f.path) for f in audit(tree.run).findings] == [(Kind.UNACCOUNTED, file)]


@pytest.mark.parametrize(
    "place",
    [
        "demo/tables2",
        "demo/tables/more",
        "demo/records/more",
        f"demo/fits/{FIT}/more",
        "cache/features/small/alloys/train/more",
        "cache/datasets/alloys/more",
    ],
)
def test_a_link_to_a_folder_elsewhere_is_found(tree: Tree, tmp_path: Path, place: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/x.csv").write_bytes(b"x")
    (tree.results / place).symlink_to(tmp_path / "elsewhere")
    assert [(f.kind, f.path) for f in audit(tree.run).findings] == [(Kind.UNACCOUNTED, place)]
    (tree.results / place).unlink()
    (tree.results / place).symlink_to("..")  # round in a circle
    assert [(f.kind, f.path) for f in audit(tree.run).findings] == [(Kind.UNACCOUNTED, place)]


@pytest.mark.parametrize("place", ["demo/fits", "cache/features/small", "cache/features/small/alloys/train"])
def test_results_may_lie_on_another_disk_and_are_looked_through(tree: Tree, tmp_path: Path, place: str) -> None:
    (tree.results / place).rename(tmp_path / "disk")
    (tree.results / place).symlink_to(tmp_path / "disk")
    assert audit(tree.run).findings == []
    (tmp_path / "disk/more").mkdir()
    (tmp_path / "disk/more/y").write_bytes(b"x")
    found = [(f.kind, f.path) for f in audit(tree.run).findings]
    # Folders of a cache in which no output of the run lies are another run's.
    assert found == ([] if place == "cache/features/small" else [(Kind.UNACCOUNTED, f"{place}/more/y")])


@pytest.mark.parametrize("name", [f"fit/{FIT}", "cache:download/alloys", f"metrics/{FIT}", "merge_metrics"])
def test_an_edited_record_breaks_the_chain_though_its_own_digest_fits(tree: Tree, name: str) -> None:
    path = tree.record(name)
    reseal(path, lambda values: values["params"].update(edited=True))
    report = audit(tree.run)
    name = path.relative_to(tree.results).as_posix()
    assert {(f.kind, f.path) for f in report.findings} == {(Kind.ALTERED, name)}
    assert report.results["demo/tables/table2.csv"]


def forge(tree: Tree, *, ledger: bool = False, all_of_it: bool = False) -> None:
    """Put another number into Table 2 and make its record fit, then the ledger, then the ledger's record."""
    table = tree.run / "tables/table2.csv"
    table.write_bytes(table.read_bytes().replace(b"0.01", b"0.02"))
    digest = reseal(tree.record("table2"), lambda v: v["outputs"][0].update(sha256=file_digest(table)))
    if ledger or all_of_it:
        path = tree.run / "ledger.json"
        reseal(path, lambda v: v["records"].update({"demo/records/table2.json": digest}))
    if all_of_it:

        def change(values: dict) -> None:
            values["outputs"][0].update(sha256=file_digest(path), size=path.stat().st_size)
            taken = next(each for each in values["inputs"] if each["path"].endswith("table2.csv"))
            taken.update(sha256=file_digest(table))
            taken["record"]["digest"] = digest

        reseal(tree.record("ledger"), change)


def test_a_forged_number_is_found_by_the_ledger(tree: Tree) -> None:
    forge(tree)
    assert {f.path for f in audit(tree.run).grave} >= {"demo/records/table2.json"}


def test_a_forged_ledger_is_found_by_its_record(tree: Tree) -> None:
    forge(tree, ledger=True)
    assert {f.path for f in audit(tree.run).grave} >= {"demo/ledger.json"}


def test_what_is_forged_throughout_is_found_by_a_root_that_was_published(tree: Tree) -> None:
    root = read_ledger(tree.results, "demo").root
    forge(tree, all_of_it=True)
    assert audit(tree.run).findings == [], "nothing inside the results can tell"
    (finding,) = audit(tree.run, root=root).findings
    assert (finding.kind, finding.path) == (Kind.ALTERED, "demo/ledger.json")


def table_again(tree: Tree) -> None:
    """Let the job of Table 2 run again, to another end."""
    table = tree.run / "tables/table2.csv"
    content = table.read_bytes()
    params = read_record(tree.record("table2")).params
    job = tree.job(
        "table2",
        "",
        params=params,
        input={"metrics": "demo/metrics.parquet"},
        output={"csv": "demo/tables/table2.csv"},
    )
    with recorded(job, tree.root):
        table.write_bytes(content.replace(b"0.01", b"0.02"))


def test_a_table_made_again_after_the_ledger_is_outdated_and_under_a_root_altered(tree: Tree) -> None:
    root = read_ledger(tree.results, "demo").root
    table_again(tree)
    record = "demo/records/table2.json"
    report = audit(tree.run)
    assert {(f.kind, f.path) for f in report.findings} == {
        (Kind.REMADE, record),
        (Kind.REMADE, "demo/tables/table2.csv"),
    }
    of_table = [found for address, found in report.cells.items() if address.startswith("table2:")]
    assert of_table
    assert all(of_table)
    assert report.results["demo/tables/table2.csv"]
    # So does a forger who sets the true record aside.
    report = audit(tree.run, root=root)
    assert [(f.kind, f.path) for f in report.grave] == [(Kind.ALTERED, record)]
    assert all(report.grave[0] in found for name, found in report.cells.items() if name.startswith("table2:"))
    tree.ledger()
    assert audit(tree.run).findings == []


def test_an_older_record_that_is_not_whole_vouches_for_nothing(tree: Tree) -> None:
    digest = read_record(tree.record("table2")).digest
    table_again(tree)
    older = tree.run / f"records/.superseded/{digest}.json"
    older.write_bytes(older.read_bytes().replace(b"alloys", b"ALLOYS", 1))
    assert (Kind.ALTERED, "demo/records/table2.json") in {(f.kind, f.path) for f in audit(tree.run).findings}


@pytest.mark.parametrize("name", ["aaa", "zzz"])
def test_a_second_record_of_a_table_does_not_stand_in_for_the_first(tree: Tree, name: str) -> None:
    table = tree.run / "tables/table2.csv"
    copy = tree.record(name)
    shutil.copy(tree.record("table2"), copy)
    # As a renamed rule leaves one behind: it tells of a file that another job made since.
    reseal(copy, lambda v: v["outputs"][0].update(sha256="0" * 64))
    (finding,) = [f for f in audit(tree.run).findings if "/.made/" not in f.path]
    assert (finding.kind, finding.path) == (Kind.CONFIGURATION, f"demo/records/{name}.json")
    table.write_bytes(table.read_bytes().replace(b"0.01", b"0.02"))
    reseal(copy, lambda v: v["outputs"][0].update(sha256=file_digest(table)))
    report = audit(tree.run)
    assert (Kind.ALTERED, "demo/tables/table2.csv") in {(f.kind, f.path) for f in report.findings}
    assert report.results["demo/tables/table2.csv"]


def test_the_ledgers_record_may_tell_of_nothing_else(tree: Tree) -> None:
    table = tree.run / "tables/table9.csv"
    table.write_bytes(b"x")

    def add(values: dict) -> None:
        output = {"name": "x", "path": "demo/tables/table9.csv", "sha256": file_digest(table), "size": 1}
        values["outputs"].append({**values["outputs"][0], **output})

    reseal(tree.record("ledger"), add)
    report = audit(tree.run)
    assert (Kind.CONFIGURATION, "demo/records/ledger.json") in {(f.kind, f.path) for f in report.findings}
    assert report.results["demo/tables/table9.csv"]


def test_an_input_made_again_with_the_same_content_leaves_the_chain_whole(tree: Tree) -> None:
    png, table = tree.run / "figures/shift.png", tree.run / "figures/shift.csv"
    before = read_record(tree.record("shift_figure")).digest
    same = png.read_bytes(), table.read_bytes()
    job = tree.job(
        "shift_figure",
        "",
        input={"metrics": "demo/metrics.parquet"},
        output={"png": "demo/figures/shift.png", "csv": "demo/figures/shift.csv"},
    )
    with recorded(job, tree.root):
        png.write_bytes(same[0])
        table.write_bytes(same[1])
    assert read_record(tree.record("shift_figure")).digest != before
    assert audit(tree.run).findings == []


def test_an_input_made_again_with_other_content_is_named(tree: Tree) -> None:
    tree.fit("swag", 0)
    report = audit(tree.run)
    assert kinds(report) == {Kind.REMADE}
    assert {f.path for f in report.findings} == {
        "demo/metrics/swag/alloys/t/seed0",
        "demo/fits/swag/alloys/t/seed0",
        *(f"demo/records/{rule}/swag/alloys/t/seed0.json" for rule in ("fit", "predict", "metrics")),
    }


def test_what_the_run_no_longer_has_is_of_another_configuration(tree: Tree) -> None:
    tree.fit("extra", 0)
    report = audit(tree.run)
    assert kinds(report) == {Kind.CONFIGURATION}
    assert len(report.findings) == 3


def test_another_configuration_is_named_key_by_key(tree: Tree) -> None:
    planned = {
        path.relative_to(tree.results).as_posix(): dict(read_record(path).params)
        for path in tree.results.glob("*/records/*/**/*.json")
        if "/." not in path.as_posix()
    }
    planned |= {f"demo/records/{n}.json": read_record(tree.record(n)).params for n in ("table2", "costs", "ledger")}
    planned |= {f"demo/records/{n}.json": read_record(tree.record(n)).params for n in ("shift_figure", "merge_metrics")}
    assert audit(tree.run, planned=planned).findings == []
    # A download stays when only what is said of it changes.
    download = planned["cache/records/download/alloys.json"]
    download["source"] = {**download["source"], "licence": "MIT", "urls": ["https://mirror.example.org/alloys"]}
    assert audit(tree.run, planned=planned).findings == []
    planned[f"demo/records/fit/{FIT}.json"] = {"options": {"learning_rate": 0.002}, "code": "other"}
    (finding,) = audit(tree.run, planned=planned).findings
    assert (finding.kind, finding.path) == (Kind.CONFIGURATION, f"demo/records/fit/{FIT}.json")
    assert "0.001" in finding.detail
    assert "0.002" in finding.detail


def test_other_code_than_todays_is_named_and_a_comment_is_not(tree: Tree, tmp_path: Path) -> None:
    project = tmp_path / "today"
    shutil.copytree(ROOT / "forceuq", project / "forceuq", ignore=shutil.ignore_patterns("__pycache__"))
    file = project / "forceuq/files.py"
    text = file.read_text()
    file.write_text(text.replace('"""Read a JSON file."""', '"""Other words."""') + "\n# a comment\n")
    with (project / "forceuq/provenance/jobs.py").open("a") as handle:
        handle.write("\nX = 1\n")
    assert audit(tree.run, project).findings == []
    file.write_text(text + "\nX = 1\n")
    report = audit(tree.run, project)
    assert kinds(report) == {Kind.CODE}
    assert all("forceuq/files.py" in finding.detail for finding in report.findings)


def test_a_dirty_tree_is_named(tree: Tree) -> None:
    def dirty(values: dict) -> None:
        values["git"] = {"commit": "c" * 40, "dirty": True, "diff": None}

    reseal(tree.record("ledger"), dirty)
    report = audit(tree.run)
    assert [(f.kind, f.path) for f in report.findings] == [(Kind.DIRTY, "demo/records/ledger.json")]


def test_a_run_without_records_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such run"):
        audit(tmp_path / "results/demo")
    (tmp_path / "results/demo").mkdir(parents=True)
    with pytest.raises(DataError, match="no records"):
        audit(tmp_path / "results/demo")


class TestCommand:
    """Exit codes and what is printed."""

    def run(self, tree: Tree, *arguments: str):
        command = ["audit", str(tree.run), "--project", str(ROOT), "--no-configuration", *arguments]
        return CliRunner().invoke(app, command)

    def test_verified(self, tree: Tree) -> None:
        done = self.run(tree)
        assert done.exit_code == 0, done.output
        assert "34 table cells: 34 verified" in done.output
        assert "not checked: whether the configuration is today's" in done.output

    def test_altered_in_json(self, tree: Tree) -> None:
        flip(tree.results / FILES["figure"], random.Random(0))
        done = self.run(tree, "--json", "--root", "0" * 64)
        assert done.exit_code == 1
        values = json.loads(done.stdout)
        assert [finding["path"] for finding in values["findings"]] == ["demo/figures/shift.png", "demo/ledger.json"]
        assert values["results"]["demo/figures/shift.png"] == [0]
        assert self.run(tree, "--allow", "altered").exit_code == 0

    def test_outdated(self, tree: Tree) -> None:
        tree.fit("swag", 0)
        done = self.run(tree)
        assert done.exit_code == 3
        assert "or from inputs that were made again since (5)" in done.output

    def test_no_such_project(self, tree: Tree, tmp_path: Path) -> None:
        done = CliRunner().invoke(app, ["audit", str(tree.run), "--project", str(tmp_path)])
        assert "not the project's folder" in str(done.exception)

    @pytest.mark.parametrize("content", [None, b"a: [", b"5", b"\xff"])
    def test_a_configuration_that_cannot_be_read(self, tree: Tree, tmp_path: Path, content: bytes | None) -> None:
        file = tmp_path / "mine.yaml"
        if content is not None:
            file.write_bytes(content)
        done = CliRunner().invoke(app, ["audit", str(tree.run), "--project", str(ROOT), "--configfile", str(file)])
        assert isinstance(done.exception, ConfigurationError)
        assert str(done.exception).startswith(f"{file}: ")
        assert "Traceback" not in str(done.exception)

    def test_no_such_run(self, tree: Tree) -> None:
        shutil.rmtree(tree.run)
        assert isinstance(self.run(tree).exception, DataError)
