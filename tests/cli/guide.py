"""Run the commands in the console blocks of a page, and compare or renew their output.

``python -m tests.cli.guide`` renews the pages. ``...`` stands for a path of the machine; in a block after
``<!-- machines differ -->``, numbers, spaces and what ``_DIFFERS`` lists are not compared.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Iterator, List, NamedTuple
from unittest import mock

import numpy as np
from PIL import Image

from repvgg_zoo.cli import main

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "guides" / "command-line.md"
PAGES = (PAGE, PAGE.with_name("offline.md"), PAGE.with_name("publishing.md"))

_BLOCK = re.compile(r"(<!-- machines differ -->\n)?```console\n(.*?)```\n", re.DOTALL)
_DIFFERS = (  # (pattern, replacement)
    (re.compile(r"^on .+, ([0-9]+ cores)", re.MULTILINE), r"on a machine, \1"),
    (re.compile(r"^the machine is busy.*\n", re.MULTILINE), ""),
    # The doctor's findings: only their names are compared.
    (re.compile(r"^(?:ok|warn) +(\S+) .*$", re.MULTILINE), r"\1"),
    (re.compile(r"^ +fix: .*\n", re.MULTILINE), ""),
    (re.compile(r"[0-9]+ (?:s|min|h)\b"), "a while"),
    (re.compile(r"[0-9]+(?:\.[0-9]+)*(?:e[-+]?[0-9]+)?"), "#"),
    (re.compile(r" +"), " "),
)


class Example(NamedTuple):
    """A command of the page and its output."""

    command: str
    output: str
    machines_differ: bool


def commands(text: str) -> Iterator[Example]:
    """Yield every command of a page's console blocks."""
    for match in _BLOCK.finditer(text):
        for part in re.split(r"^\$ ", match.group(2), flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            yield Example(command, output, match.group(1) is not None)


def same(expected: str, printed: str, machines_differ: bool) -> bool:
    """Return whether a command printed what the page shows."""
    if machines_differ:
        for differing, replacement in _DIFFERS:
            expected, printed = differing.sub(replacement, expected), differing.sub(replacement, printed)
    pattern = ".*?".join(map(re.escape, expected.split("...")))
    return re.fullmatch(pattern, printed, re.DOTALL) is not None


class Shell:
    """Runs commands in a folder with images and a fresh cache, as a reader of the page would."""

    def __init__(self, folder: Path) -> None:
        self._work, self._home, programs = folder / "work", folder / "home", folder / "bin"
        for path in (self._work, self._home, programs):
            path.mkdir(parents=True)
        with np.load(ROOT / "hub" / "digits-test.npz", allow_pickle=False) as digits:
            images, labels = [Image.fromarray(image) for image in digits["images"][:60]], digits["labels"]
        images[0].save(self._work / "digit.png")
        (self._work / "digits").mkdir()
        for index, image in enumerate(images):
            image.save(self._work / "digits" / f"{index:02}.png")
        lines = (f"{index:02}.png,{label}\n" for index, label in enumerate(labels[:60]))
        (self._work / "labels.csv").write_text("".join(["filename,label\n", *lines]))
        program = programs / "repvgg-zoo"
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m repvgg_zoo "$@"\n')
        program.chmod(0o755)
        environ = {
            name: value for name, value in os.environ.items() if not name.startswith(("REPVGG_ZOO_", "XDG_", "MGE_"))
        }
        self._env = {
            **environ,
            "HOME": str(self._home),
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "80",
        }

    def run(self, command: str) -> str:
        """Return what the command prints on stdout and stderr; it runs in this process unless it needs a shell."""
        words = shlex.split(command)
        if words[0] != "repvgg-zoo" or not {"$", ">", "|"}.isdisjoint(command):
            both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            process = subprocess.run(["sh", "-c", command], cwd=str(self._work), env=self._env, timeout=120, **both)
            return process.stdout
        printed, before = io.StringIO(), Path.cwd()
        os.chdir(str(self._work))
        try:
            with mock.patch.dict(os.environ, self._env, clear=True):
                with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                    main(words[1:])
        finally:
            os.chdir(str(before))
        return printed.getvalue()

    def neutral(self, text: str) -> str:
        """Return the output with this machine's paths replaced, as the page shows it."""
        for path in (sys.executable, str(self._home), str(self._work), str(ROOT)):
            text = text.replace(path, "...")
        return text


def renew(text: str, shell: Shell) -> str:
    """Return the page with what its commands print now; output that differs only where it may is left alone."""

    def block(match: re.Match[str]) -> str:
        lines: List[str] = []
        for command, output, machines_differ in commands(match.group()):
            printed = shell.run(command)
            unchanged = same(output, printed, machines_differ)
            lines += [f"$ {command}\n", output if unchanged else shell.neutral(printed)]
        return f"{match.group(1) or ''}```console\n{''.join(lines)}```\n"

    return _BLOCK.sub(block, text)


if __name__ == "__main__":
    for page in PAGES:
        with tempfile.TemporaryDirectory() as folder:
            page.write_text(renew(page.read_text(encoding="utf-8"), Shell(Path(folder))), encoding="utf-8")
