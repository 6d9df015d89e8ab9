"""The Sphinx extension: the directive ``catalog``, the variants' pages, and the catalog's script and styles.

``{catalog} plot`` and ``{catalog} table`` make the catalog; ``variant``, ``architecture``, ``stages`` and
``checkpoints``, each with a variant's name, make the parts of its page.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Sequence

from docutils import nodes
from sphinx import addnodes
from sphinx.util.docutils import SphinxDirective

from benchmarks.results_file import RESULTS
from repvgg_zoo._resources import registry_path
from repvgg_zoo.registry.load import shipped_registry
from repvgg_zoo.registry.specs import ModelSpec

from . import html
from .architecture import drawing, stage_table
from .details import checkpoint_tables, variant_table
from .pages import write_pages
from .plot import plot
from .records import read_settings
from .table import catalog_table

PARTS: Mapping[str, Callable[[Sequence[ModelSpec]], str]] = {
    "plot": lambda models: plot(models, read_settings()),
    "table": catalog_table,
    "variant": lambda models: variant_table(models[0], read_settings()),
    "architecture": lambda models: drawing(models[0]),
    "stages": lambda models: stage_table(models[0]),
    "checkpoints": lambda models: checkpoint_tables(models[0]),
}


def setup(app: Any) -> Dict[str, Any]:
    none = (ignore, None)
    app.add_node(Part, html=(write_html, None), latex=none, text=none, man=none, texinfo=none)
    app.add_directive("catalog", Catalog)
    app.connect("builder-inited", write_variants)
    app.connect("html-page-context", add_files)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


class Part(nodes.General, nodes.Element, addnodes.translatable):
    """HTML whose labels are translated as the docs are."""

    def preserve_original_messages(self) -> None:
        self.setdefault("translations", {})

    def apply_translated_message(self, original_message: str, translated_message: str) -> None:
        self["translations"][original_message] = translated_message

    def extract_original_messages(self) -> List[str]:
        return html.labels(self["html"])


class Catalog(SphinxDirective):
    """The directive: a part of the catalog, and where it is about one variant its name."""

    required_arguments = 1
    optional_arguments = 1

    def run(self) -> List[nodes.Node]:
        part, *names = self.arguments
        models = [model for model in shipped_registry().models if not names or model.name in names]
        if part not in PARTS or not models:
            raise self.error(f"{' '.join(self.arguments)} is not a part of the catalog")
        # Sphinx copies scripts and styles only when it writes a page, so a page depends on them too.
        static = Path(self.env.srcdir) / "_static"
        for path in (registry_path(), *RESULTS.glob("*.json"), *Path(__file__).parent.glob("*.py"), *static.glob("*")):
            self.env.note_dependency(str(path))
        node = Part("", html=PARTS[part](models), translations={})
        self.set_source_info(node)
        return [node]


def write_variants(app: Any) -> None:
    write_pages(shipped_registry().models, Path(app.srcdir) / "catalog")


def write_html(writer: Any, node: Part) -> None:
    builder = writer.builder
    address = lambda name: builder.get_relative_uri(builder.current_docname, name)  # noqa: E731
    writer.body.append(html.finish(node["html"], node["translations"], address))
    raise nodes.SkipNode


def ignore(writer: Any, node: Part) -> None:
    raise nodes.SkipNode


def add_files(app: Any, pagename: str, templatename: str, context: Any, doctree: Any) -> None:
    """Only the catalog and the variants' pages load its script and styles."""
    if pagename.partition("/")[0] == "catalog":
        app.add_css_file("catalog.css")
        if pagename == "catalog":
            app.add_js_file("catalog.js", loading_method="defer")
