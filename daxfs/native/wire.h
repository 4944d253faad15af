/* SPDX-License-Identifier: MIT
 *
 * The FUSE protocol as the transport speaks it: message headers and the argument structs of the requests
 * that are decoded natively. Protocol 7.31 to 7.45; names without the kernel's FUSE_ and fuse_. Debian 12's
 * <linux/fuse.h> does not know the newer half of it, so nothing is taken from there.
 */
#ifndef DAXFS_WIRE_H
#define DAXFS_WIRE_H

#include <stdint.h>

enum wire_opcode {
	WIRE_LOOKUP = 1, WIRE_FORGET = 2, WIRE_GETATTR = 3, WIRE_SETATTR = 4, WIRE_READLINK = 5, WIRE_SYMLINK = 6,
	WIRE_MKNOD = 8, WIRE_MKDIR = 9, WIRE_UNLINK = 10, WIRE_RMDIR = 11, WIRE_RENAME = 12, WIRE_LINK = 13,
	WIRE_OPEN = 14, WIRE_READ = 15, WIRE_WRITE = 16, WIRE_STATFS = 17, WIRE_RELEASE = 18, WIRE_FSYNC = 20,
	WIRE_SETXATTR = 21, WIRE_GETXATTR = 22, WIRE_LISTXATTR = 23, WIRE_REMOVEXATTR = 24, WIRE_FLUSH = 25,
	WIRE_INIT = 26, WIRE_OPENDIR = 27, WIRE_READDIR = 28, WIRE_RELEASEDIR = 29, WIRE_FSYNCDIR = 30,
	WIRE_GETLK = 31, WIRE_SETLK = 32, WIRE_SETLKW = 33, WIRE_ACCESS = 34, WIRE_CREATE = 35, WIRE_INTERRUPT = 36,
	WIRE_BMAP = 37, WIRE_DESTROY = 38, WIRE_IOCTL = 39, WIRE_POLL = 40, WIRE_NOTIFY_REPLY = 41,
	WIRE_BATCH_FORGET = 42, WIRE_FALLOCATE = 43, WIRE_READDIRPLUS = 44, WIRE_RENAME2 = 45, WIRE_LSEEK = 46,
	WIRE_COPY_FILE_RANGE = 47, WIRE_SETUPMAPPING = 48, WIRE_REMOVEMAPPING = 49, WIRE_SYNCFS = 50,
	WIRE_TMPFILE = 51, WIRE_STATX = 52, WIRE_COPY_FILE_RANGE_64 = 53,
	WIRE_OPCODES = 64,	/* all opcodes are below */
};

struct wire_in {			/* before every request */
	uint32_t len, opcode;
	uint64_t unique, nodeid;
	uint32_t uid, gid, pid;
	uint16_t extra_len, padding;	/* extensions at the end, in units of 8 bytes */
};

struct wire_out {			/* before every reply */
	uint32_t len;
	int32_t error;			/* 0 or -errno */
	uint64_t unique;
};

#define WIRE_READ_LOCKOWNER (1u << 1)		/* a program's read past the page cache; page fills come without it */
struct wire_read {			/* READ, READDIR, READDIRPLUS */
	uint64_t fh, offset;
	uint32_t size, read_flags;
	uint64_t lock_owner;
	uint32_t flags, padding;
};

#define WIRE_WRITE_CACHE (1u << 0)		/* write-back of a page of a mapping */
#define WIRE_WRITE_KILL_SUIDGID (1u << 2)	/* HANDLE_KILLPRIV_V2: the writer has no CAP_FSETID */
struct wire_write {
	uint64_t fh, offset;
	uint32_t size, write_flags;
	uint64_t lock_owner;
	uint32_t flags, padding;
};
struct wire_write_out { uint32_t size, padding; };

#define WIRE_FSYNC_DATASYNC 1u
struct wire_fsync { uint64_t fh; uint32_t flags, padding; };		/* FSYNC, FSYNCDIR */
struct wire_flush { uint64_t fh; uint32_t unused, padding; uint64_t lock_owner; };
struct wire_release { uint64_t fh; uint32_t flags, release_flags; uint64_t lock_owner; };
struct wire_lseek { uint64_t fh, offset; uint32_t whence, padding; };
struct wire_lseek_out { uint64_t offset; };
struct wire_fallocate { uint64_t fh, offset, length; uint32_t mode, padding; };
struct wire_interrupt { uint64_t unique; };
struct wire_forget { uint64_t nlookup; };

struct wire_open { uint32_t flags, open_flags; };	/* of open(2); of FUSE */
struct wire_open_out { uint64_t fh; uint32_t open_flags; int32_t backing_id; };	/* OPEN, end of CREATE */

#define WIRE_GETATTR_FH 1u
struct wire_getattr { uint32_t flags, dummy; uint64_t fh; };
struct wire_attr {
	uint64_t ino, size, blocks;
	int64_t atime, mtime, ctime;
	uint32_t atimensec, mtimensec, ctimensec;
	uint32_t mode, nlink, uid, gid, rdev, blksize, flags;
};
struct wire_attr_out { uint64_t attr_valid; uint32_t attr_valid_nsec, dummy; struct wire_attr attr; };

_Static_assert(sizeof(struct wire_in) == 40, "fuse_in_header");
_Static_assert(sizeof(struct wire_out) == 16, "fuse_out_header");
_Static_assert(sizeof(struct wire_read) == 40, "fuse_read_in");
_Static_assert(sizeof(struct wire_write) == 40, "fuse_write_in");
_Static_assert(sizeof(struct wire_open_out) == 16, "fuse_open_out");
_Static_assert(sizeof(struct wire_attr) == 88 && sizeof(struct wire_attr_out) == 104, "fuse_attr_out");

#endif
