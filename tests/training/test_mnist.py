"""The proof that fine-tuning works: 4,000 images of MNIST, from a network that was trained on other digits."""

from __future__ import annotations

import pytest

from repvgg_zoo.training.finetuning import finetune

from .mnist import write_folders

pytest.importorskip("megengine")


@pytest.mark.slow
def test_five_epochs_on_mnist_reach_96_percent_and_the_head_alone_87(tmp_path):
    data = write_folders(tmp_path / "mnist", train=400, val=100)
    report = finetune(
        "RepVGG_N0",
        data / "train",
        val=data / "val",
        output=tmp_path / "run",
        epochs=5,
        bn="train",
        lr=0.04,
        batch_size=64,
        min_crop=0.8,
    )
    assert report.train_images == 4000 and report.top1.n == 1000
    assert report.probe_top1.percent >= 87
    assert report.top1.percent >= 96
