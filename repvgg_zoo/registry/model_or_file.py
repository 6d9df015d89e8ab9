"""find_model_or_file: whether an argument is a model's name or the path of a file, for every function and command."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import List, Optional, Tuple, Union

from .._arguments import check_local_path
from ..errors import MissingFileError, RegistryError, UnknownModelError, ZooError
from .api import find_model
from .specs import ModelSpec

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
# What ends like this is a path, unless a model has the name. The last line is of files that cannot be loaded.
SUFFIXES = (
    *(".safetensors", ".pkl", ".pickle", ".pth", ".pt", ".ckpt", ".bin", ".tar", ".pdparams", ".npz", ".th"),
    *(*IMAGE_SUFFIXES, ".yaml", ".yml", ".json", ".txt"),
    *(".npy", ".h5", ".onnx", ".mge", ".pdiparams", ".pdmodel", ".zip", ".gz", ".tflite", ".py"),
)


def find_model_or_file(name_or_path: Union[str, os.PathLike[str]]) -> Union[Path, Tuple[ModelSpec, Optional[str]]]:
    """Return the path of a file, or the variant of a name and the tag in it, if any.

    What exists as a file is a path, and so are an ``os.PathLike`` and what starts with ``./``, ``../``, ``~``, ``/`` or
    a drive. All else is a name, with or without a namespace, that is looked up. Raise MissingFileError for a path that
    does not exist, which is also a text that ends like a file (``x.pth``) and that no model has as its name;
    UnknownModelError for any other text; ArgumentError for a URL and for another type; and what ``find_model`` raises.
    """
    path = check_local_path("the name or path", name_or_path)
    name = os.fspath(name_or_path)
    if os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises for a text that is too long to be a path
        return path
    if not isinstance(name_or_path, str) or _is_written_as_path(name):
        if not os.path.lexists(path):
            raise MissingFileError(f"{path} does not exist", path=path, hint=_similar_files(path))
        return path  # a folder or a device: whatever reads it says so
    try:
        return find_model(name)
    except (UnknownModelError, RegistryError) as error:
        if name.lower().endswith(SUFFIXES):
            raise _neither(path, error) from error
        if isinstance(error, UnknownModelError):
            error.hint = f"{error.hint} (a file {name!r} does not exist either)"
        raise


def _is_written_as_path(name: str) -> bool:
    return name.startswith(("./", "../", "~", os.sep, "/")) or "\\" in name or bool(re.match(r"[A-Za-z]:[\\/]", name))


def _neither(path: Path, error: ZooError) -> MissingFileError:
    """Return the error for a text that ends like a file's path, which does not exist, and is not a name either."""
    hints = [hint for hint in [_similar_files(path)] if hint]
    close = getattr(error, "suggestions", ())
    hints += [f"if it is a model's name, did you mean {', '.join(close)}?"] if close else []
    return MissingFileError(
        f"{path} does not exist, and no model has this name", path=path, hint="; ".join(hints) or "check the path"
    )


def _similar_files(path: Path) -> str:
    """Return a hint with the files of the same folder that have similar names."""
    import difflib

    try:
        names: List[str] = os.listdir(path.parent)  # noqa: PTH208 - only names are needed
    except (OSError, ValueError):
        return f"the folder {path.parent} does not exist" if not path.parent.is_dir() else "check the path"
    close = difflib.get_close_matches(path.name, names, 3)
    return f"did you mean {', '.join(str(path.parent / name) for name in close)}?" if close else "check the path"
