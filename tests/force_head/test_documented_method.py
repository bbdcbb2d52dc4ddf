"""The method that docs/extending.md shows whole."""

import importlib.util
import textwrap
from pathlib import Path

from forceuq.calibration import ValidationLikelihood, fit_calibration
from forceuq.predictions import write_predictions

PAGE = Path(__file__).parents[2] / "docs/extending.md"


def test_the_documented_method_runs_as_it_stands(data, tmp_path):
    _, _, rest = PAGE.read_text(encoding="utf-8").partition("### A whole one\n")
    code, _, _ = rest.partition('    """')[2].partition("\nOver `config/demo.yaml`")
    (tmp_path / "distance.py").write_text(textwrap.dedent(f'    """{code}'), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("distance", tmp_path / "distance.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    fitted = module.fit(data, module.Options(power=1.0), 0, tmp_path / "checkpoints")
    fitted.save(tmp_path / "fit")
    labels = {"dataset": "d", "task": "t", "split": "validation", "method": "distance", "seed": 0}
    for name, method in (("first", fitted), ("again", module.load(tmp_path / "fit"))):
        write_predictions(tmp_path / name, method.predict(data.validation), labels)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "again").read_bytes()
    found = fit_calibration(ValidationLikelihood(tmp_path / "first"), "decoupled", labels)
    assert found.nll_after <= found.nll_before
