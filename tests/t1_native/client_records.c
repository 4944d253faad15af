/* SPDX-License-Identifier: MIT
 *
 * The client's msync by records of page faults (records.c, candidates.c), with a daemon that is made up.
 * client_records CASE [SEED]: what was flushed is told by the counters of the flush table (a page is 64
 * lines), and how it was found by daxfs_records. Working directory: a file system with O_DIRECT.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "daxfs/client/daxfs.h"
#include "daxfs/client/lib.h"
#include "daxfs/native/pagemap.h"
#include "tests/t1_native/check.h"

#define PAGE 4096ul
#define PAGES 4096ul
#define SIZE (PAGES * PAGE)

static int yes(int fd)
{
	return fd >= 0;
}

static int about(int fd, struct daxfs_about *a)
{
	*a = (struct daxfs_about){.version = DAXFS_OBSERVE_VERSION, .direct = 1, .modes = 1,
				  .flush = DAXFS_FLUSH_CLWB, .granularity = 1};
	return 0;
}

static int observe(int fd, struct daxfs_observe *o)
{
	static uint64_t id;

	o->id = ++id;
	return 0;
}

static int forget(int fd, const struct daxfs_forget *f)
{
	return 0;
}

static char *at;
static int file;

static void map(void)
{
	file = memfd_create("records", MFD_CLOEXEC);
	CHECK(file >= 0 && !ftruncate(file, SIZE));
	at = daxfs_map_fd(file, DAXFS_MAP_WRITE | DAXFS_MAP_PTE | DAXFS_MAP_REQUIRE, 0, 0, NULL);
	CHECK(at);
	for (size_t i = 0; i < SIZE; i += PAGE)
		at[i] = 1;
}

static uint64_t written(void)
{
	static uint64_t before;
	uint64_t calls, lines, drains, now;

	flushing_counts(&calls, &lines, &drains);
	now = lines / 64 - before;
	before = lines / 64;
	return now;
}

static void sync_all(void)
{
	CHECK(!daxfs_msync(at, SIZE, MS_SYNC));
}

/* What the page table says was stored to, by a scan of all of it. */
static uint64_t marked(void)
{
	struct pagemap_run run;
	uint64_t next = (uintptr_t)at, end = next + SIZE, pages = 0;

	while (next < end && pagemap_scan(kernel_pagemap(), next, end, 0, &run, 1, &next) == 1)
		pages += (run.end - run.start) / PAGE;
	return pages;
}

/* 1: what was written back since the last call was by records, 0: by a scan of all, too. */
static int by_records(void)
{
	static uint64_t records, scans;
	struct daxfs_records now;
	int r;

	daxfs_records(&now);
	CHECK(now.by_records + now.by_scan > records + scans);
	r = now.by_scan == scans;
	records = now.by_records;
	scans = now.by_scan;
	return r;
}

/* Writes back until records are used; there were others' threads. */
static void settle(void)
{
	struct timespec rest = {0, 30000000};
	int i;

	for (i = 0; i < 40; i++) {
		sync_all();
		if (by_records())
			break;
		nanosleep(&rest, NULL);
	}
	CHECK(i < 40);
	written();
}

static uint64_t dirty(void)
{
	static struct daxfs_piece piece[PAGES];
	ssize_t n = daxfs_dirty(at, SIZE, piece, PAGES);
	uint64_t pages = 0;

	CHECK(n >= 0);
	for (ssize_t i = 0; i < n; i++)
		pages += piece[i].length / PAGE;
	return pages;
}

static void case_used(void)
{
	map();
	sync_all();
	CHECK(!by_records() && written() == PAGES);	/* what was stored before counts */
	for (size_t i = 0; i < 100; i++) {
		at[i * 37 % PAGES * PAGE] = at[(i * 53 + 7) % PAGES * PAGE] = 2;
		CHECK(dirty() == 2 && marked() == 2);
		sync_all();
		CHECK(by_records() && written() == 2 && !marked() && !dirty());
	}
	/* The kernel stores. */
	CHECK(pread(open("/dev/zero", O_RDONLY), at + 5 * PAGE + 9, 2 * PAGE, 0) == 2 * PAGE);
	sync_all();
	CHECK(by_records() && written() == 3 && !marked());
	at[77 * PAGE] = 3;
	CHECK(!daxfs_msync(at, SIZE / 2, MS_SYNC) && by_records() && written() == 1);
	at[9 * PAGE] = at[(PAGES - 1) * PAGE] = 3;
	CHECK(!daxfs_msync(at, SIZE / 2, MS_SYNC) && by_records() && written() == 1 && dirty() == 1);
	sync_all();
	CHECK(by_records() && written() == 1);
	/* Small ranges are scanned without a look, and take nothing from the records. */
	at[9 * PAGE] = 4;
	CHECK(!daxfs_msync(at + 9 * PAGE, PAGE, MS_SYNC) && written() == 1);
	at[9 * PAGE] = 5;
	sync_all();
	CHECK(by_records() && written() == 1);
}

/* What another process stores for us is found by a scan of all, which comes in the end. */
static void case_others(void)
{
	int status, i;

	map();
	settle();
	at[PAGE] = 1;
	sync_all();
	if (!fork()) {
		char name[32];
		int memory;

		snprintf(name, sizeof(name), "/proc/%d/mem", getppid());
		memory = open(name, O_RDWR | O_CLOEXEC);
		syscall(SYS_exit_group, memory < 0 || pwrite(memory, "x", 1, (off_t)(uintptr_t)(at + 9 * PAGE)) != 1);
	}
	CHECK(wait(&status) > 0 && status == 0 && at[9 * PAGE] == 'x' && marked() == 1);
	for (i = 0; i < 4096 && marked(); i++)
		sync_all();
	CHECK(i > 1 && !marked());
}

static void case_off(void)
{
	struct daxfs_records r;

	map();
	sync_all();
	at[0] = 1;
	sync_all();
	daxfs_records(&r);
	CHECK(r.by_records == 0 && r.by_scan == 2 && r.why && written() == PAGES + 1);
	CHECK(dirty() == 0);
}

/* A store by the kernel through get_user_pages, which no record tells of. */
static void direct_read(char *to)
{
	int fd = open("direct", O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0600);
	static _Alignas(4096) char text[PAGE] = "direct";

	CHECK(fd >= 0 && pwrite(fd, text, PAGE, 0) == PAGE);
	CHECK(pread(fd, to, PAGE, 0) == PAGE && !memcmp(to, "direct", 6));
	close(fd);
}

static void case_direct(void)
{
	map();
	settle();
	for (int i = 0; i < 10; i++) {
		at[3 * PAGE] = i;
		direct_read(at + (100 + i) * PAGE);
		CHECK(marked() == 2);
		sync_all();
		CHECK(!by_records() && written() == 2 && !marked());
		at[4 * PAGE] = i;
		sync_all();	/* alone in the process: at once again */
		CHECK(by_records() && written() == 1);
	}
}

static volatile int stop, rounds;

static void *faulter(void *unused)
{
	while (!stop) {
		char *more = (char *)syscall(SYS_mmap, NULL, 8 * PAGE, PROT_READ | PROT_WRITE,
					     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		for (int i = 0; i < 8; i++)
			more[i * PAGE] = 1;
		syscall(SYS_munmap, more, 8 * PAGE);
		rounds++;
		sched_yield();
	}
	return NULL;
}

/* The same beside threads that fault all the time: what they have counted and not recorded must not make up
 * for what has no record. */
static void case_direct_threads(void)
{
	pthread_t thread[3];
	unsigned used = 0;

	map();
	for (int i = 0; i < 3; i++)
		CHECK(!pthread_create(&thread[i], NULL, faulter, NULL));
	for (int i = 0; i < 300 || (rounds <= 100 && i < 1000000); i++) {
		at[(i * 7) % 50 * PAGE] = i;
		if (i % 3 == 0)
			direct_read(at + (100 + i % 300) * PAGE);
		sync_all();
		used += by_records();
		CHECK(!marked());
	}
	stop = 1;
	for (int i = 0; i < 3; i++)
		CHECK(!pthread_join(thread[i], NULL));
	CHECK(rounds > 100);
	settle();
}

/* A thread that is older than the events has its own. */
static volatile int turn;

static void *older(void *unused)
{
	for (int i = 1; i <= 50; i++) {
		while (__atomic_load_n(&turn, __ATOMIC_ACQUIRE) != 2 * i - 1)
			sched_yield();
		at[i * PAGE] = 7;
		__atomic_store_n(&turn, 2 * i, __ATOMIC_RELEASE);
	}
	return NULL;
}

static void case_older(void)
{
	pthread_t thread;

	map();
	CHECK(!pthread_create(&thread, NULL, older, NULL));
	settle();
	for (int i = 1; i <= 50; i++) {
		__atomic_store_n(&turn, 2 * i - 1, __ATOMIC_RELEASE);
		while (__atomic_load_n(&turn, __ATOMIC_ACQUIRE) != 2 * i)
			sched_yield();
		sync_all();
		CHECK(by_records() && written() == 1 && !marked());
	}
	CHECK(!pthread_join(thread, NULL));
}

/* More faults than there is room for in the ring. */
static void case_ring(void)
{
	const size_t size = 20000 * PAGE;
	char *more = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	cpu_set_t one;

	CPU_ZERO(&one);
	CPU_SET(sched_getcpu(), &one);
	CHECK(more != MAP_FAILED && !madvise(more, size, MADV_NOHUGEPAGE));
	CHECK(!sched_setaffinity(0, sizeof(one), &one));
	map();
	settle();
	for (int i = 0; i < 3; i++) {
		CHECK(!madvise(more, size, MADV_DONTNEED));
		for (size_t j = 0; j < size; j += PAGE)
			more[j] = 1;
		at[(5 + i) * PAGE] = 9;
		sync_all();
		CHECK(!by_records() && written() == 1 && !marked());
		at[(9 + i) * PAGE] = 9;
		at[PAGE] = 9;
		sync_all();
		by_records();
		CHECK(written() == 2 && !marked());
		settle();
	}
}

/* More pages than it is worth to look at one by one, and more runs than there is room for. */
static void case_many(void)
{
	const size_t size = 4500 * 64 * PAGE;
	int fd = memfd_create("many", MFD_CLOEXEC);
	char *large;

	map();
	settle();
	for (size_t i = 0; i < PAGES; i += 40)
		at[i * PAGE] = 3;
	sync_all();
	CHECK(!by_records() && written() == (PAGES + 39) / 40 && !marked());
	settle();
	CHECK(fd >= 0 && !ftruncate(fd, size));
	large = daxfs_map_fd(fd, DAXFS_MAP_WRITE | DAXFS_MAP_PTE | DAXFS_MAP_REQUIRE, 0, 0, NULL);
	CHECK(large && !daxfs_msync(large, size, MS_SYNC) && !by_records());
	for (int half = 0; half < 2; half++) {
		for (size_t i = 0; i < 2250; i++)	/* each ring has room for them */
			large[(half * 2250 + i) * 64 * PAGE] = 1;
		at[half * PAGE] = 4;
		sync_all();
		CHECK(by_records() && written() == 1);
	}
	CHECK(!daxfs_msync(large, size, MS_SYNC) && !by_records() && written() == 4500);
	CHECK(!daxfs_msync(large, size, MS_SYNC) && by_records() && written() == 0);
}

static void case_fork(void)
{
	int status;

	map();
	settle();
	at[5 * PAGE] = 2;
	if (!fork()) {
		struct daxfs_records r;

		for (int i = 0; i < 5; i++) {
			at[(50 + i) * PAGE] = 5;
			sync_all();
			CHECK(written() == 1 && !marked());
		}
		daxfs_records(&r);
		CHECK(!r.why && r.by_records > 3);
		if (!_Fork()) {	/* not observed: all of it, and nothing of its parent's is touched */
			at[9 * PAGE] = 1;
			sync_all();
			CHECK(written() == PAGES);
			_exit(0);
		}
		CHECK(wait(&status) > 0 && status == 0);
		_exit(0);
	}
	CHECK(wait(&status) > 0 && status == 0);
	sync_all();
	CHECK(by_records() && written() == 1 && !marked());
}

/* Addresses that become something else, and what they were again. */
static void case_changes(void)
{
	char *to;

	map();
	settle();
	CHECK(mmap(at, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0) == at);
	at[7 * PAGE] = 1;
	sync_all();
	CHECK(!by_records() && written() == 1 && !marked());
	for (size_t i = 0; i < SIZE; i += PAGE)
		at[i] = 2;
	settle();
	CHECK(!munmap(at + 64 * PAGE, PAGE));
	written();	/* what may have been one huge page with it */
	at[63 * PAGE] = at[65 * PAGE] = 2;
	CHECK(!msync(at + 65 * PAGE, SIZE - 65 * PAGE, MS_SYNC) && by_records() && written() == 1);
	CHECK(!msync(at, 64 * PAGE, MS_SYNC) && by_records() && written() == 1);
	at[70 * PAGE] = 2;
	to = mremap(at + 65 * PAGE, SIZE - 65 * PAGE, SIZE - 65 * PAGE, MREMAP_MAYMOVE);
	CHECK(to != MAP_FAILED);
	to[9 * PAGE] = 3;
	written();
	CHECK(!msync(to, SIZE - 65 * PAGE, MS_SYNC) && !by_records() && written() >= 1);
	/* Nothing of ours is registered any more, behind our back. */
	CHECK(!syscall(SYS_close, kernel_uffd(DAXFS_FAULT_KERNEL)));
	CHECK(!msync(to, SIZE - 65 * PAGE, MS_SYNC) && written() == PAGES - 65);
}

/* Of a file of tmpfs with huge pages, in the working directory: one candidate of a huge page is all of it. */
static void case_huge(void)
{
	const size_t huge = 512 * PAGE;

	file = open("huge", O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	CHECK(file >= 0 && !ftruncate(file, SIZE));
	at = daxfs_map_fd(file, DAXFS_MAP_WRITE | DAXFS_MAP_REQUIRE, 0, 0, NULL);
	CHECK(at && (uintptr_t)at % huge == 0);
	for (size_t i = 0; i < SIZE; i += PAGE)
		at[i] = 1;
	settle();
	for (int i = 0; i < 20; i++) {
		at[huge + 5 * PAGE] = at[3 * huge + 511 * PAGE] = i;
		CHECK(dirty() == 1024 && marked() == 1024);
		at[huge + 300 * PAGE] = i;	/* no fault */
		sync_all();
		CHECK(by_records() && written() == 1024 && !marked());
		at[4 * huge + 100 * PAGE] = i;
		CHECK(!msync(at + 4 * huge + 200 * PAGE, 200 * PAGE, MS_SYNC) && by_records() && written() == 512);
		CHECK(!marked());
	}
}

/* -- many threads, all kinds of stores -- */

#define STORERS 3
static unsigned seed;
static pthread_barrier_t together;

static unsigned random_of(unsigned *state)
{
	*state = *state * 1664525 + 1013904223;
	return (*state ^ *state >> 15) * 2654435761u >> 8;
}

/* After a store msync of it; then the page must not be marked, whoever has written it back: each page has one
 * storer. */
static void *storer(void *number)
{
	unsigned state = seed * 31 + (uintptr_t)number, i, which;
	int zero = open("/dev/zero", O_RDONLY | O_CLOEXEC), direct, status;
	static _Alignas(4096) char block[PAGE];
	char name[16], *page;
	struct pagemap_run run;
	uint64_t next;

	snprintf(name, sizeof(name), "direct%d", (int)(uintptr_t)number);
	direct = open(name, O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0600);
	/* Not a hole, which the kernel would store zeros for as read(2) does. */
	CHECK(direct >= 0 && pwrite(direct, block, PAGE, 0) == PAGE);
	for (i = 0; i < 4000; i++) {
		page = at + (random_of(&state) % (PAGES / STORERS) * STORERS + (uintptr_t)number) % PAGES * PAGE;
		which = random_of(&state) % 100;
		if (i % 1000 == 500) {	/* nothing is missed for long enough to trust the records again */
			pthread_barrier_wait(&together);
			nanosleep(&(struct timespec){0, 120000000}, NULL);
		}
		if (which < 3 && i % 1000 < 500) {
			CHECK(pread(direct, page, PAGE, 0) == PAGE);
		} else if (which < 10) {
			CHECK(read(zero, page, 100) == 100);
		} else if (which == 10 && i % 8 == 0) {
			pid_t child = fork();

			if (!child) {
				page[2] = i;
				CHECK(!daxfs_msync(at, SIZE, MS_SYNC));
				CHECK(pagemap_scan(kernel_pagemap(), (uintptr_t)page, (uintptr_t)page + PAGE, 0, &run,
						   1, &next) == 0);
				syscall(SYS_exit_group, 0);
			}
			CHECK(waitpid(child, &status, 0) == child && status == 0);
		} else {
			page[1] = i;
		}
		if (random_of(&state) % 4)
			continue;
		if (random_of(&state) % 4)
			page[3] = i;
		CHECK(!daxfs_msync(at, SIZE, MS_SYNC));
		/* The one that was stored to last. */
		CHECK(pagemap_scan(kernel_pagemap(), (uintptr_t)page, (uintptr_t)page + PAGE, 0, &run, 1, &next) == 0);
	}
	return NULL;
}

static void case_stress(void)
{
	struct daxfs_records r;
	pthread_t thread[STORERS];

	map();
	settle();
	CHECK(!pthread_barrier_init(&together, NULL, STORERS));
	for (uintptr_t i = 0; i < STORERS; i++)
		CHECK(!pthread_create(&thread[i], NULL, storer, (void *)i));
	for (int i = 0; i < STORERS; i++)
		CHECK(!pthread_join(thread[i], NULL));
	CHECK(!daxfs_msync(at, SIZE, MS_SYNC) && !marked());
	daxfs_records(&r);
	printf("%lu by records, %lu by scan\n", r.by_records, r.by_scan);
	CHECK(!daxfs_unmap(at, SIZE));
}

static const struct { const char *name; void (*run)(void); } CASES[] = {
	{"used", case_used}, {"off", case_off}, {"direct", case_direct}, {"direct_threads", case_direct_threads},
	{"older", case_older}, {"ring", case_ring}, {"many", case_many}, {"fork", case_fork},
	{"others", case_others}, {"changes", case_changes}, {"huge", case_huge}, {"stress", case_stress},
};

int main(int argc, char **argv)
{
	CHECK(argc == 2 || argc == 3);
	seed = argc == 3 ? atoi(argv[2]) : 1;
	client_daemon = (struct client_daemon){yes, about, observe, forget};
	for (size_t i = 0; i < sizeof(CASES) / sizeof(*CASES); i++)
		if (!strcmp(CASES[i].name, argv[1])) {
			CASES[i].run();
			return 0;
		}
	fprintf(stderr, "no such case: %s\n", argv[1]);
	return 2;
}
