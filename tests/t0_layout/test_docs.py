# SPDX-License-Identifier: MIT
"""The documents, as far as a program can check them: drawings are up to date, links lead to files."""

import re
import subprocess
import sys

import pytest
import tree

DOCUMENTS = [tree.ROOT / "README.md", *sorted((tree.ROOT / "docs").rglob("*.md"))]
FILES = [path.relative_to(tree.ROOT) for top in ("daxfs", "tools", "tests", "docs")
         for path in (tree.ROOT / top).rglob("*.*")]
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")


def test_drawings_are_up_to_date():
    draw = tree.ROOT / "docs" / "drawings" / "draw.py"
    done = subprocess.run([sys.executable, draw, "--check"], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(tree.ROOT)))
def test_links_lead_to_files(path):
    gone = [link for link in LINK.findall(path.read_text()) if not (path.parent / link).exists()]
    assert not gone


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(tree.ROOT)))
def test_sources_that_are_named_are_there(path):
    """`dir/file.py` anywhere in the tree ends so; a pattern finds at least one."""
    named = re.findall(r"`([\w/.*-]+\.(?:pyx|pyi|py|c|h|toml|sh))`", path.read_text())
    assert [name for name in named if not any(one.match(name) for one in FILES)] == []


def test_each_document_is_named_in_the_readme():
    text = (tree.ROOT / "README.md").read_text()
    assert [path.name for path in (tree.ROOT / "docs").glob("*.md") if f"docs/{path.name}" not in text] == []
