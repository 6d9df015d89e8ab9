"""The plugin acme: a RepVGG with a head of two layers.

Listing models imports this module, so everything that needs MegEngine or NumPy is given as a string and imported when
it is used.
"""

from pathlib import Path

from repvgg_zoo import Plugin

plugin = Plugin(
    registry=Path(__file__).with_name("registry.yaml"),
    builders={"acme/two_layer": "acme_repvgg.networks:build"},
    layouts={"acme/two_layer": "acme_repvgg.layouts:two_layer"},
)
