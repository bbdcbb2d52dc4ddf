"""The paper's figures, each drawn from a data file that lies beside it.

Nothing is imported here: a job that draws one figure must not run again when another one changes.
"""
