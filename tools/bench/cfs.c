/* SPDX-License-Identifier: MIT
 *
 * The yardstick of tools/bench/transport.py: what a C file system on libfuse can do. One file, `data`, in memory;
 * libfuse's low-level interface and its multi-threaded loop, each thread with a clone of the /dev/fuse descriptor.
 * A read is answered straight from the memory, a write is one copy, fsync has nothing to do, attributes are cached
 * by the kernel. Direct I/O, so that every request of the caller arrives. All memory is there before the mount.
 *
 *     cfs DIR BYTES
 */
#define FUSE_USE_VERSION 312
#define _GNU_SOURCE

#include <errno.h>
#include <fuse3/fuse_lowlevel.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { FILE_INO = 2 };
static const double FOREVER = 1e6;

static char *memory;
static size_t capacity, size;		/* size: of the file, at most capacity; under lock where it changes */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static struct stat attributes(fuse_ino_t ino)
{
	struct stat st = { .st_ino = ino, .st_nlink = 1, .st_mode = S_IFDIR | 0755 };
	if (ino == FILE_INO) {
		st.st_mode = S_IFREG | 0644;
		st.st_size = __atomic_load_n(&size, __ATOMIC_ACQUIRE);
	}
	return st;
}

static void cfs_init(void *ctx, struct fuse_conn_info *conn)
{
	(void)ctx;
	conn->max_write = 1 << 20;	/* libfuse asks for as many pages in a request; reads follow it */
}

static void cfs_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct fuse_entry_param entry = { .ino = FILE_INO, .attr_timeout = FOREVER, .entry_timeout = FOREVER };
	if (parent != FUSE_ROOT_ID || strcmp(name, "data") != 0) {
		fuse_reply_err(req, ENOENT);
		return;
	}
	entry.attr = attributes(FILE_INO);
	fuse_reply_entry(req, &entry);
}

static void cfs_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *info)
{
	struct stat st = attributes(ino);
	(void)info;
	fuse_reply_attr(req, &st, FOREVER);
}

static void cfs_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *want, int what, struct fuse_file_info *info)
{
	if (ino == FILE_INO && (what & FUSE_SET_ATTR_SIZE)) {
		if ((size_t)want->st_size > capacity) {
			fuse_reply_err(req, EFBIG);
			return;
		}
		pthread_mutex_lock(&lock);
		if ((size_t)want->st_size < size)
			memset(memory + want->st_size, 0, size - want->st_size);
		__atomic_store_n(&size, want->st_size, __ATOMIC_RELEASE);
		pthread_mutex_unlock(&lock);
	}
	cfs_getattr(req, ino, info);
}

static void cfs_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *info)
{
	if (ino != FILE_INO) {
		fuse_reply_err(req, EISDIR);
		return;
	}
	info->direct_io = 1;
	fuse_reply_open(req, info);
}

static void cfs_read(fuse_req_t req, fuse_ino_t ino, size_t length, off_t pos, struct fuse_file_info *info)
{
	size_t end = __atomic_load_n(&size, __ATOMIC_ACQUIRE);
	size_t rest = (size_t)pos < end ? end - pos : 0;
	(void)ino, (void)info;
	fuse_reply_buf(req, memory + (rest ? pos : 0), length < rest ? length : rest);
}

static void cfs_write(fuse_req_t req, fuse_ino_t ino, const char *data, size_t length, off_t pos,
		      struct fuse_file_info *info)
{
	(void)ino, (void)info;
	if ((size_t)pos > capacity || length > capacity - pos) {
		fuse_reply_err(req, ENOSPC);
		return;
	}
	memcpy(memory + pos, data, length);
	if (pos + length > __atomic_load_n(&size, __ATOMIC_ACQUIRE)) {
		pthread_mutex_lock(&lock);
		if (pos + length > size)
			__atomic_store_n(&size, pos + length, __ATOMIC_RELEASE);
		pthread_mutex_unlock(&lock);
	}
	fuse_reply_write(req, length);
}

static void cfs_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *info)
{
	(void)ino, (void)datasync, (void)info;
	fuse_reply_err(req, 0);
}

/* No names to list; without an answer, programs that walk all of / would fail here. */
static void cfs_readdir(fuse_req_t req, fuse_ino_t ino, size_t length, off_t pos, struct fuse_file_info *info)
{
	(void)ino, (void)length, (void)pos, (void)info;
	fuse_reply_buf(req, NULL, 0);
}

static const struct fuse_lowlevel_ops operations = {
	.init = cfs_init, .lookup = cfs_lookup, .getattr = cfs_getattr, .setattr = cfs_setattr, .open = cfs_open,
	.read = cfs_read, .write = cfs_write, .fsync = cfs_fsync, .readdir = cfs_readdir,
};

static int serve(const char *directory)
{
	char *arguments[] = { "cfs", "-ofsname=cfs,subtype=cfs,allow_other" };
	struct fuse_args args = FUSE_ARGS_INIT(2, arguments);
	struct fuse_session *session = fuse_session_new(&args, &operations, sizeof(operations), NULL);
	struct fuse_loop_config *config = fuse_loop_cfg_create();
	int status;

	if (!session || !config || fuse_set_signal_handlers(session) != 0)
		return 1;
	if (fuse_session_mount(session, directory) != 0)
		return 1;
	fuse_loop_cfg_set_clone_fd(config, 1);
	status = fuse_session_loop_mt(session, config);
	fuse_session_unmount(session);
	fuse_loop_cfg_destroy(config);
	fuse_session_destroy(session);
	return status != 0;
}

int main(int argc, char **argv)
{
	char *end = "?";

	capacity = argc == 3 ? strtoull(argv[2], &end, 0) : 0;
	if (capacity == 0 || *end) {
		fprintf(stderr, "usage: cfs DIR BYTES\n");
		return 2;
	}
	memory = mmap(NULL, capacity, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (memory == MAP_FAILED) {
		perror("cfs: mmap");
		return 1;
	}
	memset(memory, 0x5a, capacity);
	size = capacity;
	return serve(argv[1]);
}
