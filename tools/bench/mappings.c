/* SPDX-License-Identifier: MIT
 *
 * The client of tools/bench/mappings.py: open, mmap, munmap and close of a file, COUNT times.
 *
 *     mappings CPU COUNT FILE
 *
 * CPU: number, or -1 for any. FILE is mapped shared and writable as a whole, and not touched: what is timed is
 * what it costs to have it, not the faults. Prints one line of JSON: the median of all four together, and of
 * each, in ns.
 */
#define _GNU_SOURCE

#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bench.h"

enum { OPEN, MMAP, MUNMAP, CLOSE, CYCLE, STEPS };
static const char *const names[STEPS] = {"open", "mmap", "munmap", "close", "cycle"};

/* One turn; its times at ns[step * count + i]. */
static void cycle(const char *path, size_t size, uint64_t *ns, size_t count, size_t i)
{
	uint64_t at[STEPS];
	void *mapping;
	int fd, step;

	at[0] = now();
	fd = open(path, O_RDWR);
	if (fd < 0)
		die("open");
	at[1] = now();
	mapping = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (mapping == MAP_FAILED)
		die("mmap");
	at[2] = now();
	if (munmap(mapping, size))
		die("munmap");
	at[3] = now();
	if (close(fd))
		die("close");
	at[4] = now();
	for (step = OPEN; step < CYCLE; step++)
		ns[step * count + i] = at[step + 1] - at[step];
	ns[CYCLE * count + i] = at[4] - at[0];
}

int main(int argc, char **argv)
{
	size_t count, i;
	struct stat st;
	uint64_t *ns;
	cpu_set_t cpus;
	int cpu, step;

	if (argc != 4) {
		fprintf(stderr, "usage: mappings CPU COUNT FILE\n");
		return 2;
	}
	cpu = atoi(argv[1]);
	count = strtoul(argv[2], NULL, 10);
	if (cpu >= 0) {
		CPU_ZERO(&cpus);
		CPU_SET(cpu, &cpus);
		if (sched_setaffinity(0, sizeof(cpus), &cpus))
			die("sched_setaffinity");
	}
	ns = count ? calloc(count * STEPS, sizeof(*ns)) : NULL;
	if (!ns || stat(argv[3], &st))
		die(argv[3]);
	for (i = 0; i < count; i++)
		cycle(argv[3], (size_t)st.st_size, ns, count, i);
	for (step = 0; step < STEPS; step++)
		printf("%s\"%s\": %llu", step ? ", " : "{", names[step],
		       (unsigned long long)median(ns + step * count, count));
	puts("}");
	free(ns);
	return 0;
}
