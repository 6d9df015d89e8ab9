"""Machine code is compiled once for a version and a processor, and executed only if this user wrote it.

The kind: an entry of the cache that is not exactly what this version would compile here is compiled again: damaged, of
other modules, another llvmlite or processor, or in a place where somebody else could have written it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from repvgg_zoo._derived_cache import HEADER_BYTES, DerivedCache
from repvgg_zoo._digest import hash_package
from repvgg_zoo.inference.jit import code_cache, engine
from repvgg_zoo.inference.jit.code_cache import load_or_compile
from repvgg_zoo.inference.jit.engine import host_microkernel_config, load_kernels

ROOT = Path(__file__).parents[2]
PARAMETERS = {"cpu": "znver3", "features": "+avx2,+fma", "llvmlite": "0.44.0"}
posix = pytest.mark.skipif(not hasattr(os, "getuid"), reason="POSIX permissions")
pytestmark = posix  # elsewhere the system cannot tell who wrote a file, and nothing is kept


@pytest.fixture
def cache(tmp_path):
    return DerivedCache(tmp_path / "cache")


class Compiler:
    """Stands for LLVM and counts how often it is called."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return b"machine code"


def stored(cache):
    assert load_or_compile(Compiler(), cache, PARAMETERS) == b"machine code"
    (path,) = cache.folder.glob("code-*.derived")
    return path


def is_compiled_again(cache, parameters=PARAMETERS):
    compiler = Compiler()
    assert load_or_compile(compiler, cache, parameters) == b"machine code"
    return compiler.calls == 1


def test_code_that_was_stored_is_not_compiled_again(cache):
    stored(cache)
    assert not is_compiled_again(cache)
    assert not is_compiled_again(cache)


def test_without_a_cache_every_process_compiles():
    assert is_compiled_again(None)


@pytest.mark.parametrize("name", PARAMETERS)
def test_code_of_another_processor_or_version_is_compiled(cache, name):
    stored(cache)
    assert is_compiled_again(cache, {**PARAMETERS, name: "another"})


@pytest.mark.parametrize(
    "change",
    [
        lambda path: flip(path, HEADER_BYTES),
        lambda path: flip(path, HEADER_BYTES + 11),
        lambda path: flip(path, 30),
        lambda path: os.truncate(path, HEADER_BYTES + 3),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\x7fELF" * 300),
    ],
    ids=["first byte", "last byte", "header", "cut", "empty", "another file"],
)
@pytest.mark.parametrize("was_read", [True, False], ids=["read before", "never read"])
def test_a_damaged_entry_is_compiled_again_and_replaced(cache, change, was_read):
    path = stored(cache)
    assert not was_read or not is_compiled_again(cache)
    change(path)
    assert is_compiled_again(cache)
    assert not is_compiled_again(cache)


def flip(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "share",
    [
        lambda path: path.chmod(0o664),
        lambda path: path.chmod(0o646),
        lambda path: path.parent.chmod(0o777),
        lambda path: path.parent.chmod(0o775),
        lambda path: path.parent.parent.chmod(0o777),
    ],
    ids=["group writes the file", "all write the file", "all write in the folder", "group does", "all in the cache"],
)
def test_code_that_another_user_could_have_written_is_not_executed(cache, share):
    share(stored(cache))
    assert is_compiled_again(cache)


@pytest.mark.parametrize("shared", ["cache", "derived"])
def test_where_other_users_can_write_no_code_is_left(cache, shared):
    folder = {"cache": cache.folder.parent, "derived": cache.folder}[shared]
    cache.folder.mkdir(parents=True)
    folder.chmod(0o777)
    assert is_compiled_again(cache)
    assert list(cache.folder.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("part", ["file", "folder", "cache"])
def test_code_that_another_user_owns_is_not_executed(cache, part):
    path = stored(cache)
    os.chown({"file": path, "folder": path.parent, "cache": path.parent.parent}[part], 12345, -1)
    assert is_compiled_again(cache)


def test_a_link_is_not_followed_to_code(cache, tmp_path):
    path = stored(cache)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert is_compiled_again(cache)


@pytest.mark.parametrize("umask", [0o002, 0o000, 0o077])
def test_code_is_kept_whatever_the_umask_is(cache, umask):
    before = os.umask(umask)
    try:
        stored(cache)
    finally:
        os.umask(before)
    assert not is_compiled_again(cache)


def test_a_cache_that_cannot_be_written_costs_compiling_only(tmp_path):
    (tmp_path / "cache").write_text("a file")
    cache = DerivedCache(tmp_path / "cache")
    assert is_compiled_again(cache)
    assert is_compiled_again(cache)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that is imported, with two modules and a package in it."""
    folder = tmp_path / "generator"
    folder.mkdir()
    for name in ("__init__", "kernels", "run"):
        (folder / f"{name}.py").write_text(f"# {name}\n")
    (folder / "inner").mkdir()
    (folder / "inner" / "__init__.py").write_text("")
    (folder / "inner" / "epilogue.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    __import__("generator")
    yield folder
    del sys.modules["generator"]


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "run.py").write_text("# RUN\n"),
        lambda folder: (folder / "winograd.py").write_text(""),
        lambda folder: (folder / "run.py").unlink(),
        lambda folder: (folder / "run.py").rename(folder / "run2.py"),
        lambda folder: (folder / "inner" / "epilogue.py").write_text("#"),
    ],
    ids=["changed", "added", "removed", "renamed", "changed in a package in it"],
)
def test_a_changed_code_generator_has_another_digest(package, change):
    before = hash_package("generator")
    assert len(before) == 64
    change(package)
    assert hash_package("generator") not in (before, None)


def test_a_code_generator_without_its_source_text_keeps_no_code(package, cache, monkeypatch):
    (package / "run.py").rename(package / "run.pyc")
    assert hash_package("generator") is None
    monkeypatch.setattr(code_cache, "hash_package", lambda package: None)
    assert is_compiled_again(cache)
    assert is_compiled_again(cache)


def test_the_generator_depends_on_no_other_module_of_the_package():
    """Or its digest would not be all that decides on the code; what the engine imports does not."""
    for path in Path(engine.__file__).parent.glob("*.py"):
        if path.stem not in ("engine", "code_cache"):
            assert "from .." not in path.read_text(encoding="utf-8"), path


PROGRAM = """
import logging, sys
from pathlib import Path
from repvgg_zoo._derived_cache import DerivedCache
from repvgg_zoo.inference.jit.engine import host_microkernel_config, jit_compile

logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
assert all(jit_compile(host_microkernel_config(), DerivedCache(Path(sys.argv[1]))).addresses.values())
"""


def test_of_processes_at_once_each_has_the_code_and_the_next_one_compiles_nothing(cache):
    def start():
        command = [sys.executable, "-c", PROGRAM, str(cache.folder.parent)]
        return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True)

    both = [start(), start()]
    logs = [child.communicate(timeout=180)[0] for child in both]
    assert any("compiled the kernels" in log for log in logs)
    assert [child.returncode for child in both] == [0, 0]
    next_one = start()
    assert (next_one.communicate(timeout=180)[0], next_one.returncode) == ("", 0)


def test_loaded_code_is_the_compiled_code(cache, monkeypatch):
    compiled = load_kernels(host_microkernel_config(), cache)
    monkeypatch.setattr(engine, "build_kernels", lambda config: pytest.fail("compiled again"))
    loaded = load_kernels(host_microkernel_config(), cache)
    assert loaded.digest == compiled.digest
    assert loaded.addresses.keys() == compiled.addresses.keys()
