"""Execute the notebooks in full and store them with their outputs (make notebooks)."""

from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
SOURCES = [path for path in sorted(FOLDER.glob("*.py")) if path.read_text().startswith("# ---")]


def execute(source: Path, replace: dict[str, str] | None = None) -> nbformat.NotebookNode:
    """Return the executed notebook of a source in percent format; ``replace`` makes it smaller."""
    text = source.read_text()
    for old, new in (replace or {}).items():
        if old not in text:
            raise ValueError(f"replace: expected text of {source.name}, got {old!r}.")
        text = text.replace(old, new)
    notebook = jupytext.reads(text, fmt="py:percent")
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": FOLDER}}).execute()
    return notebook


if __name__ == "__main__":
    for path in SOURCES:
        print(path.name)
        nbformat.write(execute(path), path.with_suffix(".ipynb"))
