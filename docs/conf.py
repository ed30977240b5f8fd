"""How Sphinx makes the documentation: `make docs`."""

project = "Goatherd"
author = copyright = "The Goatherd authors"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "Goatherd"
exclude_patterns = ["build"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]
