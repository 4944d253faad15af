/* SPDX-License-Identifier: MIT
 *
 * The recording table (record.h). Portable C; no call into Python but through `site`,
 * which is asked before the lock is taken: a site may wait for the GIL, and who holds
 * the GIL may wait for the lock.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daxfs/native/record.h"

#define PIECE ((size_t)128 << 10)	/* from here on data go out without a copy; half of the buffer */

/* The operation that a thread is in, and of which recorder: another one has its own. */
static __thread uint64_t current_recorder, current_op;
static __thread uint16_t own_number;
static uint16_t threads;
static uint64_t recorders;

static uint16_t thread_number(void)
{
	if (!own_number)
		own_number = __atomic_add_fetch(&threads, 1, __ATOMIC_RELAXED);
	return own_number;
}

int daxfs_record_init(struct daxfs_recorder *r, const void *base, int fd)
{
	memset(r, 0, sizeof(*r));
	r->number = __atomic_add_fetch(&recorders, 1, __ATOMIC_RELAXED);
	r->base = base;
	r->fd = fd;
	r->cap = fd < 0 ? 1 << 16 : 2 * PIECE;
	r->buf = malloc(r->cap);
	if (!r->buf)
		return -ENOMEM;
	pthread_mutex_init(&r->lock, NULL);
	return 0;
}

void daxfs_record_destroy(struct daxfs_recorder *r)
{
	if (!r->buf)
		return;
	free(r->buf);
	r->buf = NULL;
	pthread_mutex_destroy(&r->lock);
}

static void write_out(struct daxfs_recorder *r, const char *data, size_t len)
{
	while (len && !r->error) {
		ssize_t n = write(r->fd, data, len);

		if (n >= 0)
			data += n, len -= n;
		else if (errno != EINTR)
			r->error = errno;
	}
}

static void write_buffer(struct daxfs_recorder *r)
{
	write_out(r, r->buf, r->used);
	r->used = 0;
}

/* Room for n bytes more in a log that stays in memory. */
static int room(struct daxfs_recorder *r, size_t n)
{
	size_t cap = r->cap;
	char *buf;

	while (cap - r->used < n)
		cap *= 2;
	if (cap == r->cap)
		return 1;
	buf = realloc(r->buf, cap);
	if (!buf) {
		r->error = ENOMEM;
		return 0;
	}
	r->buf = buf;
	r->cap = cap;
	return 1;
}

static void put(struct daxfs_recorder *r, const void *data, size_t len)
{
	if (r->fd >= 0 && len >= PIECE) {	/* large data go out without a copy */
		write_buffer(r);
		write_out(r, data, len);
		return;
	}
	if (r->fd >= 0 && r->used + len > r->cap)
		write_buffer(r);
	if (r->fd < 0 && !room(r, len))
		return;
	memcpy(r->buf + r->used, data, len);
	r->used += len;
}

/* Under the lock. */
static void event(struct daxfs_recorder *r, struct daxfs_event *e, const void *data, size_t len)
{
	static const char pad[8];

	if (r->error)
		return;
	e->thread = thread_number();
	if (!e->op && current_recorder == r->number)
		e->op = current_op;
	put(r, e, sizeof(*e));
	if (len && !r->error)
		put(r, data, len);
	if (-len & 7 && !r->error)
		put(r, pad, -len & 7);
	r->events++;
	r->bytes += sizeof(*e) + ((len + 7) & ~(size_t)7);
}

static uint32_t site(struct daxfs_recorder *r)
{
	return r->site && !r->error ? r->site(r->context) : 0;
}

/* The byte of the region at addr: own ranges lie in a window of their own, their places behind all others. */
static uint64_t place_of(const struct daxfs_recorder *r, const char *addr)
{
	const struct range *range;
	size_t i;

	for (i = 0; r->ranges && i < r->ranges->n; i++) {
		range = r->ranges->r + i;
		if (addr >= range->addr && addr < range->addr + ((range->pfn_end - range->pfn_start) << DAXFS_PAGE_SHIFT))
			return (range->pfn_start << DAXFS_PAGE_SHIFT) + (uint64_t)(addr - range->addr);
	}
	return (uint64_t)(addr - r->base);
}

/* The five functions of the table: ask for the site, lock, log, do it, unlock. */

static void call(struct daxfs_flush *t, int kind, int fill, const void *addr, size_t length,
		 const void *data, size_t len)
{
	struct daxfs_recorder *r = t->recorder;
	struct daxfs_event e = { .kind = kind, .fill = fill, .length = length };

	e.place = addr ? place_of(r, addr) : 0;
	e.site = site(r);
	pthread_mutex_lock(&r->lock);
	event(r, &e, data, len);
}

static void done(struct daxfs_flush *t)
{
	pthread_mutex_unlock(&((struct daxfs_recorder *)t->recorder)->lock);
}

static const struct daxfs_flush *bound(struct daxfs_flush *t)
{
	return &((struct daxfs_recorder *)t->recorder)->bound;
}

static void store(struct daxfs_flush *t, void *dst, const void *src, size_t len)
{
	if (!len)
		return;
	call(t, DAXFS_EV_STORE, 0, dst, len, src, len);
	bound(t)->store(t, dst, src, len);
	done(t);
}

static void nt_store(struct daxfs_flush *t, void *dst, const void *src, size_t len)
{
	if (!len)
		return;
	call(t, DAXFS_EV_NT_STORE, 0, dst, len, src, len);
	bound(t)->nt_store(t, dst, src, len);
	done(t);
}

static void nt_fill(struct daxfs_flush *t, void *dst, int byte, size_t len)
{
	if (!len)
		return;
	call(t, DAXFS_EV_NT_FILL, byte, dst, len, NULL, 0);
	bound(t)->nt_fill(t, dst, byte, len);
	done(t);
}

static void flush(struct daxfs_flush *t, const void *addr, size_t len)
{
	if (!len)
		return;
	call(t, DAXFS_EV_FLUSH, 0, addr, len, NULL, 0);
	bound(t)->flush(t, addr, len);
	done(t);
}

static void drain(struct daxfs_flush *t)
{
	call(t, DAXFS_EV_DRAIN, 0, NULL, 0, NULL, 0);
	/* Orders what the caller's own comment says; the log has it in the same order. */
	bound(t)->drain(t);
	done(t);
}

int daxfs_record_attach(struct daxfs_recorder *r, struct daxfs_flush *t)
{
	if (t->recorder)
		return -EBUSY;
	r->table = t;
	r->bound = *t;
	t->recorder = r;
	t->store = store;
	t->nt_store = nt_store;
	t->nt_fill = nt_fill;
	t->flush = flush;
	t->drain = drain;
	return 0;
}

void daxfs_record_detach(struct daxfs_recorder *r)
{
	struct daxfs_flush *t = r->table;

	if (!t)
		return;
	t->store = r->bound.store;
	t->nt_store = r->bound.nt_store;
	t->nt_fill = r->bound.nt_fill;
	t->flush = r->bound.flush;
	t->drain = r->bound.drain;
	t->recorder = NULL;
	r->table = NULL;
}

void daxfs_record_note(struct daxfs_recorder *r, int kind, uint32_t number, uint64_t place,
		       const void *data, size_t len)
{
	struct daxfs_event e = { .kind = kind, .site = number, .place = place, .length = len };

	pthread_mutex_lock(&r->lock);
	event(r, &e, data, len);
	pthread_mutex_unlock(&r->lock);
}

void daxfs_record_range(struct own_watch *w, const char *what, uint64_t a, uint64_t b)
{
	struct daxfs_range_watch *mine = (struct daxfs_range_watch *)w;
	char text[128];
	int len;

	if (!mine->r->table)
		return;
	len = snprintf(text, sizeof(text), "%s %s %" PRIu64 " %" PRIu64, what, mine->name, a, b);
	daxfs_record_note(mine->r, DAXFS_EV_RANGE, 0, 0, text, (size_t)len);
}

uint64_t daxfs_record_begin(struct daxfs_recorder *r, const void *text, size_t len)
{
	struct daxfs_event e = { .kind = DAXFS_EV_BEGIN, .length = len };

	pthread_mutex_lock(&r->lock);
	current_recorder = r->number;
	current_op = e.op = ++r->ops;
	event(r, &e, text, len);
	pthread_mutex_unlock(&r->lock);
	return e.op;
}

void daxfs_record_end(struct daxfs_recorder *r, uint64_t op, const void *text, size_t len)
{
	struct daxfs_event e = { .kind = DAXFS_EV_END, .op = op, .length = len };

	pthread_mutex_lock(&r->lock);
	event(r, &e, text, len);
	current_op = 0;
	pthread_mutex_unlock(&r->lock);
}

int daxfs_record_sync(struct daxfs_recorder *r)
{
	int error;

	pthread_mutex_lock(&r->lock);
	if (r->fd >= 0)
		write_buffer(r);
	error = r->error;
	pthread_mutex_unlock(&r->lock);
	return -error;
}
