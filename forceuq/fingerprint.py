"""A digest of the code that a job runs, so that a job runs again when what it does may have changed.

The digest covers a script and every module of its package that it reaches through import statements,
wherever they stand in the file. Comments, docstrings and formatting do not count. Modules that are imported
by a name made at run time (a method's kind, say) are named by the caller. Modules that cannot change a result are
left out, with what only they import: ``LEFT_OUT``.
"""

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from forceuq.errors import ForceUQError

PACKAGE = Path(__file__).parent
# Module (and those below it) -> why no output of a job depends on it.
LEFT_OUT = {
    "forceuq.logs": "writes logs, and turns an error into an exit",
    "forceuq.provenance": "writes records beside the outputs, which it reads and never changes",
}


def code_fingerprint(
    script: str | Path, modules: Iterable[str] = (), data: Iterable[str | Path] = (), package: Path = PACKAGE
) -> str:
    """Return the digest (16 hexadecimal digits) of the code reached from a script.

    Args:
        script: the script's file.
        modules: dotted names of modules that are imported under a name made at run time.
        data: files whose bytes belong to the code (package data).
        package: the package's folder; only modules inside it are followed.

    Raises:
        ForceUQError: when the script, a module or a data file does not exist, or is not valid Python.
    """
    reached = reached_modules(script, modules, package)
    digest = hashlib.sha256(_normalised(Path(script)).encode())
    for name in sorted(reached):
        digest.update(f"\0{name}\0{_normalised(reached[name])}".encode())
    for path in sorted(map(str, data)):
        try:
            digest.update(Path(path).read_bytes())
        except OSError as error:
            raise ForceUQError(f"{path}: cannot be read for the fingerprint of {script}: {error}") from error
    return digest.hexdigest()[:16]


def reached_modules(script: str | Path, modules: Iterable[str] = (), package: Path = PACKAGE) -> dict[str, Path]:
    """Return the modules of the package that a script reaches, as dotted name -> file."""
    found: dict[str, Path] = {}
    waiting = list(_imports(Path(script), None, package))
    for name in modules:
        if _file(name, package) is None:
            raise ForceUQError(f"there is no module {name} for the fingerprint of {script}")
        waiting.append(name)
    while waiting:
        name = waiting.pop()
        file = _file(name, package)
        if file is None or name in found or any(f"{name}.".startswith(f"{left}.") for left in LEFT_OUT):
            continue
        found[name] = file
        waiting.extend(_imports(file, name, package))
        # Importing a module runs the __init__ of every package above it.
        waiting.extend(name.rsplit(".", n)[0] for n in range(1, name.count(".") + 1))
    return found


def _file(name: str, package: Path) -> Path | None:
    top, _, rest = name.partition(".")
    if top != package.name:
        return None
    base = package.joinpath(*rest.split(".")) if rest else package
    for candidate in (base / "__init__.py", base.with_suffix(".py")):
        if candidate.is_file():
            return candidate
    return None


def _imports(file: Path, name: str | None, package: Path) -> list[str]:
    """Return dotted names that a file may import; ``from a import b`` gives both ``a`` and ``a.b``."""
    names: list[str] = []
    for node in ast.walk(_parse(file)):
        if isinstance(node, ast.Import):
            names.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level and name is not None:
                above = name if file.name == "__init__.py" else name.rpartition(".")[0]
                for _ in range(node.level - 1):
                    above = above.rpartition(".")[0]
                base = f"{above}.{base}".rstrip(".")
            names.append(base)
            names.extend(f"{base}.{alias.name}" for alias in node.names)
    return [n for n in names if n.partition(".")[0] == package.name]


@cache
def _parsed(file: Path, _mtime_ns: int, _size: int) -> ast.Module:
    try:
        return ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ForceUQError(f"{file}: not valid Python: {error}") from error


def _parse(file: Path) -> ast.Module:
    try:
        state = file.stat()
    except OSError as error:
        raise ForceUQError(f"{file}: cannot be read: {error}") from error
    return _parsed(file, state.st_mtime_ns, state.st_size)


def _normalised(file: Path) -> str:
    tree = ast.parse(ast.unparse(_parse(file)))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)
