"""A loop over JPEG files, from paths to logits, in its own process and on command, for ``benchmarks.evaluate``.

Reads JSON lines: ``{"load": {...}}`` once, then ``{"round": true}``, which is answered with the seconds that all images
took. Everything that is needed once, such as compiling and starting workers, is done before the first round.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Sequence

import numpy as np

from .serve import PR_SET_PDEATHSIG

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RESIZE, SIZE = 256, 224

Loop = Callable[[], List[Any]]


def main() -> None:
    end_with_parent()
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is not an answer
    loop: Loop = list
    for line in sys.stdin:
        request = json.loads(line)
        answer: Dict[str, Any] = {}
        try:
            if "load" in request:
                loop = LOOPS[request["load"]["loop"]](request["load"])
                np.save(request["load"]["logits"], np.concatenate(loop()))
            else:
                start, cpu = time.perf_counter(), cpu_seconds()
                loop()
                answer = {"seconds": time.perf_counter() - start, "cpu": cpu_seconds() - cpu}
        except Exception as error:
            answer = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
        print(json.dumps(answer), file=answers, flush=True)


def end_with_parent(_: int = 0) -> None:
    """A process that is stopped when the driver is killed would stay forever, and so would its workers."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def cpu_seconds() -> float:
    """Return the CPU time of this process and its workers."""
    total = 0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:13])) * (int(fields[2]) == os.getpgrp())
    return total / os.sysconf("SC_CLK_TCK")


def ours(job: Dict[str, Any]) -> Loop:
    """``compute``: a network on one thread for each core."""
    from repvgg_zoo.data.engine import open_networks, run_networks
    from repvgg_zoo.data.samples import Sample
    from repvgg_zoo.image.preprocess import metadata_of, open_model

    model = open_model(job["weights"])
    preprocessing = metadata_of(model).preprocessing
    assert preprocessing is not None
    networks = open_networks(model, preprocessing, job["threads"], job["batch"], "logits", contextlib.ExitStack())
    samples = [Sample(path, Path(path)) for path in job["images"]]
    return lambda: [
        output.values[None]
        for output in run_networks(networks, preprocessing, iter(samples), job["batch"], skip=False)
        if output.values is not None
    ]


def plain_loop(job: Dict[str, Any]) -> Loop:
    """``preprocess`` and one network on all cores, one after the other."""
    import repvgg_zoo

    to_input = repvgg_zoo.preprocess(job["weights"])
    network = repvgg_zoo.compile(job["weights"], batch_size=job["batch"], threads=job["threads"])
    return lambda: [
        network(np.stack([to_input(path) for path in paths])) for paths in batches(job["images"], job["batch"])
    ]


def megengine_loader(job: Dict[str, Any]) -> Loop:
    """MegEngine's DataLoader and transforms, and ``compile`` on all cores."""
    import cv2
    import megengine.data.transform as T
    from megengine.data import DataLoader, SequentialSampler
    from megengine.data.dataset import Dataset

    import repvgg_zoo

    cv2.setNumThreads(1 if job["workers"] else job["threads"])
    network = repvgg_zoo.compile(job["weights"], batch_size=job["batch"], threads=job["threads"])

    class Images(Dataset):
        def __init__(self) -> None:  # which is abstract in Dataset
            pass

        def __getitem__(self, index: int) -> Any:
            return np.ascontiguousarray(cv2.imread(job["images"][index], cv2.IMREAD_COLOR)[:, :, ::-1])

        def __len__(self) -> int:
            return len(job["images"])

    dataset = Images()
    loader = DataLoader(
        dataset,
        SequentialSampler(dataset, batch_size=job["batch"]),
        T.Compose(
            [
                T.Resize(RESIZE),
                T.CenterCrop(SIZE),
                T.Normalize([255 * value for value in MEAN], [255 * value for value in STD]),
                T.ToMode("CHW"),
            ]
        ),
        num_workers=job["workers"],
    )
    return lambda: [network(np.ascontiguousarray(batch, np.float32)) for batch in loader]


def torch_loader(job: Dict[str, Any]) -> Loop:
    """torch's DataLoader with Pillow, and the network in torch on all cores, as timm's validate.py has them."""
    import torch
    from PIL import Image
    from safetensors.torch import load_file
    from torch.utils.data import DataLoader, Dataset

    from .networks import layers
    from .torch_network import torch_network, torch_state

    torch.set_num_threads(job["threads"])
    weights = layers(load_file(job["weights"]))
    network = torch_network(weights)
    network.load_state_dict(torch_state(network, weights))
    network.eval()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))

    class Images(Dataset[Any]):
        def __getitem__(self, index: int) -> Any:
            image = Image.open(job["images"][index]).convert("RGB")
            width, height = image.size
            scale = RESIZE / min(width, height)
            image = image.resize((int(width * scale), int(height * scale)), Image.Resampling.BILINEAR)
            left, top = (round((side - SIZE) / 2) for side in image.size)
            pixels = np.asarray(image.crop((left, top, left + SIZE, top + SIZE)))
            return (torch.from_numpy(pixels.copy()).permute(2, 0, 1).contiguous().float().div(255) - mean) / std

        def __len__(self) -> int:
            return len(job["images"])

    loader: Any = DataLoader(
        Images(),
        batch_size=job["batch"],
        num_workers=job["workers"],
        persistent_workers=job["workers"] > 0,
        worker_init_fn=end_with_parent,
    )

    def run() -> List[Any]:
        with torch.inference_mode():
            return [network(batch).numpy() for batch in loader]

    return run


def batches(items: Sequence[str], size: int) -> Iterator[List[str]]:
    """Yield the items in lists of ``size``."""
    iterator = iter(items)
    while True:
        batch = list(itertools.islice(iterator, size))
        if not batch:
            return
        yield batch


LOOPS: Dict[str, Callable[[Dict[str, Any]], Loop]] = {
    "ours": ours,
    "loop": plain_loop,
    "megengine": megengine_loader,
    "torch": torch_loader,
}

if __name__ == "__main__":
    main()
