/* SPDX-License-Identifier: MIT
 *
 * The client of tools/bench/faults.py: one mapping of FILE by libdaxfs, and one thing measured.
 *
 *     faults HOW WHAT LENGTH COUNT FILE
 *
 * HOW: plain (mmap), kernel, user, and kernel-pages or user-pages (4 KiB each). WHAT, COUNT times:
 *   touch     a store to each page of a new mapping, all together: ns
 *   fault     a store to the next page (pages: every 4 KiB, else every 2 MiB), each for itself: median ns
 *   again     a store to a page that was written back since its last one: median ns
 *   msync     of all of LENGTH after a store to one page of it: median ns
 * FILE has at least LENGTH bytes, all there.
 */
#define _GNU_SOURCE

#include <daxfs.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bench.h"

#define PAGE 4096ul
#define HUGE (512 * PAGE)

static char *base;
static size_t length, count;
static int plain, pages;

static void map(const char *how, const char *path)
{
	unsigned flags = DAXFS_MAP_WRITE | DAXFS_MAP_REQUIRE;
	char *hint;
	int fd;

	plain = !strcmp(how, "plain");
	pages = strstr(how, "-pages") != NULL;
	if (!plain) {
		flags |= (pages ? DAXFS_MAP_PTE : 0) | (strncmp(how, "user", 4) ? 0 : DAXFS_MAP_USER);
		base = daxfs_map(path, flags, 0, length, NULL);
		if (!base)
			die(path);
		return;
	}
	fd = open(path, O_RDWR);
	hint = mmap(NULL, length + HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	hint = (char *)(((uintptr_t)hint + HUGE - 1) & -HUGE);
	base = mmap(hint, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
	if (fd < 0 || base == MAP_FAILED)
		die(path);
}

static void sync_all(void)
{
	if ((plain ? msync(base, length, MS_SYNC) : daxfs_msync(base, length, MS_SYNC)))
		die("msync");
}

/* A page that moves on by a prime, so that no prefetcher knows it. */
static volatile char *spot(size_t i)
{
	return base + i * 97 % (length / PAGE) * PAGE;
}

static uint64_t one(const char *what, size_t i)
{
	size_t step = pages ? PAGE : HUGE;
	uint64_t t;

	if (!strcmp(what, "fault")) {
		t = now();
		*(volatile char *)(base + i * step) = 1;
	} else if (!strcmp(what, "again")) {
		sync_all();
		t = now();
		*spot(i) = (char)i;
	} else if (!strcmp(what, "msync")) {
		*spot(i) = (char)i;
		t = now();
		sync_all();
	} else {
		errno = EINVAL;
		die(what);
	}
	return now() - t;
}

int main(int argc, char **argv)
{
	uint64_t *ns, t;
	size_t i;

	if (argc != 6) {
		fprintf(stderr, "usage: faults HOW WHAT LENGTH COUNT FILE\n");
		return 2;
	}
	length = strtoul(argv[3], NULL, 10);
	count = strtoul(argv[4], NULL, 10);
	map(argv[1], argv[5]);
	if (!strcmp(argv[2], "touch")) {
		t = now();
		for (i = 0; i < length; i += PAGE)
			*(volatile char *)(base + i) = 1;
		printf("%llu\n", (unsigned long long)(now() - t));
		return 0;
	}
	if (!strcmp(argv[2], "fault") && count > length / (pages ? PAGE : HUGE))
		count = length / (pages ? PAGE : HUGE);
	if (strcmp(argv[2], "fault")) {		/* mapped, and written back once */
		for (i = 0; i < length; i += PAGE)
			*(volatile char *)(base + i) = 1;
		sync_all();
	}
	ns = calloc(count, sizeof(*ns));
	if (!ns)
		die("memory");
	for (i = 0; i < count; i++)
		ns[i] = one(argv[2], i);
	printf("%llu\n", (unsigned long long)median(ns, count));
	return 0;
}
