"""The transfer: bring the right bytes into a part file from the first source that gives them.

One GET, hashed while it streams. A connection that breaks is resumed where it broke; what cannot heal is not tried
again; a body that is not the file is thrown away, asked for once more, and then the next source has its turn.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Callable, List, NamedTuple, Optional, Sequence, Tuple

from repvgg_zoo.errors import DownloadError, IntegrityError, ZooError
from repvgg_zoo.registry.specs import FileSpec

from .._digest import CHUNK_BYTES
from .clock import SYSTEM_CLOCK, Clock
from .file_transport import open_file
from .http import HttpClient, Response, SourceError, status_error
from .partial import PartialFile
from .progress import NullProgress, Progress
from .sources import Source
from .verify import digest_matches, expected_digest, sniff_placeholder

logger = logging.getLogger("repvgg_zoo.hub")


@dataclass(frozen=True)
class Limits:
    """How patient a transfer is; times in seconds, sizes in bytes.

    ``tries`` counts failures in a row at one source; bringing ``progress`` new bytes starts the count again. A transfer
    slower than ``floor`` bytes a second over ``window`` seconds counts as broken.
    """

    tries: int = 4
    first_wait: float = 0.5
    longest_wait: float = 60.0
    progress: int = 1 << 20
    floor: float = 512.0
    window: float = 30.0


@dataclass
class Transfer:
    """One file on its way, and what the transfer works with.

    ``need_room`` is called with the bytes still to come before the first of them is read. ``remembered`` is the digest
    that was recorded when an unverified file was first used.
    """

    file: FileSpec
    part: PartialFile
    web: HttpClient
    clock: Clock = SYSTEM_CLOCK
    progress: Progress = field(default_factory=NullProgress)
    limits: Limits = Limits()
    need_room: Callable[[int], None] = lambda size: None
    remembered: Optional[str] = None


@dataclass
class _Visit:
    """What is known of one source while it is tried: what If-Range may hold, and if its clean restart is used up."""

    source: Source
    validator: Optional[str] = None
    restarted: bool = False


def fill(job: Transfer, sources: Sequence[Source]) -> str:
    """Fill the part from the first source that gives the right bytes, and give their SHA-256.

    Raises IntegrityError if a source gave a whole file that is another one, else DownloadError; both list each try.
    """
    attempts: List[str] = []
    wrong: Optional[Tuple[Source, Any, Any]] = None
    for source in sources:
        try:
            return _from_source(job, _Visit(source), attempts)
        except SourceError as error:
            logger.info("%s from %s failed: %s", job.file.name, source.label, error)
            if error.wrong is not None:
                wrong = (source, *error.wrong)
    raise _failure(job.file, sources, attempts, wrong)


def _from_source(job: Transfer, visit: _Visit, attempts: List[str]) -> str:
    """Try one source until it gives the file; raises its last SourceError once there is no hope left."""
    part, limits = job.part, job.limits
    tries, best = 0, part.size
    while True:
        try:
            if part.size == 0 or part.size != job.file.size:
                part.touch()
                _receive(job, visit)
            return _checked(job)
        except SourceError as error:
            attempts.append(f"{visit.source.label}: {error}")
            if error.wrong is not None:
                part.reset()
                if visit.restarted:
                    raise
                # An old part or a bad cache on the way may be to blame: once more, from zero and past all caches.
                visit.restarted, visit.validator, best = True, None, 0
                continue
            if part.size >= best + limits.progress:
                tries, best = 0, part.size
            tries += 1
            wait = min(limits.longest_wait, limits.first_wait * 2 ** (tries - 1)) * (0.5 + 0.5 * job.clock.jitter())
            wait = max(wait, error.wait or 0.0)
            if not error.heals or tries >= limits.tries or wait > limits.longest_wait:
                raise
            job.clock.sleep(wait)


def _receive(job: Transfer, visit: _Visit) -> None:
    """One request: append to the part what is missing, or raise SourceError with what came kept in the part."""
    part = job.part
    if part.size and visit.validator is None and job.file.integrity == "none":
        part.reset()  # nothing would show that the two pieces belong to one file
    headers = {}
    if part.size:
        headers["Range"] = f"bytes={part.size}-"
        if visit.validator is not None:
            headers["If-Range"] = visit.validator
    if visit.restarted:
        headers["Cache-Control"] = "no-cache"
    path = visit.source.path
    reply = job.web.get(visit.source, headers) if path is None else open_file(path, headers)
    try:
        total = _accept(job, reply)
        visit.validator = _validator(reply)
        if reply.status != 416:
            _stream(job, reply, total)
    finally:
        reply.close()


def _accept(job: Transfer, reply: Response) -> Optional[int]:
    """Check status, range and size before a byte is taken; give the size of the whole file if the server states it."""
    part, file = job.part, job.file
    if reply.status == 200:
        if part.size:  # the server knows no ranges, or the file has changed (If-Range)
            part.reset()
        total = _content_length(reply)
        if file.integrity == "none" and total is None and "Transfer-Encoding" not in reply.headers:
            raise SourceError(
                "it states neither length nor digest, so a cut-off body would pass for whole", heals=False
            )
    elif reply.status == 206:
        content = _content_range(reply)
        if content.first != part.size or _is_encoded(reply):
            part.reset()
            raise SourceError("the server sent another range than asked for", heals=True)
        total = content.total
    elif reply.status == 416 and part.size:
        total = _content_range(reply).total
        if total != part.size:
            part.reset()
            raise SourceError(f"the server has no bytes after {part.size}", heals=True)
    else:
        raise status_error(reply, job.clock)
    if file.size is not None and total is not None and total != file.size:
        came = sniff_placeholder(reply.read(512))
        part.reset()
        if came is not None:
            raise SourceError(f"{came} of {total} bytes came instead of the file", heals=False)
        raise SourceError(f"its size is {total}, not {file.size}", heals=False, wrong=(file.size, total))
    return total


def _stream(job: Transfer, reply: Response, total: Optional[int]) -> None:
    """Read the body to its end into the part."""
    part = job.part
    expected = total if job.file.size is None else job.file.size
    if expected is not None:
        job.need_room(expected - part.size)
    job.progress.update(job.file.name, part.size, expected)
    since, mark = job.clock.monotonic(), part.size
    while True:
        try:
            # One byte more than expected, to see whether the body ends where it should.
            data = reply.read(CHUNK_BYTES if expected is None else min(CHUNK_BYTES, expected - part.size + 1))
        except SourceError:
            if part.size == expected:
                return
            raise
        if not data:
            break
        if expected is not None and part.size + len(data) > expected:
            part.reset()
            raise SourceError(f"the body is longer than {expected} bytes", heals=False, wrong=(expected, "more"))
        part.write(data)
        job.progress.update(job.file.name, part.size, expected)
        now = job.clock.monotonic()
        if now - since >= job.limits.window:
            if part.size - mark < job.limits.floor * job.limits.window:
                raise SourceError(f"only {part.size - mark} bytes came in {now - since:.0f} seconds", heals=True)
            since, mark = now, part.size
    if expected is not None and part.size < expected:
        came = sniff_placeholder(part.head())
        if came is not None:
            part.reset()
            raise SourceError(f"{came} came instead of the file", heals=False)
        raise SourceError(f"the body ended after {part.size} of {expected} bytes", heals=True)


def _checked(job: Transfer) -> str:
    """The digest of the finished part; raises SourceError if it is not the file's."""
    part, file = job.part, job.file
    digest = part.digest()
    right = digest == job.remembered if file.integrity == "none" and job.remembered else digest_matches(file, digest)
    came = sniff_placeholder(part.head())
    if came is not None and (file.integrity == "none" or not right):
        size = part.size
        part.reset()
        raise SourceError(f"{came} of {size} bytes came instead of the file", heals=False)
    if not right:
        stated = expected_digest(file) or job.remembered
        raise SourceError(f"its SHA-256 is {digest}, not {stated}", heals=False, wrong=(stated, digest))
    return digest


def _failure(
    file: FileSpec, sources: Sequence[Source], attempts: Sequence[str], wrong: Optional[Tuple[Source, Any, Any]]
) -> ZooError:
    tried = "".join(
        f"\n  - {attempt}" + (f" ({count} times)" if count > 1 else "") for attempt, count in Counter(attempts).items()
    )
    tried = tried or "\n  - it has no source"
    if wrong is not None:
        source, expected, actual = wrong
        return IntegrityError(
            f"{file.name} is not the file that the registry describes: expected {expected}, got {actual}{tried}",
            hint="the publisher may have changed the file, or something on the way changes it; "
            "nothing of it was kept. Try another network or set REPVGG_ZOO_MIRROR",
            url=source.label,
            expected=expected,
            actual=actual,
        )
    return DownloadError(
        f"no source gave {file.name}{tried}",
        attempts=attempts,
        url=sources[0].label if len(sources) == 1 else None,
        hint="check the network and proxy settings, or set REPVGG_ZOO_MIRROR to a mirror that is reachable",
    )


class _ContentRange(NamedTuple):
    first: Optional[int]
    total: Optional[int]


def _content_range(reply: Response) -> _ContentRange:
    value = reply.headers.get("Content-Range", "")
    match = re.fullmatch(r"bytes\s+(?:(\d+)-\d+|\*)/(\d+|\*)", value.strip())
    if match is None:
        return _ContentRange(None, None)
    first, total = match.groups()
    return _ContentRange(None if first is None else int(first), None if total == "*" else int(total))


def _is_encoded(reply: Response) -> bool:
    return reply.headers.get("Content-Encoding", "identity").lower() != "identity"


def _content_length(reply: Response) -> Optional[int]:
    if _is_encoded(reply):
        return None  # it counts the compressed bytes
    value = reply.headers.get("Content-Length", "")
    return int(value) if re.fullmatch(r"\d{1,15}", value) else None


def _validator(reply: Response) -> Optional[str]:
    """What If-Range may hold: a strong ETag, else the date of the last change (RFC 9110, section 13.1.5)."""
    etag = reply.headers.get("ETag", "")
    return etag if etag.startswith('"') else reply.headers.get("Last-Modified")
