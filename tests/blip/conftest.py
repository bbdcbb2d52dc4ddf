"""The fine-tuning tests' small data set and small Orb."""

import importlib.util
from pathlib import Path

import pytest

from forceuq.backbones import orb
from forceuq.data.structures import read_structures

_spec = importlib.util.spec_from_file_location(
    "finetuning_conftest", Path(__file__).parents[1] / "finetuning" / "conftest.py"
)
_theirs = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_theirs)
_tiny = _theirs._tiny
case = _theirs.case


@pytest.fixture
def graph_of():
    """Return structures -> one batch of graphs."""
    return lambda structures: orb.graphs(structures, orb.Options(architecture="forceuq-small"))


@pytest.fixture
def structures(case):
    """Return the data set's structures: water, copper, methane and single hydrogen atoms in turn."""
    return [structure for _, structure in read_structures(case.folder / "structures.parquet")]
