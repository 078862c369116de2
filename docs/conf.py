"""How Sphinx builds the documentation: `make docs`.

The source folder is the project's, so that a link from one page to another, or to a file beside
them, is the same on the site and on a code host. Pages are plain Markdown; only the reference is
Sphinx's, made of the docstrings.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from docutils import nodes
from sphinx.domains.python import PyXRefRole

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

project = "asyncserver"
author = "The asyncserver contributors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
include_patterns = [
    "docs/*.md",
    "docs/**/*.md",
    "docs/**/*.rst",
    "benchmarks/README.md",
    "benchmarks/results/README.md",
    "benchmarks/results/*/README.md",
    *(f"{name}.md" for name in ("CHANGELOG", "CONTRIBUTING", "SECURITY")),
]
# Folders that Sphinx need not look through.
exclude_patterns = [".*", "build", "tests", "asyncserver", "compat", "findings"]
root_doc = "docs/index"

html_theme = "furo"
html_title = "asyncserver"
html_show_copyright = False
html_extra_path = ["site"]
html_theme_options = {"navigation_with_keys": True}
# As on code hosts: every heading can be linked to, and text between headings may skip a level.
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]

# Public names are the package's, wherever they are defined.
add_module_names = False
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_class_signature = "separated"
autodoc_default_options = {"exclude-members": "__init__, __new__"}
autodoc_type_aliases = {
    name: f"asyncserver.{name}" for name in ("StreamHandler", "DatagramHandler", "ErrorHandler", "Address")
}
napoleon_numpy_docstring = False
napoleon_use_rtype = False
default_role = "name"

python_use_unqualified_type_names = True

# What is not ours needs no link.
nitpick_ignore_regex = [("py:.*", r"(?s)(?!asyncserver\.|compat\.).*")]


class NameRole(PyXRefRole):
    """`Text in backticks`: a link where it is one of our names, with `()` or not; else code."""

    def process_link(
        self,
        env: BuildEnvironment,
        refnode: nodes.Element,
        has_explicit_title: bool,
        title: str,
        target: str,
    ) -> tuple[str, str]:
        """Return what is shown, and what is looked for."""
        refnode["reftype"] = "obj"
        _, wanted = super().process_link(env, refnode, has_explicit_title, title, target.removesuffix("()"))
        return title, wanted


def inner_type(_app: Sphinx, _env: BuildEnvironment, node: nodes.Element, shown: nodes.Element) -> nodes.Node | None:
    """Show a type of ours that is not public by its name alone, without the module."""
    if not re.fullmatch(r"(asyncserver|compat)\.[a-z_.]+\.[A-Z_]\w*", node["reftarget"]):
        return None
    return nodes.inline("", shown.astext().rpartition(".")[2])


def table_of_contents(_app: Sphinx, docname: str, source: list[str]) -> None:
    """Make the tables of contents of the index from its own headings and links."""
    if docname != root_doc:
        return
    for heading, text in re.findall(r"^## (.*)\n((?:(?!## ).*\n)*)", source[0], re.MULTILINE):
        pages = "\n".join(f"/docs/{link}" for link in re.findall(r"^\* .*?\]\((.*?)\)", text, re.MULTILINE))
        source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {heading}\n\n{pages}\n```\n"


def other_results(_app: Sphinx, docname: str, source: list[str]) -> None:
    """Put the results of other interpreters below the page that links to them."""
    if docname != "benchmarks/results/README":
        return
    if pages := re.findall(r"\]\((?!\.\./)([^)]*)/README\.md\)", source[0]):
        links = "\n".join(f"{page}/README" for page in pages)
        source[0] += f"\n```{{toctree}}\n:hidden:\n\n{links}\n```\n"


def setup(app: Sphinx) -> None:
    """Add what is ours."""
    app.add_role_to_domain("py", "name", NameRole())
    app.add_role("name", NameRole())
    app.connect("source-read", table_of_contents)
    app.connect("source-read", other_results)
    app.connect("missing-reference", inner_type)
