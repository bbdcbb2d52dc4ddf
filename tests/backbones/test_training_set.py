"""The small backbone never sees what the benchmark evaluates on."""

from forceuq.backbones.small import training_set
from forceuq.data.generators.molecules import canonical_smiles


def test_no_evaluation_molecule_is_trained_on():
    train = training_set.training_molecules()
    evaluated = [s for forms in training_set.RMD17.values() for s in forms]
    evaluated += [*training_set.DEMO_MOLECULES.values(), *training_set.VALIDATION_MOLECULES]
    assert len(train) > 200
    assert {canonical_smiles(s) for s in evaluated}.isdisjoint(train)


def test_no_evaluation_alloy_is_trained_on():
    pairs = {frozenset(pair) for pair in training_set.training_pairs()}
    assert len(pairs) == 21 - len(training_set.DEMO_ALLOYS) - len(training_set.VALIDATION_PAIRS)
    assert pairs.isdisjoint(map(frozenset, (*training_set.DEMO_ALLOYS, *training_set.VALIDATION_PAIRS)))
