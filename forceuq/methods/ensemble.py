"""An ensemble: the predictions of several fits of one method, combined. It is not fitted itself.

Mean and covariance are those of the members' equal mixture (Lakshminarayanan et al., arXiv:1612.01474, section
2.4): what the members predict as noise goes into the floor, what they disagree about into the spread.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from forceuq.errors import DataError
from forceuq.predictions import PredictionBlock, pack_symmetric, read_predictions

_SAME = ("structure", "atom", "number", "part", "target")


class Options(BaseModel):
    """An ensemble has no settings but its members (`combines`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def combine(members: Sequence[Path], options: Options) -> Iterator[PredictionBlock]:
    """Yield the predictions of the equal mixture of K members, in blocks, reading their files side by side.

    With member means m_k, floors F_k and spreads S_k: mean = avg m_k, floor = avg F_k, spread = avg S_k +
    avg (m_k - mean)(m_k - mean)^T. The average is over K, not K - 1: the members are the mixture, not a sample
    from one.

    Args:
        members: the members' predictions of one split (``forceuq.predictions``), K >= 2.
        options: none.

    Raises:
        DataError: fewer than two members; a damaged file; members that are not of the same atoms and targets,
            naming file and row.
    """
    if len(members) < 2:
        raise DataError("an ensemble needs at least two members", file=members[0] if members else None)
    row = 0
    streams = [read_predictions(path) for path in members]
    while True:
        blocks = [next(stream, None) for stream in streams]
        first = blocks[0]
        for path, block in zip(members, blocks, strict=True):
            _check_same(first, block, row, members[0], path)
        if first is None:
            return
        row += len(first)
        yield _mixture(first, [block for block in blocks if block is not None])


def _check_same(first: PredictionBlock | None, block: PredictionBlock | None, row: int, of: Path, path: Path) -> None:
    lengths = [0 if each is None else len(each) for each in (first, block)]
    if lengths[0] != lengths[1]:
        raise DataError(f"has another number of atoms than {of}: predict both again", file=path, record=row)
    if first is None or block is None:
        return
    for name in _SAME:
        differs = np.asarray(getattr(first, name) != getattr(block, name)).reshape(len(first), -1).any(axis=1)
        if differs.any():
            raise DataError(
                f"'{name}' is not that of {of}: the members predict other data; predict both again",
                file=path,
                record=row + int(np.argmax(differs)),
            )


def _mixture(first: PredictionBlock, blocks: Sequence[PredictionBlock]) -> PredictionBlock:
    means: NDArray[Any] = np.stack([block.mean for block in blocks])
    mean = means.mean(axis=0)
    apart = means - mean
    disagreement = np.einsum("kni,knj->nij", apart, apart) / len(blocks)
    return PredictionBlock(
        structure=first.structure,
        atom=first.atom,
        number=first.number,
        part=first.part,
        target=first.target,
        mean=mean,
        floor=np.mean([block.floor for block in blocks], axis=0),
        spread=np.mean([block.spread for block in blocks], axis=0) + pack_symmetric(disagreement),
    )
