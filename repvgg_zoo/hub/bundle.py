"""Bundles: checkpoint files and their descriptions, brought to a machine without a network.

A bundle is a folder (or a zip of one) with ``bundle.yaml`` and the files under their stored names. It holds no code.
The folder has the form of a cache, so a web server that serves it is a mirror, and naming it in REPVGG_ZOO_CACHE_DIRS
uses it in place.
"""

from __future__ import annotations

import os
import shutil
import stat
import uuid
import zipfile
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Callable, Dict, List, Mapping, Optional, Tuple

from repvgg_zoo.errors import ArgumentError, BundleError, PathLike, UnverifiedError, ZooError
from repvgg_zoo.registry.specs import FileSpec

from .._digest import CHUNK_BYTES, hash_file
from .._settings import ALLOW_UNVERIFIED_ENV, Settings, read_settings
from . import cache
from .fetch import fetch_file
from .filenames import cache_filename, cache_key, sanitize_filename
from .partial import PartialFile
from .verify import digest_matches

INDEX = "bundle.yaml"
VERSION = 1
_INDEX_LIMIT = 4 << 20


@dataclass(frozen=True)
class Packed:
    """One file of a bundle: its description, and the size and digest that it had when it was packed."""

    file: FileSpec
    stored: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Bundle:
    """What a bundle says of itself: its files by checkpoint name, and registry entries as plain data."""

    files: Mapping[str, Packed]
    registry: Mapping[str, Any]


def pack(
    files: Mapping[str, FileSpec],
    target: PathLike,
    *,
    registry: Optional[Mapping[str, Any]] = None,
    fetch: Callable[[FileSpec], Path] = fetch_file,
) -> Path:
    """Make a bundle of these files (checkpoint name to description), fetching what is not at hand.

    ``target`` is a new folder, or a new file that ends in ``.zip``; it appears only when it is complete.
    Raises ArgumentError if it exists already, and whatever ``fetch`` raises.
    """
    target = Path(target)
    if os.path.lexists(target):
        raise ArgumentError(f"{target} exists already", hint="choose a new name for the bundle", actual=str(target))
    draft = target.with_name(f"{target.name}.{uuid.uuid4().hex[:12]}.new")
    try:
        draft.mkdir(parents=True)
        index: Dict[str, Any] = {"bundle": VERSION, "files": {}, "registry": dict(registry or {})}
        for name, file in files.items():
            stored = draft / cache_filename(file)
            if not stored.exists():
                shutil.copyfile(str(fetch(file)), str(stored))
            index["files"][name] = _entry(file, stored)
        _write_index(draft / INDEX, index)
        if target.suffix == ".zip":
            _zip(draft, target)
        else:
            draft.rename(target)
    except OSError as error:
        if isinstance(error, ZooError):
            raise
        raise BundleError(f"cannot write the bundle {target}: {error.strerror}", path=target) from error
    finally:
        shutil.rmtree(str(draft), ignore_errors=True)
    return target


def read_bundle(path: PathLike) -> Bundle:
    """What a bundle holds, without reading its files; raises BundleError if it is damaged, hostile, or no bundle."""
    with ExitStack() as stack:
        return _read_index(_open(Path(path), stack))


def unpack(
    path: PathLike, *, settings: Optional[Settings] = None, allow_unverified: Optional[bool] = None
) -> Dict[str, Path]:
    """Bring every file of a bundle into the cache: checkpoint name to path.

    Every file is checked against the bundle's index before the first one is published, so a bundle that was tampered
    with changes nothing. Raises BundleError, UnverifiedError for a file that nothing but the bundle itself vouches for,
    and CacheError.
    """
    settings = read_settings() if settings is None else settings
    allow = settings.allow_unverified if allow_unverified is None else allow_unverified
    root, path = settings.cache_dir, Path(path)
    with ExitStack() as stack:
        source = _open(path, stack)
        bundle = _read_index(source)
        _refuse_unverified(bundle, path, allow)
        cache.prepare(root)
        done: Dict[str, Path] = {}
        ready: List[Tuple[str, Packed, PartialFile]] = []
        for name, packed in bundle.files.items():
            found = cache.find(root, packed.file, writable=True)
            if found is not None:
                done[name] = found
                continue
            ready.append((name, packed, _copy(source, packed, root, path, stack)))
        for name, packed, part in ready:
            done[name] = _publish(packed, part, root)
        return {name: done[name] for name in bundle.files}


# Writing -----------------------------------------------------------------------------------------------------


def _entry(file: FileSpec, stored: Path) -> Dict[str, Any]:
    entry: Dict[str, Any] = {"name": file.name, "integrity": file.integrity, "size": stored.stat().st_size}
    entry["sha256"] = hash_file(stored)
    if not digest_matches(file, entry["sha256"]):
        raise BundleError(f"{file.name} changed while it was packed", path=stored, actual=entry["sha256"])
    if file.integrity == "sha256_prefix":
        entry["sha256_prefix"] = file.sha256_prefix
    if file.integrity == "none":
        entry["source"] = file.sources[0]
    return entry


def _write_index(path: Path, index: Mapping[str, Any]) -> None:
    import yaml

    path.write_text(yaml.safe_dump(dict(index), sort_keys=False, allow_unicode=True), encoding="utf-8")


def _zip(folder: Path, target: Path) -> None:
    draft = folder.with_name(folder.name + ".zip")
    try:
        # Weights do not compress; stored members stay readable for any tool and cost no time.
        with zipfile.ZipFile(str(draft), "w", zipfile.ZIP_STORED) as archive:
            for path in sorted(folder.iterdir()):
                archive.write(str(path), path.name)
        draft.rename(target)
    finally:
        if draft.exists():
            draft.unlink()


# Reading -----------------------------------------------------------------------------------------------------


class _Folder:
    def __init__(self, path: Path) -> None:
        self._path = path

    def open(self, name: str) -> IO[bytes]:
        path = self._path / name
        if not stat.S_ISREG(path.lstat().st_mode):
            raise BundleError(f"{name} in the bundle is no regular file", path=path)
        return path.open("rb")


class _Zip:
    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        names = archive.namelist()
        # Members are read by name and never extracted, so a path could do no harm; it still shows that the file was
        # not made by ``pack``.
        odd = [name for name, count in Counter(names).items() if name != sanitize_filename(name) or count > 1]
        if odd:
            raise BundleError(
                f"the bundle has a member that no bundle has: {odd[0]!r}",
                hint="do not trust this file; get the bundle from where it was made",
                path=path,
            )

    def open(self, name: str) -> IO[bytes]:
        info = self._archive.getinfo(name)
        if info.compress_type != zipfile.ZIP_STORED:  # no bundle has it, and it could unpack to any size
            raise BundleError(f"{name} in the bundle is compressed")
        return self._archive.open(info)


def _open(path: Path, stack: ExitStack) -> Any:
    try:
        if path.is_dir():
            return _Folder(path)
        return _Zip(path, stack.enter_context(zipfile.ZipFile(str(path))))
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise BundleError(
            f"{path} is no bundle: {error}", hint="a bundle is a folder or a .zip made by pack", path=path
        ) from error


def _read_index(source: Any) -> Bundle:
    import yaml

    try:
        with source.open(INDEX) as stream:
            text = stream.read(_INDEX_LIMIT + 1)
        if len(text) > _INDEX_LIMIT:
            raise BundleError(f"{INDEX} is longer than {_INDEX_LIMIT} bytes")
        data = yaml.safe_load(text)
    except (OSError, KeyError, ValueError, yaml.YAMLError, RecursionError, zipfile.BadZipFile) as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(f"{INDEX} cannot be read: {error}", hint="the bundle is damaged, or none") from error
    if not isinstance(data, dict) or data.get("bundle") != VERSION:
        raise BundleError(f"{INDEX} is not of version {VERSION}", expected=VERSION)
    files, registry = data.get("files"), data.get("registry")
    if not isinstance(files, dict) or not isinstance(registry, dict):
        raise BundleError(f"{INDEX} lacks its files or its registry entries")
    return Bundle({str(name): _packed(name, entry) for name, entry in files.items()}, registry)


def _packed(name: Any, entry: Any) -> Packed:
    try:
        integrity, size, sha256 = entry["integrity"], entry["size"], entry["sha256"]
        if type(size) is not int or size < 0 or not all(isinstance(text, str) for text in (entry["name"], sha256)):
            raise TypeError("a size or text of the wrong type")
        whole = FileSpec(entry["name"], (), size, sha256)
        file = {
            "sha256": lambda: whole,
            "sha256_prefix": lambda: whole._replace(sha256=None, sha256_prefix=entry["sha256_prefix"]),
            # The stored name of an unverified file comes from where it was first found.
            "none": lambda: whole._replace(sha256=None, sources=(str(entry["source"]),)),
        }[integrity]()
        cache_filename(whole)  # raises if sha256 is no digest
        if file.integrity != integrity or not digest_matches(file, sha256.lower()):
            raise ValueError("its digests contradict each other")
        return Packed(file, cache_filename(file), size, sha256.lower())
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise BundleError(f"{INDEX} describes {name!r} in a way that makes no sense: {error}") from error


def _refuse_unverified(bundle: Bundle, path: Path, allow: bool) -> None:
    doubtful = [name for name, packed in bundle.files.items() if packed.file.integrity == "none"]
    if doubtful and not allow:
        raise UnverifiedError(
            f"only the bundle itself vouches for {', '.join(doubtful)}",
            hint=f"if you trust who made it, pass allow_unverified=True or set {ALLOW_UNVERIFIED_ENV}=1",
            path=path,
        )


def _copy(source: Any, packed: Packed, root: Path, path: Path, stack: ExitStack) -> PartialFile:
    """Copy one file into a part file and check it; the part is deleted at the end unless it was published."""
    record = cache.read_stamp(root / packed.stored)
    if packed.file.integrity == "none" and record is not None and record.sha256 != packed.sha256:
        raise _tampered(packed, path, record.sha256, packed.sha256)
    try:
        part = PartialFile(root, cache_key(packed.file))
        stack.callback(part.discard)
        with source.open(packed.stored) as stream:
            while part.size <= packed.size:
                data = stream.read(CHUNK_BYTES)
                if not data:
                    break
                part.write(data)
    except (KeyError, zipfile.BadZipFile, FileNotFoundError) as error:
        raise BundleError(f"{packed.stored} is missing from the bundle or damaged: {error}", path=path) from error
    except OSError as error:
        if isinstance(error, ZooError):
            raise
        raise cache.write_error(root, error, packed.file.name, packed.size) from error
    if part.size != packed.size:
        raise _tampered(packed, path, packed.size, part.size)
    digest = part.digest()
    if digest != packed.sha256:
        raise _tampered(packed, path, packed.sha256, digest)
    part.close()
    return part


def _publish(packed: Packed, part: PartialFile, root: Path) -> Path:
    target = root / packed.stored
    try:
        status = part.path.stat()
        cache.publish(part.path, target)
    except OSError as error:
        raise cache.write_error(root, error, packed.file.name, 0) from error
    cache.write_stamp(target, cache.Stamp(status.st_size, status.st_mtime_ns, packed.sha256, packed.file.integrity))
    return target


def _tampered(packed: Packed, path: Path, expected: Any, actual: Any) -> BundleError:
    return BundleError(
        f"{packed.file.name} in the bundle is not what was packed (expected {expected}, got {actual}); "
        "nothing was imported",
        hint="the bundle was damaged or tampered with; get it again from where it was made",
        path=path,
        expected=expected,
        actual=actual,
    )
