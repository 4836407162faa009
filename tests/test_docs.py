"""The documents: every public name is in the reference, and examples, links and versions hold."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import typer
from script import TESTS, run

import fixclf_infer
from fixclf_infer.cli import app

ROOT = TESTS.parent
# Public modules; those in `fixclf_infer.__all__` must be among them.
MODULES = (
    "fixclf_infer",
    "fixclf_infer.adapt",
    "fixclf_infer.analysis",
    "fixclf_infer.codebooks",
    "fixclf_infer.edge",
    "fixclf_infer.interop",
    "fixclf_infer.nn",
    "fixclf_infer.nn.objectives",
    "fixclf_infer.onnx",
    "fixclf_infer.ops",
    "fixclf_infer.reference",
)
DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "docs/**/*.md", "bench/**/*.md", "examples/**/*.md")
    for path in ROOT.glob(pattern)
)
# Where `print(…)  # text` says what is printed.
PRINTING = ("docs/analysis.md", "docs/interop.md")

EXAMPLE = re.compile(
    r"(?:^ *<!-- (?P<skip>not run: .+?) -->\n|^ *<!-- run first\n(?P<first>.*?)^ *-->\n)?"
    r"^(?P<indent> *)```python\n(?P<code>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)


def public(module: ModuleType) -> dict[str, Any]:
    """Its names that are no modules: those of `__all__`, or what it defines."""
    names = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if name[0] != "_" and getattr(value, "__module__", None) == module.__name__
    ]
    values = {name: getattr(module, name) for name in names}
    return {name: value for name, value in values.items() if not inspect.ismodule(value)}


def documented() -> Iterator[tuple[str, Any]]:
    """The identifiers in the pages of the reference, and what they name."""
    for page in sorted((ROOT / "docs" / "api").glob("*.md")):
        for identifier in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE):
            try:
                value: Any = importlib.import_module(identifier)
            except ModuleNotFoundError:
                module, _, name = identifier.rpartition(".")
                value = getattr(importlib.import_module(module), name)
            yield identifier, value


def test_every_public_module_is_known() -> None:
    values = {f"fixclf_infer.{name}": getattr(fixclf_infer, name) for name in fixclf_infer.__all__}
    modules = {name for name, value in values.items() if inspect.ismodule(value)}
    assert modules == {name for name in MODULES if name.count(".") == 1}


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_has_a_docstring(name: str) -> None:
    module = importlib.import_module(name)
    missing = [] if module.__doc__ else [name]
    for own, value in public(module).items():
        if not callable(value):
            continue
        # What has none gets its signature, from dataclasses and from pybind11.
        doc = (value.__doc__ or "").strip()
        if not doc or (doc.startswith(f"{own}(") and "\n" not in doc):
            missing.append(own)
        for member, raw in vars(value).items() if isinstance(value, type) else ():
            is_code = isinstance(raw, (property, classmethod, staticmethod)) or callable(raw)
            if member[0] != "_" and is_code and not inspect.getdoc(getattr(value, member)):
                missing.append(f"{own}.{member}")
    assert missing == []


def test_every_public_name_is_in_the_reference() -> None:
    there = list(documented())
    identifiers = [identifier for identifier, _ in there]
    assert len(identifiers) == len(set(identifiers))
    for name in MODULES:
        module = importlib.import_module(name)
        assert name in identifiers
        for own, value in public(module).items():
            # What two modules have is in one of their pages.
            elsewhere = any(value is other for _, other in there) and callable(value)
            assert elsewhere or f"{name}.{own}" in identifiers or own == "__version__", (
                f"docs/api lacks {name}.{own}"
            )


def test_the_command_line_is_in_the_reference() -> None:
    page = (ROOT / "docs" / "api" / "cli.md").read_text()
    command = typer.main.get_command(app)
    parts = re.split(r"^## fixclf (\w+)$", page, flags=re.MULTILINE)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert list(sections) == list(command.commands)  # type: ignore[attr-defined]
    for name, section in sections.items():
        options = {
            option
            for parameter in command.commands[name].params  # type: ignore[attr-defined]
            for option in (*parameter.opts, *parameter.secondary_opts)
            if option[0] == "-"
        }
        rows = re.findall(r"^\| (`--.*?) \|", section, re.MULTILINE)
        assert set(re.findall(r"`(--[\w-]+)`", " ".join(rows))) == options
    assert {o for p in command.params for o in p.opts} == set(
        re.findall(r"`(?:fixclf )?(--(?!help)[\w-]+)`", page.partition("\n## ")[0])
    )


def test_every_guide_is_in_the_site() -> None:
    settings = (ROOT / "mkdocs.yml").read_text()
    for path in sorted((ROOT / "docs").rglob("*.md")):
        assert f"- {path.relative_to(ROOT)}\n" in settings


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links(name: str) -> None:
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", _text_of(ROOT / name)):
        assert (ROOT / name).parent.joinpath(target).exists(), f"{name} links to {target}"


def _text_of(path: Path) -> str:
    """Without blocks of code, in which `](` is Python."""
    return re.sub(r"^( *)```.*?^\1```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)


def examples(name: str) -> list[dict[str, str | None]]:
    text = (ROOT / name).read_text()
    found = [match.groupdict() for match in EXAMPLE.finditer(text)]
    assert len(found) == len(re.findall(r"^ *```python$", text, re.MULTILINE))
    return found


def code_of(block: dict[str, str | None]) -> str:
    lines = ((block["first"] or "") + (block["code"] or "")).splitlines()
    return "\n".join(line.removeprefix(block["indent"] or "") for line in lines)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in DOCUMENTS if examples(name)])
def test_the_examples_run(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    native_threads: None,
) -> None:
    """In one namespace, in order, in an empty folder. In a comment before a block, `not run:` says
    why it can't, and `run first` has what the reader is assumed to have."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    module = ModuleType("example")  # where dataclasses look for the names in annotations
    monkeypatch.setitem(sys.modules, "example", module)
    printed: list[str] = []
    said: list[str | None] = []
    for block in examples(name):
        if block["skip"]:
            continue
        code = code_of(block)
        exec(compile(code, name, "exec"), vars(module))
        printed += capsys.readouterr().out.splitlines()
        for line in code.splitlines():
            if line.startswith("print("):
                comment = re.search(r"\)  # (.*)$", line)
                said.append(comment[1] if comment else None)
    if name in PRINTING:
        assert len(printed) == len(said) > 0
        for got, want in zip(printed, said, strict=True):
            assert want in (got, None)
        for quoted in re.findall(r"It prints: `(.*?)`", (ROOT / name).read_text(), re.DOTALL):
            assert " ".join(quoted.split()) in printed


def test_few_examples_are_not_run() -> None:
    skipped = [name for name in DOCUMENTS for block in examples(name) if block["skip"]]
    assert skipped == ["docs/triton.md"]


def test_the_version_is_the_same_everywhere() -> None:
    version = fixclf_infer.__version__
    assert metadata.version("fixclf_infer") == version
    # Where a copy stands, it is this one.
    for name, pattern in (
        ("pyproject.toml", r'^version = "([^"]+)"'),
        ("CMakeLists.txt", r"^project\(fixclf_infer VERSION (\S+)"),
        ("CITATION.cff", r"^version: (\S+)"),
    ):
        for found in re.findall(pattern, (ROOT / name).read_text(), re.MULTILINE):
            assert found == version, name
    newest = re.search(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is None or newest[1] == version


def test_the_version_needs_no_torch() -> None:
    script = """
import sys
sys.modules["torch"] = None
from typer.testing import CliRunner
import fixclf_infer
from fixclf_infer.cli import app
assert CliRunner().invoke(app, ["--version"]).output.strip() == fixclf_infer.__version__
print(fixclf_infer.__version__)
"""
    assert run(script).stdout.strip() == fixclf_infer.__version__
