"""The parsed copy of registry.yaml, from which it is read at each start: ``python -m tools.parsed_copy``."""

from __future__ import annotations

from repvgg_zoo._resources import registry_path
from repvgg_zoo.registry.parsed_copy import COPY, encode_copy
from repvgg_zoo.registry.parser import load_registry


def main() -> None:
    path = registry_path()
    COPY.write_bytes(encode_copy(load_registry(path), path).encode())


if __name__ == "__main__":
    main()
