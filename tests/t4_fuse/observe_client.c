/* SPDX-License-Identifier: MIT
 *
 * A client with observed mappings, for test_observe.py. It reads one command a line and answers each with
 * one line: "ok ..." or "error ERRNO".
 *
 *   map N PATH OFFSET LENGTH [HOW]     mapping N of a file, at a multiple of 2 MiB; observed with fault=kernel,
 *                                      or HOW plain: not at all; user: fault=user; pages: that, 4 KiB each
 *   store N AT VALUE                   one byte
 *   try N AT VALUE                     a store; EFAULT: SIGBUS
 *   expect N AT VALUE                  a load that has to find it; EFAULT: SIGBUS; EILSEQ: another value
 *   race N KEEP TAG SECONDS            stores to all pages in rounds: to the first KEEP the round's number,
 *                                      which the next one finds; to others TAG, where 0, TAG, 'W' or SIGBUS is
 *   forget N AT LENGTH DIRTY           a piece of mapping N
 *   unmap N AT LENGTH
 *   close N                            the descriptor
 *   fork / exec / exit                 a child that observes mapping 0 again and stores to page 1; this program anew
 *   count N THREADS ROUNDS             each thread counts up in a line of its own of every page (page p: line
 *                                      p % 64 plus its number); after each round of all pages it waits for nobody
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "daxfs/native/observe_abi.h"

#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13)
#endif
#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1 << 15)
#endif
#define HUGE (UINT64_C(1) << 21)
#define PAGE 4096
#define LINE 64

static struct mapping {
	char *p;
	size_t length;
	uint64_t offset, id;
	int fd;
	int mode, pages;
} mappings[16];
static int uffds[3] = {-1, -1, -1};	/* by mode */

static int say(int rc)
{
	if (rc)
		printf("error %d\n", errno);
	else
		printf("ok\n");
	fflush(stdout);
	return rc;
}

static int observe(struct mapping *m)
{
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_WP_UNPOPULATED
		| UFFD_FEATURE_WP_HUGETLBFS_SHMEM | (m->mode == DAXFS_FAULT_USER
		? UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_MISSING_SHMEM : UFFD_FEATURE_WP_ASYNC)};
	struct uffdio_register reg = {.range = {(uintptr_t)m->p, m->length}, .mode = UFFDIO_REGISTER_MODE_WP
		| (m->mode == DAXFS_FAULT_USER ? UFFDIO_REGISTER_MODE_MINOR | UFFDIO_REGISTER_MODE_MISSING : 0)};
	struct daxfs_observe ask = {.version = DAXFS_OBSERVE_VERSION, .mode = (uint32_t)m->mode, .prot = 3,
		.address = (uintptr_t)m->p, .length = m->length, .offset = m->offset,
		.flags = m->pages ? DAXFS_OBSERVE_PTE : 0};
	int *uffd = &uffds[m->mode];

	if (*uffd < 0) {
		*uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
		if (*uffd < 0 || ioctl(*uffd, UFFDIO_API, &api))
			return -1;
	}
	ask.uffd = *uffd;
	if (ioctl(*uffd, UFFDIO_REGISTER, &reg) || ioctl(m->fd, DAXFS_IOC_OBSERVE, &ask))
		return -1;
	m->id = ask.id;
	return ask.id ? 0 : (errno = EPROTO, -1);
}

static int map(struct mapping *m, const char *path, uint64_t offset, size_t length, const char *how)
{
	int plain = !strcmp(how, "plain");
	char *space;

	m->pages = !strcmp(how, "pages");
	m->mode = m->pages || !strcmp(how, "user") ? DAXFS_FAULT_USER : DAXFS_FAULT_KERNEL;

	/* As no other program does it, so that no handle that one has closed answers it (docs/fault.md). */
	m->fd = open(path, O_RDWR | O_CLOEXEC | (plain ? 0 : O_NONBLOCK));
	if (m->fd < 0)
		return -1;
	space = mmap(NULL, length + HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	m->p = (char *)(((uintptr_t)space + HUGE - 1) & ~(HUGE - 1));
	m->p = mmap(m->p, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, m->fd, (off_t)offset);
	if (m->p == MAP_FAILED)
		return -1;
	m->length = length;
	m->offset = offset;
	return plain ? 0 : observe(m);
}

static int forget(struct mapping *m, uint64_t at, uint64_t length, uint32_t dirty)
{
	struct daxfs_forget ask = {.id = m->id, .address = (uintptr_t)m->p + at, .length = length, .dirty = dirty};

	return ioctl(m->fd, DAXFS_IOC_FORGET, &ask);
}

static sigjmp_buf back;

static void at_sigbus(int number)
{
	(void)number;
	siglongjmp(back, 1);
}

/* What is at p; `store`: after a store. -1: SIGBUS. */
static int touch(volatile unsigned char *p, int store, unsigned char value)
{
	struct sigaction catch = {.sa_handler = at_sigbus, .sa_flags = SA_NODEFER}, old;
	volatile int found = -1;

	sigaction(SIGBUS, &catch, &old);
	if (!sigsetjmp(back, 1)) {
		if (store)
			*p = value;
		found = *p;
	}
	sigaction(SIGBUS, &old, NULL);
	return found;
}

static int expect(const struct mapping *m, uint64_t at, int store, unsigned char value)
{
	int found = touch((unsigned char *)m->p + at, store, value);

	if (found < 0 || (!store && found != value)) {
		errno = found < 0 ? EFAULT : EILSEQ;
		return -1;
	}
	return 0;
}

static int race(const struct mapping *m, size_t keep, unsigned char tag, time_t seconds)
{
	time_t until = time(NULL) + seconds;
	volatile uint32_t *word;
	int found;

	for (uint32_t round = 1; time(NULL) < until; round++) {
		for (size_t page = 0; page < m->length / PAGE; page++) {
			word = (uint32_t *)(m->p + page * PAGE);
			if (page < keep) {
				if (*word != round - 1)
					return errno = EILSEQ, -1;
				*word = round;
				continue;
			}
			found = touch((unsigned char *)word + LINE, 0, 0);
			if (found > 0 && found != tag && found != 'W') {
				errno = EBADMSG;
				return -1;
			}
			touch((unsigned char *)word + LINE, 1, tag);
		}
	}
	return 0;
}

static int in_child(void)
{
	int status;
	pid_t pid = fork();

	if (!pid) {
		uffds[mappings[0].mode] = -1;
		if (observe(&mappings[0]))
			_exit(errno);
		mappings[0].p[PAGE] = 'c';
		_exit(0);
	}
	if (pid < 0 || waitpid(pid, &status, 0) < 0)
		return -1;
	errno = WEXITSTATUS(status);
	return status ? -1 : 0;
}

struct counter {
	pthread_t thread;
	struct mapping *m;
	int number, rounds;
};

static void *count(void *argument)
{
	struct counter *c = argument;
	size_t page, pages = c->m->length / PAGE;

	for (int round = 1; round <= c->rounds; round++) {
		for (page = 0; page < pages; page++) {
			size_t line = (page + (size_t)c->number) % (PAGE / LINE);

			*(volatile uint32_t *)(c->m->p + page * PAGE + line * LINE) = (uint32_t)round;
		}
	}
	return NULL;
}

static int count_all(struct mapping *m, int threads, int rounds)
{
	struct counter c[16];
	int i;

	for (i = 0; i < threads && i < 16; i++) {
		c[i] = (struct counter){0, m, i, rounds};
		if (pthread_create(&c[i].thread, NULL, count, &c[i]))
			return -1;
	}
	while (i--)
		pthread_join(c[i].thread, NULL);
	return 0;
}

int main(int argc, char **argv)
{
	char line[4096], path[4000], word[64];
	unsigned long long a, b, c;
	unsigned n;

	if (argc > 1)
		say(0);	/* the answer to exec */
	while (fgets(line, sizeof(line), stdin)) {
		word[0] = 0;
		if (sscanf(line, "map %u %3999s %llu %llu %63s", &n, path, &a, &b, word) >= 4)
			say(map(&mappings[n], path, a, b, word));
		else if (sscanf(line, "store %u %llu %llu", &n, &a, &b) == 3)
			((volatile char *)mappings[n].p)[a] = (char)b, say(0);
		else if (sscanf(line, "try %u %llu %llu", &n, &a, &b) == 3)
			say(expect(&mappings[n], a, 1, (unsigned char)b));
		else if (sscanf(line, "expect %u %llu %llu", &n, &a, &b) == 3)
			say(expect(&mappings[n], a, 0, (unsigned char)b));
		else if (sscanf(line, "race %u %llu %llu %llu", &n, &a, &b, &c) == 4)
			say(race(&mappings[n], a, (unsigned char)b, (time_t)c));
		else if (sscanf(line, "forget %u %llu %llu %llu", &n, &a, &b, &c) == 4)
			say(forget(&mappings[n], a, b, (uint32_t)c));
		else if (sscanf(line, "unmap %u %llu %llu", &n, &a, &b) == 3)
			say(munmap(mappings[n].p + a, b));
		else if (sscanf(line, "close %u", &n) == 1)
			say(close(mappings[n].fd));
		else if (sscanf(line, "count %u %llu %llu", &n, &a, &b) == 3)
			say(count_all(&mappings[n], (int)a, (int)b));
		else if (!strncmp(line, "fork", 4))
			say(in_child());
		else if (!strncmp(line, "exec", 4))
			execl("/proc/self/exe", argv[0], "again", (char *)NULL);
		else
			return 2;
	}
	return 0;
}
