"""fit_head: softmax regression on features, by L-BFGS in NumPy."""

from __future__ import annotations

from typing import Any, Callable, List, NamedTuple, Tuple

import numpy as np
from numpy.typing import NDArray

L2_CANDIDATES = (1.0, 0.1, 0.01, 1e-3, 1e-4)  # on standardized features, strongest first
MAX_ITERATIONS = 100
TOLERANCE = 1e-4  # of the largest component of the gradient
HISTORY = 10
SUFFICIENT_DECREASE = 1e-4
MAX_HALVINGS = 20

Objective = Callable[[NDArray[Any]], Tuple[float, NDArray[Any]]]


class Head(NamedTuple):
    """A linear layer, weight (classes, channels) and bias (classes,), float32, and the L2 coefficient of its fit."""

    weight: NDArray[Any]
    bias: NDArray[Any]
    l2: float

    def logits(self, features: NDArray[Any]) -> NDArray[Any]:
        """Return (N, classes) of features (N, channels)."""
        result: NDArray[Any] = features @ self.weight.T + self.bias
        return result


def fit_head(
    features: NDArray[Any],
    labels: NDArray[Any],
    val_features: NDArray[Any],
    val_labels: NDArray[Any],
    num_classes: int,
) -> Head:
    """Return the linear layer with the least cross-entropy, of the L2 coefficient that suits the validation set best.

    ``features`` are (N, channels) float32, ``labels`` (N,) class indices. Each channel is standardized for the fit, and
    the layer that is returned takes features as they are. Of several coefficients, the one with the most correct images
    of the validation set is taken, then the one with the least cross-entropy.
    """
    mean, std = features.mean(0, dtype=np.float64), features.std(0, dtype=np.float64)
    std[std < 1e-6 * max(1.0, float(std.max(initial=0)))] = np.inf  # a constant channel gets the weight 0
    standardized = ((features - mean) / std).astype(np.float32)
    parameters = np.zeros(num_classes * (features.shape[1] + 1))
    candidates: List[Tuple[int, float, Head]] = []
    for l2 in L2_CANDIDATES:  # each from the result of the one before
        parameters = minimize(_cross_entropy_objective(standardized, labels, num_classes, l2), parameters)
        weights = parameters.reshape(num_classes, -1)
        weight = weights[:, :-1] / std
        head = Head(weight.astype(np.float32), (weights[:, -1] - weight @ mean).astype(np.float32), l2)
        logits = head.logits(val_features)
        candidates.append((count_correct(logits, val_labels), -cross_entropy(logits, val_labels), head))
    return max(candidates, key=lambda candidate: candidate[:2])[2]


def cross_entropy(logits: NDArray[Any], labels: NDArray[Any]) -> float:
    """Return the mean cross-entropy of (N, classes) and (N,)."""
    log_probabilities = _log_softmax(logits.astype(np.float64))
    return -float(log_probabilities[np.arange(len(labels)), labels].mean())


def count_correct(logits: NDArray[Any], labels: NDArray[Any]) -> int:
    """Return the number of rows whose largest logit is that of the label."""
    return int((logits.argmax(1) == labels).sum())


def _cross_entropy_objective(features: NDArray[Any], labels: NDArray[Any], num_classes: int, l2: float) -> Objective:
    count, rows = len(features), np.arange(len(features))

    def objective(parameters: NDArray[Any]) -> Tuple[float, NDArray[Any]]:
        weights = parameters.reshape(num_classes, -1)
        weight = weights[:, :-1]
        log_probabilities = _log_softmax(features @ weight.T.astype(np.float32) + weights[:, -1])
        loss = -log_probabilities[rows, labels].mean() + 0.5 * l2 * (weight**2).sum()
        error = np.exp(log_probabilities)
        error[rows, labels] -= 1
        error /= count
        gradient = np.empty_like(weights)
        gradient[:, :-1] = error.T.astype(np.float32) @ features + l2 * weight
        gradient[:, -1] = error.sum(0)
        return float(loss), gradient.ravel()

    return objective


def _log_softmax(logits: NDArray[Any]) -> NDArray[Any]:
    shifted = logits - logits.max(1, keepdims=True)
    result: NDArray[Any] = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return result


def minimize(objective: Objective, start: NDArray[Any]) -> NDArray[Any]:
    """Return where a convex function is least, by L-BFGS (Nocedal and Wright, Numerical Optimization, algorithm 7.5).

    ``objective`` returns the value and the gradient. It ends when the gradient is small, or when no step makes the
    value less, which is where float32 ends.
    """
    point = start.copy()
    value, gradient = objective(point)
    pairs: List[Tuple[NDArray[Any], NDArray[Any]]] = []  # steps, and by how much the gradient changed
    for _ in range(MAX_ITERATIONS):
        if np.abs(gradient).max(initial=0) < TOLERANCE:
            break
        direction = -_inverse_hessian_times(gradient, pairs)
        slope = float(gradient @ direction)
        size = 1.0 if pairs else 1 / max(1.0, float(np.abs(gradient).sum()))
        for _ in range(MAX_HALVINGS):
            new_value, new_gradient = objective(point + size * direction)
            if new_value <= value + SUFFICIENT_DECREASE * size * slope:
                break
            size /= 2
        else:
            break
        step, change = size * direction, new_gradient - gradient
        if step @ change > 0:
            pairs = [*pairs[1 - HISTORY :], (step, change)]
        point, value, gradient = point + step, new_value, new_gradient
    return point


def _inverse_hessian_times(gradient: NDArray[Any], pairs: List[Tuple[NDArray[Any], NDArray[Any]]]) -> NDArray[Any]:
    """Return the product with the approximated inverse Hessian: the two-loop recursion (algorithm 7.4)."""
    result = gradient.copy()
    factors = []
    for step, change in reversed(pairs):
        factor = (step @ result) / (step @ change)
        result -= factor * change
        factors.append(factor)
    if pairs:
        step, change = pairs[-1]
        result *= (step @ change) / (change @ change)
    for (step, change), factor in zip(pairs, reversed(factors)):
        result += (factor - (change @ result) / (step @ change)) * step
    return result
