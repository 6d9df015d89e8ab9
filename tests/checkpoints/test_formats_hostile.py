"""Files that are damaged or made to harm end in our errors, run nothing, and take memory in proportion to size."""

from __future__ import annotations

import os
import pickle
import tracemalloc
from pathlib import Path

import pytest

from repvgg_zoo.checkpoints import load_checkpoint
from repvgg_zoo.checkpoints.formats import read_file
from repvgg_zoo.errors import CheckpointFormatError, LayoutError, MissingFileError, UnsafePickleError
from tests.checkpoints import damaged_files
from tests.checkpoints import hostile_files as hostile
from tests.checkpoints import torch_files as write

ROWS = [
    (rows.__name__, *row)
    for rows in (hostile.executing, hostile.dropped, hostile.exhausting, damaged_files.damaged)
    for row in rows()
]
# What a file of few bytes may take: so much, at most, is made by as many opcodes as are read.
BASE_MEMORY = {"exhausting": 32 << 20, "dropped": 32 << 20}


@pytest.mark.parametrize(("kind", "what", "content", "word"), ROWS, ids=[row[1] for row in ROWS])
def test_a_hostile_file_ends_in_our_error(tmp_path, monkeypatch, kind, what, content, word):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "file"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(LayoutError if kind == "dropped" else CheckpointFormatError) as caught:
            (load_checkpoint if kind in ("executing", "dropped") else read_file)(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    error = caught.value
    assert word in error.message, error.message
    assert error.path == str(path)
    assert error.hint
    assert len(error.message) < 1000
    assert isinstance(error, UnsafePickleError) == (kind == "executing" or "ComplexFloat" in word)
    if isinstance(error, UnsafePickleError):
        assert any(word in name for name in error.blocked)
    assert peak < 8 * len(content) + BASE_MEMORY.get(kind, 1 << 20)
    assert list(tmp_path.iterdir()) == [path]  # no canary


@pytest.mark.parametrize("protocol", range(6))
def test_the_canary_is_alive_in_an_ordinary_unpickler(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    pickle.loads(hostile.runs_code(protocol))
    assert Path(hostile.CANARY).exists()


def test_every_blocked_name_is_listed_once(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"\x80\x02](cos\nsystem\ncos\nsystem\ncbuiltins\nexec\nNRe.")
    with pytest.raises(UnsafePickleError) as caught:
        load_checkpoint(path)
    assert caught.value.blocked == ("os.system", "builtins.exec")
    assert "state_dict" in caught.value.hint


def test_one_payload_named_a_thousand_times_is_one_object(tmp_path):
    path = tmp_path / "file"
    payload = bytes(range(256)) * 4000
    path.write_bytes(pickle.dumps({"parts": [payload] * 1000}, 4))
    tracemalloc.start()
    try:
        parts = read_file(path)[1]["parts"]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert parts == [payload] * 1000
    assert peak < 3 * len(payload)


def test_a_deflated_storage_seen_as_every_dtype_is_unpacked_once(tmp_path):
    count = 6 << 20
    where = write.group(
        *(write.text("storage"), write.name("torch.storage", "UntypedStorage")),
        *(write.text("0"), write.text("cpu"), write.integer(count)),
    )
    one = write.integer(0) + write.group(write.integer(4)) + write.group(write.integer(1))
    nothing = b"\x89" + write.name("collections", "OrderedDict") + b")R"
    rebuild = write.name("torch._utils", "_rebuild_tensor_v3")
    tensors = {
        name: rebuild + write.group(where + b"Q", one, nothing, write.name("torch", name)) + b"R"
        for name in ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")
    }
    storage = os.urandom(count // 3) + bytes(count - count // 3)
    path = tmp_path / "file"
    path.write_bytes(write.zip_file(write.whole(write.mapping(tensors)), {"0": storage}, method=8))
    tracemalloc.start()
    try:
        tree = read_file(path)[1]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert {name: array.dtype.name for name, array in tree.items()} == {name: name for name in tensors}
    assert peak < 3 * count  # it was nine times that


def make_fifo(path):
    os.mkfifo(path)


@pytest.mark.parametrize("make", [lambda path: None, Path.mkdir, make_fifo], ids=["missing", "folder", "FIFO"])
def test_a_path_that_is_not_a_file_ends_in_our_error(tmp_path, make):
    make(tmp_path / "path")
    with pytest.raises((CheckpointFormatError, MissingFileError)) as caught:
        read_file(tmp_path / "path")
    assert caught.value.path == str(tmp_path / "path")
