/* SPDX-License-Identifier: MIT
 *
 * Is this request whole? Sizes, names, counts and numbers of every opcode of the FUSE protocol, checked
 * against what is there, before anybody acts on it: libfuse behind the relay checks none of it.
 * Looks at nothing but the message; for serve.c, which knows handles and inodes.
 */
#ifndef DAXFS_MESSAGE_H
#define DAXFS_MESSAGE_H

#include "daxfs/native/serve.h"

/* Which file handle a request carries. */
enum message_handle {
	HANDLE_NONE = 0,
	HANDLE_FILE, HANDLE_DIR, HANDLE_ANY,	/* at byte 0 of the argument */
	HANDLE_IF_GETATTR, HANDLE_IF_SETATTR,	/* at byte 8, where a bit of the first word says so */
	HANDLE_TWO,				/* COPY_FILE_RANGE: byte 0 and, with its inode, bytes 24 and 16 */
};

struct message_shape {
	uint8_t known;
	uint8_t arg;			/* bytes of the fixed struct */
	uint8_t rest;			/* what follows it (message.c) */
	uint8_t handle;			/* enum message_handle */
	uint8_t node;			/* 1: the header names an inode; 2: and byte 0 of the argument another one */
	uint8_t verdict;		/* where it goes if it is not answered natively; SERVE_DONE: ENOSYS */
	uint8_t silent;			/* gets no reply */
};

/* The shape of an opcode; one with known == 0 for those that we don't have. */
const struct message_shape *message_shape(uint32_t opcode);
/* 0, or -errno where the message is not what its opcode says. `max_io`: largest READ, WRITE, READDIR. */
int message_check(const struct message_shape *shape, const struct serve_msg *m, uint64_t max_io);
/* The file handle of a checked message; 0 where it carries none. */
int message_has_handle(const struct message_shape *shape, const struct serve_msg *m, uint64_t *fh);

static inline uint32_t message_u32(const char *at)
{
	uint32_t v;

	__builtin_memcpy(&v, at, sizeof(v));
	return v;
}

static inline uint64_t message_u64(const char *at)
{
	uint64_t v;

	__builtin_memcpy(&v, at, sizeof(v));
	return v;
}

#endif
