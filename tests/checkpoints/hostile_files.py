"""Files made to run code or to exhaust the machine: (what it is, content, a word of the error), a row for each."""

from __future__ import annotations

import os
import pickle
import struct
from typing import Any, List, Tuple

import numpy as np

from tests.checkpoints import torch_files as write
from tests.checkpoints.torch_files import group, integer, mapping, name, storage, tensor, text, whole, zip_file

Row = Tuple[str, bytes, str]
CANARY = "canary-that-no-reader-may-touch"


class _Runs:
    """Touches the canary when it is unpickled by an ordinary unpickler."""

    def __reduce__(self) -> Any:
        return os.system, (f"echo > {CANARY}",)


def runs_code(protocol: int, wrap: Any = lambda value: value) -> bytes:
    return pickle.dumps(wrap(_Runs()), protocol)


def array_call(
    shape: bytes, dtype: str = "f4", data: bytes = b"C\0", fortran: bytes = b"\x89", order: str = "<"
) -> bytes:
    array = (
        name("numpy.core.multiarray", "_reconstruct")
        + group(name("numpy", "ndarray"), group(integer(0)), b"C\x01b")
        + b"R"
    )
    kind = name("numpy", "dtype") + group(text(dtype), b"\x89", b"\x88") + b"R"
    kind += group(integer(3), text(order), b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00") + b"b"
    return array + group(integer(1), shape, kind, fortran, data) + b"b"


def executing() -> List[Row]:
    rows = [(f"os.system by REDUCE, protocol {p}", runs_code(p), "system") for p in range(6)]
    rows += [
        (
            "os.system nested in a state dict",
            runs_code(4, lambda evil: {"w": np.ones(3), "x": [{"y": (evil,)}]}),
            "system",
        ),
        ("os.system as a dict's key", runs_code(2, lambda evil: {evil: 1}), "system"),
        ("os.system inside an array of objects", runs_code(4, lambda evil: np.array([evil, None])), "system"),
        ("os.system by INST", b"(Vecho > " + CANARY.encode() + b"\nios\nsystem\n.", "os.system"),
        ("os.system by OBJ", b"(cos\nsystem\nVecho > " + CANARY.encode() + b"\no.", "os.system"),
        ("os.system by NEWOBJ", whole(name("os", "system") + text(f"echo > {CANARY}") + b"\x85\x81"), "os.system"),
        ("os.system by NEWOBJ_EX", whole(name("os", "system") + text("x") + b"\x85}\x92", 4), "os.system"),
        (
            "os.system by STACK_GLOBAL",
            whole(text("os") + text("system") + b"\x93" + text("x") + b"\x85R", 4),
            "os.system",
        ),
        (
            "builtins.eval, as paddle reduces loose tensors",
            whole(name("builtins", "eval") + group(text("1"), b"}") + b"R"),
            "builtins.eval",
        ),
        (
            "builtins.getattr on an allowed name",
            whole(name("builtins", "getattr") + group(name("numpy", "ndarray"), text("x")) + b"R"),
            "getattr",
        ),
        (
            "a dotted name through an allowed module",
            whole(text("numpy") + text("ndarray.__class__") + b"\x93", 4),
            "__class__",
        ),
        ("an allowed module's other name", whole(name("numpy", "load") + text("x") + b"\x85R"), "numpy.load"),
        (
            "numpy.core.multiarray's other name",
            whole(name("numpy.core.multiarray", "fromfile") + text("x") + b"\x85R"),
            "fromfile",
        ),
        ("a whole MegEngine module", whole(name("megengine.module.conv", "Conv2d") + b")\x81}b"), "Conv2d"),
        (
            "a dict of MegEngine tensors",
            whole(mapping({"w": name("megengine.tensor", "Tensor") + b")\x81}b"})),
            "Tensor",
        ),
        (
            "a whole torch module in a zip file",
            zip_file(whole(name("torch.nn.modules.conv", "Conv2d") + b")\x81}b"), {}),
            "Conv2d",
        ),
        ("os.system in a zip file's pickle", zip_file(runs_code(2), {}), "system"),
        ("os.system in a legacy file's object", write.legacy_file(runs_code(2), {}), "system"),
        ("os.system in a legacy file's header", pickle.dumps(write.MAGIC, 2) + runs_code(2), "system"),
        ("os.system in a legacy file's keys", write.legacy_file(whole(b"}"), {}, keys=_Runs()), "system"),
        ("os.system in a persistent id", zip_file(whole(name("os", "system") + text("x") + b"\x85RQ"), {}), "system"),
        ("argparse.Namespace", whole(name("argparse", "Namespace") + b")\x81}b"), "argparse.Namespace"),
    ]
    return rows


def shared_levels(levels: int, make: bytes) -> bytes:
    """A value that holds the one below it twice, ``levels`` deep: it expands to 2 ** levels."""
    return b"N" + b"q\x00" + (b"0" + make + b"q\x00") * levels


def _entry(key: int) -> bytes:
    return integer(key << 24) + b"N"


def _many_members(count: int) -> bytes:
    return zip_file(whole(b"}"), {}, extra=[(f"{number:x}", b"") for number in range(count)])


def dropped() -> List[Row]:
    """What is not needed and costs nothing, because it is never made: nothing is left to load."""
    twice = b"h\x00h\x00\x86"
    return [
        (
            "os.system by __setstate__ of a dict",
            whole(b"}" + mapping({"__setstate__": name("os", "system")}) + b"b" + text("x") + b"b"),
            "no arrays",
        ),
        (
            "a global of two memoized names of 1 MB, 1000 times",
            whole(
                text("m" * 1_000_000) + b"q\x00" + text("n" * 1_000_000) + b"q\x01" + b"h\x00h\x01\x930" * 1000 + b"N",
                4,
            ),
            "NoneType",
        ),
        ("tuples that expand to 2^30 as a key", whole(b"}" + shared_levels(30, twice) + b"Ns"), "no arrays"),
        ("tuples nested 100000 deep as a key", whole(b"})" + b"\x85" * 100_000 + b"Ns"), "no arrays"),
        (
            "keys whose hashes collide",
            whole(b"}(" + b"".join(integer(k * (2**61 - 1)) + b"N" for k in range(99)) + b"u"),
            "no arrays",
        ),
    ]


def exhausting() -> List[Row]:
    twice = b"h\x00h\x00\x86"
    big = b"B" + struct.pack("<I", 100_000) + bytes(100_000)
    encode = name("_codecs", "encode") + b"q\x02" + text("\xff" * 50_000) + text("latin1") + b"\x86q\x01"
    swapped = array_call(b"h\x07", data=b"h\x05", order=">")
    return [
        ("tuples that expand to 2^60", whole(shared_levels(60, twice)), "objects"),
        (
            "dicts that expand to 2^40",
            whole(b"}q\x00" + (b"0}" + text("a") + b"h\x00s" + text("b") + b"h\x00sq\x00") * 40),
            "objects",
        ),
        ("lists nested 100000 deep", whole(b"]" * 100_000 + b"a" * 99_999), "nested"),
        ("a list that holds itself", whole(b"]q\x00h\x00a"), "itself"),
        ("a dict that holds itself", whole(b"}q\x00" + text("a") + b"h\x00s"), "itself"),
        ("a million opcodes", whole(b"N0" * 500_000 + b"N"), "opcodes"),
        ("a memo index of 2^32 - 1", whole(b"Nr\xff\xff\xff\xffj\xfe\xff\xff\xff"), "damaged"),
        ("a memo index of 200000 in a few bytes", whole(b"Nr\x40\x0d\x03\x00"), "memoizes more values than it has"),
        ("a flood of LONG_BINGET to nothing", whole(b"j\xff\xff\xff\x7f" * 1000), "damaged"),
        ("BINBYTES8 of 2^62 bytes", whole(b"\x8e" + struct.pack("<Q", 2**62), 4), "cut off"),
        ("BYTEARRAY8 of 2^40 bytes", whole(b"\x96" + struct.pack("<Q", 2**40), 5), "cut off"),
        ("BINUNICODE8 of 2^63 bytes", whole(b"\x8d" + struct.pack("<Q", 2**63), 4), "cut off"),
        ("LONG4 of 2^31 bytes", whole(b"\x8b\xff\xff\xff\x7f"), "cut off"),
        ("a frame of 2^63 bytes around nothing", whole(b"\x95" + struct.pack("<Q", 2**63), 4), "damaged"),
        ("a decimal of 100000 digits", b"(L" + b"9" * 100_000 + b"L\nt.", "digits"),
        ("one text encoded 1000 times", whole(b"](" + encode + (b"0h\x02h\x01R") * 1000 + b"e"), "times its size"),
        (
            "one big-endian array swapped 1000 times",
            whole(b"](" + big + b"q\x05" + group(integer(25_000)) + b"q\x07" + swapped * 1000 + b"e"),
            "times its size",
        ),
        (
            "one list copied into 1000 dicts",
            whole(
                b"]("
                + b"]("
                + group(text("k"), b"N") * 500
                + b"e\x85q\x01"
                + (name("collections", "OrderedDict") + b"h\x01R") * 1000
                + b"e"
            ),
            "times its size",
        ),
        ("a call with 100000 arguments", whole(name("numpy", "dtype") + group(b"N" * 100_000) + b"R"), "arguments"),
        ("an array of 2^60 elements", whole(array_call(group(integer(2**60)))), "bytes of data"),
        ("an array of 2^40 x 2^40 elements", whole(array_call(group(integer(2**40), integer(2**40)))), "bytes of data"),
        ("an array of shape (0, 2^62)", whole(array_call(group(integer(0), integer(2**62)))), "damaged"),
        ("an array of 40 axes", whole(array_call(group(integer(1) * 40))), "shape"),
        ("an array with a negative length", whole(array_call(group(b"J\xff\xff\xff\xff"))), "shape"),
        (
            "an expanded tensor of 2^40 elements",
            zip_file(whole(tensor(storage("0", "f4", 1), 0, (2**40,), (0,))), {"0": bytes(4)}),
            "outside",
        ),
        (
            "a legacy storage of 2^60 elements",
            write.legacy_file(
                whole(tensor(storage("0", "f4", 2**60, legacy=True), 0, (1,), (1,))), {"0": (2**60, b"")}
            ),
            "cut off",
        ),
        (
            "a zip bomb in a storage",
            zip_file(whole(tensor(storage("0", "u1", 2_000_000), 0, (9,), (1,))), {"0": bytes(2_000_000)}, method=8),
            "times its size",
        ),
        ("a zip bomb in the pickle", zip_file(whole(b"N" * 2_000_000), {}, method=8), "times its size"),
        (
            "a zip bomb beside the pickle",
            zip_file(whole(b"}"), {}, extra=[("archive/x", bytes(2_000_000))], method=8),
            "times its size",
        ),
        ("a key of 3 MB of dots", whole(mapping({"." * 3_000_000: b"N"})), "key of 3000000"),
        ("5000 integers as keys", whole(b"}(" + b"".join(map(_entry, range(5000))) + b"u"), "integers"),
        (
            "integers as keys, one after the other",
            whole(b"}" + b"".join(_entry(key) + b"s" for key in range(5000))),
            "integers",
        ),
        (
            "memo indices whose hashes collide",
            b"(N" + b"".join(b"p%d\n" % (k * (2**61 - 1)) for k in range(1, 20_000)) + b"t.",
            "memoizes",
        ),
        (
            "a text of 4 MB, four bytes a character for the sake of one",
            whole(text("a" * 4_000_000 + "\U0001f600")),
            "beyond latin-1",
        ),
        (
            "100 texts of 60 kB with one wide character each",
            whole(b"(" + text("a" * 60_000 + "\u0141") * 100 + b"t"),
            "beyond latin-1",
        ),
        (
            "an escaped text of 4 MB with one wide character",
            b"(V" + b"a" * 4_000_000 + b"\\U0001f600\nt.",
            "beyond latin-1",
        ),
        (
            "an escaped text in a deflated pickle",
            zip_file(whole(b"V" + b"a" * 2_000_000 + b"\\u0141\n"), {"0": os.urandom(1_200_000)}, method=8),
            "beyond latin-1",
        ),
        ("a decimal fraction of 4 MB", b"(F0." + b"1" * 4_000_000 + b"\nt.", "digits"),
        (
            "a safetensors number of 1 MB of digits",
            write.safetensors_file(b'{"a":{"dtype":"F32","shape":[' + b"1" * 1_000_000 + b'],"data_offsets":[0,4]}}'),
            "digits",
        ),
        (
            "a safetensors shape of 100000 axes",
            write.safetensors_file(
                b'{"a":{"dtype":"F32","shape":[18446744073709551615'
                + b",18446744073709551615" * 100_000
                + b'],"data_offsets":[0,0]}}'
            ),
            "dimensions",
        ),
        (
            "a safetensors name of 3 MB",
            write.safetensors_file(
                b'{"' + b"." * 3_000_000 + b'":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}', bytes(4)
            ),
            "characters",
        ),
        (
            "a safetensors header of a million lists",
            write.safetensors_file(b'{"a":[' + b"[]," * 1_000_000 + b"0]}"),
            "parts",
        ),
        ("a safetensors header of NaN", write.safetensors_file(b'{"a":NaN}'), "NaN"),
        (
            "metadata of 3 MB in a safetensors file",
            write.safetensors_file(
                b'{"__metadata__":{"repvgg_zoo_metadata":"[' + b"[]," * 1_000_000 + b"""0]"},"linear.weight":"""
                b'{"dtype":"F32","shape":[],"data_offsets":[0,4]}}',
                bytes(4),
            ),
            "parts",
        ),
        ("a zip of 40000 empty members", _many_members(40_000), "zip"),
        ("a safetensors header of 50 MB", write.safetensors_file(b"{" + b" " * 50_000_000), "header"),
    ]
