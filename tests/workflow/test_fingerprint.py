"""The code digest follows meaning: imports are followed, comments and docstrings are not counted."""

from pathlib import Path

import pytest

from forceuq.errors import ForceUQError
from forceuq.fingerprint import code_fingerprint, reached_modules


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "toy"
    (folder / "sub").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "sub" / "__init__.py").write_text("")
    (folder / "a.py").write_text('"""A."""\nfrom toy.sub import b\n\ndef f():\n    """Doc."""\n    return b.g()\n')
    (folder / "sub" / "b.py").write_text("from . import c\n\ndef g():\n    return c.X\n")
    (folder / "sub" / "c.py").write_text("X = 1\n")
    (folder / "d.py").write_text("Y = 1\n")
    (tmp_path / "script.py").write_text("def main():\n    from toy.a import f\n    f()\n")
    return folder


def fingerprint(package: Path, modules: tuple[str, ...] = ()) -> str:
    return code_fingerprint(package.parent / "script.py", modules, package=package)


def test_reaches_imports_inside_functions_and_relative_ones(package: Path) -> None:
    reached = reached_modules(package.parent / "script.py", package=package)
    assert set(reached) == {"toy", "toy.a", "toy.sub", "toy.sub.b", "toy.sub.c"}


def test_comments_docstrings_and_layout_do_not_count(package: Path) -> None:
    before = fingerprint(package)
    (package / "a.py").write_text('"""Other."""\n\nfrom toy.sub import b  # why\n\n\ndef f():\n    return (b.g())\n')
    assert fingerprint(package) == before


def test_a_string_that_is_not_a_docstring_counts(package: Path) -> None:
    before = fingerprint(package)
    (package / "sub" / "c.py").write_text("X = '1'\n")
    assert fingerprint(package) != before


@pytest.mark.parametrize("module", ["a.py", "sub/b.py", "sub/c.py", "sub/__init__.py"])
def test_code_of_any_reached_module_counts(package: Path, module: str) -> None:
    before = fingerprint(package)
    with (package / module).open("a") as handle:
        handle.write("Z = 2\n")
    assert fingerprint(package) != before


def test_unreached_module_counts_only_when_named(package: Path) -> None:
    before, named = fingerprint(package), fingerprint(package, ("toy.d",))
    (package / "d.py").write_text("Y = 2\n")
    assert fingerprint(package) == before
    assert fingerprint(package, ("toy.d",)) != named


def test_unknown_module_is_an_error(package: Path) -> None:
    with pytest.raises(ForceUQError, match="toy.nothing"):
        fingerprint(package, ("toy.nothing",))


def test_data_files_count(package: Path, tmp_path: Path) -> None:
    data = tmp_path / "values.yaml"
    data.write_text("a: 1")
    before = code_fingerprint(tmp_path / "script.py", data=[data], package=package)
    data.write_text("a: 2")
    assert code_fingerprint(tmp_path / "script.py", data=[data], package=package) != before
