"""verify calls a whole file intact whatever it holds, a damaged one damaged, and says which it cannot tell.

The kind of fault: "damaged" is said of whatever is not a checkpoint of a RepVGG, and nothing of damage in one that is.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import zipfile
from collections import Counter

import numpy as np
import pytest
from safetensors.numpy import save

from tests.checkpoints import torch_files
from tests.checkpoints.publishers import SMALL, entries, numbered
from tests.registry.sample import SAMPLE

STATE = numbered(entries("official", SMALL["plain"], "train", classes=10), "official")[1]
OTHER = {"conv1.weight": np.ones((3, 3), np.float32), "fc.bias": np.ones(3, np.float32)}


class Estimator:
    """Like what scikit-learn's joblib pickles: an object with arrays in it."""

    def __init__(self):
        self.coef_ = np.ones(3)


def zipped(**members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def npz(arrays):
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def flipped(content, at):
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


TORCH = torch_files.good_zip()
WITHOUT_CRC = TORCH  # torch.serialization.set_crc32_options(False) writes zeros
with zipfile.ZipFile(io.BytesIO(TORCH)) as _archive:
    for _member in _archive.infolist():
        WITHOUT_CRC = WITHOUT_CRC.replace(_member.CRC.to_bytes(4, "little"), bytes(4))

INTACT = {
    "net.pkl": pickle.dumps(STATE),
    "incomplete.pkl": pickle.dumps({**{key: STATE[key] for key in list(STATE)[3:]}, "neck.weight": np.ones(3)}),
    "resnet.safetensors": save(OTHER),
    "resnet.pth": TORCH,
    "without-crc.pth": WITHOUT_CRC,
    "resnet.npz": npz(OTHER),
    "options.pkl": pickle.dumps({"lr": 0.1, "epochs": 3}),
    "list.pkl": pickle.dumps([1, 2, 3]),
    "estimator.pkl": pickle.dumps(Estimator()),
    "counter.pkl": pickle.dumps(Counter("hello")),
    "objects.npz": npz({"a": np.array([{}], object)}),
    "document.docx": zipped(**{"word/document.xml": b"<xml/>"}),
    "integers.safetensors": save({"a": np.ones(3, np.int32)}),
}
UNKNOWN = {
    "net.onnx": b"\x08\t\x12\x07pytorch\x1a\x062.13.0:\xdf\x01\n" + bytes(50),
    "net.h5": b"\x89HDF\r\n\x1a\n" + bytes(50),
    "net.engine": b"anything",
    "weights.tar.gz": b"\x1f\x8b\x08\0" + bytes(50),
    "photo.jpg": b"\xff\xd8\xff\xe0" + bytes(50),
    "notes.txt": b"hello",
}
DAMAGED = {
    "empty.pth": b"",
    "page.pth": b"<!doctype html><title>Sign in</title>",
    "pointer.safetensors": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    "zeros.pth": bytes(1000),
    "cut.pkl": pickle.dumps(STATE)[:-100],
    "cut-object.pkl": pickle.dumps(Estimator())[:-10],
    "cut.safetensors": save(OTHER)[:-1],
    "cut.pth": TORCH[:-30],
    "flipped.pth": flipped(TORCH, TORCH.index(np.float32(1).tobytes())),
    "flipped.npz": flipped(npz(OTHER), npz(OTHER).index(np.float32(1).tobytes())),
    "flipped.docx": flipped(INTACT["document.docx"], INTACT["document.docx"].index(b"<xml/>")),
}


@pytest.mark.parametrize(
    ("status", "name"),
    [*(("intact", name) for name in INTACT), *(("unknown", name) for name in UNKNOWN)],
)
def test_a_file_that_shows_no_damage_is_not_called_damaged(run, folder, status, name):
    (folder / name).write_bytes({**INTACT, **UNKNOWN}[name])
    result = run("verify", f"./{name}", "--json")
    (row,) = result.json
    assert (row["status"], result.code) == (status, 0), row
    assert row["problem"] is None and row["note"].startswith("no checkpoint of the registry has this digest")
    assert (row["checkpoint"] is None) is (name != "net.pkl")


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_called_damaged_whatever_it_held(run, folder, name):
    (folder / name).write_bytes(DAMAGED[name])
    result = run("verify", f"./{name}", "--json")
    assert (result.json[0]["status"], result.code) == ("damaged", 1), result.json
    assert result.json[0]["problem"]


def test_a_file_with_a_published_digest_is_ok_whatever_it_holds(run, folder, monkeypatch):
    path = folder / "net.bin"
    path.write_bytes(b"\x08\t\x12\x07pytorch" + bytes(50))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    text = SAMPLE.replace("RepVGG_X", "acme/RepVGG_X").replace("my_x1", "acme/my_x1")
    text = re.sub(r'sha256: "0123.*"', f'sha256: "{digest}"', text).replace("size: 5", f"size: {path.stat().st_size}")
    (folder / "acme.yaml").write_text(text)
    monkeypatch.setenv("REPVGG_ZOO_REGISTRY", str(folder / "acme.yaml"))
    (row,) = run("verify", "./net.bin", "--json").json
    assert (row["status"], row["problem"]) == ("ok", None) and "ONNX" in row["note"]


def test_the_text_says_what_is_in_an_intact_file(run, folder):
    (folder / "resnet.safetensors").write_bytes(INTACT["resnet.safetensors"])
    text = " ".join(run("verify", "./resnet.safetensors").out.split())
    assert text.startswith("intact ./resnet.safetensors") or text.startswith("intact resnet.safetensors")
    assert "no key is in layout" in text
