"""A checkpoint in several safetensors files with an index, as huggingface_hub writes model.safetensors.index.json.

The index says in which file each tensor is. The files are beside it; a name that leads elsewhere is refused.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Dict, List, Mapping

from ..._files import open_regular_file
from ..._json import parse_json
from ...errors import CheckpointFormatError, MissingFileError, PathLike
from . import safetensors_file
from .file_buffer import MAX_FILE_BYTES, METADATA_KEY, MalformedFile, UnsupportedFile, read_buffer

INDEX_SUFFIX = ".index.json"
MAX_INDEX_BYTES = 1 << 20  # that of a checkpoint with a thousand tensors takes 80 kB
MAX_SHARDS = 64  # a checkpoint of the largest network has 1 GB, and a shard 50 MB or more


def is_index(path: PathLike) -> bool:
    """Return whether a file is the index of shards, by its name."""
    return os.fspath(path).endswith(INDEX_SUFFIX)


def read(path: PathLike) -> Dict[str, Any]:
    """Return the tensors of all shards by name. Raises MalformedFile, and what read_buffer raises for a shard."""
    weight_map = _weight_map(path)
    folder = Path(path).parent
    names: Dict[str, List[str]] = {}
    for tensor, name in weight_map.items():
        names.setdefault(name, []).append(tensor)
    if len(names) > MAX_SHARDS:
        raise UnsupportedFile(f"the index names {len(names)} files, more than any RepVGG is cut into")
    sizes = [(folder / name).stat().st_size for name in names if (folder / name).is_file()]
    if sum(sizes) > MAX_FILE_BYTES:
        raise UnsupportedFile(f"the shards have {sum(sizes)} bytes, more than any checkpoint of a RepVGG")
    payload: Dict[str, Any] = {}
    for name, tensors in names.items():
        shard = _read_shard(folder / name)
        lost = [tensor for tensor in tensors if tensor not in shard]
        if lost:
            raise MalformedFile(
                f"{name[:100]!a} lacks {len(lost)} of the tensors in the index, such as {lost[0][:100]!a}"
            )
        payload.update((tensor, shard[tensor]) for tensor in tensors)
        if METADATA_KEY in shard:
            payload[METADATA_KEY] = shard[METADATA_KEY]
    return payload


def _weight_map(path: PathLike) -> Mapping[str, str]:
    """Return the file of each tensor; raise MalformedFile if the index is not valid."""
    try:
        with open_regular_file(path) as stream:
            content = stream.read(MAX_INDEX_BYTES + 1)
        if len(content) > MAX_INDEX_BYTES:
            raise MalformedFile(f"the index has more than {MAX_INDEX_BYTES} bytes")
        index = parse_json(content)
    except MalformedFile:
        raise
    except FileNotFoundError:
        raise MissingFileError(f"{os.fspath(path)} does not exist", path=path, hint="check the path") from None
    except (OSError, ValueError) as error:
        raise MalformedFile(f"the index cannot be read: {str(error)[:200]}") from error
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise MalformedFile("it is not the index of a checkpoint: it has no weight_map from tensors to files")
    for name in set(weight_map.values()):
        if name in ("", ".", "..") or not name.isprintable() or re.search(r"[/\\:]", name):
            raise MalformedFile(f"the index names {name[:100]!a}, which is not a file beside it")
        if not name.endswith(".safetensors"):
            raise UnsupportedFile(
                f"the index names {name[:100]!a}; only shards in safetensors are read",
                hint="save the checkpoint as safetensors, or as one file",
            )
    return weight_map


def _read_shard(path: Path) -> Dict[str, Any]:
    data = read_buffer(path)
    try:
        if not safetensors_file.is_safetensors(data):
            raise MalformedFile("it is not a safetensors file")
        return safetensors_file.read(data)
    except MalformedFile as error:
        raise CheckpointFormatError(
            f"the shard is not a readable checkpoint: {error}", path=path, hint="download this file again"
        ) from error
