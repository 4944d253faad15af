/* SPDX-License-Identifier: MIT
 *
 * The smallest handler of userfaultfd faults that this machine can have: a process that reads a message and
 * answers it, and a client that touches pages of FILE one after the other and waits for each.
 *
 *     faults_min STEP COUNT FILE [SOCKET]
 *
 * FILE is on tmpfs and has all its pages; every STEP bytes one is touched, COUNT times or to the end. STEP 4096:
 * each touch maps 4 KiB; else 2 MiB (UFFDIO_CONTINUE of 512 pages). Prints the median of a touch in ns. It is
 * the yardstick of tools/bench/faults.py: no policy, no tracker, no lock.
 *
 * HANDLER_CPU in the environment: where the process that handles them runs.
 *
 * SOCKET: the number of an inherited socket, whose other end handles the faults in place of the process: it
 * gets the userfaultfd with the address and the length (16 bytes), and answers one byte when it is ready.
 */
#define _GNU_SOURCE

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"

#define PAGE 4096ul
#define HUGE (512 * PAGE)
#define FEATURE_WP ((1 << 12) | (1 << 13))	/* WP_HUGETLBFS_SHMEM, WP_UNPOPULATED: 6.4 */

/* A userfaultfd over [base, base + length) of tmpfs, with what a handler that tracks stores needs. */
static int observe(char *base, size_t length)
{
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_MINOR_SHMEM
				 | UFFD_FEATURE_MISSING_SHMEM | FEATURE_WP};
	struct uffdio_register all = {.range = {(uintptr_t)base, length},
				      .mode = UFFDIO_REGISTER_MODE_MINOR | UFFDIO_REGISTER_MODE_MISSING
				      | UFFDIO_REGISTER_MODE_WP};
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &all))
		die("userfaultfd");
	return fd;
}

static void handle(int fd, size_t unit)
{
	struct uffd_msg message;
	struct uffdio_continue go = {.range.len = unit};

	while (read(fd, &message, sizeof(message)) == sizeof(message)) {
		go.range.start = message.arg.pagefault.address & -unit;
		if (ioctl(fd, UFFDIO_CONTINUE, &go))
			die("UFFDIO_CONTINUE");
	}
}

static void stay_on(const char *cpu)
{
	cpu_set_t one;

	CPU_ZERO(&one);
	CPU_SET(atoi(cpu), &one);
	if (sched_setaffinity(0, sizeof(one), &one))
		die("sched_setaffinity");
}

static pid_t start_handler(int fd, size_t unit)
{
	pid_t child = fork();

	if (child < 0)
		die("fork");
	if (!child) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getenv("HANDLER_CPU"))
			stay_on(getenv("HANDLER_CPU"));
		handle(fd, unit);
		exit(0);
	}
	return child;
}

static void hand_over(int socket, int fd, char *base, size_t length)
{
	uint64_t what[2] = {(uintptr_t)base, length};
	struct iovec iov = {what, sizeof(what)};
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(sizeof(int))];
	} control = {.head = {CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS}};
	struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
				 .msg_controllen = sizeof(control)};

	memcpy(CMSG_DATA(&control.head), &fd, sizeof(fd));
	if (sendmsg(socket, &message, 0) < 0 || read(socket, what, 1) != 1)
		die("the other end");
}

int main(int argc, char **argv)
{
	size_t step, count, i;
	struct stat st;
	uint64_t *ns, t;
	char *base, *hint;
	pid_t child = 0;
	int file, fd;

	if (argc != 4 && argc != 5) {
		fprintf(stderr, "usage: faults_min STEP COUNT FILE [SOCKET]\n");
		return 2;
	}
	step = strtoul(argv[1], NULL, 10);
	file = open(argv[3], O_RDWR);
	if (file < 0 || fstat(file, &st))
		die(argv[3]);
	count = strtoul(argv[2], NULL, 10);
	if (count > (size_t)st.st_size / step)
		count = (size_t)st.st_size / step;
	ns = calloc(count, sizeof(*ns));
	hint = mmap(NULL, st.st_size + HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (!ns || hint == MAP_FAILED)
		die("memory");
	hint = (char *)(((uintptr_t)hint + HUGE - 1) & -HUGE);
	base = mmap(hint, st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0);
	if (base == MAP_FAILED)
		die("mmap");
	fd = observe(base, st.st_size);
	if (argc == 5)
		hand_over(atoi(argv[4]), fd, base, st.st_size);
	else
		child = start_handler(fd, step == PAGE ? PAGE : HUGE);
	for (i = 0; i < count; i++) {
		t = now();
		*(volatile char *)(base + i * step) = 1;
		ns[i] = now() - t;
	}
	if (child) {
		kill(child, SIGKILL);
		waitpid(child, NULL, 0);
	}
	printf("%llu\n", (unsigned long long)median(ns, count));
	return 0;
}
