# SPDX-License-Identifier: MIT
"""What each metadata operation costs in drains and journal records: data for the test and the docs.

``python tests/t2_meta/drains.py`` prints the table in Markdown.
"""

# operation: (drains, records, why it is not one and one)
TABLE = {
    "create": (1, 1, ""),
    "create, first name of a directory": (1, 1, ""),
    "create, new inode chunk": (1, 1, ""),
    "mkdir": (1, 1, ""),
    "symlink": (1, 1, ""),
    "symlink, long target": (1, 1, ""),
    "mknod": (1, 1, ""),
    "link": (1, 1, ""),
    "O_TMPFILE": (1, 1, ""),
    "link of an O_TMPFILE file": (1, 1, ""),
    "rename": (1, 1, ""),
    "rename over a file": (1, 1, ""),
    "rename over a file, still open": (1, 1, ""),
    "rename over a directory": (1, 1, ""),
    "rename, exchange": (1, 1, ""),
    "rename that leaves a whiteout": (1, 1, ""),
    "unlink, other links left": (1, 1, ""),
    "unlink, still open": (1, 1, ""),
    "unlink, last": (1, 1, ""),
    "unlink, last, with extent blocks and xattrs": (1, 1, ""),
    "last close of an unlinked file": (1, 1, ""),
    "last close of an O_TMPFILE file": (1, 1, ""),
    "rmdir": (1, 1, ""),
    "chmod": (1, 1, ""),
    "chown": (1, 1, ""),
    "utimens": (1, 1, ""),
    "flags of an inode": (1, 1, ""),
    "flags of an inode, the first of the region": (5, 1, "the superblock's feature bit before the record"),
    "label": (4, 0, "a mark, the backup, the superblock, the end of the mark, each before the next"),
    "setxattr": (1, 1, ""),
    "setxattr, ACL": (1, 1, ""),
    "removexattr": (1, 1, ""),
    "truncate to zero": (1, 1, ""),
    "truncate, shorter": (1, 1, ""),
    "truncate, longer": (1, 1, ""),
    "truncate, longer, from within a page": (
        2,
        1,
        "zeros behind the old end before the record with the new size",
    ),
    "write that needs blocks, data apart": (1, 1, ""),
    "append into written pages, data apart": (1, 0, "size and times in place before the reply"),
    "preallocated pages go back": (1, 1, ""),
    "fallocate": (1, 1, ""),
    "fallocate, keep size": (1, 1, ""),
    "fallocate that grows the file from within a page": (
        2,
        1,
        "zeros behind the old end before the record with the new size",
    ),
    "fallocate, punch hole": (1, 1, ""),
    "fallocate, punch hole, edges in written pages": (1, 1, ""),
    "fallocate, zero range, edges in written pages": (1, 1, ""),
    "fallocate, punch hole over 2,500 extents": (3, 3, "a bounded number of extents in each record"),
    "own range: create": (1, 1, ""),
    "own range: create, the first of the region": (5, 1, "the superblock's feature bit before the record"),
    "own range: unlink, last": (1, 1, ""),
    "own range: truncate, longer": (1, 1, ""),
    "own range: truncate, shorter": (1, 1, ""),
    "own range: fallocate": (1, 1, ""),
    "own range: fallocate, punch hole": (1, 1, ""),
    "own range: packed data move there": (2, 1, "the data before the record that makes them the file's"),
    "own range: data move to packed pages": (2, 1, "the data before the record that makes them the file's"),
    "poison: add": (2, 1, "one list for all: what ends its poison is stored before the record"),
    "poison: add, the first of the region": (6, 1, "the superblock's feature bit before the record"),
    "poison: clear": (2, 1, "as add"),
    "poison: fallocate, punch hole over such pages": (2, 1, "zeros in them before the record that ends it"),
    "lookup": (0, 0, "nothing changes"),
    "readdir": (0, 0, "nothing changes"),
    "readlink": (0, 0, "nothing changes"),
    "getxattr": (0, 0, "nothing changes"),
    "access time after a read": (0, 0, "its line is queued, durable at the next drain"),
    "times after a write in place": (0, 0, "their line is queued, durable at the next drain"),
    "fsync, inode in no record since the tail": (1, 0, "orders data and times before the reply"),
    "fsync, inode in a record since the tail": (2, 0, "settle: records stand in place before the tail moves"),
    "failed operation": (0, 0, "media are untouched"),
}


def markdown() -> str:
    """The table as Markdown."""
    rows = ["| operation | drains | records | why |", "|---|---|---|---|"]
    rows += [f"| {name} | {drains} | {records} | {why} |" for name, (drains, records, why) in TABLE.items()]
    return "\n".join(rows)


if __name__ == "__main__":
    print(markdown())
