"""The code digest follows meaning: imports are followed, comments and docstrings are not counted."""

import os
from importlib import metadata
from pathlib import Path

import pytest

from forceuq import packages, source_code
from forceuq.errors import ForceUQError
from forceuq.fingerprint import code_fingerprint, code_parts, parts_of, reached_modules


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


def test_the_release_number_does_not_count(package: Path) -> None:
    (package / "__init__.py").write_text("__version__ = '1'\n")
    before = fingerprint(package)
    (package / "__init__.py").write_text("__version__ = '2'\n")
    assert fingerprint(package) == before


def test_packages_count_where_they_are_imported(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (package / "sub" / "c.py").write_text(
        "from typing import TYPE_CHECKING\nimport os, numpy.linalg\nif TYPE_CHECKING:\n    import scipy\n"
        "else:\n    import yaml\n\ndef f():\n    from tqdm import tqdm\n    import no_such_package\n"
    )
    (package / "d.py").write_text("import torch\n")
    parts = code_parts(package.parent / "script.py", package=package)
    installed = {"numpy": metadata.version("numpy"), "PyYAML": metadata.version("PyYAML")}
    assert parts["packages"] == {**installed, "no_such_package": "not installed"}
    assert set(parts["files"]) == {"script.py"} | {f"toy/{f}.py" for f in ("__init__", "a", "sub/b", "sub/c")} | {
        "toy/sub/__init__.py"
    }
    before = fingerprint(package)
    monkeypatch.setattr(packages, "_version", lambda name: "99")
    packages._installed.cache_clear()
    try:
        assert fingerprint(package) != before
    finally:
        monkeypatch.undo()
        packages._installed.cache_clear()


def test_builds_of_one_release_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "2.13.0+cu126")
    assert packages._version("torch") == "2.13.0"


def test_the_store_changes_no_digest_and_says_what_each_is_made_of(package: Path, tmp_path: Path) -> None:
    script, store = package.parent / "script.py", tmp_path / "store"
    plain = fingerprint(package)
    for _ in range(2):
        assert code_fingerprint(script, package=package, store=store) == plain
    assert parts_of(plain, store) == code_parts(script, package=package)
    assert parts_of("0" * 16, store) is None
    # Bytes decide: an edit under the old time stamp and of the same size is seen.
    state = (package / "sub" / "c.py").stat()
    (package / "sub" / "c.py").write_text("X = 3\n")
    os.utime(package / "sub" / "c.py", ns=(state.st_atime_ns, state.st_mtime_ns))
    assert code_fingerprint(script, package=package, store=store) != plain


def test_a_damaged_store_is_made_anew(package: Path, tmp_path: Path) -> None:
    script, store = package.parent / "script.py", tmp_path / "store"
    plain = code_fingerprint(script, package=package, store=store)
    for file in store.iterdir():
        file.write_text("{")
    source_code._analyse.cache_clear()
    assert code_fingerprint(script, package=package, store=store) == plain
    assert parts_of(plain, store) == code_parts(script, package=package)
