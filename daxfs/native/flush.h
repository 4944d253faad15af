/* SPDX-License-Identifier: MIT
 *
 * The table of functions through which every store on the region goes. It is
 * bound once, when a region is opened (daxfs_flush_bind), and nothing is decided
 * in a call. Other units include this header and call through the pointers, so
 * that a recording or an emulating table can stand in for all of daxfs at once.
 *
 * Words as in PMDK: flush queues cache lines for write-back, drain waits until
 * what was queued (and every earlier non-temporal store) is durable, persist is
 * both. All functions may be called without the GIL from any thread; counters are
 * relaxed atomics. A call with length 0 does nothing and counts nothing; the edge
 * lines that an nt_store or nt_fill flushes by itself are not counted as flushes.
 * Source and destination of a store must not overlap.
 */
#ifndef DAXFS_FLUSH_H
#define DAXFS_FLUSH_H

#include <stddef.h>
#include <stdint.h>

enum daxfs_granularity { DAXFS_BYTE = 0, DAXFS_CACHE_LINE = 1, DAXFS_PAGE = 2 };

enum daxfs_flush_kind {
	DAXFS_CLWB = 0, DAXFS_CLFLUSHOPT = 1, DAXFS_CLFLUSH = 2,
	DAXFS_FLUSH_NONE = 3,	/* flush on power failure: stores are durable once visible */
	DAXFS_MSYNC = 4,	/* page cache over a disk */
};

enum daxfs_nt_kind { DAXFS_NT_GENERIC = 0, DAXFS_NT_SSE2 = 1, DAXFS_NT_AVX = 2, DAXFS_NT_AVX512 = 3 };

struct daxfs_flush {
	/* Ordinary store. An aligned 8-byte store is one atomic store. */
	void (*store)(struct daxfs_flush *, void *dst, const void *src, size_t len);
	/* Store that leaves no dirty line behind: durable at the next drain, edges included. */
	void (*nt_store)(struct daxfs_flush *, void *dst, const void *src, size_t len);
	void (*nt_fill)(struct daxfs_flush *, void *dst, int byte, size_t len);
	/* Queue the lines that hold [addr, addr+len). */
	void (*flush)(struct daxfs_flush *, const void *addr, size_t len);
	/* Order everything queued and every nt_store before it as durable. */
	void (*drain)(struct daxfs_flush *);

	int kind, nt_kind, granularity;
	/* Counters, only ever added to: what was asked for, not what was dirty. */
	uint64_t n_store, store_bytes, n_nt, nt_bytes, n_flush, flush_lines, n_drain;
	int error;	/* errno of the first failed msync, sticky until read (DAXFS_MSYNC) */
	void *recorder;	/* of the recording table that stands in for the bound functions (record.h), or NULL */

	/* What the five functions above are made of; bound with them, for flush*.c alone.
	 * `lines` writes back n lines from `line` on; `edge` stores a piece of one line,
	 * durable at the next drain; copy_lines and fill_lines take whole aligned lines. */
	void (*lines)(uintptr_t line, size_t n);
	void (*edge)(struct daxfs_flush *, char *dst, const char *src, size_t len);
	void (*copy_lines)(char *dst, const char *src, size_t n);
	void (*fill_lines)(char *dst, int byte, size_t n);
	void (*fence)(void);	/* what `drain` does, not counted; NULL: nothing */
	size_t page_size;

	uint64_t n_error;	/* times that `error` was taken: what was flushed before may not be durable */
	void *emulator;		/* of the emulating table that stands in for the bound functions (emulate.h), or NULL */
};

/* 0, or -EOPNOTSUPP where this CPU can't do `kind` or `nt_kind`. -1 for either means best.
 * -EINVAL for a combination that no CPU can make durable: page granularity with anything
 * but msync, or msync with non-temporal stores (a page cache has to be told). */
int daxfs_flush_bind(struct daxfs_flush *t, int granularity, int kind, int nt_kind);
/* Bit set of enum daxfs_flush_kind (bits 0-4) and of enum daxfs_nt_kind (bits 8-11) that this CPU can do. */
unsigned daxfs_flush_available(void);
/* The choice that bind makes, for a CPU with the bits `available`: replaces each -1 or fails as bind does. */
int daxfs_flush_choose(unsigned available, int granularity, int *kind, int *nt_kind);

#define DAXFS_COUNT(field, n) __atomic_fetch_add(&(field), (uint64_t)(n), __ATOMIC_RELAXED)

#define DAXFS_LINE 64u

/* Lines that hold any byte of [addr, addr+len). */
static inline size_t daxfs_lines(const void *addr, size_t len)
{
	uintptr_t a = (uintptr_t)addr;

	return len ? (a + len - 1) / DAXFS_LINE - a / DAXFS_LINE + 1 : 0;
}

static inline void daxfs_persist(struct daxfs_flush *t, const void *addr, size_t len)
{
	t->flush(t, addr, len);
	/* Orders the stores to [addr, addr+len) before whatever the caller stores next. */
	t->drain(t);
}

/* The kept errno of the first failure (0: none), which is forgotten by this call. */
static inline int daxfs_flush_take_error(struct daxfs_flush *t)
{
	int error = __atomic_exchange_n(&t->error, 0, __ATOMIC_ACQ_REL);

	if (error)
		DAXFS_COUNT(t->n_error, 1);
	return error;
}

#endif
