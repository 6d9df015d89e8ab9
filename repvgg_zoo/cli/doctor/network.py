"""Check that the mirrors and hosts answer: all are probed at once, each for a few seconds at most."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

from ..._redact import redact
from ..._settings import MIRROR_ENV, Settings, read_settings
from ..._text import pluralize
from ..._urls import join_url
from ...errors import DependencyError
from ...hub.filenames import is_cache_filename
from ...hub.s3 import S3Error, S3Signer
from ...hub.sources import rewrite_url, sources_of
from ...registry.specs import FileSpec
from ..common import all_checkpoints
from .finding import Finding, fail, ok, warn

TIMEOUT_SECONDS = 3.0


@dataclass(frozen=True)
class Server:
    """A mirror or the host of some sources; ``label`` is its address without credentials."""

    kind: str
    address: str
    label: str


@dataclass(frozen=True)
class Answer:
    """Whether a server answered, and what, in words that begin with its label."""

    server: Server
    ok: bool
    text: str


def check_network(*, offline: bool, detailed: bool) -> List[Finding]:
    """Check that the mirrors and the hosts of the registry's sources answer; in detail, with a finding for each."""
    settings = read_settings()
    servers = [*mirrors(settings), *hosts([checkpoint.file for checkpoint in all_checkpoints()], settings)]
    findings: List[Finding] = []
    if detailed:
        findings += [ok("rewrite", f"{redact(old)} to {redact(new)}") for old, new in settings.url_rewrites]
        if not settings.mirrors:
            findings.append(ok("mirror", f"none; {MIRROR_ENV}=URL sets one"))
    if offline or settings.offline:
        if detailed:
            findings += [ok(server.kind, f"{server.label} not checked") for server in servers]
        return [*findings, ok("network", "not checked (offline)")]
    answers = probe(servers)
    for answer in answers:
        if answer.server.kind == "mirror":
            finding = ok("mirror", answer.text) if answer.ok else fail("mirror", answer.text, f"check {MIRROR_ENV}")
            findings.append(finding)
    from_hosts = [answer for answer in answers if answer.server.kind == "host"]
    silent = [answer for answer in from_hosts if not answer.ok]
    if detailed:
        findings += [ok("host", answer.text) if answer.ok else warn("host", answer.text) for answer in from_hosts]
    elif len(silent) < len(from_hosts):
        findings += [warn("host", answer.text) for answer in silent]
    return [*findings, summarize(len(from_hosts), len(silent))]


def summarize(count: int, silent: int) -> Finding:
    """Return the finding for all hosts together."""
    if silent == count:
        fix = "set https_proxy or a mirror, or copy a bundle (repvgg-zoo bundle)"
        return warn("network", f"none of the {count} hosts that publish checkpoints answers", fix)
    return ok("network", f"{count - silent} of {pluralize(count, 'host')} answer")


def mirrors(settings: Settings) -> List[Server]:
    """Return the mirrors, after the rewrite rules."""
    servers = []
    for mirror in settings.mirrors:
        address = rewrite_url(mirror, settings)
        label = redact(address)
        if address.startswith("hf:"):  # of which only the server can be probed, as a repository has no listing
            address = rewrite_url(f"{settings.hf_endpoint}/", settings)
        servers.append(Server("mirror", address, label))
    return servers


def hosts(files: Sequence[FileSpec], settings: Settings) -> List[Server]:
    """Return the hosts of these files' sources, after the rewrite rules, each once."""
    without_mirrors = Settings(cache_dir=settings.cache_dir, url_rewrites=settings.url_rewrites)
    servers: Dict[str, Server] = {}
    for file in files:
        for source in sources_of(file, without_mirrors):
            if source.path is None and not source.url.startswith("s3:"):  # whose hosts AWS's configuration decides on
                parts = urlsplit(source.url)
                address = f"{parts.scheme}://{parts.netloc}/"
                servers.setdefault(address, Server("host", address, redact(address)))
    return list(servers.values())


def probe(servers: Sequence[Server], timeout: float = TIMEOUT_SECONDS) -> List[Answer]:
    """Probe all servers in parallel; one that has not answered after ``timeout`` seconds does not answer."""
    answers: Dict[Server, Answer] = {}
    if not all(_is_folder(server.address) for server in servers):
        # Here, so that the time of the import is not counted, and a missing package is one error.
        import requests  # noqa: F401

    def probe_one(server: Server) -> None:
        ok, text = _probe(server.address, timeout)
        answers[server] = Answer(server, ok, f"{server.label} {text}")

    # Daemons, because a DNS lookup can hang for much longer than the timeout of the request.
    threads = [threading.Thread(target=probe_one, args=(server,), daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + timeout + 0.5
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    in_time = dict(answers)  # later answers do not count
    return [
        in_time.get(server, Answer(server, False, f"{server.label} does not answer within {timeout:g} s"))
        for server in servers
    ]


def _probe(address: str, timeout: float) -> Tuple[bool, str]:
    if address.startswith("s3:"):
        try:
            address = S3Signer().sign(join_url(address, "CACHEDIR.TAG"))
        except (DependencyError, S3Error) as error:
            return False, f"cannot be used: {getattr(error, 'hint', None) or error}"
    return _probe_folder(address) if _is_folder(address) else _probe_url(address, timeout)


def _probe_url(url: str, timeout: float) -> Tuple[bool, str]:
    import requests

    from ...hub.connection import Session

    try:
        # Any response shows that the host is up; many have nothing at their root, and some refuse HEAD.
        options: Any = {"auth": _no_credentials, "timeout": timeout, "allow_redirects": False, "stream": True}
        with Session() as session, session.get(url, **options) as response:
            seconds = response.elapsed.total_seconds()
            return response.status_code < 500, f"answers (HTTP {response.status_code}, {seconds:.1f} s)"
    except requests.Timeout:
        return False, f"does not answer within {timeout:g} s"
    except requests.exceptions.SSLError:
        return False, "has a TLS certificate that is not trusted (REQUESTS_CA_BUNDLE sets the trusted ones)"
    except requests.exceptions.ProxyError:
        return False, "is blocked by the proxy (https_proxy, no_proxy)"
    except requests.ConnectionError:
        return False, "cannot be reached"
    except (requests.RequestException, ValueError) as error:
        return False, f"is not a valid URL ({type(error).__name__})"
    except OSError:  # requests looks for the certificates before it connects
        return False, "was not asked, because REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE names a file that does not exist"


def _no_credentials(request: Any) -> Any:
    # To see whether a host is up needs none. Without any auth requests would send .netrc's default entry to every host.
    return request


def _is_folder(address: str) -> bool:
    return not address.lower().startswith(("http://", "https://", "s3://"))


def _probe_folder(address: str) -> Tuple[bool, str]:
    path = Path(url2pathname(urlsplit(address).path) if address.lower().startswith("file:") else address)
    try:
        count = sum(is_cache_filename(file.name) for file in path.iterdir())
    except OSError as error:
        return False, f"cannot be read: {error.strerror or error}"
    return True, f"is a folder with {pluralize(count, 'checkpoint file')}"
