"""Bundles: checkpoint files and their descriptions, to bring to a machine without a network.

A bundle is a folder (or a zip of one) with ``bundle.json`` and the files under their names in the cache. It contains no
code. The folder has the form of a cache, so a web server that serves it is a mirror, and naming it in
REPVGG_ZOO_CACHE_DIRS uses it in place.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
import struct
import uuid
import zipfile
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, Callable, Dict, List, Mapping, Optional, Protocol, Tuple

from .._arguments import check_local_path
from .._atomic import atomic_write
from .._digest import CHUNK_BYTES, hash_file
from .._file_state import FileState
from .._files import open_regular_file
from .._json import parse_json
from .._settings import ALLOW_UNVERIFIED_ENV, Settings, read_settings
from ..errors import ArgumentError, BundleError, PathLike, UnverifiedError, ZooError
from ..registry.specs import FileSpec
from . import cache
from .fetch import fetch_file
from .filenames import cache_filename, cache_key, sanitize_filename
from .partial import PartialFile
from .verify import digest_matches

INDEX = "bundle.json"
VERSION = 1
_MAX_INDEX_BYTES = 1 << 20  # 300 bytes for each file
# Of a zip's directory, which has some 100 bytes for each file; reading it takes ten times as much memory.
_MAX_DIRECTORY_BYTES = 1 << 20
_MAX_LISTED = 10  # names in an error

# What zipfile raises for damage: RuntimeError for encryption, NotImplementedError for methods it does not know.
_ZIP_ERRORS = (zipfile.BadZipFile, ValueError, RuntimeError, EOFError, OverflowError, struct.error)


@dataclass(frozen=True)
class BundledFile:
    """One file of a bundle: its description and name, and the size and digest that it had when it was packed."""

    file: FileSpec
    filename: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Bundle:
    """The index of a bundle: its files by checkpoint name, and registry entries as plain data."""

    files: Mapping[str, BundledFile]
    registry: Mapping[str, Any]


def pack(
    files: Mapping[str, FileSpec],
    target: PathLike,
    *,
    registry: Optional[Mapping[str, Any]] = None,
    fetch: Callable[[FileSpec], Path] = fetch_file,
) -> Path:
    """Create a bundle of these files (checkpoint name to description), downloading what is not in the cache.

    ``target`` is a new folder, or a new file that ends in ``.zip``; it appears only when it is complete.
    Raises ArgumentError if it exists already, and whatever ``fetch`` raises.
    """
    target = check_local_path("the bundle", target)
    if os.path.lexists(target):
        raise ArgumentError(f"{target} exists already", hint="choose a new name for the bundle", actual=str(target))
    folder = target.with_name(f"{target.name}.{uuid.uuid4().hex[:12]}.new")
    try:
        folder.mkdir(parents=True)
        index: Dict[str, Any] = {"bundle": VERSION, "files": {}, "registry": dict(registry or {})}
        for name, file in files.items():
            path = folder / cache_filename(file)
            if not path.exists():
                shutil.copyfile(str(fetch(file)), str(path))
            index["files"][name] = _index_entry(file, path)
        _write_index(folder / INDEX, index)
        if target.suffix == ".zip":
            atomic_write(target, lambda stream: _write_zip(folder, stream), fsync=False)
        else:
            folder.rename(target)
    except OSError as error:
        if isinstance(error, ZooError):
            raise
        raise BundleError(f"cannot write the bundle {target}: {error.strerror}", path=target) from error
    finally:
        shutil.rmtree(str(folder), ignore_errors=True)
    return target


def read_bundle(path: PathLike) -> Bundle:
    """Return the index of a bundle without reading its files; raises BundleError if the bundle is not valid."""
    with ExitStack() as stack:
        return _read_index(_open(check_local_path("the bundle", path), stack))


def unpack(
    path: PathLike, *, settings: Optional[Settings] = None, allow_unverified: Optional[bool] = None
) -> Dict[str, Path]:
    """Import every file of a bundle into the cache, and return the path of each by checkpoint name.

    Every file is compared with the bundle's index before the first one is published, so a bundle that was tampered with
    changes nothing. Raises BundleError, UnverifiedError for a file whose only whole digest is the bundle's own, and
    CacheError.
    """
    settings = read_settings() if settings is None else settings
    allow = settings.allow_unverified if allow_unverified is None else allow_unverified
    root, path = settings.cache_dir, check_local_path("the bundle", path)
    with ExitStack() as stack:
        reader = _open(path, stack)
        bundle = _read_index(reader)
        if not allow:
            _refuse_unverified(bundle, path, root)
        cache.prepare(root)
        paths: Dict[str, Path] = {}
        copies: List[Tuple[BundledFile, PartialFile]] = []
        for bundled in _distinct_files(bundle, reader, path):
            cached = cache.find(root, bundled.file, home=root)
            if cached is not None:
                paths[bundled.filename] = cached.path
                continue
            copies.append((bundled, _copy(reader, bundled, root, path, stack)))
        for bundled, partial in copies:
            paths[bundled.filename] = _publish(bundled, partial, root)
        return {name: paths[bundled.filename] for name, bundled in bundle.files.items()}


# Writing -----------------------------------------------------------------------------------------------------


def _index_entry(file: FileSpec, path: Path) -> Dict[str, Any]:
    entry: Dict[str, Any] = {"name": file.name, "integrity": file.integrity, "size": path.stat().st_size}
    entry["sha256"] = hash_file(path)
    if not digest_matches(file, entry["sha256"]):
        raise BundleError(f"{file.name} changed while it was packed", path=path, actual=entry["sha256"])
    if file.integrity == "sha256_prefix":
        entry["sha256_prefix"] = file.sha256_prefix
    if file.integrity == "none":
        entry["source"] = file.sources[0]
    return entry


def _write_index(path: Path, index: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def _write_zip(folder: Path, stream: BinaryIO) -> None:
    # Weights do not compress; stored members can be read by any tool and take no time. A zip has no dates before 1980,
    # and a machine without a clock starts in 1970.
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED, strict_timestamps=False) as archive:
        for path in sorted(folder.iterdir()):
            archive.write(str(path), path.name)


# Reading -----------------------------------------------------------------------------------------------------


class _Reader(Protocol):
    @property
    def size(self) -> Optional[int]:
        """The most that all files have together; None where they are files of the disk."""

    def open(self, name: str) -> IO[bytes]: ...


class _FolderReader:
    size = None

    def __init__(self, path: Path) -> None:
        self._path = path

    def open(self, name: str) -> IO[bytes]:
        path = self._path / name
        if stat.S_ISLNK(path.lstat().st_mode):
            raise BundleError(f"{name} in the bundle is a link, not a regular file", path=path)
        try:
            return open_regular_file(path)
        except ValueError as error:
            raise BundleError(f"{name} in the bundle cannot be read: {error}", path=path) from error


class _ZipReader:
    def __init__(self, path: Path, archive: zipfile.ZipFile, size: int) -> None:
        self.size = size
        self._archive = archive
        names = archive.namelist()
        # Members are read by name and never extracted, so a path could do no harm; but ``pack`` writes no such member.
        invalid = [name for name, count in Counter(names).items() if name != sanitize_filename(name) or count > 1]
        if invalid:
            raise BundleError(
                f"the bundle has an invalid member: {invalid[0]!r}",
                hint="do not trust this file; get the bundle from where it was created",
                path=path,
            )

    def open(self, name: str) -> IO[bytes]:
        info = self._archive.getinfo(name)
        if info.compress_type != zipfile.ZIP_STORED:  # ``pack`` compresses nothing, and it could unpack to any size
            raise BundleError(f"{name} in the bundle is compressed")
        return self._archive.open(info)


class _BoundedFile(io.BufferedReader):
    """A file of which no single read is large: ZipFile reads the directory at once, and other parts in small pieces."""

    def read(self, size: Optional[int] = -1) -> bytes:
        return super().read(_MAX_DIRECTORY_BYTES if size is None or size < 0 else min(size, _MAX_DIRECTORY_BYTES))


def _open(path: Path, stack: ExitStack) -> _Reader:
    try:
        if path.is_dir():
            return _FolderReader(path)
        file = stack.enter_context(_BoundedFile(stack.enter_context(open_regular_file(path))))
        return _ZipReader(path, stack.enter_context(zipfile.ZipFile(file)), os.fstat(file.fileno()).st_size)
    except (OSError, *_ZIP_ERRORS) as error:
        raise BundleError(
            f"{path} is not a valid bundle: {getattr(error, 'strerror', None) or error}",
            hint="a bundle is a folder or a .zip written by pack",
            path=path,
        ) from error


def _read_index(reader: _Reader) -> Bundle:
    try:
        with reader.open(INDEX) as stream:
            text = stream.read(_MAX_INDEX_BYTES + 1)
        if len(text) > _MAX_INDEX_BYTES:
            raise BundleError(f"{INDEX} is longer than {_MAX_INDEX_BYTES} bytes")
        data = parse_json(text)
    except (OSError, KeyError, *_ZIP_ERRORS) as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(f"{INDEX} cannot be read: {error}", hint="the bundle is damaged or incomplete") from error
    if not isinstance(data, dict) or data.get("bundle") != VERSION:
        raise BundleError(f"{INDEX} is not of version {VERSION}", expected=VERSION)
    files, registry = data.get("files"), data.get("registry")
    if not isinstance(files, dict) or not isinstance(registry, dict):
        raise BundleError(f"{INDEX} lacks its files or its registry entries")
    return Bundle({str(name): _parse_entry(name, entry) for name, entry in files.items()}, registry)


def _distinct_files(bundle: Bundle, reader: _Reader, path: Path) -> List[BundledFile]:
    """Return each file once, whatever number of names it has; raise BundleError if they cannot all be in the bundle."""
    distinct: Dict[str, BundledFile] = {}
    for name, bundled in bundle.files.items():
        first = distinct.setdefault(bundled.filename, bundled)
        if (first.size, first.sha256, first.file.integrity) != (bundled.size, bundled.sha256, bundled.file.integrity):
            raise BundleError(f"{INDEX} describes {bundled.filename} in two ways, once as {name!r}", path=path)
    total = sum(bundled.size for bundled in distinct.values())
    if reader.size is not None and total > reader.size:
        raise BundleError(
            f"the files in {INDEX} have {total} bytes together, and the bundle {reader.size}",
            path=path,
            expected=reader.size,
            actual=total,
        )
    return list(distinct.values())


def _parse_entry(name: Any, entry: Any) -> BundledFile:
    try:
        integrity, size, sha256 = entry["integrity"], entry["size"], entry["sha256"]
        if type(size) is not int or size < 0 or not all(isinstance(text, str) for text in (entry["name"], sha256)):
            raise TypeError("a size or text of the wrong type")
        full = FileSpec(entry["name"], (), size, sha256)
        file = {
            "sha256": lambda: full,
            "sha256_prefix": lambda: full._replace(sha256=None, sha256_prefix=entry["sha256_prefix"]),
            # The name of an unverified file in the cache depends on its first source.
            "none": lambda: full._replace(sha256=None, sources=(str(entry["source"]),)),
        }[integrity]()
        cache_filename(full)  # raises if sha256 is not a digest
        if file.integrity != integrity or not digest_matches(file, sha256.lower()):
            raise ValueError("its digests contradict each other")
        return BundledFile(file, cache_filename(file), size, sha256.lower())
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise BundleError(f"{INDEX} has an invalid entry for {name!r}: {error}") from error


def _refuse_unverified(bundle: Bundle, path: Path, root: Path) -> None:
    """Raise UnverifiedError for files that nobody but the bundle's creator vouches for: a prefix can be forged."""
    unverified = [
        name
        for name, bundled in bundle.files.items()
        if bundled.file.integrity != "sha256" and cache.recorded_digest(root, bundled.file) != bundled.sha256
    ]
    if unverified:
        raise UnverifiedError(
            f"the publishers of {', '.join(unverified[:_MAX_LISTED])} state no whole digest; only the bundle does",
            hint=f"if you trust who created it, pass allow_unverified=True or set {ALLOW_UNVERIFIED_ENV}=1",
            path=path,
        )


def _copy(reader: _Reader, bundled: BundledFile, root: Path, path: Path, stack: ExitStack) -> PartialFile:
    """Copy one file into a partial file and verify it; ``stack`` deletes the copy if the import fails."""
    recorded = cache.recorded_digest(root, bundled.file)
    if recorded not in (None, bundled.sha256):
        raise _mismatch(bundled, path, recorded, bundled.sha256)
    try:
        partial = stack.enter_context(PartialFile(root, cache_key(bundled.file), resumable=False))
        with reader.open(bundled.filename) as stream:
            while partial.size <= bundled.size:
                data = stream.read(CHUNK_BYTES)
                if not data:
                    break
                partial.write(data)
    except (KeyError, FileNotFoundError, *_ZIP_ERRORS) as error:
        if isinstance(error, ZooError):
            raise
        raise BundleError(f"{bundled.filename} is missing from the bundle or damaged: {error}", path=path) from error
    except OSError as error:
        if isinstance(error, ZooError):
            raise
        raise cache.write_error(root, error, bundled.file.name, bundled.size) from error
    if partial.size != bundled.size:
        raise _mismatch(bundled, path, bundled.size, partial.size)
    digest = partial.digest()
    if digest != bundled.sha256:
        raise _mismatch(bundled, path, bundled.sha256, digest)
    partial.close()
    return partial


def _publish(bundled: BundledFile, partial: PartialFile, root: Path) -> Path:
    target = root / bundled.filename
    try:
        stamp = cache.Stamp(bundled.sha256, bundled.file.integrity, FileState.of(partial.path.stat()))
        cache.publish(partial.path, target, stamp)
    except OSError as error:
        raise cache.write_error(root, error, bundled.file.name, 0) from error
    return target


def _mismatch(bundled: BundledFile, path: Path, expected: Any, actual: Any) -> BundleError:
    return BundleError(
        f"{bundled.file.name} in the bundle is not the file that was packed (expected {expected}, got {actual}); "
        "nothing was imported",
        hint="the bundle is damaged or was tampered with; get it again from where it was created",
        path=path,
        expected=expected,
        actual=actual,
    )
