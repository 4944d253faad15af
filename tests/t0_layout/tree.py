# SPDX-License-Identifier: MIT
"""What the t0 tests know of the source tree: its modules and what each of them imports."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "daxfs"
SOURCES = sorted(p for p in PACKAGE.rglob("*") if p.suffix in (".py", ".pyx", ".pxd"))
_CIMPORT = re.compile(r"^\s*(?:from\s+([\w.]+)\s+c?import\s+([\w, *]+|\()|c?import\s+([\w., ]+))", re.M)


def module_of(path: Path) -> str:
    """The dotted name of a source file, without ``__init__``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in SOURCES}


def _absolute(path: Path, level: int, module: str | None) -> str:
    """The name that a relative import of *path* means."""
    if not level:
        return module or ""
    base = module_of(path).split(".")
    base = base if path.stem == "__init__" else base[:-1]
    base = base[: len(base) - level + 1]
    return ".".join(base + ([module] if module else []))


def _python(path: Path):
    for node in ast.walk(ast.parse(path.read_text(), path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(path, node.level, node.module)
            for alias in node.names:
                name = f"{base}.{alias.name}"
                yield name if name in MODULES else base


def _cython(path: Path):
    for where, names, plain in _CIMPORT.findall(path.read_text()):
        if plain:
            yield from (name.split(" as ")[0].strip() for name in plain.split(","))
            continue
        level = len(where) - len(where.lstrip("."))
        base = _absolute(path, level, where.lstrip(".") or None)
        found = [f"{base}.{name.split()[0]}" for name in names.split(",") if name.strip(" (")]
        yield from {name if name in MODULES else base for name in found} or {base}


def imports(path: Path) -> set[str]:
    """Names of the modules that a source file imports or cimports, at any depth of its code."""
    return set(_python(path) if path.suffix == ".py" else _cython(path))
