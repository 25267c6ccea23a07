"""What is done to embeddings after training again, apart from jobs/metrics/after: numpy in float64, by singular values
in place of eigenvectors, a number at a time where that is no rule of linear algebra."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def whitening(
    training: Array, rows: Array, *, beta: float = 1.0, gamma: float = 1.0, k: int | None = None, seed: int = 0
) -> Array:
    """Su et al. 2021, kexue 9079. The covariance is never made: its roots are the singular values of the rows."""
    mean = np.array([sum(column) / len(column) for column in training.T])
    moved = (training - beta * mean) / math.sqrt(len(training))
    _, roots, vectors = np.linalg.svd(moved, full_matrices=True)
    made = np.zeros_like(rows)
    floor = roots[0] ** 2 * max(training.shape) * np.finfo(np.float64).eps
    for at, direction in enumerate(vectors):
        vector = direction * (1 if direction[np.abs(direction).argmax()] > 0 else -1)
        size = roots[at] ** 2 if at < len(roots) and roots[at] ** 2 > floor else 0.0
        scale = 1.0 if gamma == 0 else size ** (-gamma / 2) if size else 0.0
        made[:, at] = (rows - beta * mean) @ vector * scale
    return made[:, :k]


def pca(training: Array, rows: Array, *, k: int, seed: int = 0) -> Array:
    """Pearson 1901, by scikit-learn, which gives no more components than there are rows."""
    from sklearn.decomposition import PCA

    fitted = PCA(min(k, *training.shape), svd_solver="full").fit(training)
    vectors = [vector * np.sign(vector[np.abs(vector).argmax()]) for vector in fitted.components_]
    made: Array = (rows - fitted.mean_) @ np.array(vectors).T
    return made


def _hash(*keys: int) -> int:
    def finalise(word: int) -> int:
        word = ((word ^ (word >> 16)) * 0x21F0AAAD) & 0xFFFFFFFF
        word = ((word ^ (word >> 15)) * 0xD35A2D97) & 0xFFFFFFFF
        return word ^ (word >> 15)

    state = 0x6A09E667
    for key in keys:
        state = finalise(state ^ finalise(key))
    return state


def random_projection(training: Array, rows: Array, *, k: int, seed: int = 0) -> Array:
    """Johnson and Lindenstrauss 1984: of each place two hashes, and of these a normal number."""
    width = training.shape[1]
    matrix = np.empty((width, k))
    for row in range(width):
        for column in range(k):
            u, v = ((_hash(9, seed, part, column, row) + 0.5) / 2**32 for part in (0, 1))
            matrix[row, column] = math.sqrt(-2 * math.log(u)) * math.cos(2 * math.pi * v) / math.sqrt(k)
    return rows @ matrix


ORACLES: dict[str, Callable[..., Array]] = {
    function.__name__: function for function in (whitening, pca, random_projection)
}
"""By the name of the component."""
