"""A local file as a source: the responses of a web server, without the network."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from typing import Dict, Mapping

from .._files import open_regular_file
from .http import Response, SourceError


def open_file(path: Path, headers: Mapping[str, str]) -> Response:
    """Open a file at the offset that the Range header asks for; raises SourceError."""
    byte_range = re.fullmatch(r"bytes=(\d+)-", headers.get("Range", ""))
    try:
        return _FileResponse(open_regular_file(path), int(byte_range.group(1)) if byte_range else 0)
    except (OSError, ValueError) as error:
        raise SourceError(getattr(error, "strerror", None) or str(error), retryable=False) from error


class _FileResponse:
    secrets = ()

    def __init__(self, stream: io.FileIO, start: int) -> None:
        size = os.fstat(stream.fileno()).st_size
        self.headers: Dict[str, str] = {"Content-Length": str(max(0, size - start))}
        self.status = 200
        if start:
            self.status = 206 if start < size else 416
            self.headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}" if start < size else f"bytes */{size}"
        self._stream = stream
        self._stream.seek(start)

    def read(self, limit: int) -> bytes:
        try:
            return self._stream.read(limit)
        except OSError as error:
            raise SourceError(f"it cannot be read: {error.strerror}", retryable=False) from error

    def close(self) -> None:
        self._stream.close()
