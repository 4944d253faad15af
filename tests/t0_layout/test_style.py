# SPDX-License-Identifier: MIT
"""The style that STYLE.md asks for, as far as a program can see it. Limits here may only shrink."""

import ast
import re

import pytest
import tree

MAX_FUNCTION, MAX_FILE, MAX_LINE = 70, 700, 110
SPDX = "# SPDX-License-Identifier: MIT"
PYTHON = [p for p in tree.SOURCES if p.suffix == ".py"]
OURS = PYTHON + sorted(
    p for folder in ("tools", "tests") for p in (tree.ROOT / folder).rglob("*.py") if p.stat().st_size
)
CYTHON = [p for p in tree.SOURCES if p.suffix == ".pyx"]
NATIVE = sorted(p for folder in ("native", "client") for p in (tree.PACKAGE / folder).glob("*.[ch]"))
ANY = OURS + CYTHON + [p for p in tree.SOURCES if p.suffix == ".pxd"]
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|[Ff]or now|[Pp]laceholder)\b")


def name(path) -> str:
    return str(path.relative_to(tree.ROOT))


def head(path) -> list[str]:
    """The first lines, without a ``#!`` line."""
    lines = path.read_text().splitlines()
    return lines[1:] if lines and lines[0].startswith("#!") else lines


@pytest.mark.parametrize("path", ANY, ids=name)
def test_licence_and_docstring(path):
    lines = head(path)
    spdx = [n for n, line in enumerate(lines[:6]) if line == SPDX]
    assert spdx, "no SPDX line at the top"
    if path.suffix == ".py":
        assert ast.get_docstring(ast.parse(path.read_text())), "no docstring"
    else:
        text = [line for line in lines if line and not line.startswith("# cython")]
        assert text[1].startswith(('"""', "#")), "no docstring, or comment that says the job"


@pytest.mark.parametrize("path", ANY + NATIVE, ids=name)
def test_sizes(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= MAX_FILE
    long = [n for n, line in enumerate(lines, 1) if len(line) > MAX_LINE]
    assert not long, f"lines over {MAX_LINE} characters: {long}"
    if path.suffix == ".py":
        assert not any("\t" in line for line in lines), "a tab"


@pytest.mark.parametrize("path", OURS, ids=name)
def test_python_functions_are_short(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= MAX_FUNCTION, f"{node.name}: {length} lines"


def cython_functions(lines):
    """Yield (name, lines) of each function: from its def to the next line that stands as far left."""
    start = re.compile(r"^(\s*)(?:def|cdef|cpdef)\b[^=]*?(\w+)\(.*")
    for n, line in enumerate(lines):
        found = start.match(line)
        if not found:
            continue
        indent, last = len(found.group(1)), n
        for m in range(n + 1, len(lines)):
            text = lines[m]
            if (
                text.strip()
                and len(text) - len(text.lstrip()) <= indent
                and not text.lstrip().startswith(")")
            ):
                break
            last = m if text.strip() else last
        yield found.group(2), last - n + 1


@pytest.mark.parametrize("path", CYTHON, ids=name)
def test_cython_functions_are_short(path):
    found = dict(cython_functions(path.read_text().splitlines()))
    assert found
    assert not {n: size for n, size in found.items() if size > MAX_FUNCTION}


@pytest.mark.parametrize("path", CYTHON, ids=name)
def test_a_pyi_stands_beside_each_extension(path):
    assert path.with_suffix(".pyi").exists()


@pytest.mark.parametrize("path", CYTHON, ids=name)
def test_no_gc_clear_stands_where_cython_looks(path):
    """In the .pyx: in a .pxd it takes no notice, and the collector clears what a C struct points into."""
    declared = path.with_suffix(".pxd")
    assert not declared.exists() or "no_gc_clear" not in declared.read_text()
    text = declared.read_text() if declared.exists() else ""
    for cls, body in re.findall(r"^cdef class (\w+)(.*?)(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL):
        if re.search(r"so \w+ go(es)? last", body):
            assert f"@cython.no_gc_clear\ncdef class {cls}" in path.read_text(), cls


@pytest.mark.parametrize("path", tree.SOURCES + NATIVE, ids=name)
def test_nothing_is_called_unfinished(path):
    found = [line.strip() for line in path.read_text().splitlines() if UNFINISHED.search(line)]
    assert not found


@pytest.mark.parametrize("path", PYTHON, ids=name)
def test_each_drain_says_what_it_orders(path):
    """A comment or the docstring of the function itself stands right above it and speaks of order."""
    lines = path.read_text().splitlines()
    for n, line in enumerate(lines):
        if re.search(r"\.(drain|persist)\(", line) and not line.lstrip().startswith(("#", "def ")):
            above, m = [], n - 1
            while m >= 0 and lines[m].lstrip().startswith("#"):
                above.append(lines[m])
                m -= 1
            assert "order" in " ".join(above).lower(), f"line {n + 1}: no comment on what it orders"
