/* SPDX-License-Identifier: MIT
 *
 * The caller's view of a large fsync, for tools/bench/flushers.py, and the plain loop that it is held against:
 * the instruction alone, line after line, on the same memory. Also built as a library, for `plain_flush`.
 *
 *     flushers FILE REGION MIB COUNT CPU KIND
 *
 * FILE, of MIB MiB, stands in one piece in the file REGION, which is found by a stamp. COUNT times: FILE is
 * written anew in requests of 1 MiB and fsync is timed; it is written again and the plain loop over its memory
 * is timed, by KIND (clwb, clflushopt, clflush). CPU: number, or -1 for any. Prints JSON: both lists, in ns.
 */
#define _GNU_SOURCE

#include <fcntl.h>
#include <immintrin.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bench.h"

#define MIB (UINT64_C(1) << 20)
#define PAGE 4096

__attribute__((target("clwb")))
static void by_clwb(char *p, uint64_t n)
{
	for (uint64_t at = 0; at < n; at += 64)
		_mm_clwb(p + at);
}

__attribute__((target("clflushopt")))
static void by_clflushopt(char *p, uint64_t n)
{
	for (uint64_t at = 0; at < n; at += 64)
		_mm_clflushopt(p + at);
}

void plain_flush(char *p, uint64_t n, const char *kind)
{
	if (strcmp(kind, "clwb") == 0)
		by_clwb(p, n);
	else if (strcmp(kind, "clflushopt") == 0)
		by_clflushopt(p, n);
	else
		for (uint64_t at = 0; at < n; at += 64)
			_mm_clflush(p + at);
	_mm_sfence();
}

static char *buffer;

static void dirty(int fd, uint64_t size, int value)
{
	memset(buffer, value, MIB);
	for (uint64_t at = 0; at < size; at += MIB)
		if (pwrite(fd, buffer, MIB, (off_t)at) != (ssize_t)MIB)
			die("pwrite");
}

/* Where the file stands in the region. */
static char *find(int fd, char *region, uint64_t length, uint64_t size)
{
	uint64_t stamp[2] = {now(), (uint64_t)getpid() << 32 | 0xdaf5f1};

	memset(buffer, 0, MIB);
	for (uint64_t at = 0; at < size; at += MIB) {
		memcpy(buffer, stamp, sizeof(stamp));
		memcpy(buffer + sizeof(stamp), &at, sizeof(at));
		if (pwrite(fd, buffer, MIB, (off_t)at) != (ssize_t)MIB)
			die("pwrite");
	}
	for (uint64_t at = 0; at + size <= length; at += PAGE) {
		uint64_t n = 0;

		while (n < size && !memcmp(region + at + n, stamp, sizeof(stamp))
				&& !memcmp(region + at + n + sizeof(stamp), &n, sizeof(n)))
			n += MIB;
		if (n == size)
			return region + at;
	}
	fprintf(stderr, "flushers: the file does not stand in one piece in the region\n");
	exit(2);
}

static void show(const char *name, const uint64_t *ns, int count, const char *end)
{
	printf("\"%s\": [", name);
	for (int i = 0; i < count; i++)
		printf("%s%llu", i ? ", " : "", (unsigned long long)ns[i]);
	printf("]%s", end);
}

int main(int argc, char **argv)
{
	uint64_t size, began, *by_fsync, *plain;
	int fd, region_fd, count, cpu;
	char *region, *memory;
	struct stat st;
	cpu_set_t set;

	if (argc != 7) {
		fprintf(stderr, "usage: flushers FILE REGION MIB COUNT CPU KIND\n");
		return 2;
	}
	size = strtoull(argv[3], NULL, 0) * MIB;
	count = atoi(argv[4]);
	cpu = atoi(argv[5]);
	CPU_ZERO(&set);
	CPU_SET(cpu < 0 ? 0 : cpu, &set);
	if (cpu >= 0 && sched_setaffinity(0, sizeof(set), &set))
		die("sched_setaffinity");
	fd = open(argv[1], O_RDWR | O_CREAT | O_DIRECT, 0644);
	region_fd = open(argv[2], O_RDWR);
	buffer = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	by_fsync = calloc((size_t)count * 2, sizeof(*by_fsync));
	if (fd < 0 || region_fd < 0 || fstat(region_fd, &st) || buffer == MAP_FAILED || !by_fsync)
		die("open");
	plain = by_fsync + count;
	region = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, region_fd, 0);
	if (region == MAP_FAILED)
		die("mmap");
	memory = find(fd, region, (uint64_t)st.st_size, size);
	if (fsync(fd))
		die("fsync");
	for (int i = 0; i < count; i++) {
		dirty(fd, size, i);
		began = now();
		if (fsync(fd))
			die("fsync");
		by_fsync[i] = now() - began;
		dirty(fd, size, i + 1);
		began = now();
		plain_flush(memory, size, argv[6]);
		plain[i] = now() - began;
		if (fsync(fd))
			die("fsync");
	}
	printf("{");
	show("fsync", by_fsync, count, ", ");
	show("plain", plain, count, "}\n");
	return 0;
}
