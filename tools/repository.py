"""The repository's name on GitHub, which the URLs in pyproject.toml state.

``python -m tools.repository`` prints it, and ``python -m tools.repository NEW_OWNER/NAME`` writes another one wherever
it is mentioned: in the docs, the model card, help texts, workflows and tests.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import List, Optional

ROOT = Path(__file__).resolve().parents[1]


def repository(root: Path = ROOT) -> str:
    """Return the repository as OWNER/NAME."""
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    match = re.search(r'^Source = "https://github\.com/([^"/]+/[^"/]+)"$', text, re.MULTILINE)
    assert match is not None, "pyproject.toml has no Source among its URLs"
    return match.group(1)


def rename(new: str, root: Path = ROOT, files: Optional[List[str]] = None) -> List[str]:
    """Replace the repository's name in ``files``, by default all that are not ignored; return those that had it."""
    old = repository(root)
    changed = []
    for name in tracked(root) if files is None else files:
        path = root / name
        data = path.read_bytes()
        if old.encode() in data and b"\0" not in data:
            path.write_bytes(data.replace(old.encode(), new.encode()))
            changed.append(name)
    return changed


def tracked(root: Path = ROOT) -> List[str]:
    """Return the paths of all files of the checkout that are not ignored."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=str(root), stdout=subprocess.PIPE, check=True).stdout.decode()
    return sorted(name for name in set(listed.split("\0")) if name and (root / name).is_file())


if __name__ == "__main__":
    if len(sys.argv) == 1:
        print(repository())
    elif len(sys.argv) == 2 and re.fullmatch(r"[\w.-]+/[\w.-]+", sys.argv[1]):
        print("\n".join(rename(sys.argv[1])))
    else:
        sys.exit("usage: python -m tools.repository [OWNER/NAME]")
