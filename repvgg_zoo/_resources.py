"""The data of the package: inside it if it is installed, beside it in a checkout, or in the zip it is imported from.

What reads a zip is imported only where there is one: it takes as long as reading half the registry.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def registry_path() -> Path:
    """Return the path of the shipped registry.yaml."""
    return _root() / "registry.yaml"


def hub_folder() -> Path:
    """Return the folder of the checkpoints that this repository publishes."""
    return _root() / "hub"


def read_text(name: str) -> str:
    """Return the text of a file inside the package, such as "image/imagenet-1k.txt", wherever it is imported from."""
    import pkgutil

    data = pkgutil.get_data("repvgg_zoo", name)
    assert data is not None, name
    return data.decode("utf-8")


def _root() -> Path:
    inside = PACKAGE / "resources"
    if (inside / "registry.yaml").is_file():
        return inside
    archive = getattr(__spec__.loader, "archive", None)  # of zipimport, for a zipapp or a zip on sys.path
    return PACKAGE.parent if archive is None else _extract(archive)


@functools.lru_cache(maxsize=1)
def _extract(archive: str) -> Path:
    """Copy the data out of a zip, into a folder that is deleted when the process ends."""
    import atexit
    import tempfile
    import zipfile

    folder = Path(tempfile.mkdtemp(prefix="repvgg-zoo-"))
    atexit.register(_remove, folder, os.getpid())
    data = PACKAGE.relative_to(Path(archive).resolve()).as_posix() + "/resources/"
    with zipfile.ZipFile(archive) as file:
        file.extractall(str(folder), [name for name in file.namelist() if name.startswith(data)])
    return folder / data


def _remove(folder: Path, pid: int) -> None:
    if os.getpid() == pid:  # not in a forked child
        import shutil

        shutil.rmtree(str(folder), ignore_errors=True)
