"""The readers that are fuzzed by cost, each with its seeds, and the memory that it may take for an input of a size."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional

import numpy as np
from PIL import Image
from safetensors.numpy import save

from repvgg_zoo._resources import registry_path
from repvgg_zoo.checkpoints import load_checkpoint, save_checkpoint
from repvgg_zoo.errors import ZooError
from repvgg_zoo.hub import bundle
from repvgg_zoo.image.io import FREE_PIXELS, MAX_PIXELS, MAX_PIXELS_PER_BYTE, load_image
from repvgg_zoo.inference.jit.kernels import AVX2, AVX512
from repvgg_zoo.inference.lowering import lower
from repvgg_zoo.registry.parser import parse_registry
from repvgg_zoo.reparam.fusion import to_form
from tests.checkpoints import torch_files as write
from tests.checkpoints.fuzz_seeds import SEEDS, TOKENS
from tests.checkpoints.hostile_files import runs_code
from tests.checkpoints.publishers import Variant, entries
from tests.inference.reference import Layer, random_weights
from tests.registry.sample import SAMPLE

from .cost import Reader

MB = 1 << 20

# Checkpoints ---------------------------------------------------------------------------------------------------


def read_checkpoint(folder: Path, content: bytes) -> Optional[int]:
    """Read, fuse and save, as ``repvgg-zoo convert --deploy`` does."""
    with suppress(ZooError), np.errstate(all="ignore"):
        save_checkpoint(folder / "out.safetensors", to_form(load_checkpoint(folder / "input"), "deploy"))
    return None


def small_state(form: str = "train") -> Dict[str, np.ndarray[Any, Any]]:
    rows = entries("official", Variant((1, 1, 1, 1), (0.0625,) * 4), form, 4)
    return {row.publisher_key: np.ones(row.publisher_shape, np.float32) for row in rows}


def in_torch_zip(state: Mapping[str, np.ndarray[Any, Any]], method: int = 0) -> bytes:
    tensors, storages = {}, {}
    for number, (key, array) in enumerate(state.items()):
        strides = [stride // 4 for stride in array.strides]
        tensors[key] = write.tensor(write.storage(str(number), "f4", array.size), 0, array.shape, strides)
        storages[str(number)] = array.tobytes()
    return write.zip_file(write.whole(write.mapping(tensors)), storages, method=method)


def in_torch_legacy(state: Mapping[str, np.ndarray[Any, Any]]) -> bytes:
    tensors, storages = {}, {}
    for number, (key, array) in enumerate(state.items()):
        strides = [stride // 4 for stride in array.strides]
        where = write.storage(str(number), "f4", array.size, legacy=True)
        tensors[key] = write.tensor(where, 0, array.shape, strides)
        storages[str(number)] = array.size, array.tobytes()
    return write.legacy_file(write.whole(write.mapping(tensors)), storages)


PICKLED: List[bytes] = [b"]", b"}", b"(", b"l", b"\x94", b"h\0", b"q\0", b"\x93", b"e", b"u", b"s", b"\x85", b"2", b"0"]


def checkpoint_reader(seeds: List[bytes], max_bytes: Callable[[int], int]) -> Reader:
    return Reader(lambda folder: partial(read_checkpoint, folder), seeds, [*TOKENS, *PICKLED], max_bytes)


def pickle_bytes(size: int) -> int:
    # An opcode of one byte can make an object of 200 bytes and its copy; the number of opcodes is limited.
    return MB + min(600 * size, 48 * MB + 16 * size)


# Registries and bundles ----------------------------------------------------------------------------------------


def read_registry(content: bytes) -> Optional[int]:
    with suppress(ZooError):
        parse_registry(content, path=Path("/zoo/registry.yaml"))
    return None


def read_bundle(folder: Path, content: bytes) -> Optional[int]:
    with suppress(ZooError):
        bundle.read_bundle(folder / "input")
    return None


def zipped_index(index: Any) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("bundle.json", json.dumps(index))
        archive.writestr("0123456789abcdef-x", b"x")
    return stream.getvalue()


ENTRY = {"name": "x", "integrity": "sha256", "size": 1, "sha256": "0123456789abcdef" * 4}
YAML = b"[|]|{|}|, |: |- |? |&a |*a |<<: |!!int |!x |1:1|0x1|1e9|.inf|~|'|#|---\n|\n|\n  "
YAML_TOKENS = [*YAML.split(b"|"), b"|\n", b"%TAG ! x\n", b"\xf0\x9f\x98\x80", b"1" * 50]
YAML_TOKENS += [b"{variant}", b"lab: ", b"aliases: [", b"labels: ["]
JSON = b'[ ] { } , : "" "a": 1 1e9 NaN \\ud83d\\ude00 [],'
JSON_TOKENS = [*JSON.split(b" "), b"1" * 50]
IMAGE_TOKENS = [bytes(4), b"\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\x40\0", b"IDAT", b"IHDR", b"\xff\xc2", b"\xff\xda"]

# Images --------------------------------------------------------------------------------------------------------


def read_image(content: bytes) -> Optional[int]:
    with suppress(ZooError):
        load_image(io.BytesIO(content), "RGB")
    return None


def image_seeds() -> List[bytes]:
    random = np.random.RandomState(0)
    image = Image.fromarray(random.randint(0, 256, (40, 60, 3)).astype(np.uint8))
    seeds = []
    for format, mode, options in (
        ("PNG", "RGB", {}),
        ("PNG", "P", {}),
        ("PNG", "1", {}),
        ("PNG", "RGBA", {}),
        ("JPEG", "RGB", {"progressive": True}),
        ("JPEG", "L", {}),
        ("GIF", "P", {}),
        ("BMP", "RGB", {}),
        ("TIFF", "RGB", {"compression": "tiff_deflate"}),
        ("TIFF", "L", {"compression": "tiff_lzw"}),
        ("TIFF", "1", {}),
        ("WEBP", "RGB", {}),
        ("WEBP", "RGBA", {"lossless": True}),
    ):
        stream = io.BytesIO()
        image.convert(mode).save(stream, format=format, **options)
        seeds.append(stream.getvalue())
    return seeds


def image_bytes(size: int) -> int:
    pixels = min(MAX_PIXELS, max(FREE_PIXELS, MAX_PIXELS_PER_BYTE * size))
    return 64 * MB + 16 * pixels


# Lowering ------------------------------------------------------------------------------------------------------


def lower_network(content: bytes) -> Optional[int]:
    """Lower a network whose layers the bytes describe, which checks the bounds of every address of the plan.

    The size is that of the weights and of the activations.
    """
    data = (content + bytes(20))[:20]
    images, channels, height, width = 1 + data[0] % 3, 1 + data[1] % 9, 1 + data[2] % 40, 1 + data[3] % 40
    layers = []
    for first, second in zip(data[4:16:2], data[5:16:2]):
        groups = (1, 1, 2, 4)[first >> 6]
        before = layers[-1].channels if layers else channels
        groups = groups if before % groups == 0 else 1
        wide = groups * (1 + first % 64)
        se = (None, None, "before", "after")[second >> 6]
        layers.append(Layer(wide, 1 + second % 2, groups=groups, se=se, feature=bool(second & 4)))
    weights = random_weights(channels, layers, 1 + data[16] % 50 if data[17] % 2 else None)
    shape = (images, channels, height, width)
    lower(weights, shape, threads=1 + data[18] % 3, config=(AVX2, AVX512)[data[19] % 2], low_memory=data[19] > 200)
    numbers = sum(layer.kernel.size for layer in weights.layers)
    pixels = images * height * width
    return 4 * (numbers + pixels * (channels + sum(layer.channels for layer in layers)))


def lowered_bytes(size: int) -> int:
    # Channels are padded to 16, and F(4x4, 3x3) has four times as many weights.
    return 4 * MB + 64 * size


READERS: Dict[str, Reader] = {
    "torch-zip": checkpoint_reader(
        [in_torch_zip(small_state()), in_torch_zip(small_state(), method=8), *SEEDS["torch zip"], *SEEDS["npz"]],
        lambda size: MB + min(600 * size, 48 * MB + 32 * size),
    ),
    "torch-legacy": checkpoint_reader([in_torch_legacy(small_state()), *SEEDS["torch legacy"]], pickle_bytes),
    "megengine": checkpoint_reader(
        [*(pickle.dumps(small_state(), protocol) for protocol in (0, 2, 4)), runs_code(2), *SEEDS["megengine"]],
        pickle_bytes,
    ),
    "paddle": checkpoint_reader(list(SEEDS["paddle"]), pickle_bytes),
    "safetensors": checkpoint_reader(
        [save(small_state()), save(small_state("deploy")), *SEEDS["safetensors"]], lambda size: MB + 100 * size
    ),
    "registry": Reader(
        lambda folder: read_registry,
        [SAMPLE.encode(), registry_path().read_bytes()],
        YAML_TOKENS,
        lambda size: MB + min(1000 * size, 64 * MB + 64 * size),
    ),
    "bundle": Reader(
        lambda folder: partial(read_bundle, folder),
        [
            zipped_index({"bundle": 1, "files": {"a": ENTRY, "b": ENTRY}, "registry": {"a": [1, 2, {}]}}),
            zipped_index({"bundle": 1, "files": {f"n{number}": ENTRY for number in range(50)}, "registry": {}}),
        ],
        JSON_TOKENS,
        lambda size: 3 * MB + 64 * size,  # a read asks for 1 MB, however small the file is
    ),
    "image": Reader(
        lambda folder: read_image,
        image_seeds(),
        IMAGE_TOKENS,
        image_bytes,
        in_c=True,
    ),
    "lower": Reader(
        lambda folder: lower_network, [bytes(range(20)), bytes(20), b"\xff" * 20], [b"\0", b"\xff"], lowered_bytes
    ),
}
