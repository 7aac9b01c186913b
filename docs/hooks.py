"""mkdocs: what the site takes from outside ``docs``.

Files that pages link to become part of it, below ``source``; the operator's page gets the figures of the README.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_OUTSIDE = re.compile(r"\]\(\.\./([^)#]+)")
#: stands in place of the figures, with the line below it
_FIGURES = re.compile(r"<!-- benchmark -->\n.+\n")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is linked to: pages as pages, everything else as text."""
    root = Path(config.config_file_path).parent
    targets = {match for file in files.documentation_pages() for match in _OUTSIDE.findall(file.content_string)}
    for target in sorted(targets):
        content = (root / target).read_text(encoding="utf-8")
        files.append(File.generated(config, _place(target), content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to these files lead to where they are in the site."""
    if page.file.src_uri.startswith("source/"):
        return markdown
    if _FIGURES.search(markdown):
        readme = (Path(config.config_file_path).parent / "README.md").read_text(encoding="utf-8")
        markdown = _FIGURES.sub(lambda _: _figures(readme), markdown)
    return _OUTSIDE.sub(lambda match: f"]({_place(match[1])}", markdown)


def _figures(readme: str) -> str:
    """The README's table on the operator, with the paragraph above it."""
    section = readme.partition("\n## The operator\n")[2].partition("\n## ")[0]
    table = re.search(r"(?:^[^\n|]+\n)+\n(?:^\|.+\n)+", section, re.MULTILINE)
    if table is None:
        raise PluginError("README.md has no table under '## The operator' for docs/operator.md")
    return table[0]


def _place(target: str) -> str:
    return f"source/{target}" if target.endswith(".md") else f"source/{target}.txt"
