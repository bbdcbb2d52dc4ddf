"""What the fits and predictions of every method in the tables cost, and where that is written."""


def members_of_costs(method, dataset, seed):
    """The fits, as (method, seed), that one fit or ensemble is made of."""
    if method not in COMBINED:
        return [(method, seed)]
    ensembles = CONFIG.members_of(method, dataset)
    return [(COMBINED[method].method, member) for member in ensembles[seed]]


def folders_of_costs(method, dataset, task, seed):
    """Where one fit and what it cost lie; see forceuq.table1.FitFolders."""
    fit = {"dataset": dataset, "task": task, "seed": seed}
    chain = [method]
    while (start := CONFIG.methods[chain[-1]].starts_from) is not None:
        chain.append(start)
    parts = TASKS[dataset, task]
    cached = not needs_structures(CONFIG.methods[method].kind)
    predicted = sum(parts.evaluate.values(), start=parts.validation)
    return {
        "fits": [str(RUN / "fits" / FIT.format(method=name, **fit)) for name in chain],
        "predictions": str(RUN / "predictions" / FIT.format(method=method, **fit)),
        "trained_on": (
            list(map(str, feature_folders(parts.train + parts.validation)))
            if cached
            else []
        ),
        "predicted": list(map(str, feature_folders(predicted))) if cached else [],
    }


def instances_of_costs():
    """Every fit and ensemble in the tables; see forceuq.table1.Instance."""
    return [
        {
            "dataset": dataset,
            "method": method,
            "members": [
                folders_of_costs(member, dataset, task, number)
                for member, number in members_of_costs(method, dataset, seed)
            ],
        }
        for method in TABLED
        for dataset, task in TASKS
        for seed in CONFIG.seeds_of(method, dataset)
    ]


def features_of_costs():
    """The feature caches whose making counts."""
    return sorted(
        {
            folder
            for instance in instances_of_costs()
            for member in instance["members"]
            for folder in member["trained_on"] + member["predicted"]
        }
    )
