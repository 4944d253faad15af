/* SPDX-License-Identifier: MIT
 *
 * Flush primitives, portable half: the choice of kind, the functions of the table,
 * and the two kinds that need no cache instruction (none, msync). Nothing here names
 * a CPU; flush_x86.c supplies write-back of lines and non-temporal kernels.
 * Threading: a table is bound by one thread before it is shared; after that its
 * functions touch only the counters and `error`, both atomic.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daxfs/native/flush_cpu.h"

static void store_bytes(void *dst, const void *src, size_t len)
{
	uint64_t v;

	/* One store, so that a crash or a reader sees the old or the new 8 bytes. */
	if (len == 8 && ((uintptr_t)dst & 7) == 0) {
		memcpy(&v, src, 8);
		__atomic_store_n((uint64_t *)dst, v, __ATOMIC_RELEASE);
		return;
	}
	memcpy(dst, src, len);
}

static void store(struct daxfs_flush *t, void *dst, const void *src, size_t len)
{
	if (!len)
		return;
	DAXFS_COUNT(t->n_store, 1);
	DAXFS_COUNT(t->store_bytes, len);
	store_bytes(dst, src, len);
}

static void flush(struct daxfs_flush *t, const void *addr, size_t len)
{
	size_t n = daxfs_lines(addr, len);

	if (!n)
		return;
	DAXFS_COUNT(t->n_flush, 1);
	DAXFS_COUNT(t->flush_lines, n);
	t->lines((uintptr_t)addr & ~(uintptr_t)(DAXFS_LINE - 1), n);
}

/* Counted before the first store: a locked add behind non-temporal stores would wait for them. */
static void count_nt(struct daxfs_flush *t, size_t len)
{
	DAXFS_COUNT(t->n_nt, 1);
	DAXFS_COUNT(t->nt_bytes, len);
}

static void nt_store(struct daxfs_flush *t, void *dst, const void *src, size_t len)
{
	char *d = dst;
	const char *s = src;
	size_t head = -(uintptr_t)d & (DAXFS_LINE - 1), body;

	if (!len)
		return;
	count_nt(t, len);
	if (head) {
		if (head > len)
			head = len;
		t->edge(t, d, s, head);
		d += head, s += head, len -= head;
	}
	body = len & ~(size_t)(DAXFS_LINE - 1);
	if (body)
		t->copy_lines(d, s, body / DAXFS_LINE);
	if (len - body)
		t->edge(t, d + body, s + body, len - body);
}

static void nt_fill(struct daxfs_flush *t, void *dst, int byte, size_t len)
{
	char *d = dst, piece[DAXFS_LINE];
	size_t head = -(uintptr_t)d & (DAXFS_LINE - 1), body;

	if (!len)
		return;
	count_nt(t, len);
	memset(piece, byte, sizeof(piece));
	if (head) {
		if (head > len)
			head = len;
		t->edge(t, d, piece, head);
		d += head, len -= head;
	}
	body = len & ~(size_t)(DAXFS_LINE - 1);
	if (body)
		t->fill_lines(d, byte, body / DAXFS_LINE);
	if (len - body)
		t->edge(t, d + body, piece, len - body);
}

/* Generic "non-temporal" stores: through the cache, and the lines queued at once. */

static void generic_edge(struct daxfs_flush *t, char *dst, const char *src, size_t len)
{
	store_bytes(dst, src, len);
	t->lines((uintptr_t)dst & ~(uintptr_t)(DAXFS_LINE - 1), 1);
}

static void generic_nt_store(struct daxfs_flush *t, void *dst, const void *src, size_t len)
{
	if (!len)
		return;
	count_nt(t, len);
	store_bytes(dst, src, len);
	t->lines((uintptr_t)dst & ~(uintptr_t)(DAXFS_LINE - 1), daxfs_lines(dst, len));
}

static void generic_nt_fill(struct daxfs_flush *t, void *dst, int byte, size_t len)
{
	if (!len)
		return;
	count_nt(t, len);
	memset(dst, byte, len);
	t->lines((uintptr_t)dst & ~(uintptr_t)(DAXFS_LINE - 1), daxfs_lines(dst, len));
}

static void no_lines(uintptr_t line, size_t n)
{
}

static void generic_fence(void)
{
	/* Orders every store before it, visible and so durable with kind none, before every later one. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

static void generic_drain(struct daxfs_flush *t)
{
	DAXFS_COUNT(t->n_drain, 1);
	/* The order is the fence's. */
	generic_fence();
}

/* Kind msync: the region is a page cache, the kernel has to be told which pages. */

static void msync_pages(struct daxfs_flush *t, const void *addr, size_t len)
{
	uintptr_t mask = t->page_size - 1, a = (uintptr_t)addr & ~mask;
	uintptr_t end = ((uintptr_t)addr + len + mask) & ~mask;
	int none = 0;

	/* Only the first failure is kept: later ones follow from it, and it must not be lost. */
	if (msync((void *)a, end - a, MS_SYNC))
		__atomic_compare_exchange_n(&t->error, &none, errno, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
}

static void msync_flush(struct daxfs_flush *t, const void *addr, size_t len)
{
	size_t n = daxfs_lines(addr, len);

	if (!n)
		return;
	DAXFS_COUNT(t->n_flush, 1);
	DAXFS_COUNT(t->flush_lines, n);
	msync_pages(t, addr, len);
}

static void msync_nt_store(struct daxfs_flush *t, void *dst, const void *src, size_t len)
{
	if (!len)
		return;
	count_nt(t, len);
	store_bytes(dst, src, len);
	msync_pages(t, dst, len);
}

static void msync_nt_fill(struct daxfs_flush *t, void *dst, int byte, size_t len)
{
	if (!len)
		return;
	count_nt(t, len);
	memset(dst, byte, len);
	msync_pages(t, dst, len);
}

static void msync_drain(struct daxfs_flush *t)
{
	/* Nothing to wait for: MS_SYNC returned after the pages of every flush and nt_store
	 * before this call were written, so these are durable before any later store. */
	DAXFS_COUNT(t->n_drain, 1);
}

unsigned daxfs_flush_available(void)
{
	unsigned have = DAXFS_HAS_KIND(DAXFS_FLUSH_NONE) | DAXFS_HAS_KIND(DAXFS_MSYNC)
		| DAXFS_HAS_NT(DAXFS_NT_GENERIC);

#if DAXFS_X86
	have |= daxfs_x86_available();
#endif
	return have;
}

static int best_kind(unsigned available, int granularity)
{
	int kind;

	if (granularity == DAXFS_PAGE)
		return DAXFS_MSYNC;
	if (granularity == DAXFS_BYTE)
		return DAXFS_FLUSH_NONE;
	for (kind = DAXFS_CLWB; kind <= DAXFS_CLFLUSH; kind++)
		if (available & DAXFS_HAS_KIND(kind))
			return kind;
	return DAXFS_MSYNC;	/* no user-mode write-back of lines: the kernel does it */
}

int daxfs_flush_choose(unsigned available, int granularity, int *kind, int *nt_kind)
{
	int k = *kind, nt = *nt_kind;

	if (granularity < DAXFS_BYTE || granularity > DAXFS_PAGE || k < -1 || k > DAXFS_MSYNC
	    || nt < -1 || nt > DAXFS_NT_AVX512)
		return -EINVAL;
	if (k == -1)
		k = best_kind(available, granularity);
	if (granularity == DAXFS_PAGE && k != DAXFS_MSYNC)
		return -EINVAL;
	if (k == DAXFS_MSYNC && nt > DAXFS_NT_GENERIC)
		return -EINVAL;
	if (nt == -1) {
		nt = k == DAXFS_MSYNC ? DAXFS_NT_GENERIC : DAXFS_NT_AVX512;
		while (nt > DAXFS_NT_GENERIC && !(available & DAXFS_HAS_NT(nt)))
			nt--;
	}
	if (!(available & DAXFS_HAS_KIND(k)) || !(available & DAXFS_HAS_NT(nt)))
		return -EOPNOTSUPP;
	*kind = k;
	*nt_kind = nt;
	return 0;
}

int daxfs_flush_bind(struct daxfs_flush *t, int granularity, int kind, int nt_kind)
{
	int r = daxfs_flush_choose(daxfs_flush_available(), granularity, &kind, &nt_kind);

	if (r)
		return r;
	memset(t, 0, sizeof(*t));
	t->granularity = granularity;
	t->kind = kind;
	t->nt_kind = nt_kind;
	t->page_size = (size_t)sysconf(_SC_PAGESIZE);
	t->store = store;
	if (kind == DAXFS_MSYNC) {
		t->flush = msync_flush;
		t->nt_store = msync_nt_store;
		t->nt_fill = msync_nt_fill;
		t->drain = msync_drain;
		return 0;
	}
	t->flush = flush;
	t->lines = no_lines;
	t->edge = generic_edge;
	t->drain = generic_drain;
	t->fence = generic_fence;
	t->nt_store = nt_kind == DAXFS_NT_GENERIC ? generic_nt_store : nt_store;
	t->nt_fill = nt_kind == DAXFS_NT_GENERIC ? generic_nt_fill : nt_fill;
#if DAXFS_X86
	daxfs_x86_bind(t);
#endif
	return 0;
}
