"""What proves a file: its digest, and what a body is that came in a file's place."""

from __future__ import annotations

import hashlib
import queue
import threading
from pathlib import Path
from typing import Optional, Union

from repvgg_zoo.registry.specs import FileSpec

CHUNK = 1 << 20
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()


def hash_file(path: Path) -> str:
    """The SHA-256 of a file, as 64 hex digits."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(CHUNK))
    with path.open("rb", buffering=0) as stream:
        while True:
            count = stream.readinto(buffer)
            if not count:
                return digest.hexdigest()
            digest.update(buffer[:count])


def proves(file: FileSpec, sha256: str) -> bool:
    """Whether a digest is the one that the registry states; True if the registry states none."""
    if file.sha256:
        return sha256 == file.sha256.lower()
    return sha256.startswith((file.sha256_prefix or "").lower())


def expected_digest(file: FileSpec) -> Optional[str]:
    """The digest that the registry states, a prefix with an ellipsis, or None."""
    if file.sha256:
        return file.sha256.lower()
    return f"{file.sha256_prefix.lower()}…" if file.sha256_prefix else None


def recognise(head: bytes) -> Optional[str]:
    """What the first bytes of a body are if they are no checkpoint, in words, else None.

    No checkpoint format starts like this: safetensors with a length of 8 bytes, zip with ``PK``, pickle with 0x80.
    """
    text = head[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "an empty body"
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<body")):
        return "an HTML page"
    if text.startswith((b"<?xml", b"<error")):
        return "an XML message"
    if text.startswith(b"version https://git-lfs.github.com/spec"):
        return "a Git LFS pointer"
    if text[:1] in (b"{", b"[") and b'"' in text:
        return "a JSON message"
    return None


class StreamHash:
    """SHA-256 over a stream, computed in a thread of its own, so that hashing and receiving overlap.

    ``hashlib`` lets go of the interpreter lock while it works, so two cores are used. Small pieces (TLS gives 16 KiB at
    a time) are gathered first, because handing over costs more than hashing them.
    """

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._gathered = bytearray()
        self._pending: queue.Queue[Optional[Union[bytes, bytearray]]] = queue.Queue(maxsize=8)
        self._thread: Optional[threading.Thread] = None

    def update(self, data: bytes) -> None:
        """Take the next bytes."""
        self._gathered += data
        if len(self._gathered) >= CHUNK:
            self._hand_over()

    def hexdigest(self) -> str:
        """The digest of all bytes so far; more may follow."""
        self.close()
        return self._digest.hexdigest()

    def close(self) -> None:
        """End the thread once it has worked off what is pending."""
        self._hand_over()
        if self._thread is not None:
            self._pending.put(None)
            self._thread.join()
            self._thread = None

    def _hand_over(self) -> None:
        if self._gathered:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="repvgg_zoo-hash", daemon=True)
                self._thread.start()
            self._pending.put(self._gathered)
            self._gathered = bytearray()

    def _work(self) -> None:
        while True:
            data = self._pending.get()
            if data is None:
                return
            self._digest.update(data)
