"""Orb whose loading can be made to wait: copied into the project under test as a backbone of its own."""

from forceuq import faults
from forceuq.backbones import orb
from forceuq.backbones.orb import Options, graphs

__all__ = ["Options", "graphs", "load"]


def load(weights, options, device="cpu"):
    """Load as ``forceuq.backbones.orb`` does."""
    faults.begin("backbone")
    return orb.load(weights, options, device)
