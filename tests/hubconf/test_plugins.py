"""hubconf.py lists what this repository ships, and loads whatever the process can find."""

from __future__ import annotations

import repvgg_zoo

from ..registry.installed import install, run_json

ENTRIES = """
import hubconf
emit(dir(hubconf))
emit(getattr(hubconf, "acme/RepVGG_Q").__doc__.splitlines()[0])
emit(type(getattr(hubconf, "acme/RepVGG_Q")(features_only=True, out_indices=(0,))).__name__)
emit(hasattr(hubconf, "acme/RepVGG_R"))
try: getattr(hubconf, "broken/RepVGG_Q")
except PluginError as error: emit(str(error))
"""


def test_a_plugin_is_not_listed_by_the_hub_but_its_names_load(tmp_path):
    install(tmp_path, "acme")
    install(tmp_path, "broken", code="1 / 0")
    listed, page, network, has_other, error = run_json(ENTRIES, [tmp_path], {"MGE_DEFAULT_DEVICE": "cpux"})
    assert listed == repvgg_zoo.list_models()
    assert page == "acme/RepVGG_Q: an image classifier of the family RepVGG-Q"
    assert network == "RepVGG" and not has_other
    assert "broken_plugin:plugin: ZeroDivisionError" in error
