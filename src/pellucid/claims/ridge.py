"""Ridge classifiers in closed form, many at once: a null world is one more column of labels, not one more fit.

For probing a layer use `pellucid.evals.probe.linear_probe`; this serves the null worlds of ready-made claims.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

from pellucid._checks import check_range


def ridge_scores(
    train: Float[np.ndarray, "train units"],
    targets: Bool[np.ndarray, " train"],
    test: Float[np.ndarray, "test units"],
    *,
    ridge: float = 1.0,
) -> Float[np.ndarray, " test"]:
    """Score of "target is true" on test images; W = (X'X + ridge I)^-1 X'Y on standardised X and centred Y."""
    goal = targets.astype(float)
    mean, scale, weights = _ridge(train, (goal - goal.mean())[:, None], ridge)
    return ((test - mean) / scale @ weights)[:, 0] + goal.mean()


def shuffled_correct(
    train: Float[np.ndarray, "train units"],
    test: Float[np.ndarray, "test units"],
    train_targets: Int[np.ndarray, "worlds train"],
    test_targets: Int[np.ndarray, "worlds test"],
    *,
    ridge: float = 1.0,
) -> Bool[np.ndarray, "worlds test"]:
    """Which test images a ridge classifier gets right in each of many worlds of labels, all fitted in one solve."""
    classes = np.unique(train_targets)
    goal = (train_targets[..., None] == classes).astype(float)
    offset = goal.mean(axis=1, keepdims=True)
    flat = (goal - offset).transpose(1, 0, 2).reshape(len(train), -1)
    mean, scale, weights = _ridge(train, flat, ridge)
    scores = ((test - mean) / scale @ weights).reshape(len(test), len(goal), len(classes)).transpose(
        1, 0, 2
    ) + offset
    return classes[scores.argmax(axis=2)] == test_targets


def _ridge(
    features: Float[np.ndarray, "images units"], goal: Float[np.ndarray, "images goals"], ridge: float
) -> tuple[Float[np.ndarray, " units"], Float[np.ndarray, " units"], Float[np.ndarray, "units goals"]]:
    check_range(ridge, 0.0, np.inf, "ridge")
    mean, spread = features.mean(axis=0), features.std(axis=0)
    scale = np.where(spread > 0, spread, 1.0)  # a dead unit stays 0
    x = (features - mean) / scale
    n, units = x.shape
    if units <= n:
        return mean, scale, np.linalg.lstsq(x.T @ x + ridge * np.eye(units), x.T @ goal)[0]
    return mean, scale, x.T @ np.linalg.lstsq(x @ x.T + ridge * np.eye(n), goal)[0]
