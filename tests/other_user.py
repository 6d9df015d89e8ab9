"""Processes of a user who is not root and is not in the password database, in a user namespace of Linux.

Outside of the namespace the process is still the user who runs the tests, so it can read what they can read: the
interpreter and this checkout. Inside it has the number 54321, no name, and none of root's privileges.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Dict, Optional

import pytest

UID = 54321
START = f"""
import ctypes, os, sys
uid, gid = os.getuid(), os.getgid()
if ctypes.CDLL(None).unshare(0x10000000):  # CLONE_NEWUSER
    raise SystemExit("this machine does not allow user namespaces")
for name, value in (("setgroups", "deny"), ("uid_map", f"{UID} {{uid}} 1"), ("gid_map", f"{UID} {{gid}} 1")):
    with open(f"/proc/self/{{name}}", "w") as file:
        file.write(value)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])  # which gives up the privileges inside the namespace
"""


def run_as_other_user(
    *arguments: str, env: Optional[Dict[str, str]] = None, cwd: Optional[Path] = None
) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments as that user; skip the test where this does not work."""
    if not _works():
        pytest.skip("this machine does not allow user namespaces")
    return _run(*arguments, env=env, cwd=cwd)


def _run(
    *arguments: str, env: Optional[Dict[str, str]] = None, cwd: Optional[Path] = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", START, *arguments]
    return subprocess.run(command, env=env, cwd=str(cwd or "/"), capture_output=True, text=True, timeout=120)


@functools.lru_cache(maxsize=1)
def _works() -> bool:
    return os.name == "posix" and _run("-c", "import os; print(os.getuid())").stdout == f"{UID}\n"
