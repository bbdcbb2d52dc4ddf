"""Exact Gaussian processes on the frozen features of atoms."""
