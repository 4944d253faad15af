# SPDX-License-Identifier: MIT
"""The documents, as far as a program can check them: drawings are up to date, links lead to files."""

import re
import subprocess
import sys

import pytest
import tree

DOCUMENTS = [tree.ROOT / "README.md", *sorted((tree.ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")


def test_drawings_are_up_to_date():
    draw = tree.ROOT / "docs" / "drawings" / "draw.py"
    done = subprocess.run([sys.executable, draw, "--check"], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(tree.ROOT)))
def test_links_lead_to_files(path):
    gone = [link for link in LINK.findall(path.read_text()) if not (path.parent / link).exists()]
    assert not gone
