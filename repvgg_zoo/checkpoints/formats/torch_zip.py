"""PyTorch's format since 1.6: a zip archive with one pickle, data.pkl, and each storage as a member data/<key>."""

from __future__ import annotations

from typing import Any

from .file_buffer import UnsupportedFile
from .pickles import Budget, load, resolve
from .torch_tensors import StorageId, Storages, torch_globals
from .zip_archive import MAX_EXPANSION, Archive

SAVE_STATE = "load it with torch, and save the weights with torch.save(torch.jit.load(path).state_dict(), new_path)"


def read(archive: Archive) -> Any:
    """Return the payload of a torch zip file. Raises MalformedFile, UnsafePickleError and ZIP_ERRORS."""
    names = [name for name in archive.members if name.rpartition("/")[2] == "data.pkl" and name.count("/") <= 1]
    if len(names) != 1:
        raise UnsupportedFile("the zip archive holds no data.pkl, as torch's files do")
    root = names[0][: -len("data.pkl")]
    if f"{root}constants.pkl" in archive.members:
        raise UnsupportedFile("this is a TorchScript archive, a program and not a checkpoint", hint=SAVE_STATE)
    order = "<"
    if f"{root}byteorder" in archive.members:
        order = {b"little": "<", b"big": ">"}[bytes(archive.content(f"{root}byteorder")[:8])]

    def storage_bytes(identity: StorageId) -> Any:
        return archive.content(f"{root}data/{identity.key}")

    storages = Storages(storage_bytes, order, Budget(MAX_EXPANSION * len(archive.data)))
    pickle = bytes(archive.content(names[0]))
    value, _ = load(pickle, 0, torch_globals(storages), storages.identify)
    return resolve(value)
