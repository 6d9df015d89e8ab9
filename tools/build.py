"""Build the wheel and the sdist of this checkout in dist/: ``./dev build [TAG]``.

The same commit gives the same bytes on every machine: the files' times are the commit's (SOURCE_DATE_EPOCH). TAG is
that of a release, for which the version and the changelog must be ready.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import List, Optional

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: List[str]) -> Optional[str]:
    """Build, print the digests, and return what is wrong or None."""
    if arguments:
        problem = release_problem(arguments[0], ROOT)
        if problem:
            return problem
    for path in build(ROOT, ROOT / "dist"):
        print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  dist/{path.name}")
    return None


def build(root: Path, out: Path, time: Optional[str] = None) -> List[Path]:
    """Build both distributions of ``root`` in the folder ``out``, with this time or the commit's."""
    environment = {**os.environ, "SOURCE_DATE_EPOCH": time or commit_time(root)}
    command = [sys.executable, "-m", "hatchling", "build", "--clean", "-d", str(out)]
    subprocess.run(command, cwd=str(root), env=environment, stdout=subprocess.DEVNULL, check=True)
    return sorted([*out.glob("*.whl"), *out.glob("*.tar.gz")])


def commit_time(root: Path) -> str:
    """Return the time of the last commit in seconds since 1970."""
    command = ["git", "log", "-1", "--format=%ct"]
    return subprocess.run(command, cwd=str(root), stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def release_problem(tag: str, root: Path) -> Optional[str]:
    """Return why ``tag`` cannot be released from ``root``, or None."""
    init = (root / "repvgg_zoo" / "__init__.py").read_text(encoding="utf-8")
    version = re.findall(r'^__version__ = "(.+)"$', init, re.MULTILINE)[0]
    if tag != f"v{version}":
        return f"the tag {tag} is not v{version}, the version in repvgg_zoo/__init__.py"
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    if not re.search(rf"^## {re.escape(version)} \(\d{{4}}-\d\d-\d\d\)$", changelog, re.MULTILINE):
        return f"CHANGELOG.md has no heading '## {version} (YYYY-MM-DD)'"
    citation = (root / "CITATION.cff").read_text(encoding="utf-8")
    if f"\nversion: {version}\n" not in citation:
        return f"CITATION.cff does not have version: {version}"
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
