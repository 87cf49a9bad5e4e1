"""The site: pages run, links lead somewhere, and what it says of modules, commands and sources is so."""

import importlib.util
import io
import os
import pkgutil
import re
import subprocess
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import yaml

import pyro_nas.inference
import pyro_nas.models
from pyro_nas.__main__ import main

ROOT = Path(__file__).parents[2]
SITE = ROOT / "notebooks" / "docs"
PAGES = {str(path.relative_to(SITE)): path.read_text() for path in sorted(SITE.rglob("*.md"))}
TOP = {name: (ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")}
TEXTS = {**{f"notebooks/docs/{name}": text for name, text in PAGES.items()}, **TOP}
COMMANDS = ("search", "compare", "rank", "complexity", "evidence")
SLOW = ("first_steps.md",)
# An option of --help, of any length on one line: name, meaning, default.
OPTION = re.compile(r"^  --(\w+)[^\n]*?(?:  +|\n +)(\S[^\n]*) \(type: [^\n]*, default: ([^\n]*)\)$", re.M)
NAME = r"[A-ZÀ-Ý][\w’'-]+"
CITATION = re.compile(rf"((?:{NAME}(?:, | and ))*{NAME})(?: et al\.)?,? \(?((?:18|19|20)\d\d)\b")
METHODS = ("DARTS", "DrNAS", "ENAS", "GDAS", "SNAS", "SPOS", "ScheduledDropPath")  # that stand before their authors
BY_WORDS = re.compile(r"(?!the |this |lecture )\b[\w-]+(?: thesis)? (?:lecture|talk|paper)\b|\w+'s thesis\b", re.I)


def hooks():
    spec = importlib.util.spec_from_file_location("hooks", SITE / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MADE = {**hooks().TOP, **{f"docs/api/{name}.md": None for name in ("root", *hooks().WINGS)}}


def blocks(text):
    return re.findall(r"```python\n(.*?)```", text, re.S)


def prose(text):
    """A page without its blocks of code."""
    return re.sub(r"```.*?```", "", text, flags=re.S)


def slug(heading):
    """The anchor of a heading, as Python-Markdown and GitHub both make it of plain words."""
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", re.sub(r"[`*]", "", heading)).strip().lower())


def anchors(text):
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", prose(text), re.M)}


def source_texts():
    """What each source file says, its line breaks and comment signs taken out."""
    for room in ("pyro_nas", "models", "inference"):
        for path in sorted((ROOT / room).rglob("*.py")):
            yield path, re.sub(r"\s*\n[\s#]*", " ", path.read_text())


@pytest.mark.parametrize(
    "page",
    [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in PAGES if blocks(PAGES[name])],
)
def test_a_page_is_a_program_that_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile("\n".join(blocks(PAGES[page])), page, "exec"), {"__name__": "page"})
    assert capsys.readouterr().out


def test_the_worked_example_runs(monkeypatch):
    from pyro_nas.models import priors

    section = TOP["CONTRIBUTING.md"].split("## A worked example")[1]
    code, tests = blocks(section)[:2]
    monkeypatch.setattr(priors, "student_t", None, raising=False)
    exec(code, vars(priors))
    namespace = {}
    exec(tests, namespace)
    for degrees in (1.5, 4.0):
        namespace["test_student_t_weights_have_its_density"](degrees)
    namespace["test_student_t_refuses_degrees_that_are_none"]()


def test_every_page_is_in_the_navigation():
    entries = yaml.safe_load((SITE / "mkdocs.yml").read_text())["nav"]
    listed = re.findall(r"[\w/]+\.(?:md|ipynb)", str(entries))
    notebooks = {path.name for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert sorted(listed) == sorted({*(f"docs/{name}" for name in PAGES), *MADE, *notebooks})


def test_every_module_is_on_a_page_of_the_api():
    made = [line.split()[1] for name in ("root", *hooks().WINGS) for line in hooks().api_page(name).splitlines()
            if line.startswith(":::")]  # fmt: skip
    modules = {"pyro_nas", "pyro_nas.models", "pyro_nas.inference"}
    for package in (pyro_nas, pyro_nas.models, pyro_nas.inference):
        modules |= {found.name for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")}
    assert sorted(made) == sorted(modules)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_what_help_says(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "10000")
    out = io.StringIO()
    with redirect_stdout(out), pytest.raises(SystemExit):
        main([command, "--help"])
    rows = [f"| `--{name}` | `{default}` | {meaning.replace('``', '`')} |"
            for name, meaning, default in OPTION.findall(out.getvalue())]  # fmt: skip
    section = PAGES["commands.md"].split(f"## pyro-nas {command}\n")[1].split("\n## ")[0]
    assert len(rows) >= 5
    assert [line for line in section.splitlines() if line.startswith("| `--")] == rows, "\n" + "\n".join(rows)


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name):
    here = (ROOT / name).parent
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(TEXTS[name])):
        if re.match(r"https?://[^\s/]+\.[^\s]+$", target):
            continue
        file, _, anchor = target.partition("#")
        path = (here / file).resolve() if file else ROOT / name
        place = os.path.relpath(path, ROOT / "notebooks")
        assert path.exists() or place in MADE, f"{name}: {target}"
        if anchor:
            assert anchor in anchors(path.read_text()), f"{name}: {target}"


def test_targets_of_make_exist():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    for name, text in TEXTS.items():
        for target in re.findall(
            r"make ([a-z-]+)(?=[ `\n]|$)", re.sub(r"\n", " ", " ".join(re.findall(r"`[^`]*`", text)))
        ):
            assert target in targets, f"{name}: make {target}"


def test_sources_are_listed():
    keys = re.findall(r"^- \*\*(.*?)\*\*\.", PAGES["references.md"], re.M)
    missing = []
    for path, text in source_texts():
        for authors, year in CITATION.findall(text):
            names = [name for name in re.findall(NAME, authors) if name not in METHODS]
            if not any(year in key and all(name in key for name in names) for key in keys):
                missing.append(f"{path.relative_to(ROOT)}: {authors} {year}")
        for words in BY_WORDS.findall(text):
            if not any(key.lower() == words.lower() for key in keys):
                missing.append(f"{path.relative_to(ROOT)}: {words}")
    assert missing == []


def test_every_paper_of_the_list_is_named_somewhere():
    texts = [*(text for _, text in source_texts()), *(path.read_text() for path in (ROOT / "tests").rglob("*.py"))]
    whole = " ".join(texts)
    for key in re.findall(r"^- \*\*(.*?\d{4})\*\*\.", PAGES["references.md"], re.M):
        first, year = re.match(NAME, key.removeprefix("de ")).group(), key[-4:]
        assert re.search(rf"\b{first}\b[^.;()]*?(?: et al\.)?,? \(?{year}", whole), key


def test_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == pyro_nas.__version__
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)
    assert pyro_nas.__version__ in TOP["CHANGELOG.md"]


@pytest.mark.slow
def test_the_site_builds_without_a_warning():
    pytest.importorskip("mkdocs_jupyter")
    pytest.importorskip("mkdocstrings")
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # a notice that Material may be succeeded
    done = subprocess.run(["make", "docs"], cwd=ROOT, capture_output=True, text=True, env=quiet)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    assert (ROOT / "build" / "site" / "api" / "models.html").exists()
