"""How Sphinx makes the documentation: `make docs`."""

project = "Goatherd"
author = "The Goatherd authors"
copyright = author  # noqa: A001 - the name that Sphinx reads
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "Goatherd"
exclude_patterns = ["build"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]
