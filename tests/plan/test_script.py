import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def plan(monkeypatch):
    """Run ``make plan`` on configuration files, without measuring anything."""
    spec = importlib.util.spec_from_file_location("plan_script", ROOT / "workflow_scripts/plan.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def run(*files):
        monkeypatch.setattr("sys.argv", ["plan.py", "--configfile", *map(str, files)])
        monkeypatch.setattr(script, "measured_here", lambda *arguments: {})
        script.main()

    return run


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, ": cannot be read as YAML: .*No such file"),
        (b"run: [1,\nseeds: }", ": cannot be read as YAML: .*line 2"),
        (b"run: \xff", ": cannot be read as YAML"),
        (b"", ": has no keys"),
        (b"- run\n", ": has no keys"),
        (b"run: a\nrun: b\n", ", line 2: 'run' is given a second time"),
    ],
)
def test_a_file_that_is_no_configuration_is_named_in_one_line(plan, tmp_path, content, message):
    file = tmp_path / "papr.yaml"
    if content is not None:
        file.write_bytes(content)
    for files in ([file], [ROOT / "config/demo.yaml", file]):
        with pytest.raises(SystemExit, match=f"^{file}{message}") as stopped:
            plan(*files)
        assert "\n" not in str(stopped.value)


def test_the_training_of_a_backbone_has_no_plan(plan):
    with pytest.raises(SystemExit, match="backbone-small.yaml: trains a backbone, which has no plan"):
        plan(ROOT / "config/backbone-small.yaml")


def test_a_configuration_has_a_plan(plan, capsys):
    plan(ROOT / "config/demo.yaml")
    assert "| **sum** |" in capsys.readouterr().out
