/* SPDX-License-Identifier: MIT
 *
 * The client of tools/bench/faults.py: one mapping of FILE by libdaxfs, and one thing measured.
 *
 *     faults HOW WHAT LENGTH COUNT FILE
 *
 * HOW: as in ../lab/mapped.h. WHAT, COUNT times:
 *   touch     a store to each page of a new mapping, all together: ns
 *   fault     a store to the next page (-pte: every 4 KiB, else every 2 MiB), each for itself: median ns
 *   again     a store to a page that was written back since its last one: median ns
 *   msync     of all of LENGTH after a store to one page of it: median ns
 * FILE has at least LENGTH bytes, all there.
 */
#define _GNU_SOURCE

#include "../lab/mapped.h"

static struct mapped m;

/* A page that moves on by a prime, so that no prefetcher knows it. */
static volatile char *spot(size_t i)
{
	return m.base + i * 97 % (m.length / PAGE) * PAGE;
}

static uint64_t one(const char *what, size_t i)
{
	size_t step = m.pages ? PAGE : HUGE;
	uint64_t t;

	if (!strcmp(what, "fault")) {
		t = now();
		*(volatile char *)(m.base + i * step) = 1;
	} else if (!strcmp(what, "again")) {
		write_back(&m);
		t = now();
		*spot(i) = (char)i;
	} else if (!strcmp(what, "msync")) {
		*spot(i) = (char)i;
		t = now();
		write_back(&m);
	} else {
		errno = EINVAL;
		die(what);
	}
	return now() - t;
}

int main(int argc, char **argv)
{
	size_t length, count, i;
	uint64_t *ns, t;

	if (argc != 6) {
		fprintf(stderr, "usage: faults HOW WHAT LENGTH COUNT FILE\n");
		return 2;
	}
	length = strtoul(argv[3], NULL, 10);
	count = strtoul(argv[4], NULL, 10);
	m = map_file(argv[1], argv[5], length);
	if (!strcmp(argv[2], "touch")) {
		t = now();
		for (i = 0; i < length; i += PAGE)
			*(volatile char *)(m.base + i) = 1;
		printf("%llu\n", (unsigned long long)(now() - t));
		return 0;
	}
	if (!strcmp(argv[2], "fault") && count > length / (m.pages ? PAGE : HUGE))
		count = length / (m.pages ? PAGE : HUGE);
	if (strcmp(argv[2], "fault")) {		/* mapped, and written back once */
		for (i = 0; i < length; i += PAGE)
			*(volatile char *)(m.base + i) = 1;
		write_back(&m);
	}
	ns = calloc(count, sizeof(*ns));
	if (!ns)
		die("memory");
	for (i = 0; i < count; i++)
		ns[i] = one(argv[2], i);
	printf("%llu\n", (unsigned long long)median(ns, count));
	return 0;
}
