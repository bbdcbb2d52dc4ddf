"""forceuq: how far the forces of a neural force field can be trusted."""

__version__ = "0.1.0"
