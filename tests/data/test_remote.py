"""Images at URLs, read through megfile from a server on this machine."""

from __future__ import annotations

import functools
import http.server
import sys
import threading
from pathlib import Path
from typing import Iterator

import pytest

from repvgg_zoo import open_images
from repvgg_zoo.errors import ArgumentError, DependencyError, MissingFileError

from .conftest import digit_members, write_tar

pytest.importorskip("megfile")


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; of ``short.tar`` only the beginning arrives."""

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path != "/short.tar":
            super().do_GET()
            return
        data = (Path(self.directory) / "x.tar").read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("served")
    write_tar(folder / "x.tar", digit_members(0, 40))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def test_a_tar_file_at_a_url_is_read_as_from_the_disk(url, tmp_path):
    source = open_images(f"{url}/x.tar?token=secret")
    local = open_images(write_tar(tmp_path / "x.tar", digit_members(0, 40)))
    assert list(source) == list(local)
    assert source.digest() == local.digest()
    assert "secret" not in source.name


def test_a_connection_that_ends_too_early_is_an_error(url):
    with pytest.raises(ArgumentError, match=r"short\.tar"):
        list(open_images(f"{url}/short.tar"))


def test_a_url_that_does_not_exist_is_missing_and_keeps_its_secrets(url):
    with pytest.raises(MissingFileError) as caught:
        list(open_images(f"{url}/y.tar?token=secret"))
    assert "secret" not in str(caught.value)


def test_without_megfile_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "megfile", None)
    with pytest.raises(DependencyError, match="megfile") as caught:
        list(open_images("s3://bucket/x.tar"))
    assert "pip install" in caught.value.hint
