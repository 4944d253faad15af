# SPDX-License-Identifier: MIT
"""L5: the commands."""
