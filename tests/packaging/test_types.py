"""The size of files and functions, and how much of the source is typed as Any."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for room in ("pyro_nas", "models", "inference") for path in (ROOT / room).rglob("*.py"))


def lengths(tree):
    """Lines of each function, docstring counted and decorators not: [(name, lines)]."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [(node.name, node.end_lineno - node.lineno + 1) for node in functions]


def test_few_lines_mention_any():
    lines = [line for path in SOURCES for line in path.read_text().splitlines() if re.search(r"\bAny\b", line)]
    assert len(lines) <= 80


def test_the_top_level_is_small():
    assert len(list((ROOT / "pyro_nas").glob("*.py"))) <= 8


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 260
    assert [(name, lines) for name, lines in lengths(ast.parse(text)) if lines > 60] == []
