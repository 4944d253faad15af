# SPDX-License-Identifier: MIT
"""Names of files: meson.build names each one that is to be installed; what is not there would be missing."""

import ast
import re

import tree


def named_in_meson_build() -> set[str]:
    """The files of the table ``foreach folder, names``, and the sources of the extensions."""
    text = (tree.ROOT / "meson.build").read_text()
    (table,) = re.findall(r"^foreach folder, names : (\{.*?^\})", text, re.MULTILINE | re.DOTALL)
    (extensions,) = re.findall(r"^extensions = (\{.*?^\})", text, re.MULTILINE | re.DOTALL)
    named = {f"{folder}/{name}" for folder, names in ast.literal_eval(table).items() for name in names}
    return named | {f"{path}.pyx" for path in ast.literal_eval(extensions)}


def test_every_module_is_installed():
    there = {str(path.relative_to(tree.ROOT)) for path in tree.PACKAGE.rglob("*")
             if path.suffix in (".py", ".pyi", ".pyx")}
    assert named_in_meson_build() == there


def test_every_extension_has_a_pyi():
    assert all(path.with_suffix(".pyi").exists() for path in tree.PACKAGE.rglob("*.pyx"))


def test_every_manual_page_is_installed():
    text = (tree.ROOT / "meson.build").read_text()
    pages = sorted(str(path.relative_to(tree.ROOT)) for path in (tree.ROOT / "docs/man").glob("*.[1-8]"))
    assert sorted(re.findall(r"'(docs/man/[^']+\.[1-8])'", text)) == pages


def test_modules_of_tests_have_names_of_their_own():
    """They have no package: pytest collects two of one name only where neither is imported yet."""
    names = [path.name for path in (tree.ROOT / "tests").glob("*/test_*.py")]
    assert len(names) == len(set(names)), sorted(name for name in names if names.count(name) > 1)
