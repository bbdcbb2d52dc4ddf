"""What a run is asked for when nothing is named."""

if CONFIG.train_backbone is not None:
    TARGETS = [RUN / "forceuq-small.safetensors", RUN / "forceuq-small.json"]
else:
    TARGETS = [
        RUN / "metrics.parquet",
        RUN / "tables/table1.csv",
        RUN / "tables/table2.csv",
        RUN / "tables/costs.csv",
        RUN / "tables/sources.csv",
        RUN / "figures/shift/shift.png",
    ]
    TARGETS += [RUN / f"figures/strata/{name}.png" for name in STRATA]
    TARGETS += [
        RUN / f"figures/recalibration/{method}.png"
        for method in CONFIG.figures.recalibration_methods or TABLED
    ]
    TARGETS += [
        RUN / f"figures/ensemble_size/{method}/{dataset}/ensemble_size.png"
        for method in SIZED
        for dataset in fitted_to(method)
    ]
    if CONFIG.figures.surface is not None:
        TARGETS += [
            RUN / f"figures/surface/{dataset}/{task}/surface.png"
            for dataset, task in TASKS
        ]
