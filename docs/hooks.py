"""Hooks of MkDocs: the site has pages of the root too, and their links lead to the site."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
# Their place in the repository, by their place on the site.
PAGES = {
    "results.md": "results/README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
}
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#]+)")


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages of the root."""
    for page, source in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turns links between files of the repository into links between pages of the site."""
    own = page.file.src_uri
    folder = posixpath.dirname(PAGES.get(own, f"docs/{own}"))
    pages = {source: name for name, source in PAGES.items()}

    def on_the_site(link: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[1]))
        return pages.get(target, target.removeprefix("docs/"))

    return _LINK.sub(on_the_site, markdown)
