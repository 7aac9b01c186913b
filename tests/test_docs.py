"""The pages say what is so: links lead somewhere, commands name files, options and config keys that exist."""

from __future__ import annotations

import argparse
import ast
import functools
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from elsa_det.analysis import config_reference
from elsa_det.config import load_config

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
pytestmark = pytest.mark.skipif(not (ROOT / "mkdocs.yml").exists(), reason="the source tree is not here")

PAGES = [*sorted(DOCS.glob("*.md")), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "datasets/README.md"))]
IDS = [page.relative_to(ROOT).as_posix() for page in PAGES]


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^ *```{language}\n(.*?)^ *```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """The words of every command of a page, comments aside."""
    text = "".join(blocks(page, "")).replace("\\\n", " ")
    return [words for line in text.splitlines() if (words := _words(line)) and words[0] in ("python", "make", "pip")]


def _words(line: str) -> list[str]:
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # a listing, not a command
        return []
    while words and re.fullmatch(r"[A-Z_0-9]+=\S*", words[0]):
        words.pop(0)
    return words


def anchors(page: Path) -> set[str]:
    """Of all headings, as GitHub and mkdocs make them."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


@functools.cache
def tool(path: str) -> argparse.ArgumentParser | None:
    """The parser of a tool; None for one that makes it when it runs."""
    spec = importlib.util.spec_from_file_location(f"docs_{Path(path).stem}", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.argument_parser() if hasattr(module, "argument_parser") else None


@functools.cache
def help_of(path: str) -> str:
    done = subprocess.run([sys.executable, str(ROOT / path), "--help"], capture_output=True, text=True, check=True)
    return done.stdout


# --- the pages as such ------------------------------------------------------------------------------------------------


def test_the_config_reference_is_up_to_date():
    page = config_reference.render_reference(yaml.safe_load((DOCS / "config_keys.yaml").read_text()))
    assert (DOCS / "config_reference.md").read_text() == page, "run: python tools/make_docs.py"


def test_every_explanation_of_a_config_key_is_used():
    explanations = yaml.safe_load((DOCS / "config_keys.yaml").read_text())
    keys = [tuple(key.split(".")) for key in config_reference.all_keys()]
    used = {config_reference.explanation(key, explanations) for key in keys}
    assert set(explanations.values()) <= used


def test_every_page_is_in_the_navigation():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert sorted(entry if isinstance(entry, str) else next(iter(entry.values())) for entry in nav) == sorted(
        page.name for page in DOCS.glob("*.md")
    )


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


def test_every_example_is_among_the_switches():
    page = (DOCS / "switches.md").read_text()
    assert not [path.name for path in (ROOT / "configs" / "examples").glob("*.py") if f"/{path.name})" not in page]


# --- what they quote --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_commands_name_what_exists(page):
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in commands(page):
        if words[0] == "make":
            wanted = [word for word in words[1:] if "=" not in word]
            assert set(wanted) <= targets, words
        elif words[0] == "python" and words[1] == "-m":
            assert importlib.util.find_spec(words[2]) or words[2] == "pip", words
        elif words[0] == "python" and words[1] != "-c":
            check_tool(words[1], words[2:])


def check_tool(path: str, words: list[str]) -> None:
    assert (ROOT / path).is_file(), path
    parser = tool(path)
    options = [word.partition("=")[0] for word in words if word.startswith("--")]
    known = help_of(path) if parser is None else parser.format_help()
    assert not [option for option in options if not re.search(rf"{option}\b(?!-)", known)], (path, options)
    if parser is not None:
        (parser.parse_intermixed_args if "INPUT OUTPUT" in known else parser.parse_args)(words)
    overrides = [word for word in words if re.match(r"[\w.]+=", word)]
    for word in words:
        if word.startswith("configs/"):  # refuses keys that do not exist, and values of other types
            load_config(ROOT / word, overrides)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_python_imports_what_exists(page):
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and not node.level and str(node.module).startswith("elsa_det"):
                module = importlib.import_module(node.module)
                assert not [alias.name for alias in node.names if not hasattr(module, alias.name)], block


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_files_and_variables_in_the_text_exist(page):
    text = prose(page)
    files = re.findall(r"`((?:tools|configs|docs|tests|kernels|elsa_det)/[\w/.]+\.\w+)`", text)
    assert not [file for file in files if not (ROOT / file).is_file()]
    sources = "".join(path.read_text() for folder in ("elsa_det", "kernels") for path in (ROOT / folder).rglob("*.py"))
    variables = set(re.findall(r"ELSA_DET_[A-Z0-9]+(?:_[A-Z]+)*", page.read_text()))
    # the two that the build puts together from the name of a part
    assert {name for name in variables if name not in sources} <= {"ELSA_DET_CPU", "ELSA_DET_CUDA"}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_config_keys_in_the_text_exist(page):
    """``train.…``, ``dataset.…``, ``dataloader.…`` and ``optimizer.…``: somewhere in the configs."""
    if page.name == "config_reference.md":
        return
    known = config_keys()
    named = re.findall(r"`((?:train|dataset|dataloader|optimizer)\.[\w.]+)(?:=[^`]*)?`", prose(page))
    wrong = [key for key in named if not any(other == key or other.startswith(f"{key}.") for other in known)]
    assert not wrong


@functools.cache
def config_keys() -> frozenset[str]:
    root = ROOT / "configs"
    keys = set(config_reference.all_keys(root))
    for path in (root / "examples" / name for name in ("copy_paste.py", "layer_decay.py")):  # add keys of their own
        keys |= {".".join(key) for key, *_ in config_reference.flatten(config_reference.load_nodes(path))}
    return frozenset(keys)


@functools.cache
def messages() -> str:
    """All texts in the code, with … where something is put in."""
    texts = []
    for folder in ("elsa_det", "kernels"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    texts.append("".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
    return "\n".join(texts)


def test_quoted_messages_are_those_of_the_code():
    quotes = re.findall(r"^### `(.+?)`", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    foreign = ("module 'PIL.Image'", "Loss became infinite")  # of other packages
    for quote in quotes:
        if quote.startswith(foreign):
            continue
        parts = [part.strip(" ,()'") for part in re.split(r"(?:torch )?…|=\w+(?:/…)?|\d[\d.]*", quote)]
        missing = [part for part in parts if len(part) > 5 and part not in messages()]
        assert not missing, quote


def test_the_site_needs_no_network(tmp_path):
    pytest.importorskip("mkdocs", reason="mkdocs-material is not installed (the extra 'docs')")
    pytest.importorskip("material")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert {page.stem for page in DOCS.glob("*.md")} <= {page.stem for page in pages}
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## The operator")[2].partition("\n## ")[0]
    figures = re.findall(r"[\d.]+(?: / [\d.]+)* ×", section)
    operator = (tmp_path / "operator.html").read_text(encoding="utf-8")
    assert figures
    assert not [figure for figure in figures if figure not in operator]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r"<(?:script|img|iframe)[^>]*src=[\"']?https?:", text), page
        assert not re.findall(r"<link[^>]*rel=[\"']?(?:stylesheet|preconnect|icon)[^>]*href=[\"']?https?:", text), page
        assert 'class="mermaid"' not in text  # would be fetched
