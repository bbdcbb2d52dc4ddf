"""A configuration that cannot be run says which key, which value and what was probably meant."""

import copy
import json
from pathlib import Path

import pytest
import yaml
from conftest import copy_project
from snakemake.utils import update_config

from forceuq.configuration import Configuration, load_configuration, read_configuration, refuse_repeated_keys
from forceuq.configuration.schema import commented_defaults, json_schema
from forceuq.data.download import Source
from forceuq.data.splits import PartRef
from forceuq.errors import ConfigurationError
from forceuq.tables import paper_values

ROOT = Path(__file__).parents[2]
DEMO = yaml.safe_load((ROOT / "config/demo.yaml").read_text())


def changed(path: str, value):
    """Return the demo's configuration with one key set."""
    config = copy.deepcopy(DEMO)
    *above, last = path.split(".")
    here = config
    for step in above:
        here = here[step]
    here[last] = value
    return config


@pytest.mark.parametrize("name", ["demo", "rmd17", "mptrj", "paper", "backbone-small"])
def test_shipped_configurations_are_valid(name):
    assert load_configuration(yaml.safe_load((ROOT / f"config/{name}.yaml").read_text())).run == name


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("sedes", [1], r"sedes: unknown key; did you mean 'seeds'"),
        ("methods.bll-mse.kind", "bl", r"methods\.bll-mse\.kind: unknown kind 'bl'; did you mean 'bll'|bll"),
        ("methods.bll-mse.options.projektion", "mse", r"bll-mse\.options\.projektion: unknown key; .*projection"),
        ("methods.bll-mse.options.projection", "msee", r"methods\.bll-mse\.options\.projection: 'msee' .*'mse'"),
        ("methods.bll-mse.options.learning_rate", -1, r"methods\.bll-mse\.options\.learning_rate: .*-1"),
        ("methods.bll-mse.starts_from", "bll-nlm", r"starts_from: there is no 'bll-nlm'; did you mean 'bll-nlml'"),
        ("methods.bll-nlml.starts_from", "bll-nlml-evidence", r"is a circle"),
        (
            "methods.bll-nlml.options.max_epochs",
            7,
            r"evidence\.starts_from: .*\"max_epochs\": 7.*; or drop starts_from",
        ),
        ("methods.swag.starts_from", "bll-mse", r"methods\.swag\.starts_from: .* one of kind 'mse_head', not 'bll'"),
        (
            "methods.lora.starts_from",
            "bll-mse",
            r"methods\.lora\.starts_from: a fit of kind 'lora' starts from no other",
        ),
        ("calibrations", ["decoupld"], r"calibrations\[0\]: 'decoupld' .*'decoupled'"),
        ("seeds", [1, 1], r"seeds: .*twice"),
        ("seeds", 3, r"  seeds: 3 is no list; write \[3\]$"),
        ("methods.bll-mse.options", None, r"  methods\.bll-mse\.options: is empty; give a mapping of keys, or leave"),
        ("methods.bll-mse", "bll", r"  methods\.bll-mse: 'bll' is no mapping of keys$"),
        ("calibrations", None, r"  calibrations: is empty; give a list, or leave it out$"),
        ("seeds", [], r"  seeds: List should have at least 1 item"),
        ("device", "gpu", r":\n  device: 'gpu' is not valid; did you mean 'cpu'\?$"),
        ("figures.surface.methods", ["bll"], r":\n  figures\.surface\.methods: there is no 'bll'; did you mean"),
        ("seeds", [-1], r"seeds\[0\]: .*greater than or equal to 0 \(it is -1\)"),
        ("seeds", {"alloys": [-1], "molecules": [0]}, r"seeds\.alloys\[0\]: .*equal to 0"),
        ("methods.gp-rbf.seeds", [0, 0], r"methods\.gp-rbf\.seeds: \[0, 0\] names something twice"),
        ("methods.gp-rbf.seeds", [0, -3], r"methods\.gp-rbf\.seeds\[1\]: .*equal to 0 \(it is -3\)"),
        ("methods.gp-rbf.seeds", {"alloys": [2, 2]}, r"methods\.gp-rbf\.seeds\.alloys: \[2, 2\] names something twice"),
        ("methods.lora-ensemble.combines.members", [[0, 1], [0, 1]], r"lora-ensemble\.combines\.members: .*twice"),
        ("methods.lora-ensemble.combines.members", [[0, -1]], r"members\[0\]\[1\]: .*equal to 0"),
        (
            "methods.lora-ensemble.combines.members",
            {"alloys": [[0, 1], [0, 1]], "molecules": [[0, 1]]},
            r"members\.alloys: .*twice",
        ),
        ("figures.surface.methods", ["swog"], r"figures\.surface\.methods: there is no 'swog'"),
        ("datasets.molecules.kind", "rmd71", r"datasets\.molecules\.kind: unknown kind 'rmd71'; .*'rmd17'"),
        ("datasets.molecules.generate", None, r"exactly one of 'download' and 'generate'; neither"),
        ("datasets.molecules.options.training_molecules", ["acetaldehide"], r"acetaldehyde"),
        ("datasets.alloys.options", {"fractions": [0.8, 0.3, 0.1]}, r"datasets\.alloys\.options"),
        ("backbone.options.architecture", "orb-v4", r"backbone\.options\.architecture: 'orb-v4'"),
        (
            "features",
            {"shards": {"moleculs": 2}},
            r"features\.shards: there is no 'moleculs'; did you mean 'molecules'",
        ),
        ("features", {"shards": {"alloys": {"trian": 2}}}, r"features\.shards\.alloys: there is no 'trian'; .*'train'"),
        ("run", "a b", r"run: .*'a b'"),
        ("run", "cache", r"run: .*all runs share; take another \(it is 'cache'\)"),
        ("results", "res{x}", r"results: braces .*take a folder without them \(it is 'res\{x\}'\)"),
        ("methods", {}, r"'methods' is missing"),
        ("methods.swag.datasets", [{"alloys": None}], r"methods\.swag\.datasets\[0\]: .*string"),
        ("datasets.alloys.evaluate_with", [["molecules"]], r"datasets\.alloys\.evaluate_with\[0\]: .*string"),
    ],
)
def test_faults_are_named(path, value, message):
    with pytest.raises(ConfigurationError, match=message):
        load_configuration(changed(path, value))


@pytest.mark.parametrize("path", ["features", "methods.swag.options"])
def test_faults_are_named_where_a_device_is_spread(path):
    with pytest.raises(ConfigurationError, match=rf"{path}: 'x' is no mapping of keys"):
        load_configuration({**changed(path, "x"), "device": "cpu"})


def test_a_wrong_entry_is_told_once():
    with pytest.raises(ConfigurationError) as caught:
        load_configuration(changed("seeds", [-1]))
    assert str(caught.value).splitlines()[1:] == ["  seeds[0]: Input should be greater than or equal to 0 (it is -1)"]
    with pytest.raises(ConfigurationError, match=r"seeds: .*at least 1 item"):
        load_configuration(changed("seeds", []))


def test_a_key_given_twice_is_refused_with_its_lines(tmp_path):
    file = tmp_path / "overlay.yaml"
    file.write_text(
        "run: twice\n"
        "methods:\n"
        "  bll-a: {kind: bll, label: A}\n"
        "  bll-b: &other {kind: bll, label: B}\n"
        "  bll-a:\n"
        "    kind: bll\n"
        "    label: C\n"
        "    label: D\n"
        "  bll-c: *other\n"
        "run: again\n"
    )
    with pytest.raises(ConfigurationError) as caught:
        refuse_repeated_keys([ROOT / "config/demo.yaml", file])
    named = [line.split(" is given")[0] for line in str(caught.value).splitlines()]
    assert sorted(named) == [f"{file}, line 10: 'run'", f"{file}, line 5: 'bll-a'", f"{file}, line 8: 'label'"]
    assert "(first in line 3)" in str(caught.value)
    with pytest.raises(ConfigurationError, match=r"missing\.yaml: cannot be read"):
        refuse_repeated_keys([tmp_path / "missing.yaml"])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a: {b: 1}\nc: {b: 2}\n",
        '{"a": {"b": 1},\n "b": [{"a": 1}, {"a": 2}]}',
        "1: a\n'1': b",
        '{"label": "\\ud83d\\ude00"}',
    ],
)
def test_keys_that_only_look_alike_are_not_refused(tmp_path, text):
    (tmp_path / "file.yaml").write_text(text)
    refuse_repeated_keys([tmp_path / "file.yaml", *(ROOT / "config").rglob("*.yaml")])


@pytest.mark.workflow
def test_json_that_is_indented_by_tabs_is_read(tmp_path):
    (tmp_path / "run.json").write_text('{\n\t"run": "a",\n\t"seeds": [0]\n}\n')
    assert read_configuration(tmp_path / "run.json") == {"run": "a", "seeds": [0]}


def test_a_key_given_twice_stops_before_any_job(tmp_path):
    project = copy_project(tmp_path)
    project.config.write_text("bootstrap_draws: 100\nbootstrap_draws: 200\n")
    done = project.snakemake("--dry-run", check=False)
    assert done.returncode != 0
    assert "tiny.yaml, line 2: 'bootstrap_draws' is given a second time (first in line 1)" in done.stdout + done.stderr


def ensemble(**changes):
    """Return the demo's configuration with an ensemble of BLLs."""
    entry = {"kind": "ensemble", "label": "E", "combines": {"method": "bll-mse", "members": [[0, 1], [1, 2]]}}
    return {**changed("methods.ensemble", {**entry, **changes}), "seeds": [0, 1, 2]}


def test_each_ensemble_is_a_seed():
    config = load_configuration(ensemble())
    assert config.seeds_of("ensemble", "alloys") == (0, 1)
    assert config.seeds_of("bll-mse", "alloys") == (0, 1, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"combines": None}, r"methods\.ensemble: .*say which under 'combines'"),
        ({"combines": {"method": "bll-ms", "members": [[0, 1]]}}, r"no 'bll-ms'; did you mean 'bll-mse'"),
        ({"combines": {"method": "ensemble", "members": [[0, 1]]}}, r"'ensemble' is a combination itself"),
        ({"combines": {"method": "bll-mse", "members": [[0, 7]]}}, r"'bll-mse' has no seeds \[7\]"),
        ({"combines": {"method": "bll-mse", "members": [[1, 1]]}}, r"\[1, 1\] is not an ensemble"),
        ({"combines": {"method": "bll-mse", "members": [[1]]}}, r"\[1\] is not an ensemble"),
        ({"combines": {"method": "bll-mse", "members": [[0, 1, 2]], "sizes": [3]}}, r"sizes \[3\]: .*from 2 to 2"),
        ({"combines": {"method": "bll-mse", "members": [[0, 1, 2], [0, 1]], "sizes": [2]}}, r"same number of seeds"),
        (
            {"combines": {"method": "bll-mse", "members": [[0, 1, 2], [0, 1, 3]], "sizes": [2]}},
            r"same first 2 members",
        ),
        ({"seeds": [0]}, r"seeds of a combination are its 'members'"),
        ({"kind": "bll"}, r"'combines' has no meaning"),
        ({"evaluate": "perhaps"}, r"methods\.ensemble\.evaluate: .*perhaps"),
    ],
)
def test_faults_of_an_ensemble_are_named(changes, message):
    with pytest.raises(ConfigurationError, match=message):
        load_configuration(ensemble(**changes))


def test_what_is_shown_must_be_evaluated():
    config = ensemble()
    config["figures"]["recalibration_methods"] = ["bll-nlml-evidence"]
    load_configuration(config)
    for key in ("evaluate", "in_tables"):
        hidden = json.loads(json.dumps(config))
        hidden["methods"]["bll-nlml-evidence"][key] = False
        with pytest.raises(ConfigurationError, match=r"recalibration_methods: there is no 'bll-nlml-evidence'"):
            load_configuration(hidden)


@pytest.mark.parametrize(
    ("path", "label", "message"),
    [
        ("methods.gp-matern52.label", "GP, RBF", r"methods\.gp-matern52\.label: 'GP, RBF' .* methods\.gp-rbf too"),
        ("methods.swag.label", "Deep ensemble, 2 members", r"methods\.deep-ensemble-2\.label: .* methods\.swag too"),
        ("datasets.molecules.label", "TM23-like", r"datasets\.molecules\.label: 'TM23-like' .* datasets\.metals too"),
    ],
)
def test_labels_tell_rows_apart(path, label, message):
    with pytest.raises(ConfigurationError, match=message):
        load_configuration(changed(path, label))


def test_what_is_not_evaluated_may_share_a_label():
    config = load_configuration(changed("methods.lora.label", DEMO["methods"]["finetuned"]["label"]))
    assert config.methods["lora"].label == config.methods["finetuned"].label
    load_configuration(changed("methods.lora.label", DEMO["methods"]["lora-ensemble"]["label"]))


def test_sizes_make_smaller_ensembles_that_are_in_no_table():
    combines = {"method": "bll-mse", "members": [[0, 1, 2], [2, 1, 0]], "sizes": [2]}
    config = load_configuration(ensemble(combines=combines))
    smaller = config.methods["ensemble-2"]
    assert smaller.combines is not None
    assert smaller.combines.members == ((0, 1), (2, 1))
    assert (smaller.evaluate, smaller.in_tables, smaller.label) == (True, False, "E, 2 members")
    assert config.seeds_of("ensemble-2", "alloys") == (0, 1)
    taken = ensemble(combines=combines)
    taken["methods"]["ensemble-2"] = {"kind": "bll", "label": "B"}
    with pytest.raises(ConfigurationError, match=r"ensemble-2: the name is that of a smaller 'ensemble'"):
        load_configuration(taken)


def test_null_takes_an_entry_away():
    left = {"alloys", "metals", "ternaries"}
    assert set(load_configuration(changed("datasets.molecules", None)).datasets) == left


def overlaid(name: str, overlay: dict) -> Configuration:
    """Return a shipped configuration with an overlay, as Snakemake lays one over the other."""
    values = yaml.safe_load((ROOT / f"config/{name}.yaml").read_text())
    update_config(values, copy.deepcopy(overlay))
    return load_configuration(values)


@pytest.mark.parametrize("name", ["paper", "mptrj"])
def test_a_sharded_data_set_is_taken_away_by_one_null(name):
    config = overlaid(name, {"datasets": {"tm23": None}})
    assert "tm23" not in config.datasets
    assert set(config.features.shards) == {"mptrj", "alex-val-s"}
    assert list(config.tasks["mptrj", "mptrj"].evaluate) == ["id", "near", "mid", "far", "alex-val-s"]


def test_what_is_said_of_a_data_set_goes_with_it():
    # What is fitted to it alone is named by whoever takes it away.
    overlay: dict = {"datasets": {"rmd17": None}, "methods": {"gp-rbf": None, "gp-matern52": None}}
    config = overlaid("paper", overlay)
    assert config.seeds == {"mptrj": (0, 1, 2, 3, 4)}
    assert config.methods["lora"].seeds == {"mptrj": tuple(range(9))}
    assert [len(config.members_of("lora-ensemble", name)) for name in ("mptrj", "rmd17")] == [3, 0]
    with pytest.raises(ConfigurationError, match=r"methods\.gp-rbf\.datasets: there is no 'rmd17'"):
        overlaid("paper", {"datasets": {"rmd17": None}})
    # Otherwise it would become one that is trained on.
    with pytest.raises(ConfigurationError, match=r"datasets\.tm23\.evaluate_with: there is no 'mptrj'"):
        overlaid("paper", {"datasets": {"mptrj": None}})


def test_lists_of_data_sets_lose_one():
    values = yaml.safe_load((ROOT / "config/paper.yaml").read_text())
    values["datasets"]["tm23"]["evaluate_with"] = ["mptrj", "rmd17"]
    values["methods"]["gp-rbf"]["datasets"] = ["mptrj", "rmd17"]
    values["datasets"]["rmd17"] = values["methods"]["gp-matern52"] = None
    config = load_configuration(values)
    assert config.datasets["tm23"].evaluate_with == ("mptrj",)
    assert config.methods["gp-rbf"].datasets == ("mptrj",)


def test_null_takes_away_entries_by_data_set_and_part():
    overlay = {
        "features": {"shards": {"tm23": None, "mptrj": {"val": None}}},
        "methods": {
            "lora": {"seeds": {"rmd17": None}},
            "lora-ensemble": {"datasets": ["mptrj"], "combines": {"members": {"rmd17": None}}},
        },
    }
    values = yaml.safe_load((ROOT / "config/paper.yaml").read_text())
    config = overlaid("paper", overlay)
    assert config.features.shards_of("tm23", "all") == config.features.shards_of("mptrj", "val") == 1
    assert config.features.shards_of("mptrj", "train") == values["features"]["shards"]["mptrj"]["train"]
    assert config.seeds_of("lora", "rmd17") == (0, 1, 2)
    assert config.members_of("lora-ensemble", "rmd17") == ()


@pytest.mark.parametrize(
    ("overlay", "message"),
    [
        ({"features": {"shards": {"tm32": 2}}}, r"features\.shards: there is no 'tm32'; did you mean 'tm23'"),
        ({"seeds": {"rmd71": [5]}}, r"seeds: there is no 'rmd71'; did you mean 'rmd17'"),
        ({"methods": {"lora": {"seeds": {"rmd71": [5]}}}}, r"lora\.seeds: there is no 'rmd71'"),
        ({"methods": {"blip": {"datasets": ["mptrj", "rmd71"]}}}, r"blip\.datasets: there is no 'rmd71'"),
    ],
)
def test_a_name_that_never_was_is_an_error_beside_one_that_was_taken_away(overlay, message):
    with pytest.raises(ConfigurationError, match=message):
        overlaid("paper", {**overlay, "datasets": {"alex-val-s": None}})


def test_a_data_set_joins_the_tasks_of_another_by_one_entry():
    config = load_configuration(DEMO)
    assert {dataset for dataset, _ in config.tasks} == {"alloys", "molecules"}
    evaluate = config.tasks["alloys", "mptrj"].evaluate
    assert list(evaluate) == ["id", "near", "mid", "far", "metals", "ternaries"]
    assert evaluate["metals"] == (PartRef("metals", "all"),)
    assert list(config.tasks["molecules", "acetaldehyde"].evaluate) == ["id", "ood"]
    # A data set with tasks of its own loses them, and all its parts are evaluated.
    config = load_configuration(changed("datasets.molecules.evaluate_with", ["alloys"]))
    assert {dataset for dataset, _ in config.tasks} == {"alloys"}
    joined = config.tasks["alloys", "mptrj"].evaluate["molecules"]
    assert len(joined) == 5 * 3
    assert PartRef("molecules", "furan-val") in joined
    assert config.datasets["molecules"].identity == load_configuration(DEMO).datasets["molecules"].identity


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("datasets.metals.evaluate_with", [], r"datasets\.metals: nothing is trained on it; say .*'evaluate_with'"),
        ("datasets.metals.evaluate_with", ["aloys"], r"evaluate_with: there is no 'aloys' .* mean 'alloys'"),
        ("datasets.metals.evaluate_with", ["ternaries"], r"evaluate_with: there is no 'ternaries' that is trained on"),
        ("datasets.id", {**DEMO["datasets"]["metals"]}, r"datasets\.id: 'alloys' has a split of this name"),
        ("datasets.validation", {**DEMO["datasets"]["metals"]}, r"datasets\.validation: 'alloys' has a split"),
        ("methods.bll-mse.datasets", ["molecule"], r"bll-mse\.datasets: there is no 'molecule'; .*'molecules'"),
        ("methods.bll-mse.datasets", ["metals"], r"bll-mse\.datasets: there is no 'metals'"),
        ("methods.bll-mse.seeds", {"aloys": [1]}, r"bll-mse\.seeds: there is no 'aloys'; did you mean 'alloys'"),
        ("methods.bll-mse.seeds", {"alloys": ["x"]}, r"bll-mse\.seeds\.alloys\[0\]: .*'x'"),
        ("methods.bll-mse.seeds", "x", r"bll-mse\.seeds: .*'x'"),
        ("seeds", {"alloys": [0, 1]}, r"seeds: none for the data set 'molecules'"),
        ("seeds", {"alloys": [0, 0], "molecules": [1]}, r"seeds\.alloys: .*twice"),
        ("methods.bll-nlml.datasets", ["alloys"], r"starts_from: 'bll-nlml' has no seeds .* on 'molecules'"),
        ("methods.finetuned.datasets", ["alloys"], r"combines\.members: 'finetuned' has no seeds .* on 'molecules'"),
        (
            "methods.deep-ensemble.combines.members",
            {"alloys": [[0, 1, 2, 3, 4]]},
            r"deep-ensemble\.combines\.members: none for 'molecules'",
        ),
    ],
)
def test_faults_between_data_sets_and_methods_are_named(path, value, message):
    with pytest.raises(ConfigurationError, match=message):
        load_configuration(changed(path, value))


def test_seeds_and_members_by_data_set():
    config = load_configuration(yaml.safe_load((ROOT / "config/paper.yaml").read_text()))
    seeds = {name: [len(config.seeds_of(name, data)) for data in ("mptrj", "rmd17")] for name in config.methods}
    assert seeds == {
        "bll-nlml": [5, 3],
        "bll-nlml-evidence": [5, 3],
        "blip": [3, 0],
        "mse-head": [3, 0],
        "swag": [3, 0],
        "lora": [9, 3],
        "lora-ensemble": [3, 1],
        "gp-rbf": [0, 3],
        "gp-matern52": [0, 3],
    }
    assert config.members_of("lora-ensemble", "rmd17") == ((0, 1, 2),)
    assert config.members_of("lora-ensemble", "mptrj")[2] == (6, 7, 8)


def test_the_whole_papers_configuration_is_that_of_its_halves():
    paper, mptrj, rmd17 = (yaml.safe_load((ROOT / f"config/{n}.yaml").read_text()) for n in ("paper", "mptrj", "rmd17"))
    assert paper["datasets"] == mptrj["datasets"] | rmd17["datasets"]
    assert paper["backbone"] == mptrj["backbone"] == rmd17["backbone"]
    assert paper["features"] == mptrj["features"]
    for name, method in paper["methods"].items():
        for half in (mptrj, rmd17):
            if name in half["methods"]:
                keys = ("kind", "options", "starts_from")
                assert [method.get(k) for k in keys] == [half["methods"][name].get(k) for k in keys], name


def test_the_papers_table_is_matched():
    """Each of its rows is a data set's kind and a split of the whole paper's configuration."""
    config = load_configuration(yaml.safe_load((ROOT / "config/paper.yaml").read_text()))
    splits = dict.fromkeys(
        f"{config.datasets[data].kind}/{split}" for (data, _), task in config.tasks.items() for split in task.evaluate
    )
    assert [name for name in splits if name in paper_values()["table2"]] == list(paper_values()["table2"])
    assert list(splits) == [
        *(f"mptrj/{split}" for split in ("id", "near", "mid", "far", "tm23", "alex-val-s")),
        "rmd17/id",
        "rmd17/ood",
    ]


def test_identity_follows_content_not_tasks():
    before = load_configuration(DEMO).datasets["molecules"]
    task = load_configuration(changed("datasets.molecules.options.training_molecules", ["furan"])).datasets["molecules"]
    content = load_configuration(changed("datasets.molecules.options.validation_fraction", 0.2)).datasets["molecules"]
    label = load_configuration(changed("datasets.molecules.label", "Other")).datasets["molecules"]
    assert before.identity == task.identity == label.identity
    assert before.identity != content.identity


PUBLISHED = {"urls": ["https://example.org/a"], "filename": "a", "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"urls": ["https://mirror.example.org/a", "https://example.org/a"]}, True),
        ({"licence": "MIT", "doi": "10.1234/a", "size": 3, "md5": "1" * 32}, True),
        ({"sha256": "1" * 64}, False),
        ({"filename": "b"}, False),
    ],
)
def test_identity_follows_the_bytes_not_where_they_lie(changes, same):
    def identities(source):
        config = changed("datasets.metals", {**DEMO["datasets"]["metals"], "generate": None, "download": source})
        config["backbone"]["weights"] = source
        loaded = load_configuration(config)
        return loaded.datasets["metals"].identity, loaded.backbone.identity

    for one, other in zip(identities(PUBLISHED), identities({**PUBLISHED, **changes}), strict=True):
        assert (one == other) is same


def test_identity_where_no_sha256_is_published():
    def source(**changes):
        values = {"urls": ("https://example.org/a",), "filename": "a", **changes}
        return Source(**values).content

    mirror = "https://mirror.example.org/a"
    assert source(md5="0" * 32) == source(md5="0" * 32, urls=(mirror,)) != source(md5="1" * 32)
    # The first address stands for the bytes then, as it does in the lock file.
    assert source() == source(urls=("https://example.org/a", mirror), licence="MIT") != source(urls=(mirror,))
    assert source() != source(size=3)


def test_the_same_weights_are_one_cache():
    overlay = yaml.safe_load((ROOT / "config/overlays/forceuq-small.yaml").read_text())
    rmd17 = {**yaml.safe_load((ROOT / "config/rmd17.yaml").read_text()), "backbone": overlay["backbone"]}
    overlay["backbone"]["weights"] |= {"licence": None, "doi": "10.1234/a"}
    assert overlay["backbone"]["weights"] != DEMO["backbone"]["weights"]
    assert load_configuration(rmd17).backbone.identity == load_configuration(DEMO).backbone.identity


def test_schema_files_are_up_to_date():
    hint = "run `make schema`"
    assert (ROOT / "config/schema/forceuq.schema.json").read_text() == json_schema(), hint
    assert (ROOT / "config/schema/defaults.yaml").read_text() == commented_defaults(), hint
    yaml.safe_load(commented_defaults())
