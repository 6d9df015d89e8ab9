"""A stand-in for GitHub: the working tree as an archive over HTTPS and as a bare repository, and its users."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Dict, Mapping, Optional

from ..hub.proxy import Proxy
from ..hub.server import Answer, TlsServer

ROOT = Path(__file__).resolve().parents[2]
REPO = "owner/repvgg_zoo:main"


class GitHub:
    """Serves what was published at https://github.com, for processes that use its proxy."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.server = TlsServer(home, "github.com")
        self.ca = self.server.ca
        self.proxy = Proxy({"github.com:443": f"127.0.0.1:{self.server.port}"})

    def publish(self, *bodies: bytes, ref: str = "main") -> None:
        """Serve these archives under one ref, one for each request, and the last one from then on."""
        answers = (Answer(body, headers={"Content-Type": "application/zip"}) for body in bodies)
        self.server.serve(f"/owner/repvgg_zoo/archive/{ref}.zip", *answers)

    def environment(self, home: Path) -> Dict[str, str]:
        """Return the environment of a user with PATH and a home only, whose network is this one."""
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(home),
            "MGE_HOME": str(home / "mge"),
            "MGE_DEFAULT_DEVICE": "cpux",
            "HTTPS_PROXY": self.proxy.url,
            "REQUESTS_CA_BUNDLE": str(self.ca),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": str(self.home / "gitconfig"),
        }

    def run(self, home: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run an isolated Python of this user, in an empty folder."""
        home.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-I", *arguments]
        environment = {**self.environment(home), **variables}
        pipe = subprocess.PIPE
        return subprocess.run(
            command, cwd=str(home), env=environment, stdout=pipe, stderr=pipe, text=True, timeout=180, check=False
        )

    def close(self) -> None:
        self.proxy.close()
        self.server.close()


def archive(changed: Optional[Mapping[str, bytes]] = None) -> bytes:
    """The working tree as GitHub packs it: all in one folder, no .git; ``changed`` replaces files."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as into:
        for name in tracked():
            body = (changed or {}).get(name)
            into.writestr(f"repvgg_zoo-main/{name}", (ROOT / name).read_bytes() if body is None else body)
    return packed.getvalue()


def tracked() -> list[str]:
    """Every file of the working tree that is not ignored."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=str(ROOT), stdout=subprocess.PIPE, check=True).stdout.decode()
    return sorted(name for name in set(listed.split("\0")) if name and (ROOT / name).is_file())


def bare_repository(home: Path, gitconfig: Path) -> None:
    """A bare repository of the working tree, and a git configuration under which GitHub over SSH is that one."""
    work, bare = home / "work", home / "bare" / "owner" / "repvgg_zoo.git"
    for name in tracked():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(str(ROOT / name), str(work / name))
    who = ["-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    for command in (
        ["init", "-q", "."],
        ["add", "-A", "-f"],
        [*who, "commit", "-q", "-m", "all"],
        ["branch", "-M", "main"],
        ["clone", "-q", "--bare", ".", str(bare)],
    ):
        subprocess.run(["git", *command], cwd=str(work), check=True)
    gitconfig.write_text(
        f'[url "file://{home}/bare/"]\n    insteadOf = git@github.com:\n[safe]\n    directory = *\n', encoding="utf-8"
    )
