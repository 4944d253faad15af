#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Print what pyproject.toml asks for, a requirement a line: for building, running and testing.

Needed because pip installs dependencies without build isolation, too, when it is asked to build daxfs so; then
one that comes as source and wants other tools to build (pyfuse3 wants setuptools) can't be built.
"""

import tomllib
from pathlib import Path

with open(Path(__file__).resolve().parent.parent / "pyproject.toml", "rb") as file:
    wanted = tomllib.load(file)
project = wanted["project"]
print(*wanted["build-system"]["requires"], *project["dependencies"], *project["optional-dependencies"]["test"],
      sep="\n")
