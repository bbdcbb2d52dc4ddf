"""A Bayesian last layer whose fit can be made to fail: copied into the project under test as a method of its own."""

import time

from forceuq import faults
from forceuq.methods import bll

Options = bll.Options
load = bll.load


def fit(data, options, seed, checkpoints, starts_from=None):
    """Fit as ``forceuq.methods.bll`` does; the epochs of the first job can be made long."""
    from forceuq.bll import run

    faults.begin("fit")
    pause = float(str(faults.plan("fit").get("seconds_an_epoch", 0))) if faults.first_start_of("fit") else 0.0

    class Run(run.Run):
        def save(self, path):
            super().save(path)
            faults.note("fit", f"epoch {self.epoch}")
            time.sleep(pause)

    run_of_training, training = run.Run, bll_training()
    training.Run = Run
    try:
        fitted = bll.fit(data, options, seed, checkpoints, starts_from)
    finally:
        training.Run = run_of_training
    faults.note("fit", "end")
    return fitted


def bll_training():
    """Return the module that makes a ``Run``."""
    from forceuq.bll import training

    return training
