"""How Sphinx makes the documentation: `make docs`."""

from pathlib import Path

from docutils import nodes

project = "Goatherd"
author = "The Goatherd authors"
copyright = author  # noqa: A001 - the name that Sphinx reads
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "Goatherd"
html_static_path = ["static"]
html_css_files = ["goatherd.css"]
exclude_patterns = ["build"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]


def inline_drawings(app, doctree, _name):
    """Put each SVG into the page itself: an image file cannot follow the theme's switch between dark and light."""
    if app.builder.format != "html":
        return
    for image in list(doctree.findall(nodes.image)):
        if image["uri"].endswith(".svg"):
            drawing = (Path(app.srcdir) / image["uri"]).read_text()
            image.parent.replace(image, nodes.raw("", f'<span class="drawing">{drawing}</span>', format="html"))


def setup(app):
    app.connect("doctree-resolved", inline_drawings)
