/* SPDX-License-Identifier: MIT
 *
 * A direct mapping as a registered buffer of io_uring: gup DAXFILE OTHER HOW, both files of SIZE bytes there,
 * OTHER on a file system with O_DIRECT. The buffer's pages are pinned, then something happens to DAXFILE (HOW),
 * then OTHER is written from the buffer and read into it. Prints what was seen:
 *	written=<what OTHER got: pattern, zeros or mixed> loaded=<what a load finds after the read, or gone>
 * Exit status 77: this kernel refuses the buffer (printed); 1: anything else went wrong.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define SIZE (4u << 20)

static sigjmp_buf gone;

static void on_sigbus(int number)
{
	siglongjmp(gone, number);
}

static void fail(const char *what, int err)
{
	fprintf(stderr, "%s: %s\n", what, strerror(err));
	exit(1);
}

static void one(struct io_uring *ring, int writes, int fd, char *buffer)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(ring);
	struct io_uring_cqe *cqe;

	if (writes)
		io_uring_prep_write_fixed(sqe, fd, buffer, SIZE, 0, 0);
	else
		io_uring_prep_read_fixed(sqe, fd, buffer, SIZE, 0, 0);
	if (io_uring_submit(ring) != 1 || io_uring_wait_cqe(ring, &cqe))
		fail("submit", EIO);
	if (cqe->res != (int)SIZE)
		fail(writes ? "write_fixed" : "read_fixed", cqe->res < 0 ? -cqe->res : EIO);
	io_uring_cqe_seen(ring, cqe);
}

static const char *kind(const char *bytes)
{
	static const char names[][8] = {"zeros", "pattern", "other"};
	int first = bytes[0] == 0 ? 0 : bytes[0] == 'p' ? 1 : 2;

	for (unsigned i = 1; i < SIZE; i++)
		if (bytes[i] != bytes[0])
			return "mixed";
	return names[first];
}

static void happen(const char *how, const char *path, int fd)
{
	int err = 0;

	if (!strcmp(how, "truncate"))
		err = ftruncate(fd, 0);
	else if (!strcmp(how, "regrow"))
		err = ftruncate(fd, 0) || ftruncate(fd, SIZE);
	else if (!strcmp(how, "punch"))
		err = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, SIZE);
	else if (!strcmp(how, "unlink"))
		err = unlink(path) || close(fd);
	else if (strcmp(how, "nothing"))
		err = errno = EINVAL;
	if (err)
		fail(how, errno);
}

int main(int argc, char **argv)
{
	int dax = open(argv[1], O_RDWR), other = open(argv[2], O_RDWR | O_DIRECT), err;
	const char *written, *loaded = "gone";
	static char *check;
	static char *map;
	struct io_uring ring;
	struct iovec vec;

	if (argc != 4 || dax < 0 || other < 0)
		fail("open", errno);
	map = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, dax, 0);
	if (map == MAP_FAILED || posix_memalign((void **)&check, 4096, SIZE))
		fail("mmap", errno);
	memset(map, 'p', SIZE);
	err = io_uring_queue_init(4, &ring, 0);
	if (err) {
		printf("io_uring_queue_init: %s\n", strerror(-err));
		return 77;
	}
	vec = (struct iovec){map, SIZE};
	err = io_uring_register_buffers(&ring, &vec, 1);
	if (err) {
		printf("io_uring_register_buffers: %s\n", strerror(-err));
		return 77;
	}
	happen(argv[3], argv[1], dax);
	puts("pinned");		/* the test makes other files now, which must not get the pages */
	fflush(stdout);
	if (getchar() == EOF)
		return 1;
	one(&ring, 1, other, map);
	if (pread(other, check, SIZE, 0) != (ssize_t)SIZE)
		fail("pread", errno);
	written = kind(check);
	memset(check, 'r', SIZE);
	if (pwrite(other, check, SIZE, 0) != (ssize_t)SIZE)
		fail("pwrite", errno);
	one(&ring, 0, other, map);
	signal(SIGBUS, on_sigbus);
	if (!sigsetjmp(gone, 1))
		loaded = kind(map);
	printf("written=%s loaded=%s\n", written, loaded);
	return 0;
}
