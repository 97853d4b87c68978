"""Sphinx configuration: `sphinx-build -W -n -b html docs OUTPUT` builds the site."""

import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

project = "compressbench"
author = "The compressbench developers"
project_copyright = author
release = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

extensions = ["myst_parser"]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown"}
nitpicky = True

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

html_theme = "furo"
html_title = f"compressbench {release}"
html_static_path = ["_static"]
html_css_files = ["tables.css"]

_STUDY = re.compile(r"\]\((?:\.\./)?experiments/(\w+)/README\.md")
_PARENT = re.compile(r"\]\(\.\./(CONTRIBUTING)\.md")


def _to_pages(app: Any, page: str, source: list[str]) -> None:
    """Point links that work in the repository at the pages which include those files."""
    source[0] = _STUDY.sub(r"](experiments/\1.md", source[0])
    source[0] = _PARENT.sub("](contributing.md", source[0])


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _to_pages)
