"""Optimizers and gradient transforms again, apart from jobs/optim: numpy in float64, a parameter at a time, from their
published rules.

An oracle is called with the first weights, the gradients of each step, the rate of each step and the decay of each
parameter, all by name, and gives the weights after the last step.
"""

from __future__ import annotations

import math
from binascii import crc32
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Named = Mapping[str, Array]


@dataclass
class Course:
    """What an optimizer goes through."""

    weights: Named
    gradients: list[dict[str, Array]]
    rates: list[float]
    decay: Mapping[str, float]
    hidden: Collection[str] = ()
    """Matrices of hidden layers."""

    gains: Collection[str] = ()
    """Gains of norms."""

    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.9
    scale: Mapping[str, float] = field(default_factory=dict)
    """Of a parameter's rate; 1 where there is none."""

    def rate(self, name: str, step: int) -> float:
        """Steps count from 1."""
        return self.rates[step - 1] * self.scale.get(name, 1.0)


def _each(course: Course, one: Callable[[str, Array, list[Array]], Array]) -> dict[str, Array]:
    """Parameters that do not know of each other."""
    return {name: one(name, w.copy(), [g[name] for g in course.gradients]) for name, w in course.weights.items()}


def _zeros(like: Array) -> Array:
    return np.zeros(like.shape)


def adamw(course: Course) -> dict[str, Array]:
    """Loshchilov and Hutter 2019."""

    def one(name: str, w: Array, gradients: list[Array]) -> Array:
        m, v, (a, b) = _zeros(w), _zeros(w), course.betas
        for t, g in enumerate(gradients, 1):
            m, v = a * m + (1 - a) * g, b * v + (1 - b) * g**2
            w = w * (1 - course.rate(name, t) * course.decay[name])
            w = w - course.rate(name, t) * (m / (1 - a**t)) / (np.sqrt(v / (1 - b**t)) + 1e-8)
        return w

    return _each(course, one)


def sgd(course: Course) -> dict[str, Array]:
    """Torch's: the decay is part of the gradient."""

    def one(name: str, w: Array, gradients: list[Array]) -> Array:
        h = _zeros(w)
        for t, g in enumerate(gradients, 1):
            h = course.momentum * h + g + course.decay[name] * w
            w = w - course.rate(name, t) * h
        return w

    return _each(course, one)


def lion(course: Course, betas: tuple[float, float] = (0.9, 0.99)) -> dict[str, Array]:
    """Chen et al. 2023, algorithm 2."""

    def one(name: str, w: Array, gradients: list[Array]) -> Array:
        m = _zeros(w)
        for t, g in enumerate(gradients, 1):
            c = betas[0] * m + (1 - betas[0]) * g
            w = w - course.rate(name, t) * (np.sign(c) + course.decay[name] * w)
            m = betas[1] * m + (1 - betas[1]) * g
        return w

    return _each(course, one)


def lamb(course: Course, vectors: str = "plain") -> dict[str, Array]:
    """You et al. 2020, algorithm 2, phi the identity."""

    def one(name: str, w: Array, gradients: list[Array]) -> Array:
        m, v, (a, b) = _zeros(w), _zeros(w), course.betas
        for t, g in enumerate(gradients, 1):
            m, v = a * m + (1 - a) * g, b * v + (1 - b) * g**2
            u = (m / (1 - a**t)) / (np.sqrt(v / (1 - b**t)) + 1e-6) + course.decay[name] * w
            sizes = math.sqrt(float((w**2).sum())), math.sqrt(float((u**2).sum()))
            is_scaled = (w.ndim > 1 or vectors == "scaled") and min(sizes) > 0
            w = w - course.rate(name, t) * (sizes[0] / sizes[1] if is_scaled else 1.0) * u
        return w

    return _each(course, one)


def lars(course: Course, trust: float = 0.001, vectors: str = "plain") -> dict[str, Array]:
    """You et al. 2017, algorithm 1."""

    def one(name: str, w: Array, gradients: list[Array]) -> Array:
        v = _zeros(w)
        for t, g in enumerate(gradients, 1):
            sizes = math.sqrt(float((w**2).sum())), math.sqrt(float((g**2).sum()))
            is_scaled = (w.ndim > 1 or vectors == "scaled") and min(sizes) > 0
            own = trust * sizes[0] / (sizes[1] + course.decay[name] * sizes[0]) if is_scaled else 1.0
            v = course.momentum * v + course.rate(name, t) * own * (g + course.decay[name] * w)
            w = w - v
        return w

    return _each(course, one)


def adafactor(course: Course, beta2_decay: float = -0.8, floor: float = 1e-3, clip: float = 1.0) -> dict[str, Array]:
    """Shazeer and Stern 2018, as torch documents its own: the rate bounds the relative step, and decays."""
    eps = float(np.finfo(np.float64).eps)

    def one(name: str, w: Array, gradients: list[Array]) -> Array:
        rows = _zeros(w.mean(-1)) if w.ndim > 1 else _zeros(w)
        columns, variance = _zeros(w.mean(-2)) if w.ndim > 1 else _zeros(w), _zeros(w)
        for t, g in enumerate(gradients, 1):
            rate, new = course.rate(name, t), float(t) ** beta2_decay
            alpha = max(floor, math.sqrt(float((w**2).mean()))) * min(rate, 1 / math.sqrt(t))
            w = w * (1 - rate * course.decay[name])
            if w.ndim > 1:
                rows = (1 - new) * rows + new * (g**2).mean(-1)
                columns = (1 - new) * columns + new * (g**2).mean(-2)
                estimate = rows[..., :, None] * columns[..., None, :]
                estimate = estimate / np.maximum(rows.mean(-1), eps)[..., None, None]
            else:
                variance = (1 - new) * variance + new * g**2
                estimate = variance
            u = g / np.maximum(np.sqrt(estimate), eps)
            w = w - alpha * u / max(1.0, math.sqrt(float((u**2).mean())) / clip)
        return w

    return _each(course, one)


def orthogonalised(matrix: Array, iterations: int = 5) -> Array:
    """By singular values, each of which goes through the polynomial by itself: no product of matrices is iterated."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    values = values / max(math.sqrt(float((matrix**2).sum())), 1e-7)
    for _ in range(iterations):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return np.asarray(left @ np.diag(values) @ right, dtype=np.float64)


def muon(course: Course, momentum: float = 0.95, nesterov: bool = True, scale: str = "rms") -> dict[str, Array]:
    """Jordan et al. 2024 for hidden matrices, AdamW for the rest."""
    plain = adamw(course)

    def one(name: str, w: Array, gradients: list[Array]) -> Array:
        if name not in course.hidden:
            return plain[name]
        m = _zeros(w)
        rows, columns = w.shape[0], w[0].size
        factor = 0.2 * math.sqrt(max(rows, columns)) if scale == "rms" else math.sqrt(max(1.0, rows / columns))
        for t, g in enumerate(gradients, 1):
            m = momentum * m + (1 - momentum) * g
            u = momentum * m + (1 - momentum) * g if nesterov else m
            w = w * (1 - course.rate(name, t) * course.decay[name])
            w = w - course.rate(name, t) * factor * orthogonalised(u.reshape(rows, columns)).reshape(w.shape)
        return w

    return _each(course, one)


def tiger(
    course: Course, beta: float = 0.965, accumulate: int = 1, nan_rule: bool = False, shrink: float = 0.99
) -> dict[str, Array]:
    """Su 2023: kexue 9512."""
    bad = [nan_rule and any(np.isnan(g).any() for g in step.values()) for step in course.gradients]

    def one(name: str, w: Array, gradients: list[Array]) -> Array:
        m, k = _zeros(w), accumulate
        for t, g in enumerate(gradients, 1):
            if bad[t - 1]:
                c = 1.0 if name in course.gains else 0.0
                w = (w - c) * shrink + c
                continue
            chi = 1 if (t - 1) % k == 0 else 0
            m = ((beta - 1) * chi + 1) * m + (1 - beta) / k * g
            if t % k == 0:
                eta = course.rate(name, t) * (math.sqrt(float((w**2).mean())) if w.ndim > 1 else 0.5)
                w = w - eta * (np.sign(m) + course.decay[name] * w)
        return w

    return _each(course, one)


def eg_step(course: Course, gamma: float = 1.0) -> dict[str, Array]:
    """Su 2022: kexue 8968."""

    def one(name: str, w: Array, gradients: list[Array]) -> Array:
        for t, g in enumerate(gradients, 1):
            # nu written out: the exponential of the sum of all products so far.
            total = sum((gradients[s - 1] * gradients[s] for s in range(1, t)), _zeros(w))
            w = w - course.rate(name, t) * (np.exp(gamma * total) * g + course.decay[name] * w)
        return w

    return _each(course, one)


def eg_step_full(
    course: Course, inner: str = "adam", gamma_scale: float = 0.1, gamma_gains: float = 1.0, past: float = 0.9
) -> dict[str, Array]:
    """Amid et al. 2022: all parameters as one long vector."""
    names = list(course.weights)
    count = sum(w.size for w in course.weights.values())

    def long(values: Mapping[str, Array]) -> Array:
        return np.concatenate([values[name].ravel() for name in names])

    w, decay = long(course.weights), long({n: np.full(x.shape, course.decay[n]) for n, x in course.weights.items()})
    m, v, gains, mean, scale = np.zeros(count), np.zeros(count), np.ones(count), np.zeros(count), 1.0
    a, b = course.betas
    for t, gradients in enumerate(course.gradients, 1):
        g = long(gradients)
        if inner == "adam":
            m, v = a * m + (1 - a) * g, b * v + (1 - b) * g**2
            u = (m / (1 - a**t)) / (np.sqrt(v / (1 - b**t)) + 1e-8)
        else:
            m = course.momentum * m + g
            u = m
        unit = u / math.sqrt(float((u**2).sum()))
        scale *= math.exp(gamma_scale * float((mean * unit).sum()))
        gains = gains * np.exp(gamma_gains * mean * unit)
        mean = past * mean + (1 - past) * unit
        rates = long({n: np.full(x.shape, course.rate(n, t)) for n, x in course.weights.items()})
        w = w - rates * (scale * gains * u + decay * w)
    ends = np.cumsum([course.weights[name].size for name in names])[:-1]
    return {name: part.reshape(course.weights[name].shape) for name, part in zip(names, np.split(w, ends), strict=True)}


ORACLES: dict[str, Callable[..., dict[str, Array]]] = {
    function.__name__: function
    for function in (adamw, sgd, lion, lamb, lars, adafactor, muon, tiger, eg_step, eg_step_full)
}
"""By the name of the optimizer."""


# Gradient transforms: what ten steps of SGD come to with one


def _hash(*keys: int) -> int:
    """As jobs/core/randomness.py documents its hash, in integers without bounds."""

    def mixed(x: int) -> int:
        x = (x ^ x >> 16) * 0x21F0AAAD % 2**32
        x = (x ^ x >> 15) * 0xD35A2D97 % 2**32
        return x ^ x >> 15

    state = 0x6A09E667
    for key in keys:
        state = mixed(state ^ mixed(key))
    return state


def child_mask(name: str, shape: tuple[int, ...], *, seed: int, step: int, p: float) -> NDArray[np.bool_]:
    """Which numbers ChildTuning-F trains at a step."""
    drawn = [_hash(6, seed, step, crc32(name.encode()), place) >> 8 for place in range(math.prod(shape))]
    return (np.array(drawn) < p * 2**24).reshape(shape)


def largest(squares: Mapping[str, Array], p: float) -> dict[str, NDArray[np.bool_]]:
    """The share p of all numbers that are largest; of equal ones, those that come first."""
    places = [(-value, n, i) for n, x in enumerate(squares.values()) for i, value in enumerate(x.ravel())]
    chosen = {(n, i) for _, n, i in sorted(places)[: max(1, round(p * len(places)))]}
    return {
        name: np.array([(n, i) in chosen for i in range(x.size)]).reshape(x.shape)
        for n, (name, x) in enumerate(squares.items())
    }


def _masked(
    course: Course, mask: str, masks: Callable[[str, int], NDArray[np.bool_]], share: float
) -> dict[str, Array]:
    weights = {name: w.copy() for name, w in course.weights.items()}
    momenta = {name: _zeros(w) for name, w in course.weights.items()}
    for t, gradients in enumerate(course.gradients, 1):
        for name, w in weights.items():
            chosen = masks(name, t)
            g = np.where(chosen, gradients[name] / share, 0.0) if mask == "gradient" else gradients[name]
            momenta[name] = course.momentum * momenta[name] + g + course.decay[name] * w
            step = course.rate(name, t) * momenta[name]
            weights[name] = w - (np.where(chosen, step / share, 0.0) if mask == "update" else step)
    return weights


def child_tuning(course: Course, p: float = 0.3, mask: str = "gradient", *, seed: int = 0) -> dict[str, Array]:
    """Xu et al. 2021, F."""
    return _masked(
        course, mask, lambda name, t: child_mask(name, course.weights[name].shape, seed=seed, step=t, p=p), p
    )


def child_tuning_d(
    course: Course, p: float = 0.3, batches: int = 1, mask: str = "gradient", *, groups: list[list[dict[str, Array]]]
) -> dict[str, Array]:
    """Xu et al. 2021, D. groups: gradients of each group of each step."""
    looked = [group for step in groups[:batches] for group in step]
    chosen = largest({name: sum(g[name] ** 2 for g in looked) / len(looked) for name in course.weights}, p)  # type: ignore[misc]
    return _masked(course, mask, lambda name, _: chosen[name], 1.0)


def soft_clip(course: Course, norm: float = 1.0) -> dict[str, Array]:
    """Zhang et al. 2020."""
    clipped = []
    for gradients in course.gradients:
        whole = math.sqrt(sum(float((g**2).sum()) for g in gradients.values()))
        clipped.append({name: g * norm / (whole + norm) for name, g in gradients.items()})
    return sgd(Course(**{**vars(course), "gradients": clipped}))


TRANSFORMS: dict[str, Callable[..., dict[str, Array]]] = {
    function.__name__: function for function in (child_tuning, child_tuning_d, soft_clip)
}
"""By the name of the transform."""
