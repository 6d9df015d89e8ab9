"""Write images and the inputs that the publishers' own code makes of them, for tests/peers/test_images.py.

Usage: write_image_files.py FOLDER. It writes PNG and JPEG files, and beside each <name> a <name>.npz with the
networks' inputs (3, H, W) by checkpoint.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict

from without_init import without_init

# The stub of torchvision beside this script is for the networks; here torchvision's own code runs.
sys.path.pop(0)

without_init("torchvision")
without_init("mmpretrain", "datasets", "datasets.transforms")
without_init("paddleclas", "deploy", "deploy.python")

import cv2
import numpy as np
from mmcv.transforms import CenterCrop, LoadImageFromFile
from mmpretrain.datasets.transforms.processing import ResizeEdge
from paddleclas.deploy.python import preprocess as paddle
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.models import get_pretrained_cfg
from torchvision import transforms

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def timm_input(name: str, path: Path) -> np.ndarray:
    """timm: the transform that it creates from its configuration of this network."""
    config = resolve_data_config(pretrained_cfg=get_pretrained_cfg(name).to_dict(), use_test_size=True)
    return create_transform(**config)(Image.open(path).convert("RGB")).numpy()


def official_input(resize: int, size: int, path: Path) -> np.ndarray:
    """The official repository: torchvision's transforms, with the arguments that its data loaders give."""
    steps = [
        transforms.Resize(resize),
        transforms.CenterCrop(size),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    return transforms.Compose(steps)(Image.open(path).convert("RGB")).numpy()


def openmmlab_input(path: Path) -> np.ndarray:
    """mmpretrain: the test pipeline of its RepVGG configurations; its data preprocessor then normalizes."""
    results = {"img_path": str(path)}
    for step in (LoadImageFromFile(), ResizeEdge(scale=256, edge="short", backend="pillow"), CenterCrop(224)):
        results = step(results)
    mean, std = np.float32([123.675, 116.28, 103.53]), np.float32([58.395, 57.12, 57.375])
    return ((results["img"][:, :, ::-1].astype(np.float32) - mean) / std).transpose(2, 0, 1)


def paddleclas_input(resize: Dict[str, Any], size: int, path: Path) -> np.ndarray:
    """PaddleClas: the operators of its configurations' inference part."""
    image = cv2.imread(str(path))[:, :, ::-1]
    steps = [
        paddle.ResizeImage(**resize),
        paddle.CropImage(size),
        paddle.NormalizeImage(scale=1 / 255, mean=MEAN, std=STD, order=""),
        paddle.ToCHWImage(),
    ]
    for step in steps:
        image = step(image)
    return image


CHECKPOINTS: Dict[str, Callable[[Path], np.ndarray]] = {
    "RepVGG_A0.timm": partial(timm_input, "repvgg_a0"),
    "RepVGG_D2se.timm": partial(timm_input, "repvgg_d2se"),
    "RepVGG_A0.official": partial(official_input, 256, 224),
    "RepVGGplus_L2pse.official": partial(official_input, 320, 320),
    "RepVGG_A0.openmmlab": openmmlab_input,
    "RepVGG_D2se.openmmlab": openmmlab_input,
    "RepVGG_A0.openmmlab_own": openmmlab_input,
    "RepVGG_A0.paddleclas": partial(paddleclas_input, {"resize_short": 256}, 224),
    "RepVGG_D2se.paddleclas": partial(
        paddleclas_input, {"resize_short": 320, "interpolation": "bicubic", "backend": "pil"}, 320
    ),
}


def images() -> Dict[str, np.ndarray]:
    """Return noise in sizes whose halves and quotients round both ways, and an image like a photograph."""
    random = np.random.RandomState(0)
    sizes = [(300, 400), (400, 300), (333, 500), (341, 257), (256, 256), (225, 224), (97, 181), (1000, 613), (37, 331)]
    sizes += [tuple(random.randint(40, 900, 2)) for _ in range(12)]
    noise = {f"noise_{h}x{w}.png": random.randint(0, 256, (h, w, 3), dtype=np.uint8) for h, w in sizes}
    photograph = synthetic_photograph(720, 1083)
    return {**noise, "photograph.png": photograph, "photograph.jpg": photograph}


def synthetic_photograph(height: int, width: int) -> np.ndarray:
    """Return smooth light, edges, texture that grows finer, and a sensor's noise."""
    y, x = np.mgrid[0:height, 0:width] / float(height)
    light = np.stack([0.7 - 0.4 * y, 0.5 + 0.3 * np.sin(2 * x), 0.3 + 0.5 * y * x], axis=2)
    discs = sum(((x - cx) ** 2 + (y - cy) ** 2 < r * r) * s for cx, cy, r, s in DISCS)
    texture = 0.1 * np.sin(400 * y * y) * np.cos(60 * x)
    noise = np.random.RandomState(1).normal(0, 0.02, (height, width, 3))
    return np.clip(255 * (light + (discs + texture)[:, :, None] * [1, 0.6, 0.2] + noise), 0, 255).astype(np.uint8)


DISCS = [(0.4, 0.5, 0.3, 0.4), (0.9, 0.3, 0.12, -0.5), (1.1, 0.8, 0.2, 0.3)]

if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    for name, pixels in images().items():
        Image.fromarray(pixels).save(target / name, quality=90)
        inputs = {checkpoint: preprocess(target / name) for checkpoint, preprocess in CHECKPOINTS.items()}
        np.savez(target / f"{name}.npz", **inputs)
    print(f"{len(list(target.glob('*.npz')))} images, {len(CHECKPOINTS)} checkpoints")
