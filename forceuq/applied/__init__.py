"""Fits of a finished run, applied to other structures: forces with calibrated uncertainties."""
