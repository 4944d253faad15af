/* SPDX-License-Identifier: MIT
 *
 * The answers to requests on open files: serve.c has checked the message and counted itself in as a user
 * of the handle. Each returns SERVE_DONE with r->error and r->len set, or SERVE_CALL with nothing changed.
 */
#ifndef DAXFS_SERVE_FILE_H
#define DAXFS_SERVE_FILE_H

#include "daxfs/native/serve.h"

/* May leave the map's lock held shared and the region entered: then r->handle is set. */
enum serve_verdict serve_read(struct server *s, struct serve_handle *h, const char *arg,
			      struct serve_reply *r);
enum serve_verdict serve_write(struct server *s, struct serve_handle *h, const char *arg, const char *data,
			       struct serve_reply *r);
enum serve_verdict serve_fsync(struct server *s, struct serve_handle *h, struct serve_reply *r);
enum serve_verdict serve_lseek(struct server *s, struct serve_handle *h, const char *arg,
			      struct serve_reply *r);
enum serve_verdict serve_fallocate(struct server *s, struct serve_handle *h, const char *arg,
			      struct serve_reply *r);

static inline enum serve_verdict serve_error(struct serve_reply *r, int error)
{
	r->error = error;
	r->len = 0;
	return SERVE_DONE;
}

/* `len` bytes of reply from `out`. */
static inline enum serve_verdict serve_answer(struct serve_reply *r, const void *out, size_t len)
{
	if (len > r->cap)
		return serve_error(r, -EIO);
	__builtin_memcpy(r->buf, out, len);
	r->len = len;
	return SERVE_DONE;
}

/* Of the inode on media (daxfs/layout.py INODE): the words that change in place, and flags. */
enum {
	INODE_SIZE_AT = 0, INODE_ATIME_AT = 8, INODE_MTIME_AT = 16, INODE_CTIME_AT = 24, INODE_HOT_BYTES = 64,
	INODE_NLINK_AT = 96, INODE_FLAGS_AT = 100, INODE_FLAG_PREALLOC = 1 << 1, INODE_FLAG_OWN = 1 << 2,
	INODE_FLAG_NOATIME = 1 << 10,
};

#endif
