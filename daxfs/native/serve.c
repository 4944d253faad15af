/* SPDX-License-Identifier: MIT
 *
 * From a request to its verdict (serve.h): check it, find its handle, answer it or say whose it is. The
 * answers on open files are in serve_file.c, those that open and close them in serve_park.c, the checks of
 * messages in message.c; here are the table of handles, GETATTR, and the counters.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "daxfs/native/message.h"
#include "daxfs/native/serve_file.h"
#include "daxfs/native/serve_park.h"

#define NSEC_PER_SEC INT64_C(1000000000)
#define SENDING_TRIES 10000

/* -- handles ---------------------------------------------------------------------------- */

static struct serve_handle *handle_at(struct server *s, uint32_t index)
{
	uint32_t round = index / SERVE_CHUNK + 1, k = 31 - (uint32_t)__builtin_clz(round);
	struct serve_handle *chunk;

	if (k >= SERVE_CHUNKS)
		return NULL;
	chunk = __atomic_load_n(&s->chunk[k], __ATOMIC_ACQUIRE);
	return chunk ? chunk + (index - SERVE_CHUNK * ((1u << k) - 1)) : NULL;
}

static void handle_put(struct serve_handle *h)
{
	__atomic_fetch_sub(&h->users, 1, __ATOMIC_RELEASE);
}

/* The handle, counted in as used; NULL where there is none with this number. */
static struct serve_handle *handle_get(struct server *s, uint64_t fh)
{
	struct serve_handle *h = fh ? handle_at(s, (uint32_t)fh) : NULL;

	if (!h)
		return NULL;
	/* Counted before the look at `fh`, which close clears before it looks at `users`. */
	__atomic_fetch_add(&h->users, 1, __ATOMIC_SEQ_CST);
	if (__atomic_load_n(&h->fh, __ATOMIC_SEQ_CST) == fh)
		return h;
	handle_put(h);
	return NULL;
}

/* A free handle, under s->lock; NULL: no memory, or too many. */
static struct serve_handle *handle_new(struct server *s, uint32_t *index)
{
	struct serve_handle *h = s->free;
	uint32_t round = s->used / SERVE_CHUNK + 1, k = 31 - (uint32_t)__builtin_clz(round);

	if (h) {
		s->free = h->next_free;
		*index = h->index;
		return h;
	}
	if (k >= SERVE_CHUNKS)
		return NULL;
	if (!s->chunk[k]) {
		struct serve_handle *chunk = calloc((size_t)SERVE_CHUNK << k, sizeof(*chunk));

		if (!chunk)
			return NULL;
		__atomic_store_n(&s->chunk[k], chunk, __ATOMIC_RELEASE);
	}
	*index = s->used++;
	return handle_at(s, *index);
}

uint64_t server_open(struct server *s, struct filemap *f, uint64_t ino, uint32_t flags, int32_t backing,
		     const struct serve_opener *opener)
{
	struct serve_handle *h;
	uint32_t index;
	uint64_t fh = 0;

	pthread_mutex_lock(&s->lock);
	h = handle_new(s, &index);
	if (h) {
		h->index = index;
		h->f = f;
		h->ino = ino;
		h->flags = flags;
		h->backing = backing;
		h->opener = opener ? *opener : (struct serve_opener){SERVE_NO_OPENER, 0, 0, 0};
		h->open_flags = 0;
		h->parked = SERVE_USED;
		h->taken = 0;
		if (!++h->generation)	/* never 0, so that no fh is */
			h->generation = 1;
		fh = (uint64_t)h->generation << 32 | index;
		__atomic_store_n(&h->fh, fh, __ATOMIC_SEQ_CST);
	}
	pthread_mutex_unlock(&s->lock);
	return fh;
}

int32_t server_backing(struct server *s, uint64_t fh)
{
	struct serve_handle *h = handle_get(s, fh);
	int32_t backing = 0;

	if (h) {
		backing = h->backing;
		handle_put(h);
	}
	return backing;
}

uint32_t server_opener(struct server *s, uint64_t fh)
{
	struct serve_handle *h = handle_get(s, fh);
	uint32_t pid = 0;

	if (h) {
		pid = __atomic_load_n(&h->opener.pid, __ATOMIC_RELAXED);
		handle_put(h);
	}
	return pid;
}

uint32_t server_taken(struct server *s, uint64_t fh)
{
	struct serve_handle *h = handle_get(s, fh);
	uint32_t taken = 0;

	if (h) {
		taken = __atomic_load_n(&h->taken, __ATOMIC_RELAXED);
		handle_put(h);
	}
	return taken;
}

void server_opened(struct server *s, uint64_t fh, uint32_t open_flags)
{
	struct serve_handle *h = handle_get(s, fh);

	if (h) {
		__atomic_store_n(&h->open_flags, open_flags, __ATOMIC_RELAXED);
		handle_put(h);
	}
}

int server_close(struct server *s, uint64_t fh)
{
	struct timespec nap = {0, 20000};
	struct serve_handle *h = fh ? handle_at(s, (uint32_t)fh) : NULL;
	uint64_t expected = fh;
	int round;

	if (h)
		server_unpark(s, h, fh);
	if (!h || !__atomic_compare_exchange_n(&h->fh, &expected, 0, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
		return -EBADF;
	for (round = 0; __atomic_load_n(&h->users, __ATOMIC_SEQ_CST); round++) {
		if (round < 50)
			sched_yield();
		else
			nanosleep(&nap, NULL);
	}
	pthread_mutex_lock(&s->lock);
	h->f = NULL;
	h->next_free = s->free;
	s->free = h;
	pthread_mutex_unlock(&s->lock);
	return 0;
}

int64_t server_realtime(struct server *s)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return now.tv_sec * NSEC_PER_SEC + now.tv_nsec;
}

int server_init(struct server *s, struct daxio *io)
{
	memset(s, 0, sizeof(*s));
	s->io = io;
	s->now = server_realtime;
	s->limits.ranges = s->park_event = -1;
	return -pthread_mutex_init(&s->lock, NULL);
}

void server_destroy(struct server *s)
{
	int k;

	for (k = 0; k < SERVE_CHUNKS; k++)
		free(s->chunk[k]);
	memset(s->chunk, 0, sizeof(s->chunk));
	pthread_mutex_destroy(&s->lock);
}

/* -- GETATTR ---------------------------------------------------------------------------- */

/* The inode on media: daxfs/layout.py INODE. */
struct inode {
	uint64_t size;
	int64_t atime, mtime, ctime;
	uint64_t hot_reserved[4];
	uint32_t magic, crc;
	uint64_t ino;
	uint32_t generation, mode, uid, gid, nlink, flags;
	uint64_t rdev;
	int64_t btime;
	uint64_t parent, blocks, ext_root, xattr_pfn;
	uint32_t xattr_pages, nextents;
	char inl[96];
};
_Static_assert(sizeof(struct inode) == 256, "layout.INODE");
_Static_assert(offsetof(struct inode, ino) == 72 && offsetof(struct inode, blocks) == 128, "layout.INODE");
_Static_assert(offsetof(struct inode, flags) == INODE_FLAGS_AT, "layout.INODE");
_Static_assert(offsetof(struct inode, nlink) == INODE_NLINK_AT, "layout.INODE");
_Static_assert(offsetof(struct inode, ctime) == INODE_CTIME_AT, "layout.INODE");

#define INODE_BYTES sizeof(struct inode)
#define INODE_TRIES 100
#define ATTR_VALID 3600		/* fuse/ops.py TIMEOUT */

/* The inode as it stands in the region, between two changes of metadata. 0, or -EAGAIN: they don't stop. */
static int inode_copy(struct server *s, uint64_t ino, struct inode *out)
{
	const uint64_t *from = (const uint64_t *)(s->limits.inodes + ino * INODE_BYTES);
	uint64_t *to = (uint64_t *)out, seq;
	int n, i;

	for (n = 0; n < INODE_TRIES; n++) {
		seq = __atomic_load_n(&s->io->table->seq, __ATOMIC_ACQUIRE);
		if (seq & 1) {
			sched_yield();
			continue;
		}
		for (i = 0; i < INODE_BYTES / 8; i++)
			to[i] = __atomic_load_n(&from[i], __ATOMIC_RELAXED);
		/* The words before the second look at seq. */
		__atomic_thread_fence(__ATOMIC_ACQUIRE);
		if (__atomic_load_n(&s->io->table->seq, __ATOMIC_RELAXED) == seq)
			return 0;
	}
	return -EAGAIN;
}

/* Seconds and nanoseconds as pyfuse3 makes them: rounded down, before 1970 too. */
static void split_time(int64_t ns, int64_t *sec, uint32_t *nsec)
{
	int64_t rest = ns % NSEC_PER_SEC;

	*sec = ns / NSEC_PER_SEC - (rest < 0);
	*nsec = (uint32_t)(rest < 0 ? rest + NSEC_PER_SEC : rest);
}

static int own_seq(const struct server *s, uint64_t *seq)
{
	*seq = __atomic_load_n(&s->io->table->own_seq, __ATOMIC_ACQUIRE);
	return *seq & 1 ? -EAGAIN : 0;
}

/* What meta/own.py `shown` does: stores through mappings change the times of the range, not the inode's, and
 * the inode has no blocks. 0, or an errno where the range can't be asked: Python says what is wrong. */
static int show_own(struct server *s, struct inode *inode, uint64_t *blocks)
{
	char name[32];
	struct stat st;
	int64_t mtime;

	snprintf(name, sizeof(name), "%" PRIx64 "-%" PRIx32, inode->ino, inode->generation);
	if (fstatat(s->limits.ranges, name, &st, AT_SYMLINK_NOFOLLOW))
		return -errno;
	if (__builtin_mul_overflow((int64_t)st.st_mtim.tv_sec, NSEC_PER_SEC, &mtime)
	    || __builtin_add_overflow(mtime, st.st_mtim.tv_nsec, &mtime))
		return -EOVERFLOW;
	if (mtime && (mtime > inode->mtime || inode->mtime > s->now(s))) {
		inode->mtime = mtime;
		if (inode->ctime < mtime)
			inode->ctime = mtime;
	}
	*blocks = (uint64_t)st.st_blocks;
	return 0;
}

/* The inode as programs see it, and 512-byte blocks that it has beside its own. 0, or an errno: not now. */
static int inode_shown(struct server *s, uint64_t ino, struct inode *inode, uint64_t *blocks)
{
	uint64_t seq, again;
	int rc;

	if (own_seq(s, &seq))
		seq = UINT64_MAX;	/* of use to packed inodes alone */
	if (range_enter(s->io->table))
		return -EIO;
	rc = range_leave(s->io->table, inode_copy(s, ino, inode));
	if (rc)
		return rc;
	if (!inode->mode || inode->ino != ino)
		return -ENOENT;
	*blocks = 0;
	if (!(inode->flags & INODE_FLAG_OWN))
		return 0;
	/* Not entered: what the file system below takes must keep nobody from killing the region. */
	rc = seq == UINT64_MAX ? -EAGAIN : show_own(s, inode, blocks);
	/* Inode and range were looked at one after the other: they must not have changed together meanwhile. */
	if (!rc && (own_seq(s, &again) || again != seq))
		rc = -EAGAIN;
	return rc;
}

static enum serve_verdict serve_getattr(struct server *s, uint64_t ino, struct serve_reply *r)
{
	struct wire_attr_out out = {0};
	struct wire_attr *a = &out.attr;
	struct inode inode;
	uint64_t blocks;

	if (!s->limits.inodes || inode_shown(s, ino, &inode, &blocks))
		return SERVE_RELAY;
	/* A direct write may drop these bits behind the kernel's back, and the last close gives blocks back. And of
	 * a range a program changes the times by its mapping. */
	if (!(inode.mode & 06000) && !(inode.flags & (INODE_FLAG_PREALLOC | INODE_FLAG_OWN)))
		out.attr_valid = ATTR_VALID;
	a->ino = ino;
	a->size = inode.size;
	a->blocks = inode.blocks * 8 + blocks;
	split_time(inode.atime, &a->atime, &a->atimensec);
	split_time(inode.mtime, &a->mtime, &a->mtimensec);
	split_time(inode.ctime, &a->ctime, &a->ctimensec);
	a->mode = inode.mode;
	a->nlink = inode.nlink;
	a->uid = inode.uid;
	a->gid = inode.gid;
	a->rdev = (uint32_t)inode.rdev;
	a->blksize = 4096;
	return serve_answer(r, &out, sizeof(out));
}

/* -- the request ------------------------------------------------------------------------ */

static int is_inode(const struct server *s, uint64_t ino)
{
	return ino && ino < __atomic_load_n(&s->limits.inode_limit, __ATOMIC_RELAXED);
}

/* One of the raw region's: always there, and only Python knows its attributes. */
static int is_raw(const struct server *s, uint64_t ino)
{
	return ino >= s->limits.raw_first && ino < s->limits.raw_end;
}

static int is_node(const struct server *s, uint64_t ino)
{
	return is_inode(s, ino) || is_raw(s, ino);
}

/* 0, or -ESTALE where the message names an inode that can't be. */
static int check_nodes(struct server *s, const struct message_shape *shape, const struct serve_msg *m)
{
	uint64_t i, n;

	if (shape->node && !is_node(s, m->head->nodeid))
		return -ESTALE;
	if (shape->node == 2 && !is_node(s, message_u64(m->arg)))
		return -ESTALE;
	if (shape->handle == HANDLE_TWO && !is_node(s, message_u64(m->arg + 16)))
		return -ESTALE;
	if (m->head->opcode == WIRE_BATCH_FORGET)
		for (i = 0, n = message_u32(m->arg); i < n; i++)
			if (!is_node(s, message_u64(m->data + 16 * i)))
				return -ESTALE;
	return 0;
}

/* Is h, found by number, a handle that this request may carry? */
static int handle_fits(const struct message_shape *shape, const struct serve_handle *h, uint64_t ino)
{
	int directory = !!(h->flags & SERVE_DIRECTORY);

	if (h->ino != ino || __atomic_load_n(&h->parked, __ATOMIC_ACQUIRE) != SERVE_USED)
		return 0;
	if (shape->handle == HANDLE_FILE || shape->handle == HANDLE_TWO)
		return !directory;
	return shape->handle != HANDLE_DIR || directory;
}

/* Find the handle of the request, if it carries one: *h is then in use. 0 or -EBADF. */
static int find_handle(struct server *s, const struct message_shape *shape, const struct serve_msg *m,
		       struct serve_handle **h)
{
	struct serve_handle *second;
	uint64_t fh;
	int fits = 1;

	*h = NULL;
	if (!message_has_handle(shape, m, &fh))
		return 0;
	*h = handle_get(s, fh);
	if (!*h)
		return -EBADF;
	fits = handle_fits(shape, *h, m->head->nodeid);
	if (fits && shape->handle == HANDLE_TWO) {
		second = handle_get(s, message_u64(m->arg + 24));
		fits = second && handle_fits(shape, second, message_u64(m->arg + 16));
		if (second)
			handle_put(second);
	}
	if (fits)
		return 0;
	handle_put(*h);
	*h = NULL;
	return -EBADF;
}

/* Answer what can be; the message is checked, h is its handle or NULL. */
static enum serve_verdict answer(struct server *s, const struct message_shape *shape,
				 const struct serve_msg *m, struct serve_handle *h, struct serve_reply *r)
{
	if (__atomic_load_n(&s->limits.nothing, __ATOMIC_RELAXED))
		return shape->verdict;
	switch (m->head->opcode) {
	case WIRE_READ:
		return serve_read(s, h, m->arg, r);
	case WIRE_WRITE:
		return serve_write(s, h, m->arg, m->data, r);
	case WIRE_FSYNC:
	case WIRE_FSYNCDIR:
		return serve_fsync(s, h, r);
	case WIRE_OPEN:
		return serve_open(s, m, r);
	case WIRE_RELEASE:
		return serve_release(s, h);
	case WIRE_FLUSH:	/* close(2) promises nothing; errors of write-back were told to the writes */
		return SERVE_DONE;
	case WIRE_LSEEK:
		return serve_lseek(s, h, m->arg, r);
	case WIRE_FALLOCATE:
		return serve_fallocate(s, h, m->arg, r);
	case WIRE_GETATTR:
		if (__atomic_load_n(&s->limits.getattr, __ATOMIC_RELAXED) && is_inode(s, m->head->nodeid))
			return serve_getattr(s, m->head->nodeid, r);
	}
	return shape->verdict;
}

static enum serve_verdict decide(struct server *s, struct serve_counts *c, const struct serve_msg *m,
				 struct serve_reply *r)
{
	const struct message_shape *shape = message_shape(m->head->opcode);
	struct serve_handle *h = NULL;
	enum serve_verdict verdict;
	int rc;

	if (shape->verdict == SERVE_DONE)	/* an opcode that we don't have, whatever stands in it */
		return serve_error(r, -ENOSYS);
	rc = message_check(shape, m, s->limits.max_write);
	if (rc)
		__atomic_store_n(&c->malformed, c->malformed + 1, __ATOMIC_RELAXED);
	else
		rc = check_nodes(s, shape, m);
	if (!rc)
		rc = find_handle(s, shape, m, &h);
	if (rc && shape->silent)
		return SERVE_DROP;
	if (rc)
		return serve_error(r, rc);
	verdict = answer(s, shape, m, h, r);
	if (h && r->handle != h)
		handle_put(h);
	return verdict;
}

/* -- counters --------------------------------------------------------------------------- */

/* Written by one thread, read by others. */
static void bump(uint64_t *counter, uint64_t n)
{
	__atomic_store_n(counter, *counter + n, __ATOMIC_RELAXED);
}

static void count(struct serve_counts *c, uint32_t op, int error, uint64_t ns)
{
	int bucket = ns ? 64 - __builtin_clzll(ns) : 0;

	bump(&c->count[op], 1);
	bump(&c->total_ns[op], ns);
	bump(&c->bucket[op][bucket < SERVE_BUCKETS ? bucket : SERVE_BUCKETS - 1], 1);
	if (error)
		bump(&c->errors[op], 1);
}

void serve_counts_add(struct serve_counts *sum, const struct serve_counts *c)
{
	const uint64_t *from = (const uint64_t *)c;
	uint64_t *to = (uint64_t *)sum;
	size_t i;

	for (i = 0; i < SENDING_TRIES && __atomic_load_n(&c->sending, __ATOMIC_ACQUIRE); i++)
		sched_yield();
	for (i = 0; i < sizeof(*c) / sizeof(*from); i++)
		to[i] += __atomic_load_n(&from[i], __ATOMIC_RELAXED);
}

enum serve_verdict serve(struct server *s, struct serve_counts *c, const struct serve_msg *m,
			 struct serve_reply *r)
{
	uint32_t op = m->head->opcode < WIRE_OPCODES ? m->head->opcode : 0;
	uint64_t start = r->start ? r->start : latency_now(), end;
	enum serve_verdict verdict;

	r->error = 0;
	r->len = 0;
	r->npieces = 0;
	r->handle = NULL;
	r->counts = NULL;
	r->fsync.began = 0;
	if (op == WIRE_FSYNC)
		fsync_begin(&r->fsync, start);
	verdict = decide(s, c, m, r);
	if (verdict == SERVE_DONE) {
		end = latency_now();
		count(c, op, r->error, end - start);
		if (op == WIRE_FSYNC) {
			fsync_lap_at(&r->fsync, FSYNC_OTHER, end);
			r->counts = c;
			__atomic_store_n(&c->sending, 1, __ATOMIC_RELAXED);
		}
	} else if (verdict != SERVE_INTERRUPT && verdict != SERVE_DROP) {
		bump(&c->relayed[op], 1);
	}
	return verdict;
}

void serve_done(struct server *s, struct serve_reply *r)
{
	struct serve_handle *h = r->handle;

	if (r->counts) {
		fsync_lap(&r->fsync, FSYNC_REPLY);
		fsync_count(&r->counts->fsync, &r->fsync);
		/* After what was counted: who sees this sees that. */
		__atomic_store_n(&r->counts->sending, 0, __ATOMIC_RELEASE);
		r->counts = NULL;
	}
	if (!h)
		return;
	r->handle = NULL;
	range_exit(s->io->table);
	file_lock_give(&h->f->lock);
	handle_put(h);
}
