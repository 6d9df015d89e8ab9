"""What a server says when it refuses a request: its status, its reason in a few words, and how long to wait."""

from __future__ import annotations

import email.utils
import re
from typing import Optional

from .._escape import escape
from .._settings import CREDENTIALS_ENV, HF_TOKEN_ENV
from .clock import Clock
from .http import Response, SourceError, is_encoded, read_start

RETRYABLE_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
EXPLAINED_STATUS = frozenset({401, 403, 429})
MAX_BODY_BYTES = 2048  # of the body of an error, in which the reason is searched
MAX_WORDS_CHARS = 160

_CREDENTIALS_HINT = f"if it asks for credentials, set {CREDENTIALS_ENV} or write them to ~/.netrc"
_HINTS_BY_HEADER = {
    "X-Error-Code": f"if the repository exists and is private or gated, set or renew {HF_TOKEN_ENV}",  # Hugging Face
    "x-amz-request-id": "set the keys of the AWS tools for an s3:// source, renew the signature of another URL",
}


def status_error(response: Response, clock: Clock) -> SourceError:
    """Return the error for a status other than 200, 206 or 416."""
    status, retryable = response.status, response.status in RETRYABLE_STATUS
    retry_after = parse_retry_after(response.headers.get("Retry-After"), clock)
    if status == 429 and retry_after is None:
        retry_after = parse_rate_limit(response.headers.get("RateLimit"))
    reason = f"the server answers {status}"
    if status in EXPLAINED_STATUS:
        words = _server_words(response)
        reason += f' ("{words}")' if words else ""
    if retryable and retry_after:
        reason += f" and asks to wait {retry_after:.0f} s"
    if status in (401, 403):
        hints = [hint for header, hint in _HINTS_BY_HEADER.items() if header in response.headers]
        reason += f"; {(hints or [_CREDENTIALS_HINT])[0]}"
    return SourceError(reason, retryable=retryable, retry_after=retry_after)


def parse_retry_after(value: Optional[str], clock: Clock) -> Optional[float]:
    """Return the seconds that a Retry-After header asks for, as a number or a date; None if it is not valid."""
    if value is None:
        return None
    if re.fullmatch(r"\s*[0-9]{1,9}\s*", value):
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - clock.time())
    except (TypeError, ValueError, OverflowError):
        return None


def parse_rate_limit(value: Optional[str]) -> Optional[float]:
    """Return the seconds until a RateLimit header's quota is renewed, as the Hugging Face hub sends it, or None."""
    match = re.fullmatch(r'\s*"[^"]*"\s*;\s*r\s*=\s*0\s*;\s*t\s*=\s*([0-9]{1,9})\s*', value or "")
    return None if match is None else float(match.group(1)) + 1


def _server_words(response: Response) -> str:
    """Return the server's reason as one short, escaped line, without what was sent in confidence."""
    words = response.headers.get("X-Error-Message") or _body_words(response)
    words = words or response.headers.get("WWW-Authenticate", "")
    for secret in response.secrets:
        words = words.replace(secret, "…")
    words = escape(" ".join(words.split()))
    return words if len(words) <= MAX_WORDS_CHARS else f"{words[:MAX_WORDS_CHARS]}…"


def _body_words(response: Response) -> str:
    kind = response.headers.get("Content-Type", "text/plain").lower()
    if is_encoded(response) or not re.search("text|json|xml", kind):
        return ""
    try:
        text = read_start(response, MAX_BODY_BYTES).decode("utf-8", "replace")
    except SourceError:
        return ""
    if "html" in kind or re.match(r"\s*<(!doctype html|html)", text, re.IGNORECASE):
        title = re.search(r"<title>([^<]*)", text, re.IGNORECASE)
        return title.group(1) if title else ""
    return re.sub(r"<[^<>]*>", " ", text)  # XML, as S3 answers
