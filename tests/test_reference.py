"""The site is built, and every public name has one entry in the reference, with signature and text.

A name that two namespaces share has its entry on one page: that of `extend` if it is there, else
that of its namespace. The entry bears the name at the top of the package where there is one. The
other pages link to it.
"""

import ast
import enum
import html
import importlib
import importlib.util
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import innerloop as il

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "docs" / "reference"
HEADING = re.compile(r'<h\d id="(innerloop[\w.]*)" class="doc doc-heading"')
SIGNATURE = re.compile(r'<div class="[^"]*doc-signature.*?</pre>', re.DOTALL)

# Only an environment with the extra `docs` can build the site; one process builds it once.
pytestmark = [
    pytest.mark.skipif(not importlib.util.find_spec("mkdocs"), reason="the extra docs is missing"),
    pytest.mark.xdist_group("site"),
]


def namespaces() -> dict[str, object]:
    """The modules with public names, by their path; `extend` first and the top level last."""
    inside = [name for name, value in exported(il).items() if inspect.ismodule(value)]
    found = {"extend": il.extend}
    for name in [*inside, "lab"]:
        module = importlib.import_module(f"innerloop.{name}")
        found[name] = module
        nested = {inner: value for inner, value in exported(module).items() if is_namespace(value)}
        found |= {f"{name}.{inner}": value for inner, value in nested.items()}
    return {f"innerloop.{name}": module for name, module in found.items()} | {"innerloop": il}


def exported(module) -> dict[str, object]:
    """The names in `__all__`, or those that a namespace imports `as` themselves, or its classes."""
    body = ast.parse(inspect.getsource(module)).body
    imported = [a for n in body if isinstance(n, ast.ImportFrom) for a in n.names]
    names = [each.name for each in imported if each.asname == each.name]
    names = names or [node.name for node in body if isinstance(node, ast.ClassDef)]
    return {name: getattr(module, name) for name in getattr(module, "__all__", names)}


def is_namespace(value) -> bool:
    """Whether a value is a folder of modules, and no file of one."""
    return inspect.ismodule(value) and hasattr(value, "__path__")


def public(module) -> dict[str, object]:
    """What a namespace exports, without the modules in it."""
    return {n: value for n, value in exported(module).items() if not inspect.ismodule(value)}


def entries() -> dict[str, tuple[str, object]]:
    """For every public object, the heading of its entry, its namespace and the object."""
    found, seen = {}, set()
    for path, module in namespaces().items():
        for name, value in public(module).items():
            if id(value) not in seen:
                seen.add(id(value))
                top = name if path != "innerloop.extend" and name in exported(il) else None
                found[f"innerloop.{top}" if top else f"{path}.{name}"] = path, value
    return found


def page_of(path: str) -> Path:
    special = {"innerloop": "innerloop", "innerloop.tasks.optimization": "optimization-tasks"}
    return REFERENCE / f"{special.get(path, path.rpartition('.')[2])}.md"


@pytest.fixture(scope="module")
def sections(tmp_path_factory) -> dict[str, list[str]]:
    """The HTML below each heading of the reference, by heading."""
    site = tmp_path_factory.mktemp("site")
    build = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert build.returncode == 0, build.stderr
    for page in site.rglob("*.html"):
        text = page.read_text()
        assert 'class="arithmatex">\\' not in text, f"{page}: a formula that was not converted"
        assert not re.search(r'<(script|link|img)[^>]*(src|href)="(https?:)?//', text), page
    found: dict[str, list[str]] = {}
    for page in (site / "reference").rglob("*.html"):
        parts = HEADING.split(page.read_text())
        for name, section in zip(parts[1::2], parts[2::2], strict=True):
            found.setdefault(name, []).append(section)
    return found


def letters(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]", "", text)


def first_sentence(value) -> str:
    """Of the docstring, without its formulas."""
    sentence = re.split(r"(?<=[.:])\s|\n\n", inspect.getdoc(value) or "")[0]
    return re.sub(r"\$.*?\$|\\\(.*?\\\)|\]\(.*?\)", "", sentence)


def shown_text(section: str) -> str:
    """What a reader sees, without its formulas."""
    return html.unescape(re.sub(r"<math.*?</math>|<[^>]+>", "", section, flags=re.DOTALL))


def has_constructor(value) -> bool:
    """Whether it is called: everything but abstract classes, protocols and enumerations."""
    protocol = getattr(value, "_is_protocol", False)
    return not (protocol or inspect.isabstract(value) or isinstance(value, enum.EnumMeta))


def test_every_public_name_is_an_entry_with_signature_and_text(sections):
    wrong = {}
    for name, (_, value) in entries().items():
        found = sections.get(name, [])
        if len(found) != 1:
            wrong[name] = f"{len(found)} entries"
        elif not inspect.isclass(value) and not inspect.isfunction(value):
            if "<p>" not in found[0]:
                wrong[name] = "no text"
        elif letters(first_sentence(value)) not in letters(shown_text(found[0])):
            wrong[name] = f"without its first sentence: {first_sentence(value)}"
        elif not inspect.getdoc(value):
            wrong[name] = "no docstring"
        elif has_constructor(value) and not (shown := SIGNATURE.search(found[0])):
            wrong[name] = "no signature"
        elif has_constructor(value):
            taken = inspect.signature(value).parameters
            written = shown_text(shown.group())
            if missing := [each for each in taken if not re.search(rf"\b{each}\b", written)]:
                wrong[name] = f"a signature without {missing}"
    assert not wrong, "\n".join(f"{name}: {what}" for name, what in wrong.items())


def test_every_namespace_has_its_page_which_names_what_it_exports():
    """As an entry, or by a link to the entry on another page."""
    homes = entries()
    for path, module in namespaces().items():
        text = page_of(path).read_text()
        written = re.findall(r"^::: (innerloop[\w.]*)$", text, re.MULTILINE)
        assert sorted(written) == sorted(name for name, (home, _) in homes.items() if home == path)
        named = {*written, *re.findall(r"\[`\w+`\]\[(innerloop[\w.]*)\]", text)}
        by_object = {id(value): name for name, (_, value) in homes.items()}
        assert {by_object[id(value)] for value in public(module).values()} <= named, path


def test_the_navigation_lists_every_page_of_the_reference():
    nav = (ROOT / "mkdocs.yml").read_text()
    listed = re.findall(r"^ +- (innerloop[\w.]*): reference/([\w-]+\.md)$", nav, re.MULTILINE)
    assert {name for name, _ in listed} == set(namespaces())
    assert {page for _, page in listed} == {page.name for page in REFERENCE.glob("*.md")}
