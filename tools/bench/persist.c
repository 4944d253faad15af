/* SPDX-License-Identifier: MIT
 *
 * The client of tools/bench/persist.py: 4 KiB are stored, then made durable in the process, COUNT times.
 *
 *     persist pmem|daxfs COUNT FILE
 *
 * pmem: FILE is mapped by mmap(2) and written back by libpmem's pmem_persist; daxfs: both by libdaxfs. FILE has
 * 4 MiB, all there. Prints the median of the second step in ns.
 */
#define _GNU_SOURCE

#include <daxfs.h>
#include <fcntl.h>
#include <libpmem.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bench.h"

#define PAGE 4096ul
#define LENGTH (4096ul * 1024)

static char *map(int pmem, const char *path)
{
	char *base;
	int fd;

	if (!pmem) {
		base = daxfs_map(path, DAXFS_MAP_WRITE | DAXFS_MAP_REQUIRE | DAXFS_MAP_PTE, 0, LENGTH, NULL);
		if (!base)
			die(path);
		return base;
	}
	fd = open(path, O_RDWR);
	base = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (fd < 0 || base == MAP_FAILED)
		die(path);
	return base;
}

int main(int argc, char **argv)
{
	int pmem = argc == 4 && !strcmp(argv[1], "pmem");
	size_t i, count;
	uint64_t *ns, t;
	char *base;

	if (argc != 4 || (!pmem && strcmp(argv[1], "daxfs"))) {
		fprintf(stderr, "usage: persist pmem|daxfs COUNT FILE\n");
		return 2;
	}
	count = strtoul(argv[2], NULL, 10);
	ns = calloc(count ? count : 1, sizeof(*ns));
	if (!ns || !count)
		die("memory");
	base = map(pmem, argv[3]);
	memset(base, 1, LENGTH);
	for (i = 0; i < count; i++) {
		char *page = base + i * 97 % (LENGTH / PAGE) * PAGE;

		memset(page, (int)i, PAGE);
		t = now();
		if (pmem)
			pmem_persist(page, PAGE);
		else if (daxfs_persist(page, PAGE))
			die("daxfs_persist");
		ns[i] = now() - t;
	}
	printf("%llu\n", (unsigned long long)median(ns, count));
	return 0;
}
