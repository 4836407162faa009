"""What `mkdocs.yml` needs beside settings: the repository as one tree of pages, and arguments."""

from __future__ import annotations

import logging
import re
import subprocess
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parents[1]
PAGES = ("*.md", "*.csv", "*.png")
LINK = re.compile(r"(\]\()([^)#:\s]+)(#[^)\s]*)?(\))")


def on_startup(**_: Any) -> None:
    """`--quiet` drops warnings before `--strict` counts them; here it silences the rest alone."""
    logger = logging.getLogger("mkdocs")
    logger.setLevel(min(logger.level, logging.WARNING))


def on_files(files: Files, config: Any) -> Files:
    """Tracked documents, wherever they lie: a link that works in the repository works here."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *PAGES]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    theme = [file for file in files if file.src_dir != config.docs_dir]
    pages = [
        File(name, str(ROOT), config.site_dir, config.use_directory_urls)
        for name in names.split()
        if not name.startswith((".", "tests/"))
    ]
    in_nav = set(re.findall(r"- (\S+\.md)", (ROOT / "mkdocs.yml").read_text()))
    for file in pages:
        if file.src_uri not in in_nav:
            file.inclusion = InclusionLevel.NOT_IN_NAV
    return Files([*theme, *pages])


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """A link to a folder goes to its README.md, as GitHub shows it."""
    here = (ROOT / page.file.src_uri).parent

    def to_page(match: re.Match[str]) -> str:
        before, target, anchor, after = match.groups()
        if (here / target).is_dir():
            target = f"{target.rstrip('/')}/README.md"
        return f"{before}{target}{anchor or ''}{after}"

    return LINK.sub(to_page, markdown)


class Arguments(griffe.Extension):
    """Docstrings as the package writes them, for a parser of Google's style: a paragraph of
    `name: text` lines about parameters is a section of Args, and `a, b: text` is a line for each.
    """

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        function = obj.members.get("__init__") if obj.is_class else obj
        parameters = function.parameters if isinstance(function, griffe.Function) else ()
        _rewrite(obj.docstring, {parameter.name for parameter in parameters})


def _rewrite(docstring: griffe.Docstring | None, names: set[str]) -> None:
    if docstring is None:
        return

    def about(listed: str) -> list[str]:
        found = listed.split(", ")
        return found if set(found) <= names else []

    paragraphs = docstring.value.split("\n\n")
    for i, paragraph in enumerate(paragraphs):
        first = re.match(r"([\w, ]+): ", paragraph)
        if first and about(first[1]):
            paragraphs[i] = "Args:\n" + re.sub("^", "    ", paragraph, flags=re.MULTILINE)
    text = re.sub(
        r"^    (\w+(?:, \w+)+): (.*(?:\n {8,}.*)*)",
        lambda m: "\n".join(f"    {name}: {m[2]}" for name in about(m[1])) or m[0],
        "\n\n".join(paragraphs),
        flags=re.MULTILINE,
    )
    # <head> is no HTML; code, indented or quoted, is left as it is.
    code = r"(?:^ {4}.*$|`[^`]*`)"
    docstring.value = re.sub(
        rf"({code})|<(?=\w)", lambda m: m[1] or "&lt;", text, flags=re.MULTILINE
    )
