/* SPDX-License-Identifier: MIT
 *
 * The program whose page faults tools/fault_sweep.py times: it maps FILE, touches it in one way, and prints a
 * line of JSON. All times are in ns, taken in here. HOW: as in mapped.h.
 *
 *   toucher each HOW FILE LENGTH STEP ACCESS COUNT NS SEED
 *       up to COUNT places, multiples of STEP in random order, for about NS: each touch for itself.
 *       ACCESS: load, store (first touches); upgrade (a store, after a load); mkwrite (a store, after a store and
 *       an msync of all); again (a store, after a store: no fault, what the clock costs)
 *   toucher whole HOW FILE LENGTH ORDER ACCESS SEED
 *       each page of 4 KiB, all together. ORDER: sequential, random. ACCESS: load, store, and by one
 *       madvise(2) populate-read (what MAP_POPULATE does with a shared mapping), populate-write
 *   toucher resident HOW FILE LENGTH COUNT SEED
 *       COUNT loads at random places of what is mapped already, each waiting for the one before, in eight parts,
 *       each of which is timed as a whole; in it is what choosing the next place takes
 *   toucher shape SHAPE FILE UNITS ACCESS
 *       each page of UNITS times 2 MiB of the file by mmap(2), each unit for itself (under `daxfs run`: observed).
 *       SHAPE says how they are mapped: whole, colour, before, after, eof, pte-entry, private
 *
 * {"ns": [...], "touches": N, "minor": N, "major": N, "pmd_bytes": N}: touches that were timed, this thread's page
 * faults meanwhile as getrusage(2) counts them (what another process answers, too), and how much of the mapping
 * the page table shows as 2 MiB at the end.
 */
#define _GNU_SOURCE

#include <stdint.h>
#include <sys/resource.h>

#include "mapped.h"

#define MOST 65536
#define PARTS 8

static uint64_t random_state, ns[MOST];
static size_t samples, touches;
static struct rusage before, after;

static uint64_t next_random(void)	/* xorshift64 */
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state;
}

/* 0 … n - 1, mixed. */
static uint32_t *mixed(size_t n)
{
	uint32_t *out = calloc(n ? n : 1, sizeof(*out)), other;
	size_t i, j;

	if (!out)
		die("memory");
	for (i = 0; i < n; i++)
		out[i] = (uint32_t)i;
	for (i = n; i > 1; i--) {
		j = next_random() % i;
		other = out[j];
		out[j] = out[i - 1];
		out[i - 1] = other;
	}
	return out;
}

static inline void touch(char *at, int store)
{
	if (store)
		*(volatile char *)at = 1;
	else
		(void)*(volatile char *)at;
}

static void usage(struct rusage *u)
{
	if (getrusage(RUSAGE_THREAD, u))
		die("getrusage");
}

/* Each touch is to be one fault that fetches one page: no reading ahead by the page cache. */
static void no_readahead(const struct mapped *m)
{
	if (madvise(m->base, m->length, MADV_RANDOM))
		die("madvise");
}

static void each(struct mapped m, size_t step, const char *access, size_t count, uint64_t limit)
{
	int prepared = strcmp(access, "load") && strcmp(access, "store"), store = strcmp(access, "load");
	uint32_t *place = mixed(m.length / step);
	uint64_t began, t;
	size_t i;

	no_readahead(&m);
	count = count < m.length / step ? count : m.length / step;
	count = count < MOST ? count : MOST;
	for (i = 0; prepared && i < count; i++)
		touch(m.base + place[i] * step, strcmp(access, "upgrade"));
	if (!strcmp(access, "mkwrite"))
		write_back(&m);
	usage(&before);
	began = now();
	for (i = 0; i < count && (i < 3 || now() - began < limit); i++) {
		t = now();
		touch(m.base + place[i] * step, store);
		ns[i] = now() - t;
	}
	usage(&after);
	samples = touches = i;
}

static void whole(struct mapped m, int random, const char *access)
{
	uint32_t *place = mixed(random ? m.length / PAGE : 0);
	size_t i, pages = m.length / PAGE;
	int store = !strcmp(access, "store");
	uint64_t t;

	usage(&before);
	t = now();
	if (!strncmp(access, "populate", 8)) {
		/* 22 and 23: MADV_POPULATE_READ and _WRITE, which Debian 12's libc has only by kernel headers. */
		if (madvise(m.base, m.length, strcmp(access, "populate-read") ? 23 : 22))
			die(access);
	} else if (random) {
		for (i = 0; i < pages; i++)
			touch(m.base + place[i] * PAGE, store);
	} else {
		for (i = 0; i < pages; i++)
			touch(m.base + i * PAGE, store);
	}
	ns[0] = now() - t;
	usage(&after);
	samples = 1;
	touches = pages;
}

static void resident(struct mapped m, size_t count)
{
	size_t i, n, cells = m.length / 64, at, part = count / PARTS + 1;
	uint64_t t;

	/* Every line, not every page: who wrote the file past the caches would begin with cold ones, others not. */
	for (i = 0; i < m.length; i += 64)
		touch(m.base + i, 0);
	usage(&before);
	for (n = 0; n < PARTS; n++) {
		t = now();
		for (i = 0; i < part; i++) {
			at = next_random() % cells;
			/* The next place needs this one. */
			random_state ^= *(volatile unsigned char *)(m.base + at * 64);
		}
		ns[n] = now() - t;
	}
	usage(&after);
	samples = PARTS;
	touches = part * PARTS;
}

/* Where a unit of a shape is mapped and touched: [skip, HUGE - cut) of its 2 MiB. */
static void unit(const char *shape, int fd, size_t n, int store, char *at)
{
	size_t skip = strcmp(shape, "before") ? 0 : PAGE;
	size_t cut = !strcmp(shape, "after") || !strcmp(shape, "eof") ? PAGE : 0;
	size_t mapped = HUGE - skip - (strcmp(shape, "eof") ? cut : 0), i;
	int flags = MAP_FIXED | (strcmp(shape, "private") ? MAP_SHARED : MAP_PRIVATE);
	char *other = NULL, *base;
	uint64_t t;

	if (!strcmp(shape, "pte-entry")) {	/* of another mapping, whose colour allows no PMD, and which stays */
		other = mmap(free_place(HUGE, PAGE), HUGE, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_SHARED, fd,
			     (off_t)(n * HUGE));
		if (other == MAP_FAILED)
			die(shape);
		touch(other, 1);
	}
	base = mmap(at + skip, mapped, PROT_READ | PROT_WRITE, flags, fd, (off_t)(n * HUGE + skip));
	if (base == MAP_FAILED)
		die(shape);
	t = now();
	for (i = 0; i < HUGE - skip - cut; i += PAGE)
		touch(base + i, store);
	ns[samples++] = now() - t;
	touches += i / PAGE;
}

static size_t pmd_bytes(const char *base, size_t length)
{
	FILE *file = fopen("/proc/self/smaps", "re");
	unsigned long start = 0, end = 0, a, b, kib;
	char line[512];
	size_t found = 0;

	if (!file)
		die("/proc/self/smaps");
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%lx-%lx ", &a, &b) == 2)
			start = a, end = b;
		else if (start >= (uintptr_t)base && end <= (uintptr_t)base + length
		    && (sscanf(line, "ShmemPmdMapped: %lu", &kib) == 1 || sscanf(line, "FilePmdMapped: %lu", &kib) == 1))
			found += kib * 1024;
	}
	fclose(file);
	return found;
}

static int report(const char *base, size_t length)
{
	size_t i;

	printf("{\"ns\":[");
	for (i = 0; i < samples; i++)
		printf("%s%llu", i ? "," : "", (unsigned long long)ns[i]);
	printf("],\"touches\":%zu,\"minor\":%ld,\"major\":%ld,\"pmd_bytes\":%zu}\n", touches,
	       after.ru_minflt - before.ru_minflt, after.ru_majflt - before.ru_majflt, pmd_bytes(base, length));
	return fflush(stdout) ? 1 : 0;
}

static int shapes(const char *shape, const char *path, size_t units, int store)
{
	size_t colour = strcmp(shape, "colour") ? 0 : PAGE, length = units * 2 * HUGE, n;
	int fd = open(path, O_RDWR | O_CLOEXEC);
	char *place = free_place(length, colour);

	if (fd < 0)
		die(path);
	usage(&before);
	for (n = 0; n < units && n < MOST; n++)	/* 2 MiB between them, so that each is a mapping of its own */
		unit(shape, fd, n, store, place + n * 2 * HUGE);
	usage(&after);
	return report(place, length);
}

int main(int argc, char **argv)
{
	struct mapped m = {0};

	memset(ns, 1, sizeof(ns));	/* so that nothing of ours is a fault later */
	usage(&after);
	now();
	if (argc == 6 && !strcmp(argv[1], "shape"))
		return shapes(argv[2], argv[3], strtoul(argv[4], NULL, 10), !strcmp(argv[5], "store"));
	if (argc < 7) {
		fprintf(stderr, "usage: toucher each|whole|resident HOW FILE LENGTH ... (toucher.c)\n");
		return 2;
	}
	random_state = strtoull(argv[argc - 1], NULL, 10) * 2 + 1;
	m = map_file(argv[2], argv[3], strtoul(argv[4], NULL, 10));
	if (!strcmp(argv[1], "each") && argc == 10)
		each(m, strtoul(argv[5], NULL, 10), argv[6], strtoul(argv[7], NULL, 10), strtoull(argv[8], NULL, 10));
	else if (!strcmp(argv[1], "whole") && argc == 8)
		whole(m, !strcmp(argv[5], "random"), argv[6]);
	else
		resident(m, strtoul(argv[5], NULL, 10));
	return report(m.base, m.length);
}
