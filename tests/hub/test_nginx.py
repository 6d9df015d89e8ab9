"""Downloads from a real nginx; the rest of HTTP is tested with a server in Python."""

from __future__ import annotations

from typing import Iterator

import pytest

from benchmarks.nginx import Nginx, find_nginx
from repvgg_zoo.hub import Settings

from .conftest import Zoo, spec

pytestmark = pytest.mark.skipif(find_nginx() is None, reason="nginx is not installed (apt-get install nginx-light)")


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    running = Nginx(tmp_path_factory.mktemp("nginx"))
    yield running
    running.close()


@pytest.mark.parametrize("tls", [False, True])
def test_a_real_nginx_serves_a_file_with_resume_and_tls(
    zoo: Zoo, nginx: Nginx, monkeypatch: pytest.MonkeyPatch, tls: bool
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(nginx.ca))
    file = nginx.file(tls=tls)
    zoo.root.mkdir()
    (zoo.root / f"{str(file.sha256)[:16]}.released.{'0' * 12}.part").write_bytes(nginx.body[:5_000_000])
    assert zoo.fetch(file).read_bytes() == nginx.body
    assert f'" 206 {len(nginx.body) - 5_000_000} ' in nginx.log().splitlines()[-1]


def test_a_cache_folder_served_by_nginx_is_a_mirror(zoo: Zoo, nginx: Nginx) -> None:
    Zoo(nginx.folder / "mirror").fetch(nginx.file())
    elsewhere = spec("http://127.0.0.1:1/", body=nginx.body, name="big.bin")
    path = zoo.fetch(elsewhere, settings=Settings(cache_dir=zoo.root, mirrors=(nginx.url("/mirror"),)))
    assert path.read_bytes() == nginx.body
