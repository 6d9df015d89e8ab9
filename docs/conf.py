"""Sphinx's settings: Markdown pages, and the reference from the docstrings."""

from __future__ import annotations

from typing import Any, List

from repvgg_zoo import __version__

project = "repvgg_zoo"
copyright = "the repvgg_zoo authors"
release = __version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx_copybutton",
    "tools.catalog.extension",
    "tools.chinese_search",
]
exclude_patterns = ["_build", "locale"]
templates_path = ["_templates"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
locale_dirs = ["locale"]  # `./dev docs` builds the pages once more with the language zh_CN, in the folder zh_CN
gettext_compact = False  # a catalog of messages for each page
gettext_location = False  # line numbers change with every edit of a page
html_theme = "furo"
html_title = f"{project} {release}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
python_maximum_signature_line_length = 80
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"

# For each language of Sphinx: the tag in HTML, the name that its readers know, and its folder among the built pages.
LANGUAGES = {"en": ("en", "English", ""), "zh_CN": ("zh-CN", "中文", "zh_CN/")}


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", drop_generated_docstring)
    app.connect("html-page-context", level_captions, priority=900)  # after the theme, which makes the navigation
    app.connect("html-page-context", link_languages)
    app.connect("html-page-context", let_tables_have_the_focus, priority=900)  # after the theme, which wraps them


def drop_generated_docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: List[str]) -> None:
    """The fields of a named tuple keep their types; "Alias for field number 0" tells a reader nothing."""
    if lines and lines[0].startswith("Alias for field number"):
        del lines[:]


def level_captions(app: Any, pagename: str, templatename: str, context: Any, doctree: Any) -> None:
    """Sphinx gives the captions of the navigation the role of a heading and no level, which screen readers need."""
    tree = str(context.get("furo_navigation_tree", ""))
    context["furo_navigation_tree"] = tree.replace('role="heading"', 'role="heading" aria-level="2"')


def let_tables_have_the_focus(app: Any, pagename: str, templatename: str, context: Any, doctree: Any) -> None:
    """Let a keyboard reach wide tables, which scroll sideways in a narrow window."""
    wrapper = '<div class="table-wrapper'
    if "body" in context:
        context["body"] = context["body"].replace(wrapper, wrapper.replace("div", 'div tabindex="0"'))


def link_languages(app: Any, pagename: str, templatename: str, context: Any, doctree: Any) -> None:
    """Give a page its link to the same page in the other language, and search engines those of both."""
    language = app.config.language
    root = "../" * (pagename.count("/") + LANGUAGES[language][2].count("/"))
    for name, (tag, title, folder) in LANGUAGES.items():
        address = root + folder + app.builder.get_target_uri(pagename)
        context["metatags"] = f'{context.get("metatags", "")}\n<link rel="alternate" hreflang="{tag}" href="{address}">'
        if name != language:
            context["other_language"] = {"tag": tag, "name": title, "address": address}
