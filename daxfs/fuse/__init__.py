# SPDX-License-Identifier: MIT
"""L4: the front end that the kernel talks to (the only place that knows pyfuse3)."""
