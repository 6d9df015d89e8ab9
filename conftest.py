"""Runs the examples of README.md, docs/ and the docstrings as tests.

In Markdown these are the blocks marked ```python and ```pycon; ``<!-- skip: next "why" -->`` before a block skips it,
which is meant for examples that need the internet. Each file starts in an empty folder with an empty cache.
"""

from __future__ import annotations

import doctest
import importlib.util
import os
import re
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Dict, Optional
from unittest import mock

# Without it MegEngine looks for a GPU and, where there is none, prints a banner at the first tensor.
os.environ.setdefault("MGE_DEFAULT_DEVICE", "cpux")

from sybil import Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser
from sybil.parsers.rest import DocTestParser

# A shell that runs the tests in the background has them ignore interrupts, and the processes that they interrupt too.
signal.signal(signal.SIGINT, signal.default_int_handler)

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


class PyconBlockParser(PythonCodeBlockParser):
    """The same for blocks marked ```pycon, which sybil would ignore."""

    def __init__(self) -> None:
        super().__init__(doctest_optionflags=OPTIONS)
        self.codeblock_parser = CodeBlockParser("pycon", PythonEvaluator())


def enter_empty_folder(namespace: Dict[str, Any]) -> None:
    stack = namespace["_stack"] = ExitStack()
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    stack.callback(os.chdir, os.getcwd())  # noqa: PTH109
    stack.enter_context(mock.patch.dict(os.environ, REPVGG_ZOO_HOME=os.path.join(folder, "cache")))  # noqa: PTH118
    working = os.path.join(folder, "work")  # noqa: PTH118
    os.mkdir(working)  # noqa: PTH102
    os.chdir(working)
    stack.callback(forget_registered)


def forget_registered() -> None:
    """Undo what an example registered, which the next tests of this process would find."""
    registered = sys.modules.get("repvgg_zoo.registry.registered")
    if registered is not None:
        registered._registered.clear()


def leave_folder(namespace: Dict[str, Any]) -> None:
    namespace["_stack"].close()


markdown = Sybil(
    parsers=[PythonCodeBlockParser(doctest_optionflags=OPTIONS), PyconBlockParser(), SkipParser()],
    patterns=["README*.md", "docs/*.md", "docs/**/*.md"],
    excludes=["docs/catalog/*.md"],  # generated, and most need the internet: tests/tooling/test_catalog.py
    setup=enter_empty_folder,
    teardown=leave_folder,
)
docstrings = Sybil(
    parsers=[DocTestParser(OPTIONS)],
    patterns=["repvgg_zoo/*.py", "repvgg_zoo/**/*.py"],
    setup=enter_empty_folder,
    teardown=leave_folder,
)
NEEDS_MEGENGINE = r"^(import|from) (megengine|cv2|tests\.networks|repvgg_zoo\.(builder|models)\b)"
HAS_MEGENGINE = importlib.util.find_spec("megengine") is not None
if HAS_MEGENGINE:
    pytest_collect_file = (markdown + docstrings).pytest()


def pytest_ignore_collect(collection_path: Path) -> Optional[bool]:
    """Leave out the modules that import MegEngine, or OpenCV which it requires, where they are not installed."""
    if HAS_MEGENGINE or collection_path.suffix != ".py":
        return None
    text = collection_path.read_text(encoding="utf-8")
    return True if re.search(NEEDS_MEGENGINE, text, re.MULTILINE) else None
