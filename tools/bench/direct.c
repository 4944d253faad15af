/* SPDX-License-Identifier: MIT
 *
 * The client of tools/bench/direct.py: what a program's own loads and stores cost through a plain mmap.
 *
 *     direct CPU MIB COUNT FILE
 *
 * FILE is made anew with so many MiB, a hole. Then: a store to each page, in order (faults and all); COUNT
 * random loads of 8 bytes, each dependent on the one before; COUNT random stores of 8 bytes. Prints one line of
 * JSON: ns of the first, ns for each of the others, and KiB that are mapped by PMDs (smaps).
 */
#define _GNU_SOURCE

#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bench.h"

static uint64_t next_random(uint64_t *state)
{
	*state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return *state >> 20;
}

/* KiB of the mapping at p in pages of 2 MiB. */
static unsigned long by_pmd(const void *p)
{
	FILE *file = fopen("/proc/self/smaps", "r");
	unsigned long start, end, kib, sum = 0;
	int inside = 0;
	char line[512];

	if (!file)
		die("smaps");
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			inside = start <= (unsigned long)p && (unsigned long)p < end;
		else if (inside && (sscanf(line, "ShmemPmdMapped: %lu", &kib) == 1
				    || sscanf(line, "FilePmdMapped: %lu", &kib) == 1))
			sum += kib;
	}
	fclose(file);
	return sum;
}

int main(int argc, char **argv)
{
	uint64_t size, count, words, i, t[4], state = 1, at = 0;
	volatile uint64_t *word;
	volatile char *byte;
	cpu_set_t cpus;
	void *p;
	int fd;

	if (argc != 5) {
		fprintf(stderr, "usage: direct CPU MIB COUNT FILE\n");
		return 2;
	}
	CPU_ZERO(&cpus);
	CPU_SET(atoi(argv[1]), &cpus);
	if (sched_setaffinity(0, sizeof(cpus), &cpus))
		die("sched_setaffinity");
	size = strtoull(argv[2], NULL, 10) << 20;
	count = strtoull(argv[3], NULL, 10);
	words = size / sizeof(*word);
	fd = open(argv[4], O_RDWR | O_CREAT | O_EXCL, 0600);
	if (fd < 0 || ftruncate(fd, (off_t)size))
		die(argv[4]);
	p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		die("mmap");
	byte = p;
	word = p;
	t[0] = now();
	for (i = 0; i < size; i += 4096)
		byte[i] = 1;
	t[1] = now();
	for (i = 0; i < count; i++)
		at = (next_random(&state) + (word[at] & 1)) % words;
	t[2] = now();
	for (i = 0; i < count; i++)
		word[next_random(&state) % words] = i;
	t[3] = now();
	printf("{\"touch\": %llu, \"load\": %.3f, \"store\": %.3f, \"pmd\": %lu}\n",
	       (unsigned long long)(t[1] - t[0]), (double)(t[2] - t[1]) / count, (double)(t[3] - t[2]) / count,
	       by_pmd(p));
	if (munmap(p, size) || close(fd) || unlink(argv[4]))
		die("unlink");
	return 0;
}
