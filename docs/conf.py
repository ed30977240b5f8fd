"""How Sphinx makes the documentation: `make docs`."""

import re
import tomllib
from pathlib import Path

from docutils import nodes

project = "Goatherd"
author = "The Goatherd authors"
copyright = author  # noqa: A001 - the name that Sphinx reads
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
release = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["version"]
html_title = f"Goatherd {release}"  # beside each page: the version that it is for
html_static_path = ["static"]
html_css_files = ["goatherd.css"]
exclude_patterns = ["build"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
smartquotes_action = "qe"  # not the dashes of an option in a heading
suppress_warnings = ["myst.header"]
default_role = "code"
autodoc_mock_imports = ["azure", "boto3", "botocore", "google", "google_crc32c", "grpc", "kubernetes_asyncio"]
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
napoleon_use_rtype = False
napoleon_use_ivar = True


def inline_drawings(app, doctree, _name):
    """Put each SVG into the page itself: an image file cannot follow the theme's switch between dark and light."""
    if app.builder.format != "html":
        return
    for image in list(doctree.findall(nodes.image)):
        if image["uri"].endswith(".svg"):
            drawing = (Path(app.srcdir) / image["uri"]).read_text()
            image.parent.replace(image, nodes.raw("", f'<span class="drawing">{drawing}</span>', format="html"))


def lengthen_dashes(_app, doctree, _name):
    """Put a dash between a parameter and its meaning, where Sphinx puts two hyphens and relies on `smartquotes`."""
    for text in [text for text in doctree.findall(nodes.Text) if text == " -- "]:
        text.parent.replace(text, nodes.Text(" – "))


def add_variables(_app, doctree, name):
    """Let the search for an environment variable find the page of the options, whose table has only their keys."""
    if name == "reference/configuration":
        rows = [row for row in doctree.findall(nodes.row) if row[0].next_node(nodes.literal)]
        keys = [row[0].astext() for row in rows if "table" not in row[1].astext()]
        variables = ["GOATHERD_" + key.replace(".", "_").upper() for key in keys if re.fullmatch(r"[a-z_.]+", key)]
        doctree.append(nodes.meta(name="keywords", content=", ".join(variables)))


def mark_store_sections(_app, _what, _name, _obj, _options, lines):
    """Make fields of what a provider's docstring says of address, credentials, permissions and guarantees."""
    lines[:] = [re.sub(r"^(Address|Credentials|Permissions|Guarantees):(?= |$)", r":\1:", line) for line in lines]
    if ":Guarantees:" in lines:  # a line for each guarantee
        first = lines.index(":Guarantees:") + 1
        end = next((number for number in range(first, len(lines)) if not lines[number].strip()), len(lines))
        for number in range(first, end):
            is_new = not lines[number].startswith("     ")
            lines[number] = ("    * " if is_new else "      ") + lines[number].strip()


def setup(app):
    app.connect("autodoc-process-docstring", mark_store_sections)
    app.connect("doctree-resolved", inline_drawings)
    app.connect("doctree-resolved", lengthen_dashes)
    app.connect("doctree-resolved", add_variables)
