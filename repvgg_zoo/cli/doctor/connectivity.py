"""Whether the places that serve files answer: all asked at once, each for a few seconds at most."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Sequence, Tuple
from urllib.parse import urlsplit

from ..._settings import Settings
from ...hub.filenames import is_cache_filename
from ...hub.sources import redact, rewrite_url, sources_of
from ...registry.specs import FileSpec

SECONDS = 3.0


@dataclass(frozen=True)
class Place:
    """A mirror, or the host of some sources; ``label`` has no credentials in it."""

    kind: str
    where: str
    label: str


@dataclass(frozen=True)
class Answer:
    """What a place said; ``seconds`` is how long that took."""

    place: Place
    ok: bool
    text: str
    seconds: float


def mirrors(settings: Settings) -> List[Place]:
    """The mirrors in force, after the rewrite rules."""
    roots = [rewrite_url(root, settings) for root in settings.mirrors]
    return [Place("mirror", root, redact(root)) for root in roots]


def hosts(files: Sequence[FileSpec], settings: Settings) -> List[Place]:
    """The hosts of these files' own sources, after the rewrite rules, in the order in which they are met."""
    plain = Settings(cache_dir=settings.cache_dir, url_rewrites=settings.url_rewrites)
    found: Dict[str, Place] = {}
    for file in files:
        for source in sources_of(file, plain):
            if source.path is None:
                parts = urlsplit(source.url)
                root = f"{parts.scheme}://{parts.netloc}/"
                found.setdefault(root, Place("host", root, redact(root)))
    return list(found.values())


def ask(places: Sequence[Place], seconds: float = SECONDS) -> List[Answer]:
    """Asks every place at the same time; one that has said nothing after ``seconds`` does not answer."""
    answers: Dict[Place, Answer] = {}
    if not all(_is_folder(place.where) for place in places):
        import requests  # noqa: F401 - here its time is no host's, and its absence one error and not one a thread

    def one(place: Place) -> None:
        begun = time.monotonic()
        ok, text = _folder(place.where) if _is_folder(place.where) else _web(place.where, seconds)
        answers[place] = Answer(place, ok, text, time.monotonic() - begun)

    # Daemons, because looking up a name can hang for much longer than any timeout of the request.
    threads = [threading.Thread(target=one, args=(place,), daemon=True) for place in places]
    for thread in threads:
        thread.start()
    until = time.monotonic() + seconds + 0.5
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    said = dict(answers)  # a late answer must not change what has been read
    return [said.get(place, Answer(place, False, f"no answer in {seconds:g} s", seconds)) for place in places]


def _web(url: str, seconds: float) -> Tuple[bool, str]:
    import requests

    try:
        # Any answer shows that the host is there; many have nothing to say at their root, and some refuse HEAD.
        with requests.get(url, timeout=seconds, allow_redirects=False, stream=True) as reply:
            return reply.status_code < 500, f"answers (HTTP {reply.status_code})"
    except requests.Timeout:
        return False, f"no answer in {seconds:g} s"
    except requests.exceptions.SSLError:
        return False, "its TLS certificate is not trusted (REQUESTS_CA_BUNDLE names the ones to trust)"
    except requests.exceptions.ProxyError:
        return False, "the proxy does not let it through (https_proxy, no_proxy)"
    except requests.ConnectionError:
        return False, "cannot be reached"
    except (requests.RequestException, ValueError) as error:
        return False, f"is no URL that can be asked ({type(error).__name__})"


def _is_folder(where: str) -> bool:
    return not where.lower().startswith(("http://", "https://"))


def _folder(where: str) -> Tuple[bool, str]:
    path = Path(urlsplit(where).path if where.lower().startswith("file:") else where)
    try:
        files = sum(is_cache_filename(one.name) for one in path.iterdir())
    except OSError as error:
        return False, error.strerror or str(error)
    return True, f"a folder with {files} checkpoint file{'s' if files != 1 else ''}"
