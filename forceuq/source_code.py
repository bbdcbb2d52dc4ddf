"""What a Python file does and imports, without its comments, docstrings and formatting."""

import ast
import hashlib
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from forceuq.errors import ForceUQError
from forceuq.files import read_json, write_json

FORMAT = 1  # of the stored analyses; a change here makes them anew


class Source(NamedTuple):
    """A file's digest (of its meaning) and its imports."""

    digest: str
    imports: tuple[tuple[int, str, tuple[str, ...]], ...]
    """(dots before the name, name, names taken from it) of each import, wherever it stands in the file."""


def analyse(file: Path, store: Path | None = None) -> Source:
    """Return what a file does and imports.

    Args:
        file: a Python file.
        store: folder that keeps the result under the digest of the file's bytes, so that time stamps play no
            part, and taking a tree of a hundred modules apart (a second) is done once.

    Raises:
        ForceUQError: when the file cannot be read or is not valid Python.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ForceUQError(f"{file}: cannot be read: {error}") from error
    return _analyse(content, file, store)


@cache
def _analyse(content: bytes, file: Path, store: Path | None) -> Source:
    if store is None:
        return analyse_bytes(content, file)
    # Another Python may write the same tree down in other words.
    version = f"py{sys.version_info.major}{sys.version_info.minor}-{FORMAT}"
    kept = store / f"{hashlib.sha256(content).hexdigest()}.{version}.json"
    try:
        return _from_json(read_json(kept))
    except (OSError, ValueError, LookupError, TypeError):  # not there, or damaged: made again
        source = analyse_bytes(content, file)
        write_json(kept, source._asdict())
        return source


def _from_json(value: Any) -> Source:
    return Source(
        str(value["digest"]), tuple((int(dots), str(name), tuple(taken)) for dots, name, taken in value["imports"])
    )


def analyse_bytes(content: bytes, file: Path) -> Source:
    """Return what the content of a file does and imports.

    Raises:
        ForceUQError: it is not valid Python.
    """
    try:
        tree = ast.parse(content, filename=str(file))
    except (SyntaxError, ValueError) as error:
        raise ForceUQError(f"{file}: not valid Python: {error}") from error
    imports = tuple(dict.fromkeys(_imports(tree)))
    return Source(hashlib.sha256(_normalised(tree).encode()).hexdigest()[:16], imports)


def _imports(tree: ast.AST) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or "", tuple(alias.name for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            for other in node.orelse:  # what stands under the condition is never run
                yield from _imports(ast.Module(body=[other], type_ignores=[]))
        else:
            yield from _imports(node)


def _normalised(tree: ast.Module) -> str:
    # A release's number says nothing that its files do not.
    tree.body = [
        node for node in tree.body if not (isinstance(node, ast.Assign) and _name(node.targets[0]) == "__version__")
    ]
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


def _name(target: ast.expr) -> str | None:
    return target.id if isinstance(target, ast.Name) else None
