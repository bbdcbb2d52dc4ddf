"""A digest of the code that a job runs, so that a job runs again when what it does may have changed.

The code of a job is its script and every module of this package that it reaches through import statements,
wherever they stand in the file; the version of Python, and of each package that one of them imports. Comments,
docstrings and formatting do not count. Modules that are imported by a name made at run time (a method's kind,
say) are named by the caller. Modules that cannot change a result are left out, with what only they import.
"""

import hashlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

from forceuq.errors import ForceUQError
from forceuq.files import file_digest, read_json, write_json
from forceuq.packages import package_versions
from forceuq.source_code import analyse

PACKAGE = Path(__file__).parent
# Modules (with those below them) that no output of a job depends on, and why.
LEFT_OUT = {
    "forceuq.logs": "writes logs, and turns an error into an exit",
    "forceuq.provenance": "writes records beside the outputs, which it reads and never changes",
}


class CodeParts(TypedDict):
    """What a digest is made of."""

    files: dict[str, str]
    """File, relative to the package's parent folder -> digest of what it does (of its bytes, for data)."""
    packages: dict[str, str]
    """Distribution -> installed version."""
    python: str
    """Version of Python, without the patch level: 3.12 sums floats in another way than 3.11, for one."""


def code_fingerprint(
    script: str | Path,
    modules: Iterable[str] = (),
    data: Iterable[str | Path] = (),
    package: Path = PACKAGE,
    store: Path | None = None,
) -> str:
    """Return the digest (16 hexadecimal digits) of the code reached from a script.

    Args:
        script: the script's file.
        modules: dotted names of modules that are imported under a name made at run time.
        data: files whose bytes belong to the code (package data).
        package: the package's folder; only modules inside it are followed.
        store: folder that keeps what was found out about each file, and what each digest is made of: see
            ``parts_of``.

    Raises:
        ForceUQError: when the script, a module or a data file does not exist, or is not valid Python.
    """
    parts = code_parts(script, modules, data, package, store)
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    if store is not None and parts_of(digest, store) != parts:
        write_json(store / f"{digest}.json", parts)
    return digest


def code_parts(
    script: str | Path,
    modules: Iterable[str] = (),
    data: Iterable[str | Path] = (),
    package: Path = PACKAGE,
    store: Path | None = None,
) -> CodeParts:
    """Return what the digest of a script's code is made of; arguments and errors as in ``code_fingerprint``."""
    script = Path(script)
    sources = {
        file: analyse(file, store) for file in (script, *reached_modules(script, modules, package, store).values())
    }
    files = {file: source.digest for file, source in sources.items()}
    imported = {name for source in sources.values() for dots, name, _ in source.imports if not dots}
    for path in map(Path, data):
        try:
            files[path] = file_digest(path)[:16]
        except OSError as error:
            raise ForceUQError(f"{path}: cannot be read for the fingerprint of {script}: {error}") from error
    third_party = {top for name in imported if (top := name.partition(".")[0])} - {package.name}
    return {
        "files": {_relative(file, package): digest for file, digest in files.items()},
        "packages": package_versions(third_party - sys.stdlib_module_names),
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
    }


def parts_of(digest: str, store: Path) -> CodeParts | None:
    """Return what a digest is made of, or None where the store does not know it."""
    try:
        parts: CodeParts = read_json(store / f"{digest}.json")
    except (OSError, ValueError):
        return None
    return parts


def reached_modules(
    script: str | Path, modules: Iterable[str] = (), package: Path = PACKAGE, store: Path | None = None
) -> dict[str, Path]:
    """Return the modules of the package that a script reaches, as dotted name -> file."""
    found: dict[str, Path] = {}
    waiting = _names(Path(script), None, package, store)
    for name in modules:
        if _file(name, package) is None:
            raise ForceUQError(f"there is no module {name} for the fingerprint of {script}")
        waiting.append(name)
    while waiting:
        name = waiting.pop()
        file = _file(name, package)
        if file is None or name in found or left_out(name):
            continue
        found[name] = file
        waiting.extend(_names(file, name, package, store))
        # Importing a module runs the __init__ of every package above it.
        waiting.extend(name.rsplit(".", n)[0] for n in range(1, name.count(".") + 1))
    return found


def left_out(name: str) -> bool:
    """Return whether a module is one that no output depends on."""
    return any(f"{name}.".startswith(f"{module}.") for module in LEFT_OUT)


def _file(name: str, package: Path) -> Path | None:
    top, _, rest = name.partition(".")
    if top != package.name:
        return None
    base = package.joinpath(*rest.split(".")) if rest else package
    for candidate in (base / "__init__.py", base.with_suffix(".py")):
        if candidate.is_file():
            return candidate
    return None


def _names(file: Path, module: str | None, package: Path, store: Path | None) -> list[str]:
    """Return dotted names in the package that a file may import; ``from a import b`` gives ``a`` and ``a.b``."""
    names: list[str] = []
    for dots, name, taken in analyse(file, store).imports:
        base = name
        if dots and module is not None:
            above = module if file.name == "__init__.py" else module.rpartition(".")[0]
            for _ in range(dots - 1):
                above = above.rpartition(".")[0]
            base = f"{above}.{name}".rstrip(".")
        names.append(base)
        names.extend(f"{base}.{each}" for each in taken)
    return [n for n in names if n.partition(".")[0] == package.name]


def _relative(file: Path, package: Path) -> str:
    root = package.parent.resolve()
    resolved = file.resolve()
    return resolved.relative_to(root).as_posix() if resolved.is_relative_to(root) else file.name
