"""Small files of every format, and bytes that mean something to one of them: what fuzzing starts from.

Without pytest and hypothesis, which each process of ``tests/fuzz`` would import.
"""

from __future__ import annotations

import io

import numpy as np

from tests.checkpoints import damaged_files
from tests.checkpoints import hostile_files as hostile
from tests.checkpoints import torch_files as write


def good_npz(save):
    stream = io.BytesIO()
    save(stream, **{"a.weight": np.arange(6.0).reshape(2, 3), "a.bias": np.zeros((), ">f4")})
    return stream.getvalue()


SEEDS = {
    "torch zip": [write.good_zip(), write.good_zip(method=8), write.good_zip(extra=[("archive/byteorder", b"big")])],
    "npz": [good_npz(np.savez), good_npz(np.savez_compressed)],
    "torch legacy": [write.good_legacy(), write.good_legacy(little=False)],
    "megengine": [write.good_megengine(protocol) for protocol in range(6)],
    "paddle": [write.good_paddle(2), write.good_paddle(4), write.good_paddle(4, marked=False)],
    "safetensors": [write.good_safetensors()],
    "hostile": [row[1] for row in hostile.executing() + damaged_files.damaged()],
}
# Bytes that mean something to one of the formats: opcodes, lengths at their limits, zip signatures, names.
TOKENS = [bytes([code]) for code in b"(.01245BCFGIJKLMNPQRSTUVX]abcdeghijlopqrstu}"] + [
    *(bytes([code]) for code in range(0x80, 0x99)),
    *(bytes(size) for size in (1, 2, 4, 8)),
    *(b"\xff" * size for size in (1, 2, 4, 8)),
    *(b"\xff" * (size - 1) + b"\x7f" for size in (2, 4, 8)),
    *(b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\7\x08"),
    *(b"cos\nsystem\n", b"cnumpy\ndtype\n", b"c_codecs\nencode\n", b"ccollections\nOrderedDict\n"),
    *(b"\x93NUMPY", b"|O", b"(9999999999,)", b"True"),
    *(b'"BF16"', b'"F64"', b"[0,0]", b"18446744073709551615", b"-1", b"{", b"}", b"[", b"]"),
]
