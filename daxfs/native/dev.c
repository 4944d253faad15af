/* SPDX-License-Identifier: MIT
 *
 * Channels over /dev/fuse: the mount's descriptor and clones of it (FUSE_DEV_IOC_CLONE), a thread each that
 * reads a request, has it answered, and writes the reply to the descriptor that it came from.
 *
 * A request that is called keeps its buffer until its reply; the thread goes on with another one.
 */
#define _GNU_SOURCE
#include "daxfs/native/transport.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define DEV_IOC_CLONE _IOR(229, 0, uint32_t)
#define PAGE 4096u

struct dev_channel {
	struct channel ch;
	int fd;
	int own;			/* a clone: ours to close */
	char *request, *reply;		/* size bytes each */
	size_t size;
};

static char *buffer(size_t size)
{
	void *p = NULL;

	return posix_memalign(&p, PAGE, size) ? NULL : p;
}

/* Read a byte of each page. One of the region that is gone is noticed by that (lost.h); the kernel, which met
 * it first, has told nobody but us. */
static void touch(const struct iovec *iov, int n)
{
	const volatile char *at, *end;
	int i;

	for (i = 0; i < n; i++) {
		end = (const char *)iov[i].iov_base + iov[i].iov_len;
		for (at = iov[i].iov_base; at < end; at = (const char *)(((uintptr_t)at | (PAGE - 1)) + 1))
			(void)*at;
	}
}

/* Errors of one request alone: it was interrupted, or the kernel has given it up. */
static void dev_write(struct dev_channel *d, uint64_t unique, int error, const struct iovec *iov, int n)
{
	struct wire_out out = {sizeof(out), error, unique};
	struct iovec all[SERVE_PIECES + 1] = {{&out, sizeof(out)}};
	int i;

	for (i = 0; i < n; i++) {
		all[i + 1] = iov[i];
		out.len += iov[i].iov_len;
	}
	if (writev(d->fd, all, n + 1) >= 0 || error)
		return;
	if (errno == EFAULT) {
		touch(iov, n);
		errno = EFAULT;
	}
	/* A reply that the kernel does not take (too long for the request, say) must not leave its caller
	 * waiting. ENOENT: the caller was interrupted and is gone. */
	if (errno != ENOENT && errno != ENODEV && errno != ECONNABORTED) {
		out = (struct wire_out){sizeof(out), -EIO, unique};
		if (write(d->fd, &out, sizeof(out)) < 0)
			return;
	}
}

static void dev_reply(struct channel *ch, struct pending *p, int error, const struct iovec *iov, int n,
		      struct fsync_run *run)
{
	struct dev_channel *d = (struct dev_channel *)ch;

	dev_write(d, p->head.unique, error, iov, n);
	fsync_lap(run, FSYNC_REPLY);
	if (p->how == HOW_CALLED)
		free(p->place);
	free(p);
}

static void dev_request(struct dev_channel *d, size_t n)
{
	struct serve_reply r = {.buf = d->reply, .cap = d->size, .by_pieces = 1};
	struct wire_in head;
	struct serve_msg m = {.head = &head};
	uint64_t start = transport_now();
	size_t arg;

	if (n < sizeof(head))
		return;
	memcpy(&head, d->request, sizeof(head));
	arg = serve_arg_size(head.opcode);
	if (arg > n - sizeof(head))
		arg = n - sizeof(head);
	m.arg = d->request + sizeof(head);
	m.arg_len = arg;
	m.data = m.arg + arg;
	m.data_len = n - sizeof(head) - arg;
	switch (transport_handle(d->ch.t, &d->ch, d->request, &m, &r, start)) {
	case SERVE_DONE:
		if (r.npieces) {
			dev_write(d, head.unique, r.error, r.piece, r.npieces);
		} else {
			struct iovec whole = {r.buf, r.len};

			dev_write(d, head.unique, r.error, &whole, !r.error && r.len ? 1 : 0);
		}
		transport_sent(d->ch.t, &head, &r, start);
		break;
	case SERVE_CALL:
		d->request = NULL;	/* the call's now */
		break;
	default:
		break;
	}
}

static void *dev_main(void *arg)
{
	struct dev_channel *d = arg;
	struct transport *t = d->ch.t;

	while (!__atomic_load_n(&t->stop, __ATOMIC_ACQUIRE)) {
		ssize_t n;

		if (!d->request && !(d->request = buffer(d->size))) {
			usleep(1000);	/* a call will give its buffer back to the heap */
			continue;
		}
		n = read(d->fd, d->request, d->size);
		if (n > 0) {
			dev_request(d, n);
		} else if (!n || (errno != EINTR && errno != EAGAIN && errno != ENOENT)) {
			/* ENODEV: unmounted. ECONNABORTED: /sys/fs/fuse/connections/N/abort. The device has no
			 * end of file, but what stands for it in a test may. */
			transport_end(t, n ? errno : EPIPE);
			break;
		}
	}
	__atomic_store_n(&d->ch.finished, 1, __ATOMIC_RELEASE);
	return NULL;
}

static int clone_device(int fd)
{
	uint32_t session = fd;
	int clone = open("/dev/fuse", O_RDWR | O_CLOEXEC), rc;

	if (clone < 0)
		return -errno;
	if (ioctl(clone, DEV_IOC_CLONE, &session)) {
		rc = -errno;
		close(clone);
		return rc;
	}
	return clone;
}

static int dev_add(struct transport *t, int fd, int own)
{
	struct dev_channel *d = calloc(1, sizeof(*d));

	if (!d)
		return -ENOMEM;
	d->ch.t = t;
	d->ch.reply = dev_reply;
	d->fd = fd;
	d->own = own;
	d->size = t->max_payload + 2 * PAGE;
	d->reply = buffer(d->size);
	t->channel[t->nchannels++] = &d->ch;
	return d->reply ? transport_spawn(&d->ch, dev_main) : -ENOMEM;
}

int dev_start(struct transport *t, int threads)
{
	int rc = dev_add(t, t->fuse_fd, 0), i, fd;

	for (i = 1; i < threads && !rc; i++) {
		fd = clone_device(t->fuse_fd);
		if (fd < 0)
			return fd;
		rc = dev_add(t, fd, 1);
	}
	return rc;
}

void dev_free(struct transport *t, struct channel *ch)
{
	struct dev_channel *d = (struct dev_channel *)ch;

	(void)t;
	if (d->own)
		close(d->fd);
	free(d->request);
	free(d->reply);
	free(d);
}
