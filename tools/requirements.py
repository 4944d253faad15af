#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Print what pyproject.toml asks for, a requirement a line: for building and running, and for its extras.

    tools/requirements.py [EXTRA...]      default: test plot

Needed because pip, asked to build daxfs without build isolation, builds its dependencies so too; one that
comes as source and wants other tools (pyfuse3 wants setuptools) can't be built then.
"""

import sys
import tomllib
from pathlib import Path

with open(Path(__file__).resolve().parent.parent / "pyproject.toml", "rb") as file:
    wanted = tomllib.load(file)
project = wanted["project"]
extras = project["optional-dependencies"]
unknown = [word for word in sys.argv[1:] if word not in extras]
if unknown:
    sys.exit(f"requirements.py: no extra {unknown[0]!r}; there are: {', '.join(extras)}")
for requirement in (*wanted["build-system"]["requires"], *project["dependencies"],
                    *(one for extra in sys.argv[1:] or ("test", "plot")
                      for one in extras[extra])):  # fmt: skip
    print(requirement)
