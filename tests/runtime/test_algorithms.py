"""The table of algorithms is one that MegEngine itself could have written."""

from __future__ import annotations

import struct
from typing import Dict, List

import numpy as np
import pytest

from repvgg_zoo.runtime.algorithms import CATEGORY, TILE_BLOCKS, Convolution, Winograd, choose, table
from repvgg_zoo.runtime.graph import dump, private_copy
from repvgg_zoo.runtime.lite import BUILDING, LiteNetwork
from repvgg_zoo.runtime.nchw88 import Block, Segment


def read(data: bytes) -> Dict[bytes, Dict[bytes, List[bytes]]]:
    """A table as category, key, descriptors of algorithms."""
    at = 0

    def number() -> int:
        nonlocal at
        at += 4
        return int(struct.unpack_from("<I", data, at - 4)[0])

    def text() -> bytes:
        nonlocal at
        size = number()
        at += size
        return data[at - size : at]

    tables: Dict[bytes, Dict[bytes, List[bytes]]] = {}
    for _ in range(number()):
        rows = tables[text()] = {}
        for _ in range(number()):
            key = text()
            number()  # the size of what follows
            rows[key] = []
            for _ in range(number()):
                rows[key].append(text())
                text()
    assert at == len(data)
    return tables


def test_keys_and_descriptors_are_those_of_megengines_own_fast_run() -> None:
    pytest.importorskip("megenginelite")
    shape = (1, 12, 24, 30, 8)  # winograd takes half as long as oneDNN here
    kernel, bias = np.ones((96, 96, 3, 3), np.float32), np.zeros(96, np.float32)
    segment = Segment([Block(kernel, bias, 1)], 1, 24, 30)
    graph = dump(private_copy(segment), np.zeros(shape, np.float32), optimize=False)
    (convolution,) = segment.convolutions
    known = {_descriptor(Winograd(output, block).entry()) for output in (6, 2) for block in TILE_BLOCKS}
    for _ in range(10):  # fast-run lists the fastest few, which on a busy machine may be none of winograd's
        with BUILDING:
            measured = LiteNetwork(graph, ("output0",), shape, threads=1, preprocess=False)
        if known & set(read(measured.algorithms)[CATEGORY][convolution.key()]):
            return
    pytest.fail("fast-run wrote no descriptor that we know")


def _descriptor(entry: bytes) -> bytes:
    (size,) = struct.unpack_from("<I", entry, 4)
    return entry[8 : 8 + size]


def test_a_table_holds_each_convolution_once() -> None:
    one, other = Convolution(1, 16, 16, 14, 14), Convolution(1, 16, 32, 14, 14, relu=False)
    rows = read(table([one, other, one], threads=2))[CATEGORY]
    assert set(rows) == {one.key(), other.key()}


@pytest.mark.parametrize(
    ("convolution", "output"),
    [(Convolution(1, 96, 96, 28, 28), 6), (Convolution(1, 192, 192, 14, 14), 2)],
    ids=["tiles that fit", "few tiles, many weights"],
)
def test_large_tiles_are_taken_where_they_pay(convolution: Convolution, output: int) -> None:
    assert choose(convolution, threads=1).output == output
