/* SPDX-License-Identifier: MIT
 *
 * Channels over io_uring: for every possible CPU a ring with its own thread, pinned to that CPU, and
 * RING_DEPTH entries. An entry is registered once; then each COMMIT_AND_FETCH hands in a reply and asks for
 * the next request. Only the thread that made a ring may use it (SINGLE_ISSUER), so a reply that somebody
 * else has put together is handed to that thread: list `replies`, then the ring's event descriptor.
 *
 * FORGET and INTERRUPT, and all requests before the last queue is registered, still come through read(2):
 * channel 0 is a dev channel.
 */
#define _GNU_SOURCE
#include "daxfs/native/transport.h"

#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#define RING_DEPTH 32			/* requests that one CPU can have under way */
#define RING_HUGE 8			/* entries whose payloads stand in huge pages: those that the kernel takes first */
#define CMD_REGISTER 1			/* FUSE_IO_URING_CMD_REGISTER */
#define CMD_COMMIT_AND_FETCH 2
#define IN_OUT 128

/* linux/fuse.h: fuse_uring_req_header, fuse_uring_ent_in_out, fuse_uring_cmd_req. */
struct ring_header {
	char in_out[IN_OUT];		/* fuse_in_header; of a reply fuse_out_header */
	char op_in[IN_OUT];		/* the fixed struct of the request */
	uint64_t flags, commit_id;
	uint32_t payload_sz, padding;
	uint64_t reserved;
};
struct ring_cmd {
	uint64_t flags, commit_id;
	uint16_t qid;
	uint8_t padding[6];
};
_Static_assert(sizeof(struct ring_header) == 288 && sizeof(struct ring_cmd) == 24, "fuse_uring structs");

struct ring_entry {
	struct ring_header head;
	struct iovec iov[2];		/* the header and the payload, for REGISTER */
	char *payload;
	struct ring_queue *q;
};

struct ring_queue {
	struct channel ch;
	int qid;
	int event_fd;			/* others have put something into `replies`, or `stop` is set */
	uint64_t event_word;
	struct io_uring ring;
	int ring_there;
	int fixed;			/* the mount's descriptor is registered with the ring, as file 0 */
	struct ring_entry *entry;
	char *payloads;
	int live;			/* entries that the kernel has or that are being answered */
	int ready;			/* registered, or given up (started_error) */
	pthread_mutex_t lock;		/* of `replies`; nothing is waited for under it */
	struct pending *replies;
};

static void queue_params(struct io_uring_params *p)
{
	memset(p, 0, sizeof(*p));
	p->flags = IORING_SETUP_SQE128 | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
		   IORING_SETUP_CQSIZE;
	p->cq_entries = 4 * RING_DEPTH;
}

/* A submission entry; never NULL: there is one for each ring entry and one for the event. */
static struct io_uring_sqe *queue_sqe(struct ring_queue *q)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&q->ring);

	if (!sqe) {
		io_uring_submit(&q->ring);
		sqe = io_uring_get_sqe(&q->ring);
	}
	return sqe;
}

static void queue_cmd(struct ring_queue *q, struct ring_entry *e, uint32_t op)
{
	struct io_uring_sqe *sqe = queue_sqe(q);
	struct ring_cmd cmd = {.qid = q->qid, .commit_id = e->head.commit_id};

	memset(sqe, 0, 128);
	sqe->opcode = IORING_OP_URING_CMD;
	sqe->fd = q->fixed ? 0 : q->ch.t->fuse_fd;
	sqe->flags = q->fixed ? IOSQE_FIXED_FILE : 0;
	sqe->cmd_op = op;
	if (op == CMD_REGISTER) {
		cmd.commit_id = 0;
		sqe->addr = (uintptr_t)e->iov;
		sqe->len = 2;
	}
	memcpy(sqe->cmd, &cmd, sizeof(cmd));
	sqe->user_data = (uintptr_t)e;
}

static void queue_event(struct ring_queue *q)
{
	struct io_uring_sqe *sqe = queue_sqe(q);

	memset(sqe, 0, 128);
	io_uring_prep_read(sqe, q->event_fd, &q->event_word, sizeof(q->event_word), 0);
	sqe->user_data = 0;
}

/* Put a reply into the entry: the header in in_out, everything else, fuse_write_out too, in the payload. */
static void entry_reply(struct ring_entry *e, uint64_t unique, int error, size_t len)
{
	struct wire_out out = {sizeof(out) + len, error, unique};

	memcpy(e->head.in_out, &out, sizeof(out));
	e->head.payload_sz = len;
}

static int entry_fill(struct ring_entry *e, const struct iovec *iov, int n, size_t *len)
{
	size_t cap = e->q->ch.t->max_payload;
	int i;

	*len = 0;
	for (i = 0; i < n; i++) {
		if (iov[i].iov_len > cap - *len) {
			*len = 0;
			return -EIO;
		}
		memcpy(e->payload + *len, iov[i].iov_base, iov[i].iov_len);
		*len += iov[i].iov_len;
	}
	return 0;
}

/* From any thread: the entry is this pending request's until its own thread commits it. */
static void queue_reply(struct channel *ch, struct pending *p, int error, const struct iovec *iov, int n,
			struct fsync_run *run)
{
	struct ring_queue *q = (struct ring_queue *)ch;
	struct ring_entry *e = p->place;
	uint64_t one = 1;
	size_t len;
	int first, rc;

	rc = entry_fill(e, iov, n, &len);
	entry_reply(e, p->head.unique, error ? error : rc, len);
	pthread_mutex_lock(&q->lock);
	first = !q->replies;
	p->next = q->replies;
	q->replies = p;
	pthread_mutex_unlock(&q->lock);
	/* Not behind the wake-up: on this CPU the thread that it wakes, and its client, may run before us. */
	fsync_lap(run, FSYNC_REPLY);
	if (first && write(q->event_fd, &one, sizeof(one)) < 0)
		return;	/* can't be: the counter would have to be full */
}

static void commit_replies(struct ring_queue *q)
{
	struct pending *p, *next;

	pthread_mutex_lock(&q->lock);
	p = q->replies;
	q->replies = NULL;
	pthread_mutex_unlock(&q->lock);
	for (; p; p = next) {
		next = p->next;
		queue_cmd(q, p->place, CMD_COMMIT_AND_FETCH);
		free(p);
	}
}

static void entry_request(struct ring_queue *q, struct ring_entry *e)
{
	struct transport *t = q->ch.t;
	struct serve_reply r = {.buf = e->payload, .cap = t->max_payload};
	uint64_t start = transport_now();
	struct wire_in head;
	struct serve_msg m = {.head = &head, .arg = e->head.op_in, .data = e->payload};
	enum serve_verdict verdict;

	memcpy(&head, e->head.in_out, sizeof(head));
	m.data_len = e->head.payload_sz;
	if (m.data_len > t->max_payload || head.len < sizeof(head) + m.data_len ||
	    (m.arg_len = head.len - sizeof(head) - m.data_len) > IN_OUT) {
		entry_reply(e, head.unique, -EINVAL, 0);
		queue_cmd(q, e, CMD_COMMIT_AND_FETCH);
		return;
	}
	verdict = transport_handle(t, &q->ch, e, &m, &r, start);
	if (verdict == SERVE_RELAY || verdict == SERVE_CALL)
		return;
	if (verdict != SERVE_DONE) {	/* FORGET, INTERRUPT: never here, but an entry must go back */
		entry_reply(e, head.unique, -EINVAL, 0);
		queue_cmd(q, e, CMD_COMMIT_AND_FETCH);
		return;
	}
	entry_reply(e, head.unique, r.error, r.error ? 0 : r.len);
	queue_cmd(q, e, CMD_COMMIT_AND_FETCH);
	/* It goes out with the next io_uring_enter(2), which also waits: so this is as far as `sent` can be seen. */
	transport_sent(t, &head, &r, start);
}

/* False once the mount is gone or was aborted: channel 0 meets that too, and tells which of the two. */
static int is_connected(struct transport *t)
{
	struct pollfd p = {.fd = t->fuse_fd};

	return poll(&p, 1, 0) <= 0 || !(p.revents & POLLERR);
}

/* The kernel gave an entry back with an error, and takes it no more. */
static void queue_lost(struct ring_queue *q, int error)
{
	q->live--;
	if (!q->ready)		/* EINVAL, EOPNOTSUPP on REGISTER: this kernel can't */
		q->ch.started_error = error;
	else if (is_connected(q->ch.t))	/* a reply did not arrive: its caller would wait for ever */
		transport_end(q->ch.t, error);
}

static void queue_completion(struct ring_queue *q, struct io_uring_cqe *cqe)
{
	struct ring_entry *e = (struct ring_entry *)(uintptr_t)cqe->user_data;

	if (!e) {
		commit_replies(q);
		queue_event(q);
	} else if (cqe->res < 0) {
		queue_lost(q, -cqe->res);
	} else {
		entry_request(q, e);
	}
}

static void queue_completions(struct ring_queue *q)
{
	struct io_uring_cqe *cqe;
	unsigned head, n = 0;

	io_uring_for_each_cqe(&q->ring, head, cqe) {
		queue_completion(q, cqe);
		n++;
	}
	io_uring_cq_advance(&q->ring, n);
}

static void queue_pin(struct ring_queue *q)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(q->qid, &set);
	/* A CPU that is offline, or not ours to use: requests from it are few or none, any place will do. */
	sched_setaffinity(0, sizeof(set), &set);
}

static int queue_setup(struct ring_queue *q)
{
	struct io_uring_params p;
	int i, rc;

	queue_params(&p);
	rc = io_uring_queue_init_params(2 * RING_DEPTH, &q->ring, &p);
	if (rc)
		return rc;
	q->ring_there = 1;
	/* Both only save looking a descriptor up for each request; without them everything works too. */
	q->fixed = !io_uring_register_files(&q->ring, &q->ch.t->fuse_fd, 1);
	io_uring_register_ring_fd(&q->ring);
	/* The kernel takes the entry that it got last. So it is the first few that are used over and over. */
	for (i = RING_DEPTH - 1; i >= 0; i--)
		queue_cmd(q, &q->entry[i], CMD_REGISTER);
	q->live = RING_DEPTH;
	queue_event(q);
	rc = io_uring_submit(&q->ring);
	return rc < 0 ? rc : 0;
}

static void *queue_main(void *arg)
{
	struct ring_queue *q = arg;
	struct transport *t = q->ch.t;
	int rc;

	queue_pin(q);
	rc = queue_setup(q);
	if (rc)
		q->ch.started_error = -rc;
	else
		queue_completions(q);	/* a refused REGISTER is told at once */
	__atomic_store_n(&q->ready, 1, __ATOMIC_RELEASE);
	while (!rc && q->live > 0 && !__atomic_load_n(&t->stop, __ATOMIC_ACQUIRE)) {
		rc = io_uring_submit_and_wait(&q->ring, 1);
		rc = rc < 0 && rc != -EINTR && rc != -EAGAIN && rc != -EBUSY ? rc : 0;
		queue_completions(q);
	}
	if (rc)
		transport_end(t, -rc);
	/* Before the descriptors go: the kernel gives the entries up and lets go of our buffers. */
	if (q->ring_there)
		io_uring_queue_exit(&q->ring);
	__atomic_store_n(&q->ch.finished, 1, __ATOMIC_RELEASE);
	return NULL;
}

static int queue_add(struct transport *t, int qid)
{
	struct ring_queue *q = NULL;
	size_t size = t->max_payload;
	int i;

	if (posix_memalign((void **)&q, 64, sizeof(*q)))
		return -ENOMEM;
	memset(q, 0, sizeof(*q));
	q->ch.t = t;
	q->ch.reply = queue_reply;
	q->qid = qid;
	pthread_mutex_init(&q->lock, NULL);
	t->channel[t->nchannels++] = &q->ch;
	q->event_fd = eventfd(0, EFD_CLOEXEC);
	if (q->event_fd < 0)
		return -errno;
	if (posix_memalign((void **)&q->entry, 64, RING_DEPTH * sizeof(*q->entry)))
		q->entry = NULL;
	/* Anonymous memory: what no large request ever touches is never there. */
	q->payloads = mmap(NULL, RING_DEPTH * size, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (!q->entry || q->payloads == MAP_FAILED)
		return -ENOMEM;
	/* The kernel pins a payload page by page; in huge pages a 1 MiB request costs 10 % less. Where there
	 * are none this fails and nothing is lost. The other entries are for many requests that wait at once:
	 * these are small, and shall not cost a huge page each. */
	madvise(q->payloads, RING_HUGE * size, MADV_HUGEPAGE);
	memset(q->entry, 0, RING_DEPTH * sizeof(*q->entry));
	for (i = 0; i < RING_DEPTH; i++) {
		struct ring_entry *e = &q->entry[i];

		e->q = q;
		e->payload = q->payloads + i * size;
		e->iov[0] = (struct iovec){&e->head, sizeof(e->head)};
		e->iov[1] = (struct iovec){e->payload, size};
	}
	return transport_spawn(&q->ch, queue_main);
}

/* Queues that the kernel waits for: one for every CPU that may ever be there. The file says "0-3" or "0". */
static int possible_cpus(void)
{
	FILE *f = fopen("/sys/devices/system/cpu/possible", "re");
	int first = 0, last = -1, n;

	if (!f)
		return -errno;
	n = fscanf(f, "%d-%d", &first, &last);
	fclose(f);
	return n < 1 ? -EIO : (n == 2 ? last : first) + 1;
}

int uring_start(struct transport *t)
{
	const struct timespec nap = {0, 200000};
	int n = possible_cpus(), first = t->nchannels, i, rc;

	if (n < 0)
		return n;
	if (n > (int)(sizeof(t->channel) / sizeof(t->channel[0])) - first)
		return -E2BIG;
	for (i = 0; i < n; i++) {
		rc = queue_add(t, i);
		if (rc)
			return rc;
	}
	for (i = first; i < t->nchannels; i++) {
		struct ring_queue *q = (struct ring_queue *)t->channel[i];

		while (!__atomic_load_n(&q->ready, __ATOMIC_ACQUIRE))
			nanosleep(&nap, NULL);
		if (q->ch.started_error)
			return -q->ch.started_error;
	}
	return 0;
}

void uring_wake(struct transport *t)
{
	uint64_t one = 1;
	int i;

	for (i = 1; i < t->nchannels; i++) {
		struct ring_queue *q = (struct ring_queue *)t->channel[i];

		if (write(q->event_fd, &one, sizeof(one)) < 0)
			continue;	/* it is awake then */
	}
}

void uring_free(struct channel *ch)
{
	struct ring_queue *q = (struct ring_queue *)ch;
	struct pending *p, *next;

	for (p = q->replies; p; p = next) {
		next = p->next;
		free(p);
	}
	if (q->event_fd >= 0)
		close(q->event_fd);
	if (q->payloads && q->payloads != MAP_FAILED)
		munmap(q->payloads, RING_DEPTH * ch->t->max_payload);
	free(q->entry);
	pthread_mutex_destroy(&q->lock);
	free(q);
}
