# SPDX-License-Identifier: MIT
"""Make the frozen images of the current format revision: run once for a new FORMAT_REV, then keep them.

    python tests/images/make_images.py [DIRECTORY [SUFFIX]]

revN.xz was unmounted, revN-killed.xz was left by a daemon that was killed (records to replay, an orphan),
revN-flags.xz has users' flags (compat 1) and a torn superblock (`populate.flags`), revN-poison.xz poisoned
pages (ro_compat 1; `populate.poisoned`) and records to replay; revN-own.tar.xz and
revN-own-killed.tar.xz are pool directories with own ranges (incompat 1; `populate.owned`), in the second one
with what a crash leaves of them; SUFFIX: that one alone;
the .json.xz beside each says what is to be found on it. Fixed UUIDs, clock and content.
"""

import hashlib
import io
import json
import lzma
import os
import sys
import tarfile
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
    """A frozen image as a sparse file at *path*, or a pool directory made there."""
    if (HERE / f"{name}.tar.xz").exists():
        with tarfile.open(HERE / f"{name}.tar.xz") as packed:
            packed.extractall(path, filter="data")
        os.chmod(f"{path}/{layout.RANGES_NAME}", 0o700)
        return path
    zero = bytes(1 << 16)
    with lzma.open(HERE / f"{name}.xz") as packed, open(path, "wb") as out:
        while piece := packed.read(len(zero)):
            if piece == zero[: len(piece)]:
                out.seek(len(piece), 1)
            else:
                out.write(piece)
        out.truncate()
    return path


def pack(path: str) -> tuple[str, bytes]:
    """(how the name ends, bytes) of an image: always the same for the same content."""
    if not os.path.isdir(path):
        return ".xz", lzma.compress(Path(path).read_bytes(), preset=9)
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as out:
        for name in sorted(str(one.relative_to(path)) for one in Path(path).rglob("*")):
            entry = out.gettarinfo(os.path.join(path, name), name)
            entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = 0, 0, 0, "", ""
            if entry.isfile():
                out.addfile(entry, io.BytesIO(Path(path, name).read_bytes()))
            else:
                out.addfile(entry)
    return ".tar.xz", lzma.compress(whole.getvalue(), preset=9)


SORTS = {
    "": {},
    "-killed": {"orphan": True},
    "-flags": {"flagged": True},
    "-poison": {"poisonous": True},
    "-own": {"own_ranges": True},
    "-own-killed": {"own_ranges": True, "orphan": True},
}


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    name = f"rev{layout.FORMAT_REV}"
    with tempfile.TemporaryDirectory() as work:
        for suffix, options in SORTS.items():
            if sys.argv[2:] not in ([], [suffix]):
                continue
            source = f"{work}/{name}{suffix}" + "/" * options.get("own_ranges", False)
            path = populate.make(source, size=8 * populate.MIB, **options)
            end, packed = pack(path)
            (target / f"{name}{suffix}{end}").write_bytes(packed)
            found = contents(path)
            print(f"{name}{suffix}: {len(packed)} bytes packed, {len(found)} names")
            text = json.dumps(found, indent=0, sort_keys=True)
            (target / f"{name}{suffix}.json.xz").write_bytes(lzma.compress(text.encode(), preset=9))


if __name__ == "__main__":
    main()
