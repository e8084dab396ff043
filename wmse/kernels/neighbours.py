"""Half squared distances of test samples to all training samples, and the smallest one of each block of these."""

from __future__ import annotations

import numpy as np
from numpy import ndarray

from wmse.kernels import cached
from wmse.kernels.tiles import ROWS, TERMS, VECTOR_BYTES, VECTORS, add_tile, tile_columns


@cached
def half_distances(
    start: int,
    stop: int,
    train: ndarray,
    half_norm: ndarray,
    tests: ndarray,
    out: ndarray,
    minima: ndarray,
) -> None:
    """Fill `out` with |t|^2 / 2 - x t for the training samples t of the blocks from `start` to before `stop`.

    Args:
        train: (b, blocks, f), where b is a multiple of ROWS; half_norm: (b, blocks).
        tests: (p, f, c), each panel of c = `tile_columns` test samples x on its own.
        out: (b, blocks, p * c); minima: (blocks, p * c), the smallest over b, filled too.
    """
    size, _, f = train.shape
    columns = tile_columns(out)
    tile, minus = np.empty((size, columns), out.dtype), -out.dtype.type(1)
    for block in range(start, stop):
        for panel in range(len(tests)):
            for i in range(size):
                tile[i] = half_norm[i, block]
            for i in range(0, size, ROWS):
                for k in range(0, f, TERMS):
                    add_tile(
                        tile[i : i + ROWS],
                        train[i : i + ROWS, block, k : k + TERMS],
                        tests[panel, k : k + TERMS],
                        minus,
                    )
            least = minima[block, panel * columns : (panel + 1) * columns]
            least[:] = tile[0]
            for i in range(size):
                row, target = tile[i], out[i, block, panel * columns : (panel + 1) * columns]
                for j in range(columns):
                    target[j] = row[j]
                    least[j] = min(least[j], row[j])


def panel_columns(item_size: int) -> int:
    """Test samples in a panel, for numbers of so many bytes."""
    return VECTORS * VECTOR_BYTES // item_size
