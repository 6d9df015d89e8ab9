"""Run a command line in a pseudo-terminal, read its output and press its keys."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from typing import Any, Dict, Optional, Sequence

SECONDS = 60.0
PROGRAM = (sys.executable, "-m", "repvgg_zoo")


class Terminal:
    """Runs ``repvgg-zoo``, or another program, with its own controlling terminal; every wait has a timeout."""

    def __init__(
        self,
        *argv: str,
        env: Optional[Dict[str, str]] = None,
        columns: int = 80,
        program: Sequence[str] = PROGRAM,
    ) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

        def own_terminal() -> None:
            os.setsid()
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

        options: Dict[str, Any] = {"stdin": slave, "stdout": slave, "stderr": slave, "preexec_fn": own_terminal}
        environ = {**os.environ, "TERM": "xterm", **(env or {})}
        self._process = subprocess.Popen([*program, *argv], env=environ, **options)
        os.close(slave)
        self.screen = ""

    def wait_for(self, text: str) -> None:
        """Read until the text has been printed."""
        until = time.monotonic() + SECONDS
        while text not in self.screen:
            assert time.monotonic() < until and self._read(), f"{text!r} was not printed, only {self.screen!r}"

    def press(self, keys: str) -> None:
        """Send keys; "\\x03" is Ctrl-C."""
        os.write(self._master, keys.encode())

    def kill(self) -> None:
        """End the program, such as a shell."""
        self._process.kill()
        self._process.wait(timeout=SECONDS)
        os.close(self._master)

    def finish(self) -> int:
        """Read to the end and return the exit code."""
        until = time.monotonic() + SECONDS
        while self._read():
            assert time.monotonic() < until, self.screen
        code = self._process.wait(timeout=SECONDS)
        os.close(self._master)
        self.screen = self.screen.replace("\r\n", "\n")
        return code

    def _read(self) -> bool:
        """Read what arrives within a second; return False when the other end is closed."""
        ready, _, _ = select.select([self._master], [], [], 1.0)
        if not ready:
            return True
        try:
            data = os.read(self._master, 1 << 16)
        except OSError:  # Linux's way to say that nobody has the other end open
            return False
        self.screen += data.decode("utf-8", "replace")
        return bool(data)
