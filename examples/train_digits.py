"""Trains RepVGG_N0 on scikit-learn's handwritten digits: the recipe of the bundled checkpoint RepVGG_N0.digits.

    ./dev python examples/train_digits.py --out digits.safetensors

The data are 1,797 real scans of 8x8 pixels (E. Alpaydin and C. Kaynak, UCI Machine Learning Repository); one fifth of
each class, picked once by a fixed seed, is the test split. A few minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import warnings
from pathlib import Path
from typing import Any, Tuple

# On a machine without a GPU this keeps MegEngine from printing a banner about its absence.
os.environ.setdefault("MGE_DEFAULT_DEVICE", "cpux")
# MegEngine flushes subnormal numbers to zero, and NumPy warns about it when SciPy is imported.
warnings.filterwarnings("ignore", "The value of the smallest subnormal")

import cv2
import megengine as mge
import megengine.functional as F
import numpy as np
from megengine.autodiff import GradManager
from megengine.data import DataLoader, RandomSampler
from megengine.data.dataset import ArrayDataset
from megengine.data.transform import Transform
from megengine.module import Module
from megengine.optimizer import SGD
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import repvgg_zoo

TEST_SHARE = 0.2
SPLIT_SEED = 0
SIZE = 32
MEAN, STD = 0.305, 0.323

Arrays = Tuple[NDArray[Any], NDArray[Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="RepVGG_N0", help="any variant with one input channel and ten classes")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("digits.safetensors"))
    options = parser.parse_args()

    train_split, test_split = digits()
    model = train(train_split, epochs=options.epochs, seed=options.seed, name=options.model)
    deployed = repvgg_zoo.to_deploy(model)
    images, labels = preprocess(test_split[0]), test_split[1]
    print(f"test top-1: train form {accuracy(model, images, labels):.2f} %", end=", ")
    print(f"deploy form {accuracy(deployed, images, labels):.2f} %")
    repvgg_zoo.save_checkpoint(options.out, model)
    print(f"wrote {options.out}")


def digits() -> Tuple[Arrays, Arrays]:
    """The train and the test split, each images (N, 8, 8) uint8 in 0..255 and labels (N,) int32."""
    data = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)
    a, b, c, d = train_test_split(
        images, data.target.astype(np.int32), test_size=TEST_SHARE, stratify=data.target, random_state=SPLIT_SEED
    )
    return (a, c), (b, d)


def train(split: Arrays, *, epochs: int, seed: int, name: str = "RepVGG_N0") -> Module:
    """SGD with Nesterov momentum, a cosine schedule after one warm-up epoch, label smoothing and small warps."""
    mge.random.seed(seed)
    model = repvgg_zoo.create(name)
    # As in the official recipe, BN and biases are not decayed.
    decayed = [p for name, p in model.named_parameters() if name.endswith(("conv.weight", "linear.weight"))]
    others = [p for name, p in model.named_parameters() if not name.endswith(("conv.weight", "linear.weight"))]
    optimizer = SGD(
        [{"params": decayed, "weight_decay": 5e-4}, {"params": others}], lr=0.1, momentum=0.9, nesterov=True
    )
    gradients = GradManager().attach(model.parameters())

    dataset = ArrayDataset(*split)
    sampler = RandomSampler(dataset, batch_size=32, drop_last=True, seed=seed)
    loader = DataLoader(dataset, sampler=sampler, transform=Warp(seed))
    steps = epochs * len(loader)
    step = 0
    model.train()
    for epoch in range(epochs):
        total = 0.0
        for images, labels in loader:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, warm_up=len(loader))
            with gradients:
                logits = model(mge.Tensor(preprocess(images)))
                loss = F.nn.cross_entropy(logits, mge.Tensor(labels), label_smooth=0.1)
                gradients.backward(loss)
            optimizer.step().clear_grad()
            total += loss.item()
            step += 1
        if sys.stderr.isatty():
            print(f"\repoch {epoch + 1}/{epochs}  loss {total / len(loader):.3f}", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    model.eval()
    return model


def learning_rate(step: int, steps: int, *, warm_up: int, peak: float = 0.1) -> float:
    if step < warm_up:
        return peak * (step + 1) / warm_up
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


class Warp(Transform):
    """Rotates, scales, shears and shifts each image a little, seeded."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.RandomState(seed)

    def apply(self, input: Any) -> Any:
        image, label = input
        angle, shear = self.random.uniform(-0.2, 0.2, 2)
        scale = self.random.uniform(0.9, 1.1, 2)
        rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        matrix = rotation @ np.array([[scale[0], shear], [0.0, scale[1]]])
        center = np.full(2, 3.5)
        shift = center - matrix @ center + self.random.uniform(-0.7, 0.7, 2)
        return cv2.warpAffine(image, np.column_stack([matrix, shift]), (8, 8)), label


def preprocess(images: NDArray[Any]) -> NDArray[Any]:
    """(N, 8, 8) uint8 to (N, 1, 32, 32) float32, as the registry's preprocessing of RepVGG_N0.digits says."""
    large = np.stack([cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR) for image in images])
    return np.asarray((large[:, None] / 255 - MEAN) / STD, dtype=np.float32)


def accuracy(model: Module, images: NDArray[Any], labels: NDArray[Any]) -> float:
    """Return the top-1 accuracy in percent."""
    return 100 * float(np.mean(model(mge.Tensor(images)).numpy().argmax(1) == labels))


if __name__ == "__main__":
    main()
