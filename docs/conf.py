"""How the site is built: ``make docs``. Warnings are errors there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import helios  # noqa: E402

project = "helios"
author = "the authors of helios"
version = release = helios.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = f"helios {release}"
exclude_patterns = ["build", "migrating/*"]
default_role = "py:obj"
nitpicky = True  # a name in backticks that does not exist is an error
add_module_names = False
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
napoleon_custom_sections = ["Law"]
napoleon_use_ivar = True
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
suppress_warnings = ["misc.highlighting_failure"]

sys.path.insert(0, str(HERE))
from reference import resolve, write_pages  # noqa: E402


def setup(app: Any) -> None:
    """Write the pages of the API before anything is read, and lead references to them."""
    app.connect("builder-inited", lambda _: write_pages(HERE / "api"))
    app.connect("missing-reference", resolve)
