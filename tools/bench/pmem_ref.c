/* SPDX-License-Identifier: MIT
 *
 * The clock of tools/bench/flush.py: one call of libpmem, or the same call through a
 * bound daxfs table, on the same buffers. Compiled at run time by that program; the
 * table comes from the installed extension, so that what is measured is what is shipped.
 * Each function prepares, then returns the nanoseconds of its operations alone.
 */
#define _GNU_SOURCE
#include <libpmem.h>
#include <string.h>
#include <time.h>

#include "daxfs/native/flush.h"

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

/* One store in each line, so that every line is dirty when the clock starts. */
static void dirty(char *dst, size_t len, int value)
{
	for (size_t i = 0; i < len; i += 64)
		((volatile char *)dst)[i] = (char)value;
}

/* Each operation is done n times, `step` bytes further each time, and drained each time. */

double daxfs_flush_ns(struct daxfs_flush *t, char *dst, size_t len, int value, size_t n, size_t step)
{
	double start;

	dirty(dst, n * step, value);
	start = now();
	for (; n; n--, dst += step) {
		t->flush(t, dst, len);
		t->drain(t);	/* orders these lines before the next operation and the clock */
	}
	return now() - start;
}

double pmem_flush_ns(char *dst, size_t len, int value, size_t n, size_t step)
{
	double start;

	dirty(dst, n * step, value);
	start = now();
	for (; n; n--, dst += step) {
		pmem_flush(dst, len);
		pmem_drain();
	}
	return now() - start;
}

double daxfs_copy_ns(struct daxfs_flush *t, char *dst, const char *src, size_t len, size_t n, size_t step)
{
	double start = now();

	for (; n; n--, dst += step, src += step) {
		t->nt_store(t, dst, src, len);
		t->drain(t);	/* orders this copy before the next one and the clock */
	}
	return now() - start;
}

double pmem_copy_ns(char *dst, const char *src, size_t len, size_t n, size_t step)
{
	double start = now();

	for (; n; n--, dst += step, src += step)
		pmem_memcpy_persist(dst, src, len);
	return now() - start;
}

/* flags: PMEM_F_MEM_NONTEMPORAL (1) or PMEM_F_MEM_TEMPORAL (2), to see which one the plain call takes. */
double pmem_copy_flags_ns(char *dst, const char *src, size_t len, int flags)
{
	double start = now();

	pmem_memcpy(dst, src, len, flags == 1 ? PMEM_F_MEM_NONTEMPORAL : PMEM_F_MEM_TEMPORAL);
	return now() - start;
}

double daxfs_fill_ns(struct daxfs_flush *t, char *dst, int value, size_t len, size_t n, size_t step)
{
	double start = now();

	for (; n; n--, dst += step) {
		t->nt_fill(t, dst, value, len);
		t->drain(t);	/* orders this fill before the next one and the clock */
	}
	return now() - start;
}

double pmem_fill_ns(char *dst, int value, size_t len, size_t n, size_t step)
{
	double start = now();

	for (; n; n--, dst += step)
		pmem_memset_persist(dst, value, len);
	return now() - start;
}
