/* SPDX-License-Identifier: MIT
 *
 * The client of tools/bench/transport.py: one kind of call in a loop, each one timed; as cheap as it gets, and the
 * same for every file system. One thread for each FILE; they start together. Prints one line of JSON: samples of
 * all threads are put together (`median`, `p99` in ns), `seconds` is from the start to the end of the last thread.
 *
 *     client KIND LENGTH COUNT SPAN CPU FLAGS SEED FILE...
 *
 * KIND: read, write (pages of LENGTH at random places of the first SPAN bytes), fsync (of such a write; the call
 * fsync is timed), seqread, seqwrite (through SPAN, then again from its start), append (behind the end of a file
 * that is truncated first). CPU: number, or -1 for any. FLAGS: direct or plain. A tenth of COUNT warms up, except
 * with append.
 */
#define _GNU_SOURCE

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bench.h"

enum kind { READ, WRITE, FSYNC, SEQREAD, SEQWRITE, APPEND, KINDS };
static const char *const names[KINDS] = { "read", "write", "fsync", "seqread", "seqwrite", "append" };

static enum kind kind;
static uint64_t length, count, span, seed;
static int cpu, open_flags;
static pthread_barrier_t start;

struct job {
	pthread_t thread;
	const char *path;
	uint64_t random, began, ended;
	uint64_t *ns;
};

static uint64_t next_random(struct job *job)	/* xorshift64 */
{
	uint64_t x = job->random;
	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return job->random = x;
}

/* One timed call; the time in ns. */
static uint64_t once(struct job *job, int fd, char *buffer, uint64_t number)
{
	int random = kind == READ || kind == WRITE || kind == FSYNC;
	uint64_t place = random ? next_random(job) : number;
	uint64_t pos = kind == APPEND ? number * length : place % (span / length) * length;
	uint64_t began;
	ssize_t done;

	if (kind == FSYNC && pwrite(fd, buffer, length, pos) != (ssize_t)length)
		die("write before fsync");
	began = now();
	if (kind == FSYNC)
		done = fsync(fd) == 0 ? (ssize_t)length : -1;
	else if (kind == READ || kind == SEQREAD)
		done = pread(fd, buffer, length, pos);
	else
		done = pwrite(fd, buffer, length, pos);
	began = now() - began;
	if (done != (ssize_t)length)
		die(names[kind]);
	return began;
}

static void *run(void *arg)
{
	struct job *job = arg;
	uint64_t number, warm = kind == APPEND ? 0 : count / 10;
	char *buffer = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	int fd = open(job->path, O_RDWR | open_flags | (kind == APPEND ? O_CREAT | O_TRUNC : 0), 0644);

	if (fd < 0)
		die(job->path);
	if (buffer == MAP_FAILED)
		die("mmap");
	memset(buffer, 0xa5, length);
	for (number = 0; number < warm; number++)
		once(job, fd, buffer, number);
	pthread_barrier_wait(&start);
	job->began = now();
	for (number = 0; number < count; number++)
		job->ns[number] = once(job, fd, buffer, number);
	job->ended = now();
	close(fd);
	return NULL;
}

static void arguments(int argc, char **argv)
{
	if (argc < 9) {
		fprintf(stderr, "usage: client KIND LENGTH COUNT SPAN CPU direct|plain SEED FILE...\n");
		exit(2);
	}
	for (kind = 0; kind < KINDS && strcmp(argv[1], names[kind]) != 0; kind++)
		;
	length = strtoull(argv[2], NULL, 0);
	count = strtoull(argv[3], NULL, 0);
	span = strtoull(argv[4], NULL, 0);
	cpu = atoi(argv[5]);
	open_flags = strcmp(argv[6], "direct") == 0 ? O_DIRECT : 0;
	seed = strtoull(argv[7], NULL, 0);
	if (kind == KINDS || !length || !count || span < length) {
		fprintf(stderr, "client: kind, length, count or span is wrong\n");
		exit(2);
	}
}

int main(int argc, char **argv)
{
	int jobs = argc - 8, n;
	struct job *job;
	uint64_t *ns, began = UINT64_MAX, ended = 0, total;
	cpu_set_t set;

	arguments(argc, argv);
	total = count * jobs;
	job = calloc(jobs, sizeof(*job));
	ns = malloc(total * sizeof(*ns));
	if (!job || !ns)
		die("memory");
	memset(ns, 0, total * sizeof(*ns));	/* its pages are there before the clock runs */
	CPU_ZERO(&set);
	CPU_SET(cpu < 0 ? 0 : cpu, &set);
	if (cpu >= 0 && sched_setaffinity(0, sizeof(set), &set) != 0)
		die("sched_setaffinity");
	pthread_barrier_init(&start, NULL, jobs);
	for (n = 0; n < jobs; n++) {
		job[n].path = argv[8 + n];
		job[n].random = (seed + 1) * 0x9e3779b97f4a7c15u + n;
		job[n].ns = ns + n * count;
		if (pthread_create(&job[n].thread, NULL, run, &job[n]) != 0)
			die("pthread_create");
	}
	for (n = 0; n < jobs; n++) {
		pthread_join(job[n].thread, NULL);
		began = job[n].began < began ? job[n].began : began;
		ended = job[n].ended > ended ? job[n].ended : ended;
	}
	qsort(ns, total, sizeof(*ns), by_size);
	printf("{\"calls\": %llu, \"seconds\": %.9f, \"median\": %llu, \"p99\": %llu}\n", (unsigned long long)total,
	       (ended - began) / 1e9, (unsigned long long)ns[total / 2], (unsigned long long)ns[total * 99 / 100]);
	return 0;
}
