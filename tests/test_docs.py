"""What README, help pages and node texts say is held to the code, without a ComfyUI."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
HELP = ROOT / "web" / "docs"
PAGES = sorted(HELP.glob("*.md"))
LANGUAGES = ("en", "es")
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *HELP.rglob("*.md")]


def node_ids() -> list[str]:
    """The classes listed in NODES of nodes/__init__.py."""
    tree = ast.parse((ROOT / "nodes" / "__init__.py").read_text(encoding="utf-8"))
    (listed,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "NODES"
    )
    assert isinstance(listed, ast.List)
    return [ast.unparse(item) for item in listed.elts]


def rows(text: str, heading: str) -> list[list[str]]:
    """The cells of the table below its heading row, without backticks."""
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith(f"| {heading} |"):
            break
    else:
        raise AssertionError(f"no table starts with | {heading} |")
    next(lines)
    found = []
    for line in lines:
        if not line.startswith("|"):
            break
        found.append([cell.strip().replace("`", "") for cell in line.strip("|").split("|")])
    return found


def code_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def locale(language: str, name: str) -> Any:
    return json.loads((ROOT / "locales" / language / name).read_text(encoding="utf-8"))


def texts(data: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    for key, value in data.items():
        if isinstance(value, str):
            yield (*path, key), value
        else:
            yield from texts(value, (*path, key))


# --------------------------------------------------------------------------- README


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_relative_links_resolve(document: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text(encoding="utf-8"))
    local = [link for link in links if not re.match(r"[a-z]+:", link)]
    assert [link for link in local if not (document.parent / link).exists()] == []


def test_the_commands_in_the_readme_exist() -> None:
    scripts = set(re.findall(r"python (scripts/\w+\.py)", README))
    assert scripts == {"scripts/demo.py", "scripts/test.py", "scripts/bench.py"}
    assert all((ROOT / script).is_file() for script in scripts)


def test_the_demo_options_are_those_it_takes() -> None:
    source = (ROOT / "scripts" / "demo.py").read_text(encoding="utf-8")
    taken = set(re.findall(r'"(--[a-z]+)"', source))
    assert {row[0].split()[0] for row in rows(README, "Option")} == taken


def test_the_dependencies_are_those_of_requirements_txt() -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [re.split(r"[<>=!~ ]", line)[0] for line in lines if line and line[0] != "#"]
    table = rows(README, "Package")
    assert [row[0] for row in table] == wanted
    assert all(row[1] for row in table)


def test_the_routes_are_those_that_are_registered() -> None:
    source = (ROOT / "nodes" / "routes.py").read_text(encoding="utf-8")
    (prefix,) = re.findall(r'^PREFIX = "(.+)"', source, re.MULTILINE)
    registered = re.findall(r'routes\.(get|post|put|delete)\(f"\{PREFIX\}(.+?)"\)', source)
    wanted = [
        f"{method.upper()} {prefix}{path.replace('{{', '{').replace('}}', '}')}"
        for method, path in registered
    ]
    assert [row[0] for row in rows(README, "Route")] == wanted


def test_the_nodes_are_those_there_are() -> None:
    linked = [re.match(r"\[(\w+)\]\((.+)\)", row[0]) for row in rows(README, "Node")]
    assert all(link and link[2] == f"web/docs/{link[1]}.md" for link in linked)
    assert sorted(link[1] for link in linked if link) == sorted(node_ids())


def test_the_environment_variables_are_read() -> None:
    named = set(re.findall(r"\b(?:INTELLIGENT_GENERATION|IG|COMFYUI)_[A-Z_]+\b", README))
    sources = [*(ROOT / "core").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    assert named
    assert {name for name in named if f'"{name}"' not in text} == set()


def test_the_changelog_begins_with_this_version() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (version,) = re.findall(r'^version = "(.+)"', project, re.MULTILINE)
    released = re.findall(
        r"^## \[(\d.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert released[0] == version


# --------------------------------------------------------------------------- help pages


def test_every_node_has_a_help_page_and_nothing_else_has() -> None:
    assert [page.stem for page in PAGES] == sorted(node_ids())


@pytest.mark.parametrize("node", node_ids())
def test_a_help_page_names_every_input_and_output(node: str) -> None:
    page = (HELP / f"{node}.md").read_text(encoding="utf-8")
    known = locale("en", "nodeDefs.json")[node]
    assert page.startswith(f"# {known['display_name']}\n")
    assert [row[0] for row in rows(page, "Input")] == list(known["inputs"])
    names = [output["name"] for output in known["outputs"].values()]
    assert [row[0] for row in rows(page, "Output")] == names
    assert "\n## Example\n" in page


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_the_errors_of_a_help_page_are_raised_somewhere(page: Path) -> None:
    section = page.read_text(encoding="utf-8").split("\n## Errors\n")[1]
    errors = re.findall(r"^- \*\*(.+?)\*\*", section, re.MULTILINE)
    assert errors
    missing = [
        error
        for error in errors
        if not any(all(part in said for part in pieces(error)) for said in messages())
    ]
    assert missing == []


def pieces(error: str) -> list[str]:
    """What stands between the placeholders of a shown message."""
    return [part.strip() for part in error.split("…") if part.strip(" .,:")]


@cache
def messages() -> tuple[str, ...]:
    """Every text in core and nodes; a placeholder reads as a space."""
    found: list[str] = []
    for path in [*(ROOT / "core").rglob("*.py"), *(ROOT / "nodes").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (
                    str(part.value) if isinstance(part, ast.Constant) else " "
                    for part in node.values
                )
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"\{\w*\}", " ", node.value))
    return tuple(found)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_json_in_the_documents_is_json(document: Path) -> None:
    for block in code_blocks(document.read_text(encoding="utf-8"), "json"):
        assert isinstance(json.loads(block), dict)


# --------------------------------------------------------------------------- node texts


@pytest.mark.parametrize("name", ["main.json", "nodeDefs.json"])
def test_both_languages_have_the_same_texts(name: str) -> None:
    english, spanish = (dict(texts(locale(language, name))) for language in LANGUAGES)
    assert english.keys() == spanish.keys()


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", ["main.json", "nodeDefs.json"])
def test_texts_are_read_as_they_stand(language: str, name: str) -> None:
    """ComfyUI's page reads texts as messages of vue-i18n, to which these characters are syntax.

    Versions differ in how one escapes them, and one that is not escaped breaks the whole page.
    """
    found = dict(texts(locale(language, name)))
    assert found
    assert {path: text for path, text in found.items() if re.search(r"[{}@|]", text)} == {}
    assert {path for path, text in found.items() if text.strip() != text or not text} == set()


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_has_texts(language: str) -> None:
    assert sorted(locale(language, "nodeDefs.json")) == sorted(node_ids())


def test_spanish_sentences_are_translated() -> None:
    english = dict(texts(locale("en", "nodeDefs.json")))
    spanish = dict(texts(locale("es", "nodeDefs.json")))
    same = {
        path
        for path, text in english.items()
        if path[-1] in ("tooltip", "description", "display_name") and spanish[path] == text
    }
    assert {path for path in same if english[path] not in ("CFG.",)} == set()
