# SPDX-License-Identifier: MIT
"""Make the frozen images of the current format revision: run once for a new FORMAT_REV, then keep them.

    python tests/images/make_images.py [DIRECTORY [SUFFIX]]

revN.xz was unmounted, revN-killed.xz was left by a daemon that was killed (records to replay, an orphan),
revN-flags.xz has users' flags (compat 1) and a torn superblock (`populate.flags`); SUFFIX: that one alone;
the .json.xz beside each says what is to be found on it. Fixed UUIDs, clock and content.
"""

import hashlib
import json
import lzma
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import populate  # noqa: E402

from daxfs import layout  # noqa: E402
from daxfs.meta import fs as meta_fs  # noqa: E402
from daxfs.region import Region  # noqa: E402


def describe(tree: dict) -> dict:
    """A tree (`populate.tree`) as JSON: names as latin-1, content and values as SHA-256."""
    out = {}
    for path, (*fields, data, attrs) in tree.items():
        digest = None if data is None else hashlib.sha256(data).hexdigest()
        values = {name.decode(): hashlib.sha256(value).hexdigest() for name, value in attrs.items()}
        out[path.decode("latin-1")] = [*fields, digest, values]
    return out


def contents(path: str) -> dict:
    """What an image holds, by a mount that changes nothing."""
    with Region.open([path], "cow") as region:
        return describe(populate.tree(meta_fs.mount(region)))


def unpack(name: str, path: str) -> str:
    """A frozen image as a sparse file at *path*."""
    zero = bytes(1 << 16)
    with lzma.open(HERE / f"{name}.xz") as packed, open(path, "wb") as out:
        while piece := packed.read(len(zero)):
            if piece == zero[: len(piece)]:
                out.seek(len(piece), 1)
            else:
                out.write(piece)
        out.truncate()
    return path


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    name = f"rev{layout.FORMAT_REV}"
    with tempfile.TemporaryDirectory() as work:
        for suffix, options in (("", {}), ("-killed", {"orphan": True}), ("-flags", {"flagged": True})):
            if sys.argv[2:] not in ([], [suffix]):
                continue
            path = populate.make(f"{work}/{name}{suffix}", size=8 * populate.MIB, **options)
            packed = lzma.compress(Path(path).read_bytes(), preset=9)
            (target / f"{name}{suffix}.xz").write_bytes(packed)
            found = contents(path)
            print(f"{name}{suffix}: {len(packed)} bytes packed, {len(found)} names")
            text = json.dumps(found, indent=0, sort_keys=True)
            (target / f"{name}{suffix}.json.xz").write_bytes(lzma.compress(text.encode(), preset=9))


if __name__ == "__main__":
    main()
