# SPDX-License-Identifier: MIT
"""L3: the data path: dax_io and the dirty tracker."""
