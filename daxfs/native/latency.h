/* SPDX-License-Identifier: MIT
 *
 * A histogram of times, or of other numbers, with power-of-two buckets: bucket b counts those in
 * [2^(b-1), 2^b), the last one all from there on. daxfs/latency.py has the same ones. Any thread adds.
 */
#ifndef DAXFS_LATENCY_H
#define DAXFS_LATENCY_H

#include <stdint.h>
#include <time.h>

#define LATENCY_BUCKETS 40

struct latency {
	uint64_t total, bucket[LATENCY_BUCKETS];	/* relaxed atomics */
};

static inline unsigned latency_bucket(uint64_t value)
{
	unsigned bits = value ? 64u - (unsigned)__builtin_clzll(value) : 0;

	return bits < LATENCY_BUCKETS ? bits : LATENCY_BUCKETS - 1;
}

static inline void latency_add(struct latency *l, uint64_t value)
{
	__atomic_fetch_add(&l->total, value, __ATOMIC_RELAXED);
	__atomic_fetch_add(&l->bucket[latency_bucket(value)], 1, __ATOMIC_RELAXED);
}

/* The same where one thread alone adds. */
static inline void latency_add_own(struct latency *l, uint64_t value)
{
	uint64_t *at = &l->bucket[latency_bucket(value)];

	__atomic_store_n(&l->total, l->total + value, __ATOMIC_RELAXED);
	__atomic_store_n(at, *at + 1, __ATOMIC_RELAXED);
}

static inline uint64_t latency_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

#endif
