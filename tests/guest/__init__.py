# SPDX-License-Identifier: MIT
"""What runs inside the guest of `make test-vm`, as `python -m guest`: the cases and how they are run."""
