/* SPDX-License-Identifier: MIT
 *
 * What the C programs of tools/bench share: a clock, the median of samples, and the end with a message. To be
 * included with _GNU_SOURCE defined.
 */
#ifndef DAXFS_BENCH_H
#define DAXFS_BENCH_H

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* `what` failed, errno says why: exit status 1. */
__attribute__((noreturn, unused))
static void die(const char *what)
{
	fprintf(stderr, "%s: %s: %s\n", program_invocation_short_name, what, strerror(errno));
	exit(1);
}

/* ns of a clock that only goes forward. */
__attribute__((unused))
static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + t.tv_nsec;
}

/* For qsort, of uint64_t. */
__attribute__((unused))
static int by_size(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/* Sorts them; count > 0. */
__attribute__((unused))
static uint64_t median(uint64_t *values, size_t count)
{
	qsort(values, count, sizeof(*values), by_size);
	return values[count / 2];
}

#endif
