"""Which installed packages code is run with, so far as they can change its results.

Installed versions, not lines of the lock file: they are what runs. A lock edited before the packages are
installed would mark old results as new, and an environment made in another way has no lock at all.
"""

from collections.abc import Iterable
from functools import cache
from importlib import metadata

# Packages that cannot change a number, and why.
WITHOUT_EFFECT = {
    "psutil": "measures the process",
    "pydantic": "checks settings, whose values are compared themselves",
    "requests": "fetches bytes that are held to a checksum",
    "threadpoolctl": "how many threads",
    "tqdm": "progress bars",
    "typer": "command lines",
    "xxhash": "compares bytes, by digests that are the same in all versions",
}
# Import names that are not the distribution's. Others are looked up, which takes a third of a second.
DISTRIBUTIONS = {"sklearn": "scikit-learn", "yaml": "PyYAML"}


def package_versions(imported: Iterable[str]) -> dict[str, str]:
    """Return distribution -> installed version of imported top-level names that are no part of Python.

    Packages in ``WITHOUT_EFFECT`` are left out, and so is the local part of a version ("+cpu"): builds of one
    release. A package that is not installed counts with the version "not installed".
    """
    names = sorted({name.partition(".")[0] for name in imported} - WITHOUT_EFFECT.keys())
    return {distribution: version for name in names for distribution, version in _installed(name)}


@cache
def _installed(name: str) -> tuple[tuple[str, str], ...]:
    distribution = DISTRIBUTIONS.get(name, name)
    try:
        return ((distribution, _version(distribution)),)
    except metadata.PackageNotFoundError:
        found = sorted(set(_providers().get(name, ())))
        return tuple((each, _version(each)) for each in found) or ((name, "not installed"),)


def _version(distribution: str) -> str:
    return metadata.version(distribution).partition("+")[0]


@cache
def _providers() -> dict[str, list[str]]:
    return dict(metadata.packages_distributions())
