"""What the site has beside the files of its folder: CONTRIBUTING, CHANGELOG, and a page of the API for each wing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parents[2]
HERE = "docs/"
TOP = {"docs/contributing.md": "CONTRIBUTING.md", "docs/changelog.md": "CHANGELOG.md"}
WINGS = {  # page of the API: package and folder
    "files": ("pyro_nas.files", "pyro_nas/files"),
    "graph": ("pyro_nas.graph", "pyro_nas/graph"),
    "evidence": ("pyro_nas.evidence", "pyro_nas/evidence"),
    "reading": ("pyro_nas.reading", "pyro_nas/reading"),
    "models": ("pyro_nas.models", "models"),
    "inference": ("pyro_nas.inference", "inference"),
    "studies": ("pyro_nas.studies", "pyro_nas/studies"),
}


def modules(package: str, folder: str, pattern: str = "**/*.py") -> Iterator[str]:
    """Yield the modules of a package by name, itself first."""
    yield package
    for path in sorted((ROOT / folder).glob(pattern)):
        parts = path.relative_to(ROOT / folder).with_suffix("").parts
        inner = parts[:-1] if parts[-1] == "__init__" else parts
        if inner:
            yield ".".join((package, *inner))


def api_page(name: str) -> str:
    """Return a page of the API as Markdown: every module of a wing, or those at the root of the package."""
    package, folder = WINGS.get(name, ("pyro_nas", "pyro_nas"))
    found = modules(package, folder, "**/*.py" if name in WINGS else "*.py")
    return f"# {name.capitalize()}\n\n" + "\n".join(f"::: {module}\n" for module in found)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made, and lift those of this folder to the root of the site."""
    from mkdocs.structure.files import File  # here, so that tests read the names above where MkDocs is not installed

    made = {place: (ROOT / name).read_text().replace("](notebooks/docs/", "](") for place, name in TOP.items()}
    made |= {f"docs/api/{name}.md": api_page(name) for name in ("root", *WINGS)}
    for place, text in made.items():
        files.append(File.generated(config, place, content=text))
    for file in files:
        if file.src_uri.startswith(HERE):
            file.dest_uri = file.dest_uri.removeprefix(HERE)
            file.url = file.url.removeprefix(HERE)
    return files
