/* SPDX-License-Identifier: MIT
 *
 * Every access through a mapping, on every kind of file, for test_walk_faults.py: as it is on tmpfs, and under
 * `daxfs run` on a DAX file. One line for each case:
 *
 *   STATE OP: RESULTS | dirty PAGES | msync RESULT | left PAGES | sum SUM | flushed BEFORE N
 *
 * RESULTS: of each access a byte in hex, "ok", an errno, or a signal as BUS:CODE@PAGE, SEGV:CODE@PAGE. PAGES: runs
 * of the file's pages that daxfs_dirty tells before and after msync, "?" without the library. SUM: of the file.
 * N: the pages whose lines msync wrote back, BEFORE: those that what was done before it did.
 *
 *   walk_faults FILE FIRST       FILE is made and removed for each case; mappings begin at its page FIRST
 *
 * The mapping stands at a multiple of 2 MiB, with room behind it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096L
#define HUGE (2L << 20)
#define PAGES 1027L				/* two times 2 MiB, two pages and a part of one */
#define SIZE ((PAGES - 1) * PAGE + 100)
#define ROOM (4 * HUGE)

struct daxfs_piece {
	void *start;
	size_t length;
};

struct daxfs_flushes {
	uint64_t calls, lines, drains;
};

static const long TARGETS[] = {7, 511, 512, 700};
static const long SPARSE[] = {7, 511, 513, 1024};
static const char *path;
static long first;				/* page of the file */
static int fd;
static char *room, *at;				/* page `first` of the file is at `at` */
static size_t length;
static sigjmp_buf back;
static char signal_text[64];
static ssize_t (*dirty)(const void *, size_t, struct daxfs_piece *, size_t);
static void (*flushes)(struct daxfs_flushes *);

static void on_signal(int number, siginfo_t *info, void *context)
{
	(void)context;
	snprintf(signal_text, sizeof(signal_text), "%s:%d@%ld", number == SIGBUS ? "BUS" : "SEGV", info->si_code,
		 ((char *)info->si_addr - at) / PAGE + first);
	siglongjmp(back, 1);
}

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static char *place(long page)
{
	return at + (page - first) * PAGE;
}

static void load(long page, int offset)
{
	if (sigsetjmp(back, 1))
		printf(" %s", signal_text);
	else
		printf(" %02x", *(volatile unsigned char *)(place(page) + offset));
}

static void store(long page, int offset, int value)
{
	if (sigsetjmp(back, 1)) {
		printf(" %s", signal_text);
		return;
	}
	*(volatile char *)(place(page) + offset) = (char)value;
	printf(" ok");
}

static void say(long rc)
{
	if (rc < 0)
		printf(" E%d", errno);
	else
		printf(" %ld", rc);
}

static void say_mapped(void *p)
{
	printf(p == MAP_FAILED ? " E%d" : " ok", errno);
}

static void prepare(const char *state)
{
	static char page[PAGE];
	long n, i, written = !strcmp(state, "written"), count = written ? PAGES : 4;

	unlink(path);
	fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, SIZE))
		die(path);
	if (!strcmp(state, "unwritten") && fallocate(fd, 0, 0, SIZE))
		die("fallocate");
	if (!written && strcmp(state, "sparse"))
		return;
	for (i = 0; i < count; i++) {
		n = written ? i : SPARSE[i];
		memset(page, (int)(n % 251) + 1, PAGE);
		if (pwrite(fd, page, n == PAGES - 1 ? 100 : PAGE, n * PAGE) < 0)
			die("pwrite");
	}
}

static char *map_at(char *where, size_t size, int prot, int flags, int file)
{
	return mmap(where, size, prot, flags, file, first * PAGE);
}

static void begin(const char *state, size_t size)
{
	prepare(state);
	length = size;
	at = map_at(room, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd);
	if (at == MAP_FAILED)
		die("mmap");
}

static void print_dirty(void)
{
	struct daxfs_piece pieces[64];
	ssize_t n, i;

	if (!dirty) {
		printf(" ?");
		return;
	}
	n = dirty(at, length, pieces, 64);
	if (n < 0)
		printf(" E%d", errno);
	for (i = 0; i < n; i++)
		printf(" %ld+%ld", ((char *)pieces[i].start - at) / PAGE + first, (long)pieces[i].length / PAGE);
}

static long flushed(void)
{
	struct daxfs_flushes f = {0, 0, 0};

	if (flushes)
		flushes(&f);
	return (long)(f.lines / 64);
}

static uint64_t sum(void)
{
	static uint64_t words[(SIZE + 7) / 8];
	uint64_t total = 0;
	size_t i;

	memset(words, 0, sizeof(words));
	if (pread(fd, words, SIZE, 0) != SIZE)
		die("pread");
	for (i = 0; i < sizeof(words) / 8; i++)
		total += words[i] * (2 * i + 1);
	return total;
}

/* -- what is done ------------------------------------------------------------------------------- */

static void each(int loads, int stores)
{
	size_t i;

	for (i = 0; i < 4; i++) {
		if (loads)
			load(TARGETS[i], 5);
		if (stores)
			store(TARGETS[i], 5, 0xa5);
	}
}

static void do_load(void)
{
	each(1, 0);
}

static void do_store(void)
{
	each(0, 1);
}

static void do_mkwrite(void)
{
	each(1, 1);
}

static void do_again(void)
{
	each(0, 1);
	say(msync(at, length, MS_SYNC));
	store(511, 6, 0xa6);
	load(700, 5);
}

static void do_part(void)
{
	each(0, 1);
	say(msync(place(511), 2 * PAGE, MS_SYNC));
}

static void do_private(void)
{
	char *shared = at;

	at = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, first * PAGE);
	say_mapped(at);
	load(7, 5);
	store(7, 5, 0xa5);
	store(512, 5, 0xa5);
	load(7, 5);
	munmap(at, length);
	at = shared;
	load(7, 5);
	load(512, 5);
}

static void do_protect(void)
{
	store(7, 5, 0xa5);
	say(mprotect(place(7), PAGE, PROT_READ));
	load(7, 5);
	store(7, 6, 0xa6);
	say(mprotect(place(512), PAGE, PROT_NONE));
	load(512, 5);
	say(mprotect(place(512), PAGE, PROT_READ | PROT_WRITE));
	say(mprotect(place(7), PAGE, PROT_READ | PROT_WRITE));
	store(7, 6, 0xa7);
	store(512, 5, 0xa5);
}

static void resize(size_t size, int flags, char *wanted)
{
	void *moved = mremap(at, length, size, flags, wanted);

	say_mapped(moved);
	if (moved != MAP_FAILED) {
		at = moved;
		length = size;
	}
}

static void do_grow(void)
{
	size_t whole = length;

	munmap(at + HUGE, length - HUGE);
	length = HUGE;
	store(7, 5, 0xa5);
	store(700, 5, 0xa5);
	resize(whole, 0, NULL);
	load(7, 5);
	store(700, 5, 0xa6);
}

static void do_shrink(void)
{
	store(7, 5, 0xa5);
	store(700, 5, 0xa5);
	resize(HUGE, 0, NULL);
	store(700, 5, 0xa6);
	store(8, 5, 0xa5);
}

static void do_move(void)
{
	store(7, 5, 0xa5);
	resize(length, MREMAP_MAYMOVE | MREMAP_FIXED, room + 2 * ROOM);
	load(7, 5);
	store(512, 5, 0xa5);
}

static void do_advise(void)
{
	store(7, 5, 0xa5);
	say(madvise(at, length, MADV_HUGEPAGE));
	store(512, 5, 0xa5);
	say(madvise(at, length, MADV_NOHUGEPAGE));
	say(madvise(place(7), PAGE, MADV_DONTNEED));
	load(7, 5);
	say(madvise(at + 1, PAGE, MADV_DONTNEED));
	say(madvise(at, PAGE, 12345));
	store(511, 5, 0xa5);
}

static void in_child(int forked)
{
	int status;
	pid_t pid = fork();

	if (!pid) {
		if (forked)
			store(511, 5, 0xa5), load(7, 5);
		else
			load(7, 5);
		fflush(stdout);
		_exit(0);
	}
	waitpid(pid, &status, 0);
	printf(" exit%d", status);
}

static void do_dontfork(void)
{
	store(7, 5, 0xa5);
	say(madvise(at, length, MADV_DONTFORK));
	fflush(stdout);
	in_child(0);
	store(512, 5, 0xa5);
}

static void do_fork(void)
{
	store(7, 5, 0xa5);
	fflush(stdout);
	in_child(1);
	load(511, 5);
	store(512, 5, 0xa5);
}

static void do_remove(void)
{
	store(7, 5, 0xa5);
	store(512, 5, 0xa5);
	say(madvise(place(512), PAGE, MADV_REMOVE));
	load(512, 5);
	load(7, 5);
	store(512, 6, 0xa6);
}

static void do_hole(void)
{
	char *low = place(512);

	store(7, 5, 0xa5);
	store(600, 5, 0xa5);
	say(munmap(low, 100 * PAGE));
	store(600, 5, 0xa6);
	load(511, 5);
	store(620, 5, 0xa5);
	if (map_at(room, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd) == MAP_FAILED)
		die("mmap");
	load(600, 5);
}

static void do_lock(void)
{
	say(mlock(place(7), 2 * PAGE));
	store(7, 5, 0xa5);
	say(msync(place(7), PAGE, MS_SYNC | MS_INVALIDATE));
	say(munlock(place(7), 2 * PAGE));
	say(msync(place(7), PAGE, MS_INVALIDATE));
}

static void do_flags(void)
{
	store(7, 5, 0xa5);
	say(msync(at, length, MS_ASYNC));
	say(msync(at, length, MS_ASYNC | MS_SYNC));
	say(msync(at, length, 64));
	say(msync(at + 1, PAGE, MS_SYNC));
	say(msync((void *)PAGE, PAGE, MS_SYNC));
	say(msync(at, 0, MS_SYNC));
}

static void do_readonly(void)
{
	int other = open(path, O_RDONLY | O_CLOEXEC);
	char *shared = at;

	say_mapped(mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, other, first * PAGE));
	at = mmap(NULL, length, PROT_READ, MAP_SHARED, other, first * PAGE);
	say_mapped(at);
	load(7, 5);
	store(7, 5, 0xa5);
	say(mprotect(at, length, PROT_READ | PROT_WRITE));
	munmap(at, length);
	close(other);
	at = shared;
}

static void do_end(void)
{
	load(PAGES, 0);
	store(PAGES + 1, 9, 1);
	load(PAGES - 1, 50);
	store(PAGES - 1, 50, 0xa5);
	store(PAGES - 1, 200, 0xa6);
	load(PAGES - 1, 200);
	say(ftruncate(fd, SIZE - 2 * PAGE));
	load(PAGES - 2, 0);
	store(PAGES - 3, 10, 0xa7);
	say(ftruncate(fd, SIZE));
	load(PAGES - 2, 0);
	load(PAGES - 1, 50);
}

static void do_buffer(void)
{
	int direct = open(path, O_RDWR | O_DIRECT | O_CLOEXEC), ends[2];
	char bytes[4];

	store(7, 5, 0xa5);
	say(pread(fd, place(512), PAGE, 7 * PAGE));
	say(pwrite(fd, place(512), PAGE, 800 * PAGE));
	say(pread(direct, place(700), 2 * PAGE, 7 * PAGE));
	say(pwrite(direct, place(700), PAGE, 900 * PAGE));
	if (pipe(ends))
		die("pipe");
	say(write(ends[1], place(511) + PAGE - 2, 4));
	say(read(ends[0], bytes, 4));
	printf(" %02x%02x", (unsigned char)bytes[0], (unsigned char)bytes[2]);
	close(ends[0]);
	close(ends[1]);
	close(direct);
}

static const struct {
	const char *name;
	void (*go)(void);
} OPS[] = {
	{"load", do_load}, {"store", do_store}, {"mkwrite", do_mkwrite}, {"again", do_again}, {"part", do_part},
	{"private", do_private}, {"protect", do_protect}, {"grow", do_grow}, {"shrink", do_shrink},
	{"move", do_move}, {"advise", do_advise}, {"dontfork", do_dontfork}, {"fork", do_fork},
	{"remove", do_remove}, {"hole", do_hole}, {"lock", do_lock}, {"flags", do_flags},
	{"readonly", do_readonly}, {"end", do_end}, {"buffer", do_buffer},
};
static const char *const STATES[] = {"written", "unwritten", "hole", "sparse"};

static void a_case(const char *state, size_t op)
{
	long before, during, last;

	begin(state, (PAGES + 4 - first) * PAGE);
	before = flushed();
	printf("%s %s:", state, OPS[op].name);
	OPS[op].go();
	printf(" | dirty");
	print_dirty();
	printf(" | msync");
	during = flushed() - before;
	say(msync(at, length, MS_SYNC));
	last = flushed() - before - during;
	printf(" | left");
	print_dirty();
	printf(" | sum %lx | flushed %ld %ld\n", (unsigned long)sum(), during, last);
	fflush(stdout);
	munmap(at, length);
	close(fd);
	unlink(path);
}

int main(int argc, char **argv)
{
	struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO};
	char *space;
	size_t s, op;

	if (argc != 3)
		return 2;
	path = argv[1];
	first = atol(argv[2]);
	dirty = (ssize_t (*)(const void *, size_t, struct daxfs_piece *, size_t))dlsym(RTLD_DEFAULT, "daxfs_dirty");
	flushes = (void (*)(struct daxfs_flushes *))dlsym(RTLD_DEFAULT, "daxfs_flushes");
	sigaction(SIGBUS, &action, NULL);
	sigaction(SIGSEGV, &action, NULL);
	space = mmap(NULL, 4 * ROOM + HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (space == MAP_FAILED)
		die("mmap");
	room = (char *)(((uintptr_t)space + HUGE - 1) & ~(uintptr_t)(HUGE - 1));
	for (s = 0; s < 4; s++)
		for (op = 0; op < sizeof(OPS) / sizeof(OPS[0]); op++)
			a_case(STATES[s], op);
	return 0;
}
