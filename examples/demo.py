"""The zoo in one minute: fetch a trained RepVGG by name, verify it, re-parameterize it and classify real images.

./dev demo [--output-image demo.png]
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any, Callable, List, Tuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

import repvgg_zoo
from repvgg_zoo._requirements import has_megengine_wheels

NAME = "RepVGG_N0.digits"
FORMS = ("train form", "deploy form", "compiled")
BACKGROUND, CORRECT, WRONG = (255, 255, 255), (22, 122, 62), (200, 30, 40)


def main() -> None:
    parser = argparse.ArgumentParser(description="The zoo in one minute.")
    parser.add_argument("--output-image", type=Path, default=Path("demo.png"), help="digits with their predictions")
    output_image = parser.parse_args().output_image
    # Without it, and without a GPU, MegEngine prints a banner.
    os.environ.setdefault("MGE_DEFAULT_DEVICE", "cpux")

    title("The registry: names, costs of the deploy form, accuracy of the default checkpoint")
    show_registry()

    title(f"Fetching {NAME}")
    file = repvgg_zoo.model_info(NAME).checkpoint("digits").file
    path = repvgg_zoo.fetch(NAME)
    print(f"  {path}\n  {path.stat().st_size:,} bytes, sha256 {str(file.sha256)[:16]}... verified")

    images, labels = test_images()
    to_input = repvgg_zoo.preprocess(NAME)
    inputs = np.stack([to_input(image) for image in images])
    if has_megengine_wheels():
        show_networks(inputs, labels)

    title("Compiling the deploy form, and predicting one image")
    with repvgg_zoo.compile(NAME, batch_size=32) as compiled:
        predictions = compiled(inputs).argmax(1)
        top3 = ", ".join(map(str, repvgg_zoo.predict(compiled, images[0], topk=3)))
        print(f"  {score(predictions, labels)}\n  {top3}; it is a {labels[0]}")

    draw(images, labels, predictions).save(output_image)
    print(f"\nSome of the test images with their predictions: {output_image}")


def show_networks(inputs: NDArray[Any], labels: NDArray[Any]) -> None:
    """Show what needs MegEngine: the network in both forms, and how they compare."""
    title("Building the train form: three branches in each block")
    model = repvgg_zoo.create(NAME, pretrained=True)
    print(f"  {describe(model)}\n  {score(classify(model, inputs), labels)}")

    title("Re-parameterizing: one 3x3 convolution in each block")
    deployed = repvgg_zoo.to_deploy(model)
    print(f"  {describe(deployed)}\n  {score(classify(deployed, inputs), labels)}")

    title("Comparing the two forms, relative to the size of each output")
    report = repvgg_zoo.compare_forms(model, inputs[:32])
    worst = report.worst_block
    print(f"  {len(report.blocks)} blocks, worst {worst.name}: {worst.relative:.1e}; end to end: ", end="")
    print(f"{report.end_to_end.relative:.1e}")

    title("Timing both and the compiled network, 32 images at a time")
    with repvgg_zoo.compile(deployed, batch_size=32) as compiled:
        some = inputs[:32]
        calls = (lambda: classify(model, some), lambda: classify(deployed, some), lambda: compiled(some))
        texts = [f"{form} {1e3 * time:.1f} ms" for form, time in zip(FORMS, time_interleaved(*calls))]
        print(f"  {', '.join(texts)}")


def show_registry() -> None:
    print(f"  {'name':18} {'params':>9} {'MACs':>9} {'at':>6} {'top-1':>8} {'at':>6}  checkpoint")
    for name in repvgg_zoo.list_models():
        info = repvgg_zoo.model_info(name)
        cost = f"{info.params.deploy / 1e6:7.2f} M {info.macs.deploy / 1e9:7.3f} G {info.architecture.image_size:4} px"
        if info.default is None:
            print(f"  {name:18} {cost}  no verifiable checkpoint")
        else:
            checkpoint = info.checkpoint(info.default)
            size = checkpoint.preprocessing.image_size
            print(f"  {name:18} {cost} {checkpoint.top1:6.2f} % {size:3} px  {info.default}")


def test_images() -> Tuple[NDArray[Any], NDArray[Any]]:
    """Return the 360 digits of the test split, shipped with the checkpoint: (360, 8, 8) uint8 and (360,) labels."""
    with np.load(Path(__file__).parents[1] / "hub" / "digits-test.npz", allow_pickle=False) as arrays:
        return arrays["images"], arrays["labels"]


def classify(model: Any, inputs: NDArray[Any]) -> NDArray[Any]:
    import megengine

    return np.asarray(model(megengine.Tensor(inputs)).numpy().argmax(1))


def describe(model: Any) -> str:
    tensors = list(model.parameters())
    return f"{len(tensors)} parameter tensors, {sum(int(np.prod(t.shape)) for t in tensors):,} parameters"


def score(predictions: NDArray[Any], labels: NDArray[Any]) -> str:
    correct = int((predictions == labels).sum())
    return f"{correct} of {len(labels)} test images correct: top-1 {100 * correct / len(labels):.2f} %"


def time_interleaved(*calls: Callable[[], Any], rounds: int = 7) -> List[float]:
    """Return the median seconds of each call; they take turns, so that background load affects all of them."""
    seconds: List[List[float]] = [[] for _ in calls]
    for _ in range(rounds + 2):
        for call, times in zip(calls, seconds):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    return [float(np.median(times[2:])) for times in seconds]


def draw(
    images: NDArray[Any], labels: NDArray[Any], predictions: NDArray[Any], columns: int = 12, rows: int = 4
) -> Image.Image:
    """Draw a sheet of test images, the wrongly classified ones first; green where the prediction is correct."""
    order = np.argsort(predictions == labels, kind="stable")[: columns * rows]
    cell, margin, caption = 64, 12, 22
    width, height = columns * (cell + margin) + margin, rows * (cell + caption + margin) + margin
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for cell_index, index in enumerate(order):
        x = margin + cell_index % columns * (cell + margin)
        y = margin + cell_index // columns * (cell + caption + margin)
        digit = Image.fromarray(255 - images[index]).resize((cell, cell), Image.Resampling.NEAREST)
        sheet.paste(digit, (x, y))
        correct = predictions[index] == labels[index]
        pen.rectangle((x - 1, y - 1, x + cell, y + cell), outline=CORRECT if correct else WRONG, width=2)
        text = str(predictions[index]) if correct else f"{predictions[index]}, is {labels[index]}"
        pen.text((x + 2, y + cell + 5), text, fill=CORRECT if correct else WRONG, font=font)
    return sheet


def title(text: str) -> None:
    print(f"\n{text}", flush=True)


if __name__ == "__main__":
    main()
