"""A network goes to a file in any layout and comes back exactly; the file is whole or not there."""

from __future__ import annotations

import os
import pickle
import stat
import subprocess
import sys
import textwrap
import time
import tracemalloc

import megengine
import numpy as np
import pytest

from repvgg_zoo._tensors import load_state_dict
from repvgg_zoo.checkpoints import load_checkpoint, save_checkpoint
from repvgg_zoo.checkpoints.formats import read_file
from repvgg_zoo.checkpoints.save import WRITABLE_LAYOUTS
from repvgg_zoo.errors import ArgumentError, CheckpointFormatError, LayoutError, UnsafePickleError
from repvgg_zoo.models import RepVGG
from repvgg_zoo.registry.specs import SESpec

from ..networks import randomised
from .publishers import SMALL, entries, numbered

CASES = [
    (layout, name)
    for layout in WRITABLE_LAYOUTS
    for name in SMALL
    if not SMALL[name].plus or layout in ("canonical", "official")
]


def same(one, other) -> bool:
    return set(one) == set(other) and all(
        one[k].dtype == other[k].dtype and one[k].shape == other[k].shape and one[k].tobytes() == other[k].tobytes()
        for k in one
    )


SUFFIXES = {".safetensors": "safetensors", ".pkl": "megengine", ".pth": "torch"}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("form", ["train", "deploy"])
@pytest.mark.parametrize(("layout", "name"), CASES)
def test_saved_files_are_those_of_the_publisher_and_load_exactly(tmp_path, layout, name, form, suffix):
    canonical, published = numbered(entries(layout, SMALL[name], form, classes=10), layout)
    path = tmp_path / f"net{suffix}"
    save_checkpoint(path, canonical, layout=layout)

    if suffix == ".pkl":
        stored = megengine.load(str(path))
    elif suffix == ".pth":  # torch itself reads it in tests/peers
        stored = read_file(path)[1]
    else:
        from safetensors.numpy import load_file

        stored = load_file(path)
    assert same(stored, published)

    checkpoint = load_checkpoint(path)
    assert same(checkpoint.state_dict, canonical)
    assert (checkpoint.form, checkpoint.format) == (form, SUFFIXES[suffix])
    assert checkpoint.path == str(path)


@pytest.mark.parametrize("layout", WRITABLE_LAYOUTS)
def test_a_network_trained_here_comes_back_as_it_was(tmp_path, layout):
    def build():
        return RepVGG((2, 2, 2, 1), (0.25, 0.25, 0.25, 0.25), groups=2, se=SESpec("before_relu", 4), num_classes=10)

    net, other = randomised(build()), build()
    save_checkpoint(tmp_path / "net.safetensors", net, layout=layout)
    load_state_dict(other, load_checkpoint(tmp_path / "net.safetensors").state_dict)
    image = np.random.RandomState(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    for network in (net, other):
        network.eval()
    np.testing.assert_array_equal(net(megengine.Tensor(image)).numpy(), other(megengine.Tensor(image)).numpy())


def test_a_canonical_pickle_is_one_that_megengine_loads_by_itself(tmp_path):
    net = RepVGG((1, 1, 1, 1), (0.25, 0.25, 0.25, 0.25), num_classes=3)
    save_checkpoint(tmp_path / "net.pkl", net)
    fresh = RepVGG((1, 1, 1, 1), (0.25, 0.25, 0.25, 0.25), num_classes=3)
    assert (tmp_path / "net.pkl").read_bytes()[:2] == b"\x80\x04"  # protocol 4, as megengine.save writes
    fresh.load_state_dict(megengine.load(str(tmp_path / "net.pkl")), strict=True)
    assert same(fresh.state_dict(), net.state_dict())


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_dtypes_survive_and_so_do_views_and_memory_maps(tmp_path, suffix, dtype):
    canonical, _ = numbered(entries("canonical", SMALL["g2"], "deploy", classes=10), "canonical")
    arrays = {key: np.asfortranarray((value % 251).astype(dtype)) for key, value in canonical.items()}
    mapped = np.memmap(tmp_path / "raw", dtype, "w+", shape=arrays["linear.weight"].shape)
    mapped[...] = arrays["linear.weight"]
    arrays["linear.weight"] = mapped
    save_checkpoint(tmp_path / f"net{suffix}", arrays)
    assert same(load_checkpoint(tmp_path / f"net{suffix}").state_dict, arrays)


def test_safetensors_are_byte_for_byte_what_the_library_writes(tmp_path):
    from safetensors.numpy import save

    numbers = np.random.RandomState(0).randn(3, 4, 5)
    arrays = {
        "stage1.0.é": numbers.astype(np.float16)[:, :, :3],
        "b": numbers.transpose(2, 0, 1).astype(">f8"),
        "a": numbers[:, ::2].astype(np.float32),
        "scalar": np.array(1.5, np.float32),
        "empty": np.zeros((0, 3), np.float16),
        "odd": np.ones(3, np.float16),
    }
    save_checkpoint(tmp_path / "net.safetensors", arrays)
    native_order = {key: np.ascontiguousarray(a.astype(a.dtype.newbyteorder("="))) for key, a in arrays.items()}
    native_order["scalar"] = arrays["scalar"]  # ascontiguousarray makes a vector of it
    assert (tmp_path / "net.safetensors").read_bytes() == save(native_order)


# The pickler remembers the bytes of every array until it is done.
@pytest.mark.parametrize(("suffix", "copies"), [(".safetensors", 0.1), (".pkl", 1.1), (".pth", 0.1)])
def test_saving_takes_little_memory_beside_the_arrays(tmp_path, suffix, copies):
    arrays = {f"stage1.{i}.weight": np.ones((64, 64, 3, 3), np.float32) for i in range(50)}
    tracemalloc.start()
    try:
        save_checkpoint(tmp_path / f"net{suffix}", arrays, layout="canonical")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < copies * sum(array.nbytes for array in arrays.values())


@pytest.mark.parametrize(
    ("name", "format", "expected"),
    [
        ("net.safetensors", None, "safetensors"),
        ("net.PKL", None, "megengine"),
        ("net.bin", "safetensors", "safetensors"),
        ("net.safetensors", "megengine", "megengine"),
        ("net.pth", None, "torch"),
        ("net.bin", "torch", "torch"),
    ],
)
def test_the_format_is_the_one_given_or_that_of_the_suffix(tmp_path, name, format, expected):
    canonical, _ = numbered(entries("canonical", SMALL["plain"], "deploy", classes=2), "canonical")
    save_checkpoint(tmp_path / name, canonical, format=format)
    assert load_checkpoint(str(tmp_path / name)).format == expected


CANONICAL, _ = numbered(entries("canonical", SMALL["plain"], "deploy", classes=2), "canonical")


@pytest.mark.parametrize(
    ("name", "arrays", "options", "error", "message"),
    [
        ("net.onnx", CANONICAL, {}, ArgumentError, "cannot tell the format"),
        ("net", CANONICAL, {}, ArgumentError, "cannot tell the format"),
        ("net.pkl", CANONICAL, {"format": "npz"}, ArgumentError, "cannot tell the format"),
        ("net.pkl", CANONICAL, {"layout": "zcls"}, ArgumentError, "'zcls' cannot be written"),
        ("net.pkl", CANONICAL, {"layout": "none"}, ArgumentError, "'none' cannot be written"),
        (
            "net.pkl",
            {**CANONICAL, "neck.weight": np.zeros(1)},
            {"layout": "timm"},
            LayoutError,
            r"1 keys: neck\.weight",
        ),
        ("net.pkl", {**CANONICAL, "step": np.zeros(1, int)}, {}, ArgumentError, "unlike step"),
        ("net.pkl", {**CANONICAL, "step": 1.5}, {}, ArgumentError, "unlike step"),
        ("net.pkl", {**CANONICAL, "x": np.array([print])}, {}, ArgumentError, "unlike x"),
        ("net.pkl", {}, {}, ArgumentError, "dict holds no arrays"),
        ("net.pkl", 3, {}, ArgumentError, "int holds no arrays"),
        ("no/net.pkl", CANONICAL, {}, ArgumentError, "is not a folder"),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_no_file(tmp_path, name, arrays, options, error, message):
    with pytest.raises(error, match=message) as caught:
        save_checkpoint(tmp_path / name, arrays, **options)
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == []


# Whole or not at all -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, suffix):
    path = tmp_path / f"net{suffix}"
    save_checkpoint(path, CANONICAL)
    old = path.read_bytes()
    code = """
        import resource, sys
        import numpy as np
        from repvgg_zoo.checkpoints import save_checkpoint
        # The kernel refuses to grow a file beyond this: a full disk that needs no disk. SIGXFSZ is ignored by Python.
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        try:
            save_checkpoint(sys.argv[1], {"linear.weight": np.zeros((1000, 1280), np.float32)})
        except Exception as error:
            sys.exit(0 if "File too large" in str(error) else repr(error))
        sys.exit("nothing failed")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == old


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_process_killed_while_saving_leaves_a_whole_file(tmp_path, suffix):
    path = tmp_path / f"net{suffix}"
    code = """
        import itertools, sys
        import numpy as np
        from repvgg_zoo.checkpoints import save_checkpoint
        for value in itertools.count():
            shapes = {"stage0.rbr_reparam.weight": (64, 3, 3, 3), "linear.weight": (1000, 1280)}
            save_checkpoint(sys.argv[1], {k: np.full(shape, value, np.float32) for k, shape in shapes.items()})
            if value == 0:
                print("saved", flush=True)
    """
    for delay in (0.0, 0.013, 0.027, 0.041):
        writer = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), path], stdout=subprocess.PIPE)
        try:
            assert writer.stdout.readline() == b"saved\n"
            time.sleep(delay)
        finally:
            writer.kill()
            writer.communicate()
        checkpoint = load_checkpoint(path)
        assert (
            len({float(value) for array in checkpoint.state_dict.values() for value in (array.min(), array.max())}) == 1
        )


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_permissions_are_what_the_umask_says(tmp_path, suffix, umask, mode):
    path = tmp_path / f"net{suffix}"
    before = os.umask(umask)
    try:
        save_checkpoint(path, CANONICAL)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode


# Reading back what is damaged --------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("damage", ["cut", "empty", "page"])
def test_a_damaged_file_ends_in_our_error(tmp_path, suffix, damage):
    path = tmp_path / f"net{suffix}"
    save_checkpoint(path, CANONICAL)
    data = path.read_bytes()
    path.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "page": b"<!DOCTYPE html><html></html>"}[damage])
    with pytest.raises(CheckpointFormatError) as caught:
        load_checkpoint(path)
    assert caught.value.path == str(path)


def test_a_pickle_that_asks_for_code_is_refused(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    (tmp_path / "net.pkl").write_bytes(pickle.dumps({**CANONICAL, "x": Hostile()}))
    with pytest.raises(UnsafePickleError) as caught:
        load_checkpoint(tmp_path / "net.pkl")
    assert "mkdir" in caught.value.blocked[0]
    assert not (tmp_path / "made").exists()


def test_an_error_of_layout_names_the_file(tmp_path):
    path = tmp_path / "net.safetensors"
    save_checkpoint(path, {"neck.weight": np.zeros(3, np.float32)})
    with pytest.raises(LayoutError, match=r"net\.safetensors: no key is in layout") as caught:
        load_checkpoint(path)
    assert caught.value.path == str(path)


def test_a_layout_that_does_not_exist_is_refused_with_those_that_do(tmp_path):
    with pytest.raises(ArgumentError, match="'tim' is not a known layout") as caught:
        load_checkpoint(tmp_path / "net.pkl", layout="tim")
    assert "timm" in caught.value.hint
