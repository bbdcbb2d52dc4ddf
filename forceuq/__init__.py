"""forceuq: how far can the forces of a neural force field be trusted?"""

__version__ = "0.1.0"
