"""``s3://bucket/key``: botocore signs a URL, which is then downloaded like every other.

Credentials, region and endpoint are those of the AWS tools: their environment variables, ``~/.aws``, roles. Without any
the request is anonymous, as for public buckets.
"""

from __future__ import annotations

import re
from typing import Any, Optional
from urllib.parse import unquote

from .._urls import S3_URL
from ..errors import DependencyError

EXPIRES_SECONDS = 3600  # of a signature; it is checked when a request begins, and each has its own


class S3Error(Exception):
    """The AWS configuration of this machine does not allow to sign a URL."""


class S3Signer:
    """Signs URLs with the configuration of this process, for the region that a bucket turns out to be in."""

    def __init__(self) -> None:
        try:
            import botocore.session
        except ImportError as error:
            raise DependencyError(
                "an s3:// source needs botocore, which is not installed",
                hint="pip install botocore",
                expected="botocore",
            ) from error
        self._session: Any = botocore.session.get_session()
        self._client: Any = None
        self._region: Optional[str] = None

    def sign(self, url: str) -> str:
        """Return a URL for one GET of an object; raises S3Error."""
        from botocore.exceptions import BotoCoreError

        match = re.fullmatch(S3_URL, url)
        assert match is not None, url
        parameters = {"Bucket": match["bucket"], "Key": unquote(match["key"])}
        try:
            if self._client is None:
                self._client = self._create_client()
            return str(self._client.generate_presigned_url("get_object", Params=parameters, ExpiresIn=EXPIRES_SECONDS))
        except (BotoCoreError, ValueError) as error:
            raise S3Error(f"the AWS configuration: {error}") from error

    def use_region(self, region: str) -> None:
        """Sign for this region from now on."""
        self._region, self._client = region, None

    def _create_client(self) -> Any:
        from botocore import UNSIGNED
        from botocore.config import Config

        anonymous = self._session.get_credentials() is None
        config = Config(signature_version=UNSIGNED if anonymous else "s3v4")
        return self._session.create_client("s3", region_name=self._region, config=config)


def bucket_region(headers: Any, body: bytes) -> Optional[str]:
    """Return the region that a response names because the request was signed for another one, or None."""
    match = re.search(rb"<Region>([a-z0-9-]{1,40})</Region>", body)
    stated = headers.get("x-amz-bucket-region") or (match and match.group(1).decode())
    return stated if stated and re.fullmatch(r"[a-z0-9-]{1,40}", stated) else None
