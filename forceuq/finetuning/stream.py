"""Structures of parts with their graphs, streamed in the order of the feature caches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forceuq.backbones import BackboneModule
from forceuq.data.splits import read_part
from forceuq.data.structures import read_structures
from forceuq.errors import DataError
from forceuq.features.extract import batches
from forceuq.methods import StructurePart


@dataclass(frozen=True)
class GraphBlock:
    """Consecutive structures of one part; n atoms in all.

    Args:
        graph: as the backbone's module makes it, on the CPU.
        structure: (n,) int64, the structure's row in its structures file.
        atom: (n,) int32, the atom's index within its structure.
        number: (n,) int16, the atomic number.
        part: (n,) int16, index of the part.
        target: (n, 3) float64, the reference force, eV/Å.
    """

    graph: Any
    structure: NDArray[np.int64]
    atom: NDArray[np.int32]
    number: NDArray[np.int16]
    part: NDArray[np.int16]
    target: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.structure)


def graph_blocks(
    parts: Sequence[StructurePart], module: BackboneModule, options: Any, max_atoms: int
) -> Iterator[GraphBlock]:
    """Yield every structure of the parts once, in their order.

    Args:
        parts: where the structures lie.
        module: of the backbone's kind.
        options: of the backbone.
        max_atoms: in a block, at most (a larger structure goes alone).

    Raises:
        DataError: structures that cannot be read, or whose graphs cannot be built, by file and id.
    """
    for index, part in enumerate(parts):
        rows = read_part(part.splits, part.name)
        for batch in batches(read_structures(part.structures, rows), max_atoms):
            try:
                graph = module.graphs([structure for _, structure in batch], options)
            except DataError as error:
                raise DataError(str(error), file=part.structures) from error
            sizes = [len(structure) for _, structure in batch]
            yield GraphBlock(
                graph=graph,
                structure=np.repeat(np.array([row for row, _ in batch], dtype=np.int64), sizes),
                atom=np.concatenate([np.arange(size, dtype=np.int32) for size in sizes]),
                number=np.concatenate([structure.numbers for _, structure in batch]).astype(np.int16),
                part=np.full(sum(sizes), index, dtype=np.int16),
                target=np.concatenate([structure.forces for _, structure in batch]),
            )
