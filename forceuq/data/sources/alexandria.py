"""Alex-val-s: the validation part of sAlex, relaxations of the Alexandria database (PBE) without any material of WBM;
J. Schmidt et al., Mater. Today Phys. 48, 101560 (2024), doi:10.1016/j.mtphys.2024.101560; distributed with OMat24,
L. Barroso-Luque et al., arXiv:2410.12771.

The raw file is an archive of ``*.aselmdb``: ASE databases on LMDB (eV, Å). The paper evaluates on all of it and trains
on none of it.
"""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from forceuq.data.archives import members, say_passed_over, unpacked, whole_archive
from forceuq.data.splits import WHOLE, Task, write_whole
from forceuq.data.structures import Structure, StructureWriter, structure, structures_metadata
from forceuq.errors import DataError


class Options(BaseModel):
    """Settings of the data set Alex-val-s (or of another one in its layout); evaluated on, never trained on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_bad_fraction: float = Field(
        default=0.01, ge=0, le=1, description="Share of damaged structures that is put up with."
    )


def parts(options: Options) -> tuple[str, ...]:  # noqa: ARG001 - the interface of every source
    """Return the one part."""
    return (WHOLE,)


def tasks(dataset: str, options: Options) -> tuple[Task, ...]:  # noqa: ARG001 - the interface of every source
    """Return no task: the data set is evaluated on by other data sets' tasks."""
    return ()


def convert(raw: Path, output: Path, options: Options) -> None:
    """Stream the rows of every database into a structures file.

    Structure ids are ``<name of the database>-<id of the row>``, which is also the group. LMDB needs files, so one
    database at a time is unpacked beside ``output``.

    Raises:
        DataError: the archive is damaged or unsafe, holds no database, a database is damaged or there twice (named),
            or more than ``max_bad_fraction`` of the rows are damaged.
    """
    seen: set[str] = set()
    with whole_archive(raw), StructureWriter(output, options.max_bad_fraction, {"source": "alexandria"}) as writer:
        passed_over: list[str] = []
        for member in members(raw, (".aselmdb",), passed_over):
            name = member.path.stem
            if name in seen:
                raise DataError("the archive holds two databases of this name", file=raw, record=member.name)
            seen.add(name)
            with unpacked(member, raw, output) as path:
                for number, row in _rows(path, raw, member.name):
                    identifier = f"{name}-{number}"
                    try:
                        item = _structure(identifier, row)
                    except (AttributeError, KeyError, TypeError, ValueError) as error:
                        writer.reject(identifier, str(error))
                    else:
                        writer.add(item)
        if not seen:
            raise DataError("no .aselmdb in the archive; is this sAlex?", file=raw)
        say_passed_over(passed_over, writer.warn)


def split(structures: Path, output: Path, options: Options) -> None:  # noqa: ARG001 - the interface of every source
    """Put every structure in the one part.

    Raises:
        DataError: the file holds another data set.
    """
    if (source := structures_metadata(structures).get("source")) != "alexandria":
        raise DataError(f"holds {source!r}, not 'alexandria'; read the raw file again", file=structures)
    write_whole(structures, output, "alexandria")


def _rows(path: Path, raw: Path, record: str) -> Iterator[tuple[int, Any]]:
    """Yield the rows of a database with their ids; a row that cannot be decoded comes as its exception."""
    import lmdb
    from ase.db import connect

    damaged = DataError("not a whole LMDB database; fetch the archive again", file=raw, record=record)
    try:
        # Checked before ASE reads: LMDB maps the file, and touching a page beyond its end kills the process.
        with lmdb.open(str(path), subdir=False, readonly=True, lock=False) as environment:
            needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
        if path.stat().st_size < needed:
            raise damaged
        database: Any = connect(path, type="aselmdb", readonly=True)  # type: ignore[no-untyped-call]
    except (lmdb.Error, zlib.error, UnicodeDecodeError, ValueError) as error:
        raise damaged from error
    try:
        for number in list(database.ids):
            try:
                yield number, database.get(number)
            except (KeyError, TypeError, ValueError, zlib.error) as error:
                yield number, error
            except lmdb.Error as error:
                raise damaged from error
    finally:
        database.close()


def _structure(identifier: str, row: Any) -> Structure:
    if isinstance(row, Exception):
        raise ValueError(f"cannot be decoded ({row})")
    forces = row.get("forces")
    if forces is None:
        raise ValueError("no forces")
    pbc = np.asarray(row.pbc, dtype=bool)
    if pbc.any() and not pbc.all():
        raise ValueError("periodic along some directions only")
    return structure(
        identifier,
        identifier,
        numbers=row.numbers,
        positions=row.positions,
        forces=forces,
        cell=row.cell if pbc.all() else None,
        energy=row.get("energy"),
    )
