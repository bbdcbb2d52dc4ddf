"""Which methods and fits the figures show."""

from forceuq.configuration.benchmark import all_forms
from forceuq.configuration.models import smaller_ensemble
from forceuq.data.sources import load_source

RECALIBRATED = {
    method: METHOD_LABELS[method]
    for method in CONFIG.figures.recalibration_methods or TABLED
}


def first_fits(wildcards):
    """The first seed's fit of every method in Figure 1."""
    if CONFIG.figures.surface is None:
        return []
    return [
        FIT.format(method=method, seed=seeds[0], **wildcards)
        for method in CONFIG.figures.surface.methods or TABLED
        if (seeds := CONFIG.seeds_of(method, wildcards.dataset))
    ]


def sizes_of(ensemble):
    """(number of members, method) of an ensemble and its smaller versions."""
    combination = COMBINED[ensemble]
    smaller = [[size, smaller_ensemble(ensemble, size)] for size in combination.sizes]
    whole = len(all_forms(combination.members)[0][0])
    return sorted([*smaller, [whole, ensemble]])


def parts_of(dataset):
    """The names of a data set's parts."""
    entry = CONFIG.datasets[dataset]
    return list(load_source(entry.kind).parts(entry.options))
