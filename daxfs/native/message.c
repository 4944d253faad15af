/* SPDX-License-Identifier: MIT
 *
 * The table of opcodes, and the checks behind it (message.h). Rules come from what Linux 5.15 to 6.18
 * sends: the fixed structs have not changed since protocol 7.31, but for SETXATTR's, whose longer form
 * comes only after SETXATTR_EXT was agreed on; nobody here asks for it.
 */
#include <errno.h>
#include <string.h>

#include "daxfs/native/message.h"

#define HEADER sizeof(struct wire_in)
#define NAME_MAX_BYTES 255
#define TARGET_MAX_BYTES 4095
#define XATTR_VALUE_MAX 65536
#define INIT_LONG 48			/* what INIT has behind its first 16 bytes since 7.36 */
#define FORGET_ONE 16			/* fuse_forget_one: nodeid, nlookup */
#define NSEC_PER_SEC 1000000000u

/* What follows the fixed struct. */
enum rest {
	REST_NOTHING, REST_NAME, REST_TWO_NAMES, REST_NAME_AND_TARGET, REST_XATTR, REST_XATTR_AND_VALUE,
	REST_ANY_NAME,			/* TMPFILE: the name of a dentry that has none yet */
	REST_DATA,			/* WRITE */
	REST_FORGETS, REST_IOCTL, REST_INIT, REST_ANYTHING,
};

#define SHAPE(arg, rest, handle, node, verdict) {1, arg, rest, handle, node, verdict, 0}
#define QUIET(arg, rest, node, verdict) {1, arg, rest, HANDLE_NONE, node, verdict, 1}
#define REFUSED {1, 0, REST_ANYTHING, HANDLE_NONE, 0, SERVE_DONE, 0}

static const struct message_shape shapes[WIRE_OPCODES] = {
	[WIRE_LOOKUP] = SHAPE(0, REST_NAME, HANDLE_NONE, 1, SERVE_RELAY),
	[WIRE_FORGET] = QUIET(8, REST_NOTHING, 1, SERVE_FORGET),
	[WIRE_GETATTR] = SHAPE(16, REST_NOTHING, HANDLE_IF_GETATTR, 1, SERVE_RELAY),
	[WIRE_SETATTR] = SHAPE(88, REST_NOTHING, HANDLE_IF_SETATTR, 1, SERVE_RELAY),
	[WIRE_READLINK] = SHAPE(0, REST_NOTHING, HANDLE_NONE, 1, SERVE_RELAY),
	[WIRE_SYMLINK] = SHAPE(0, REST_NAME_AND_TARGET, HANDLE_NONE, 1, SERVE_RELAY),
	[WIRE_MKNOD] = SHAPE(16, REST_NAME, HANDLE_NONE, 1, SERVE_RELAY),
	[WIRE_MKDIR] = SHAPE(8, REST_NAME, HANDLE_NONE, 1, SERVE_RELAY),
	[WIRE_UNLINK] = SHAPE(0, REST_NAME, HANDLE_NONE, 1, SERVE_RELAY),
	[WIRE_RMDIR] = SHAPE(0, REST_NAME, HANDLE_NONE, 1, SERVE_RELAY),
	[WIRE_RENAME] = SHAPE(8, REST_TWO_NAMES, HANDLE_NONE, 2, SERVE_RELAY),
	[WIRE_LINK] = SHAPE(8, REST_NAME, HANDLE_NONE, 2, SERVE_RELAY),
	[WIRE_OPEN] = SHAPE(8, REST_NOTHING, HANDLE_NONE, 1, SERVE_RELAY),
	[WIRE_READ] = SHAPE(40, REST_NOTHING, HANDLE_FILE, 1, SERVE_CALL),
	[WIRE_WRITE] = SHAPE(40, REST_DATA, HANDLE_FILE, 1, SERVE_CALL),
	[WIRE_STATFS] = SHAPE(0, REST_NOTHING, HANDLE_NONE, 1, SERVE_RELAY),
	[WIRE_RELEASE] = SHAPE(24, REST_NOTHING, HANDLE_FILE, 1, SERVE_RELAY),
	[WIRE_FSYNC] = SHAPE(16, REST_NOTHING, HANDLE_FILE, 1, SERVE_CALL),
	[WIRE_SETXATTR] = SHAPE(8, REST_XATTR_AND_VALUE, HANDLE_NONE, 1, SERVE_RELAY),
	[WIRE_GETXATTR] = SHAPE(8, REST_XATTR, HANDLE_NONE, 1, SERVE_RELAY),
	[WIRE_LISTXATTR] = SHAPE(8, REST_NOTHING, HANDLE_NONE, 1, SERVE_RELAY),
	[WIRE_REMOVEXATTR] = SHAPE(0, REST_XATTR, HANDLE_NONE, 1, SERVE_RELAY),
	[WIRE_FLUSH] = SHAPE(24, REST_NOTHING, HANDLE_FILE, 1, SERVE_RELAY),
	[WIRE_INIT] = SHAPE(16, REST_INIT, HANDLE_NONE, 0, SERVE_RELAY),
	[WIRE_OPENDIR] = SHAPE(8, REST_NOTHING, HANDLE_NONE, 1, SERVE_RELAY),
	[WIRE_READDIR] = SHAPE(40, REST_NOTHING, HANDLE_DIR, 1, SERVE_CALL),
	[WIRE_RELEASEDIR] = SHAPE(24, REST_NOTHING, HANDLE_DIR, 1, SERVE_RELAY),
	[WIRE_FSYNCDIR] = SHAPE(16, REST_NOTHING, HANDLE_DIR, 1, SERVE_CALL),
	[WIRE_GETLK] = REFUSED, [WIRE_SETLK] = REFUSED, [WIRE_SETLKW] = REFUSED,
	[WIRE_ACCESS] = SHAPE(8, REST_NOTHING, HANDLE_NONE, 1, SERVE_RELAY),
	[WIRE_CREATE] = SHAPE(16, REST_NAME, HANDLE_NONE, 1, SERVE_RELAY),
	[WIRE_INTERRUPT] = QUIET(8, REST_NOTHING, 0, SERVE_INTERRUPT),
	[WIRE_BMAP] = REFUSED,
	[WIRE_DESTROY] = SHAPE(0, REST_NOTHING, HANDLE_NONE, 0, SERVE_RELAY),
	[WIRE_IOCTL] = SHAPE(32, REST_IOCTL, HANDLE_ANY, 1, SERVE_CALL),
	[WIRE_POLL] = REFUSED,
	[WIRE_NOTIFY_REPLY] = QUIET(0, REST_ANYTHING, 0, SERVE_DROP),	/* nobody asked */
	[WIRE_BATCH_FORGET] = QUIET(8, REST_FORGETS, 0, SERVE_FORGET),
	[WIRE_FALLOCATE] = SHAPE(32, REST_NOTHING, HANDLE_FILE, 1, SERVE_CALL),
	[WIRE_READDIRPLUS] = SHAPE(40, REST_NOTHING, HANDLE_DIR, 1, SERVE_RELAY),
	[WIRE_RENAME2] = SHAPE(16, REST_TWO_NAMES, HANDLE_NONE, 2, SERVE_RELAY),
	[WIRE_LSEEK] = SHAPE(24, REST_NOTHING, HANDLE_FILE, 1, SERVE_CALL),
	[WIRE_COPY_FILE_RANGE] = SHAPE(56, REST_NOTHING, HANDLE_TWO, 1, SERVE_CALL),
	[WIRE_SETUPMAPPING] = REFUSED, [WIRE_REMOVEMAPPING] = REFUSED,
	[WIRE_SYNCFS] = SHAPE(8, REST_NOTHING, HANDLE_NONE, 1, SERVE_CALL),
	[WIRE_TMPFILE] = SHAPE(16, REST_ANY_NAME, HANDLE_NONE, 1, SERVE_CALL),
	[WIRE_STATX] = SHAPE(24, REST_NOTHING, HANDLE_IF_GETATTR, 1, SERVE_CALL),
	[WIRE_COPY_FILE_RANGE_64] = SHAPE(56, REST_NOTHING, HANDLE_TWO, 1, SERVE_CALL),
};
static const struct message_shape unknown = {0, 0, REST_ANYTHING, HANDLE_NONE, 0, SERVE_DONE, 0};

const struct message_shape *message_shape(uint32_t opcode)
{
	return opcode < WIRE_OPCODES && shapes[opcode].known ? &shapes[opcode] : &unknown;
}

size_t serve_arg_size(uint32_t opcode)
{
	return message_shape(opcode)->arg;
}

int serve_split(const char *bytes, size_t n, struct serve_msg *m)
{
	size_t arg;

	if (n < HEADER)
		return -EINVAL;
	m->head = (const struct wire_in *)bytes;
	arg = serve_arg_size(m->head->opcode);
	if (arg > n - HEADER)
		arg = n - HEADER;
	m->arg = bytes + HEADER;
	m->arg_len = arg;
	m->data = m->arg + arg;
	m->data_len = n - HEADER - arg;
	return 0;
}

/* -- names ------------------------------------------------------------------------------ */

/* The string at the start of `len` bytes: its length, or -EINVAL without a NUL. */
static int64_t string_length(const char *data, size_t len)
{
	const char *end = len ? memchr(data, 0, len) : NULL;

	return end ? end - data : -EINVAL;
}

static int check_name(const char *name, int64_t length)
{
	if (length <= 0 || memchr(name, '/', (size_t)length))
		return -EINVAL;
	return length > NAME_MAX_BYTES ? -ENAMETOOLONG : 0;
}

static int check_target(int64_t length)
{
	if (length <= 0)
		return length ? -EINVAL : -ENOENT;
	return length > TARGET_MAX_BYTES ? -ENAMETOOLONG : 0;
}

/* `count` strings that fill `len` bytes; the last one may be a symlink's target. */
static int check_names(const char *data, size_t len, int count, int target)
{
	while (count--) {
		int64_t length = string_length(data, len);
		int rc = target && !count ? check_target(length) : check_name(data, length);

		if (rc)
			return rc;
		data += length + 1;
		len -= (size_t)length + 1;
	}
	return len ? -EINVAL : 0;
}

/* A name of an extended attribute and `size` bytes of value. */
static int check_xattr(const char *data, size_t len, uint64_t size)
{
	int64_t length = string_length(data, len);

	if (length < 0)
		return -EINVAL;
	if (!length || length > NAME_MAX_BYTES)
		return -ERANGE;
	if (size > XATTR_VALUE_MAX)
		return -E2BIG;
	return len - (size_t)length - 1 == size ? 0 : -EINVAL;
}

/* -- extensions, the rest ---------------------------------------------------------------- */

/* Extensions stand at the very end, each with its size in front; *len becomes what is before them. */
static int strip_extensions(const struct serve_msg *m, size_t *len)
{
	size_t size = (size_t)m->head->extra_len * 8;
	const char *at;

	*len = m->data_len;
	if (!size)
		return 0;
	switch (m->head->opcode) {
	case WIRE_SYMLINK: case WIRE_MKNOD: case WIRE_MKDIR: case WIRE_CREATE: case WIRE_TMPFILE:
		break;
	default:
		return -EINVAL;
	}
	if (size > m->data_len)
		return -EINVAL;
	*len -= size;
	at = m->data + *len;
	while (size) {
		uint32_t one = message_u32(at);

		if (one < 8 || one > size || one % 8)
			return -EINVAL;
		at += one;
		size -= one;
	}
	return 0;
}

static int check_rest(const struct message_shape *shape, const struct serve_msg *m)
{
	size_t len;
	int rc = strip_extensions(m, &len);

	if (rc)
		return rc;
	switch (shape->rest) {
	case REST_NOTHING:
		return len ? -EINVAL : 0;
	case REST_NAME:
		return check_names(m->data, len, 1, 0);
	case REST_TWO_NAMES:
		return check_names(m->data, len, 2, 0);
	case REST_NAME_AND_TARGET:
		return check_names(m->data, len, 2, 1);
	case REST_XATTR:
		return check_xattr(m->data, len, 0);
	case REST_XATTR_AND_VALUE:
		return check_xattr(m->data, len, message_u32(m->arg));
	case REST_ANY_NAME:
		return string_length(m->data, len) + 1 == (int64_t)len && len <= NAME_MAX_BYTES + 1 ? 0 : -EINVAL;
	case REST_DATA:
		return len == message_u32(m->arg + offsetof(struct wire_write, size)) ? 0 : -EINVAL;
	case REST_FORGETS:
		return len == (uint64_t)message_u32(m->arg) * FORGET_ONE ? 0 : -EINVAL;
	case REST_IOCTL:
		return len == message_u32(m->arg + 24) ? 0 : -EINVAL;	/* in_size */
	case REST_INIT:
		return len == 0 || len == INIT_LONG ? 0 : -EINVAL;
	}
	return 0;
}

/* -- numbers ---------------------------------------------------------------------------- */

static int check_setattr(const char *arg)
{
	uint32_t valid = message_u32(arg);

	if (valid & 1u << 3 && message_u64(arg + 16) > INT64_MAX)	/* size */
		return -EFBIG;
	if (valid & 1u << 4 && message_u32(arg + 56) >= NSEC_PER_SEC)	/* atime */
		return -EINVAL;
	if (valid & 1u << 5 && message_u32(arg + 60) >= NSEC_PER_SEC)	/* mtime */
		return -EINVAL;
	return 0;
}

/* Sizes that somebody would allocate, and positions that would be negative. */
static int check_numbers(const struct serve_msg *m, uint64_t max_io)
{
	const char *arg = m->arg;

	switch (m->head->opcode) {
	case WIRE_READ: case WIRE_WRITE: case WIRE_READDIR: case WIRE_READDIRPLUS:
		return message_u64(arg + 8) > INT64_MAX || message_u32(arg + 16) > max_io ? -EINVAL : 0;
	case WIRE_FALLOCATE:
		return message_u64(arg + 8) > INT64_MAX || message_u64(arg + 16) > INT64_MAX ? -EINVAL : 0;
	case WIRE_COPY_FILE_RANGE: case WIRE_COPY_FILE_RANGE_64:
		if (message_u64(arg + 8) > INT64_MAX || message_u64(arg + 32) > INT64_MAX)
			return -EINVAL;
		return message_u64(arg + 40) > INT64_MAX ? -EINVAL : 0;
	case WIRE_IOCTL:
		return message_u32(arg + 28) > max_io ? -EINVAL : 0;	/* out_size */
	case WIRE_SETXATTR:
		return message_u32(arg + 4) & ~3u ? -EINVAL : 0;	/* CREATE, REPLACE: pyfuse3 dies of others */
	case WIRE_SETATTR:
		return check_setattr(arg);
	}
	return 0;
}

int message_check(const struct message_shape *shape, const struct serve_msg *m, uint64_t max_io)
{
	int rc;

	if (m->head->len != HEADER + (uint64_t)m->arg_len + m->data_len || m->arg_len != shape->arg)
		return -EINVAL;
	rc = check_rest(shape, m);
	return rc ? rc : check_numbers(m, max_io);
}

int message_has_handle(const struct message_shape *shape, const struct serve_msg *m, uint64_t *fh)
{
	uint32_t bit = shape->handle == HANDLE_IF_GETATTR ? 1u : 1u << 6;

	switch (shape->handle) {
	case HANDLE_NONE:
		return 0;
	case HANDLE_IF_GETATTR: case HANDLE_IF_SETATTR:
		*fh = message_u64(m->arg + 8);
		return !!(message_u32(m->arg) & bit);
	default:
		*fh = message_u64(m->arg);
		return 1;
	}
}
