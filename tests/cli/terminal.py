"""A command line in a real terminal: a pty of 80 columns, whose output is read and whose keys are pressed."""

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
from typing import Any, Dict, Optional

SECONDS = 60.0


class Terminal:
    """Runs ``repvgg-zoo`` with a controlling terminal of its own; every wait is bounded."""

    def __init__(self, *argv: str, env: Optional[Dict[str, str]] = None) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))

        def own_terminal() -> None:
            os.setsid()
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

        options: Dict[str, Any] = {"stdin": slave, "stdout": slave, "stderr": slave, "preexec_fn": own_terminal}
        environ = {**os.environ, "TERM": "xterm", **(env or {})}
        self._process = subprocess.Popen([sys.executable, "-m", "repvgg_zoo", *argv], env=environ, **options)
        os.close(slave)
        self.screen = ""

    def wait_for(self, text: str) -> None:
        """Reads until the text has been shown."""
        until = time.monotonic() + SECONDS
        while text not in self.screen:
            assert time.monotonic() < until and self._read(), f"never shown: {text!r}; but: {self.screen!r}"

    def press(self, keys: str) -> None:
        """What a person types; "\\x03" is Ctrl-C."""
        os.write(self._master, keys.encode())

    def finish(self) -> int:
        """Reads to the end and gives the exit code."""
        until = time.monotonic() + SECONDS
        while self._read():
            assert time.monotonic() < until, self.screen
        code = self._process.wait(timeout=SECONDS)
        os.close(self._master)
        self.screen = self.screen.replace("\r\n", "\n")
        return code

    def _read(self) -> bool:
        """Reads what is there within a second; False when the other end is closed."""
        ready, _, _ = select.select([self._master], [], [], 1.0)
        if not ready:
            return True
        try:
            data = os.read(self._master, 1 << 16)
        except OSError:  # Linux's way to say that nobody has the other end open
            return False
        self.screen += data.decode("utf-8", "replace")
        return bool(data)
