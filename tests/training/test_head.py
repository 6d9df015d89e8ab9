"""The head is the optimum of its objective, on features of any scale, and no class is mixed up."""

from __future__ import annotations

import numpy as np
import pytest

from repvgg_zoo.training.head import L2_CANDIDATES, count_correct, cross_entropy, fit_head, minimize


def blobs(count, seed, channels=12, classes=4, spread=1.0):
    random = np.random.RandomState(seed)
    centers = np.random.RandomState(0).randn(classes, channels) * 2
    labels = random.randint(classes, size=count)
    return (centers[labels] + spread * random.randn(count, channels)).astype(np.float32), labels


def test_separable_classes_are_all_right():
    features, labels = blobs(200, 1, spread=0.2)
    val, val_labels = blobs(100, 2, spread=0.2)
    head = fit_head(features, labels, val, val_labels, 4)
    assert count_correct(head.logits(val), val_labels) == 100
    assert head.weight.shape == (4, 12) and head.weight.dtype == head.bias.dtype == np.float32


def test_the_loss_is_that_of_logistic_regression_in_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, labels = blobs(300, 3, spread=3)
    head = fit_head(features, labels, features, labels, 4)
    standardized = (features - features.mean(0)) / features.std(0)
    model = linear_model.LogisticRegression(C=1 / (head.l2 * len(labels)), max_iter=1000, tol=1e-8)
    expected = model.fit(standardized, labels).decision_function(standardized)
    assert cross_entropy(head.logits(features), labels) == pytest.approx(cross_entropy(expected, labels), rel=1e-3)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_the_scale_of_the_features_does_not_matter(scale):
    features, labels = blobs(200, 1)
    head = fit_head(features * np.float32(scale), labels, features * np.float32(scale), labels, 4)
    assert count_correct(head.logits(features * np.float32(scale)), labels) >= 190


def test_a_constant_channel_has_no_weight():
    features, labels = blobs(100, 1)
    features[:, 3] = 7
    head = fit_head(features, labels, features, labels, 4)
    assert not head.weight[:, 3].any() and np.isfinite(head.bias).all()


def test_noise_gets_a_stronger_penalty_than_classes_that_are_far_apart():
    features, labels = blobs(40, 1, channels=60, spread=8)
    val, val_labels = blobs(400, 2, channels=60, spread=8)
    assert fit_head(features, labels, val, val_labels, 4).l2 > L2_CANDIDATES[-1]


def test_the_minimum_of_a_badly_scaled_function():
    scales = np.array([1.0, 100.0, 0.1])
    start, target = np.zeros(3), np.array([1.0, -2.0, 3.0])

    def objective(point):
        return float(0.5 * (scales * (point - target) ** 2).sum()), scales * (point - target)

    np.testing.assert_allclose(minimize(objective, start), target, atol=2e-3)
