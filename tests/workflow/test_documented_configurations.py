"""What the texts show of configurations and say of their faults, held to what comes of it."""

import textwrap
from pathlib import Path

import pytest
import yaml
from snakemake.utils import update_config

from forceuq.configuration import load_configuration
from forceuq.errors import ConfigurationError

ROOT = Path(__file__).parents[2]


def shown(page: str, first: str) -> dict:
    """Return the plain values of the indented block of a page that begins with a line."""
    _, begin, rest = (ROOT / page).read_text(encoding="utf-8").partition(f"    {first}\n")
    lines = (begin + rest).splitlines()
    end = next(index for index, line in enumerate(lines) if line and not line.startswith("    "))
    return yaml.safe_load(textwrap.dedent("\n".join(lines[:end])))


def laid_over(values: dict, *names: str) -> dict:
    whole: dict = {}
    for name in names:
        update_config(whole, yaml.safe_load((ROOT / "config" / name).read_text(encoding="utf-8")))
    update_config(whole, values)
    return whole


@pytest.mark.parametrize("overlays", [(), ("overlays/forceuq-small.yaml",)])
def test_own_data(overlays):
    found = load_configuration(laid_over(shown("docs/data.md", "# mine.yaml"), "rmd17.yaml", *overlays))
    assert (found.run, list(found.tasks)) == ("mine", [("mine", "mine")])


def test_own_weights():
    own = shown("docs/extending.md", "backbone:")
    found = load_configuration(laid_over(own, "rmd17.yaml")).backbone
    assert (found.name, found.weights.sha256, found.weights.licence) == ("my-orb", None, None)
    assert found.identity != load_configuration(laid_over({}, "rmd17.yaml")).backbone.identity


def test_what_is_taken_away():
    left = load_configuration(laid_over(shown("README.md", "datasets: {rmd17: null}"), "paper.yaml"))
    assert "rmd17" not in left.datasets


def test_the_message_of_a_typo():
    typo = {"methods": {"bll-mse": {"options": {"projektion": "mse"}}}}
    with pytest.raises(ConfigurationError) as error:
        load_configuration(laid_over(typo, "demo.yaml"))
    (message,) = str(error.value).splitlines()[1:]
    assert f"  {message}\n" in (ROOT / "README.md").read_text(encoding="utf-8")
