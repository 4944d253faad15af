# SPDX-License-Identifier: MIT
"""Crash tests in process: operations (vfs), their promises (model), a look at an image (judge)."""
