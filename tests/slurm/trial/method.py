"""A Bayesian last layer whose fit can be made to fail: copied into the project under test as a method of its own."""

import time

from forceuq import faults
from forceuq.methods import bll

Options = bll.Options
load = bll.load


def fit(data, options, seed, checkpoints, starts_from=None):
    """Fit as ``forceuq.methods.bll`` does; the first job can be made to hang after an epoch."""
    from forceuq.bll import training

    faults.begin("fit")
    last = faults.plan("fit").get("last_epoch_of_first_job") if faults.first_start_of("fit") else None

    class Run(training.Run):
        def save(self, path):
            super().save(path)
            faults.note("fit", f"epoch {self.epoch}")
            while self.epoch == last:
                time.sleep(1)

    training.Run = Run
    fitted = bll.fit(data, options, seed, checkpoints, starts_from)
    faults.note("fit", "end")
    return fitted
