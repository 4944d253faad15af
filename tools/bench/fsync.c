/* SPDX-License-Identifier: MIT
 *
 * The client of tools/bench/fsync.py: writes 4 KiB over one block of a file and times the fsync of it, again and
 * again. Prints one line of JSON: median, p99 and the least, in ns.
 *
 *     fsync FILE COUNT BLOCKS STRIDE CPU SEED
 *
 * The block is one of BLOCKS, each STRIDE bytes behind the one before; they are there already. CPU: number, or -1
 * for any. A tenth of COUNT warms up.
 */
#define _GNU_SOURCE

#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

#include "bench.h"

#define BLOCK 4096

static uint64_t random_of(uint64_t *state)	/* xorshift64 */
{
	uint64_t x = *state;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return *state = x;
}

static uint64_t once(int fd, uint64_t pos)
{
	static char block[BLOCK];
	uint64_t began;

	memset(block, (int)(pos >> 12) + 1, 64);
	if (pwrite(fd, block, BLOCK, (off_t)pos) != BLOCK)
		die("pwrite");
	began = now();
	if (fsync(fd))
		die("fsync");
	return now() - began;
}

int main(int argc, char **argv)
{
	uint64_t count, blocks, stride, state, *ns, i;
	cpu_set_t set;
	int fd, cpu;

	if (argc != 7) {
		fprintf(stderr, "usage: fsync FILE COUNT BLOCKS STRIDE CPU SEED\n");
		return 2;
	}
	count = strtoull(argv[2], NULL, 0);
	blocks = strtoull(argv[3], NULL, 0);
	stride = strtoull(argv[4], NULL, 0);
	cpu = atoi(argv[5]);
	state = (strtoull(argv[6], NULL, 0) + 1) * 0x9e3779b97f4a7c15u;
	CPU_ZERO(&set);
	CPU_SET(cpu < 0 ? 0 : cpu, &set);
	if (cpu >= 0 && sched_setaffinity(0, sizeof(set), &set))
		die("sched_setaffinity");
	fd = open(argv[1], O_RDWR | O_DIRECT);
	ns = calloc(count + 1, sizeof(*ns));
	if (fd < 0 || !ns || !count || !blocks)
		die(argv[1]);
	for (i = 0; i < count / 10; i++)
		once(fd, random_of(&state) % blocks * stride);
	for (i = 0; i < count; i++)
		ns[i] = once(fd, random_of(&state) % blocks * stride);
	qsort(ns, count, sizeof(*ns), by_size);
	printf("{\"median\": %llu, \"p99\": %llu, \"least\": %llu}\n", (unsigned long long)ns[count / 2],
	       (unsigned long long)ns[count * 99 / 100], (unsigned long long)ns[0]);
	close(fd);
	return 0;
}
