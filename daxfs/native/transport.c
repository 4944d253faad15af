/* SPDX-License-Identifier: MIT
 *
 * What the channels have in common: the table of pending requests, the pair to pyfuse3, the queue of calls,
 * the trace, beginning and end. See transport.h for the rules.
 */
#define _GNU_SOURCE
#include "daxfs/native/transport.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define ENTRY_OUT_SIZE 128		/* fuse_entry_out, before fuse_open_out in the reply to CREATE */
#define FOPEN_DIRECT_IO (1u << 0)
#define FOPEN_KEEP_CACHE (1u << 1)
#define FOPEN_NOFLUSH (1u << 5)
#define FOPEN_PASSTHROUGH (1u << 7)
#define FOPEN_OF_BACKED (FOPEN_DIRECT_IO | FOPEN_NOFLUSH | FOPEN_PASSTHROUGH)
#define PAIR_SLACK (1 << 16)		/* header, arguments and names of a relayed message */

static uint64_t clock_ns(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + ts.tv_nsec;
}

uint64_t transport_now(void)
{
	return clock_ns(CLOCK_MONOTONIC);
}

static void event_signal(int fd)
{
	uint64_t one = 1;

	/* EAGAIN alone can happen: the counter is full, so the reader is told already. */
	if (write(fd, &one, sizeof(one)) < 0)
		return;
}

/* ---- trace ---- */

/* With the beginning of what is in iov. */
static void put_event(struct transport *t, struct trace_event *e, const struct iovec *iov, int n)
{
	size_t done = 0;
	int i;

	for (i = 0; i < n && done < TRACE_BODY; i++) {
		size_t part = iov[i].iov_len < TRACE_BODY - done ? iov[i].iov_len : TRACE_BODY - done;

		memcpy(e->body + done, iov[i].iov_base, part);
		done += part;
	}
	e->body_len = done;
	trace_put(t->server->io->trace, e);
}

static void trace_head(struct trace_event *e, const struct wire_in *head)
{
	memset(e, 0, offsetof(struct trace_event, body));
	e->opcode = head->opcode;
	e->unique = head->unique;
	e->nodeid = head->nodeid;
	e->uid = head->uid;
	e->gid = head->gid;
	e->pid = head->pid;
}

static void trace_request(struct transport *t, const struct serve_msg *m)
{
	struct iovec body[2] = {{(void *)m->arg, m->arg_len}, {(void *)m->data, m->data_len}};
	struct trace_event e;

	trace_head(&e, m->head);
	e.len = m->head->len;
	e.how = HOW_NOT_KNOWN;
	put_event(t, &e, body, 2);
}

static void trace_reply(struct transport *t, const struct wire_in *head, int how, int error, uint64_t start,
			const struct iovec *iov, int n)
{
	struct trace_event e;
	int i;

	trace_head(&e, head);
	e.kind = TRACE_REPLY;
	e.how = how;
	e.error = error;
	e.len = sizeof(struct wire_out);
	for (i = 0; i < n; i++)
		e.len += iov[i].iov_len;
	e.latency_ns = transport_now() - start;
	put_event(t, &e, iov, n);
}

/* A finished fsync: its phases. The whole is its latency. */
static void trace_fsync(struct transport *t, const struct wire_in *head, int how, int error,
			const struct fsync_run *run)
{
	struct trace_event e;
	struct iovec body = {(void *)run->ns, sizeof(run->ns)};

	if (!trace_of(t->server->io->trace, TRACE_FSYNC) || !run->began)
		return;
	trace_head(&e, head);
	e.kind = TRACE_FSYNC_DONE;
	e.how = how;
	e.error = error;
	e.latency_ns = run->last - run->began;
	put_event(t, &e, &body, 1);
}

static int is_tracing(struct transport *t)
{
	return trace_of(t->server->io->trace, TRACE_REQUESTS) != NULL;
}

/* ---- pending requests ---- */

static struct pending **bucket_of(struct transport *t, uint64_t unique)
{
	/* The kernel counts unique in steps of 2 (7.31 and later: of 2 with the interrupt's bit). */
	return &t->bucket[(unique >> 1) % PENDING_BUCKETS];
}

static struct pending *pending_new(struct channel *ch, void *place, const struct serve_msg *m, int how,
				   uint64_t start)
{
	struct pending *p = calloc(1, sizeof(*p));

	if (!p)
		return NULL;
	p->head = *m->head;
	p->ch = ch;
	p->place = place;
	p->msg = *m;
	p->msg.head = &p->head;
	p->how = how;
	p->start = start;
	p->cpu = sched_getcpu();
	return p;
}

static void pending_add(struct transport *t, struct pending *p)
{
	struct pending **at = bucket_of(t, p->head.unique);

	p->chain = *at;
	*at = p;
	t->npending++;
}

/* The pending request of that number, taken out of the table; NULL: there is none. Under the lock. */
static struct pending *pending_take(struct transport *t, uint64_t unique)
{
	struct pending **at = bucket_of(t, unique), *p;

	for (; (p = *at); at = &p->chain) {
		if (p->head.unique == unique) {
			*at = p->chain;
			t->npending--;
			return p;
		}
	}
	return NULL;
}

static void interrupt(struct transport *t, const struct serve_msg *m)
{
	uint64_t unique = ((const struct wire_interrupt *)m->arg)->unique;
	struct pending *p;

	pthread_mutex_lock(&t->lock);
	for (p = *bucket_of(t, unique); p; p = p->chain)
		if (p->head.unique == unique)
			__atomic_store_n(&p->interrupted, 1, __ATOMIC_RELEASE);
	pthread_mutex_unlock(&t->lock);
	/* A request that is answered by now, or is being answered, needs nothing: its reply is on the way. */
}

/* ---- requests ---- */

static int pair_send(struct transport *t, const struct serve_msg *m)
{
	struct iovec iov[3] = {
		{(void *)m->head, sizeof(*m->head)},
		{(void *)m->arg, m->arg_len},
		{(void *)m->data, m->data_len},
	};
	struct msghdr msg = {.msg_iov = iov, .msg_iovlen = 3};

	while (sendmsg(t->pair_fd, &msg, MSG_NOSIGNAL) < 0) {
		if (errno != EINTR || __atomic_load_n(&t->stop, __ATOMIC_ACQUIRE))
			return -errno;
	}
	return 0;
}

static int relay(struct transport *t, struct channel *ch, void *place, const struct serve_msg *m,
		 uint64_t start)
{
	struct pending *p = pending_new(ch, place, m, HOW_RELAYED, start);
	uint64_t unique = m->head->unique;
	int rc;

	if (!p)
		return -ENOMEM;
	/* Before it is sent: the reply may come before sendmsg returns. */
	pthread_mutex_lock(&t->lock);
	pending_add(t, p);
	pthread_mutex_unlock(&t->lock);
	rc = pair_send(t, m);
	if (!rc)
		return 0;
	pthread_mutex_lock(&t->lock);
	p = pending_take(t, unique);
	pthread_mutex_unlock(&t->lock);
	free(p);
	return rc == -EMSGSIZE ? -E2BIG : -EIO;
}

static int call(struct transport *t, struct channel *ch, void *place, const struct serve_msg *m,
		struct serve_reply *r, uint64_t start)
{
	struct pending *p = pending_new(ch, place, m, HOW_CALLED, start);
	int first;

	if (!p)
		return -ENOMEM;
	if (r->fsync.began) {
		fsync_lap(&r->fsync, FSYNC_OTHER);
		p->fsync = r->fsync;
		r->fsync.began = 0;
	}
	pthread_mutex_lock(&t->lock);
	pending_add(t, p);
	first = !t->calls;
	*t->calls_end = p;
	t->calls_end = &p->next;
	pthread_mutex_unlock(&t->lock);
	if (first)
		event_signal(t->event_fd);
	return 0;
}

enum serve_verdict transport_handle(struct transport *t, struct channel *ch, void *place,
				    const struct serve_msg *m, struct serve_reply *r, uint64_t start)
{
	enum serve_verdict verdict;
	int rc = 0;

	/* Before it is answered: the reply may be put together where the request's data are (uring). */
	if (is_tracing(t))
		trace_request(t, m);
	r->start = start;
	verdict = serve(t->server, &ch->counts, m, r);
	switch (verdict) {
	case SERVE_RELAY:
		rc = relay(t, ch, place, m, start);
		break;
	case SERVE_CALL:
		rc = call(t, ch, place, m, r, start);
		break;
	case SERVE_FORGET:
		/* Where it can't be sent pyfuse3 is gone, and with it all that could be forgotten. */
		pair_send(t, m);
		break;
	case SERVE_INTERRUPT:
		interrupt(t, m);
		break;
	default:
		break;
	}
	if (!rc)
		return verdict;
	memset(r->piece, 0, sizeof(r->piece));
	r->error = rc;
	r->len = 0;
	r->npieces = 0;
	r->handle = NULL;
	r->counts = r->fsync.began ? &ch->counts : NULL;
	return SERVE_DONE;
}

void transport_sent(struct transport *t, const struct wire_in *head, struct serve_reply *r, uint64_t start)
{
	if (is_tracing(t)) {
		struct iovec whole = {r->buf, r->error ? 0 : r->len};

		trace_reply(t, head, HOW_SERVED, r->error, start, r->npieces ? r->piece : &whole,
			    r->npieces ? r->npieces : 1);
	}
	serve_done(t->server, r);
	trace_fsync(t, head, HOW_SERVED, r->error, &r->fsync);
}

struct pending *transport_next_call(struct transport *t)
{
	struct pending *p;
	uint64_t count;

	pthread_mutex_lock(&t->lock);
	p = t->calls;
	if (p) {
		t->calls = p->next;
		if (!t->calls)
			t->calls_end = &t->calls;
		p->next = NULL;
	} else if (read(t->event_fd, &count, sizeof(count)) < 0) {
		/* EAGAIN: it was read already. Read under the lock, so that no signal is lost. */
		count = 0;
	}
	pthread_mutex_unlock(&t->lock);
	return p;
}

/* ---- where the trio thread runs ---- */

#define ROW 4			/* requests from one CPU, and it is worth going there */

static void answered(struct transport *t, const struct pending *p)
{
	t->row = p->cpu == t->cpu ? t->row + 1 : 1;
	t->cpu = p->cpu;
}

/* To the CPU where the requests come from. The scheduler would wake us on an idle one instead, and us to wake
 * the request's thread again: two interrupts between CPUs, each 25 µs and more under a hypervisor. */
static void go_there(struct transport *t)
{
	cpu_set_t one;

	if (t->row < ROW || t->cpu == t->home)
		return;
	if (t->home < 0 && sched_getaffinity(0, sizeof(t->cpus), &t->cpus))
		return;
	if (t->cpu < 0 || t->cpu >= CPU_SETSIZE || !CPU_ISSET(t->cpu, &t->cpus))
		return;
	CPU_ZERO(&one);
	CPU_SET(t->cpu, &one);
	if (!sched_setaffinity(0, sizeof(one), &one))
		t->home = t->cpu;
}

/* What this thread starts would have its CPUs, so it must not keep to one when anything else runs. */
static void go_anywhere(struct transport *t)
{
	if (t->home < 0)
		return;
	sched_setaffinity(0, sizeof(t->cpus), &t->cpus);
	t->home = -1;
	t->row = 0;
}

void transport_reply(struct transport *t, struct pending *p, int error, const struct iovec *iov, int n)
{
	/* Its channel's thread may end it before reply() returns. */
	struct fsync_run run = p->fsync;
	struct wire_in head = p->head;

	pthread_mutex_lock(&t->lock);
	pending_take(t, p->head.unique);
	pthread_mutex_unlock(&t->lock);
	if (is_tracing(t))
		trace_reply(t, &p->head, p->how, error, p->start, iov, error ? 0 : n);
	answered(t, p);
	p->ch->reply(p->ch, p, error, iov, error ? 0 : n, run.began ? &run : NULL);
	if (run.began) {
		fsync_count(&t->fsyncs, &run);
		trace_fsync(t, &head, HOW_CALLED, error, &run);
	}
}

/* ---- pyfuse3's replies ---- */

/* What pyfuse3 does not know of fuse_open_out: flags, and the backing number. */
static void patch_open(struct transport *t, uint32_t opcode, char *body, size_t len)
{
	size_t at = opcode == WIRE_CREATE ? ENTRY_OUT_SIZE : 0;
	struct wire_open_out out;

	if ((opcode != WIRE_OPEN && opcode != WIRE_CREATE) || len < at + sizeof(out))
		return;
	memcpy(&out, body + at, sizeof(out));
	out.open_flags |= t->open_flags;
	out.backing_id = server_backing(t->server, out.fh);
	/* The kernel refuses KEEP_CACHE beside a backing file (EIO): there is no cache to be kept. And none that
	 * close(2) would have to write back; FLUSH has no other meaning here. */
	if (out.backing_id)
		out.open_flags = (out.open_flags & ~FOPEN_KEEP_CACHE) | FOPEN_OF_BACKED;
	server_opened(t->server, out.fh, out.open_flags);
	memcpy(body + at, &out, sizeof(out));
}

static void relayed_reply(struct transport *t, char *msg, size_t len)
{
	struct wire_out out;
	struct iovec body = {msg + sizeof(out), len - sizeof(out)};
	struct pending *p;

	memcpy(&out, msg, sizeof(out));
	if (out.len != len)
		return;
	if (!out.unique) {	/* a notification: the kernel's, whatever the channel */
		if (write(t->fuse_fd, msg, len) < 0)
			return;	/* it may well know nothing of that inode any more */
		return;
	}
	pthread_mutex_lock(&t->lock);
	p = pending_take(t, out.unique);
	pthread_mutex_unlock(&t->lock);
	if (!p)
		return;
	if (!out.error)
		patch_open(t, p->head.opcode, body.iov_base, body.iov_len);
	if (is_tracing(t))
		trace_reply(t, &p->head, p->how, out.error, p->start, &body, 1);
	answered(t, p);
	p->ch->reply(p->ch, p, out.error, &body, out.error ? 0 : 1, NULL);
}

static void hand_on(struct transport *t)
{
	ssize_t n;

	if (!t->relayed && !(t->relayed = malloc(t->max_payload + PAIR_SLACK)))
		return;		/* the next round tries again */
	while ((n = recv(t->pair_fd, t->relayed, t->max_payload + PAIR_SLACK, MSG_DONTWAIT)) > 0) {
		if ((size_t)n >= sizeof(struct wire_out))
			relayed_reply(t, t->relayed, n);
	}
}

void transport_place(const struct transport *t, int tid, int there)
{
	cpu_set_t one;

	if (there && t->home >= 0) {
		CPU_ZERO(&one);
		CPU_SET(t->home, &one);
	} else if (t->home >= 0) {
		one = t->cpus;
	} else if (sched_getaffinity(0, sizeof(one), &one)) {
		return;
	}
	/* Where it can't be had the thread runs as it did. */
	(void)sched_setaffinity(tid, sizeof(one), &one);
}

void transport_pump(struct transport *t)
{
	hand_on(t);
	go_anywhere(t);
}

int transport_linger(struct transport *t, int fd, int loop, unsigned ns)
{
	struct pollfd p[3] = {
		{.fd = fd, .events = POLLIN},
		{.fd = t->event_fd, .events = POLLIN},
		{.fd = loop, .events = POLLIN},
	};
	const struct timespec patience = {0, ns};

	hand_on(t);
	go_there(t);
	/* Negative: a signal, which Python shall see to. */
	if (ppoll(p, 3, &patience, NULL) <= 0)
		return 0;
	return (p[0].revents ? 1 : 0) | (p[1].revents ? 2 : 0) | (p[2].revents ? 4 : 0);
}

/* ---- beginning and end ---- */

int transport_init(struct transport *t, struct server *s, int kind, int fuse_fd, int pair_fd,
		   size_t max_payload)
{
	memset(t, 0, sizeof(*t));
	t->server = s;
	t->kind = kind;
	t->fuse_fd = fuse_fd;
	t->pair_fd = pair_fd;
	t->max_payload = max_payload;
	t->calls_end = &t->calls;
	t->home = -1;
	pthread_mutex_init(&t->lock, NULL);
	t->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	s->park_event = t->event_fd;	/* before the first request of a thread */
	return t->event_fd < 0 ? -errno : 0;
}

void transport_end(struct transport *t, int error)
{
	int none = 0;

	__atomic_compare_exchange_n(&t->ended, &none, error, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
	event_signal(t->event_fd);
}

/* The thread takes no signal but the one that wakes it: those of the process are the trio loop's. */
int transport_spawn(struct channel *ch, void *(*run)(void *))
{
	sigset_t all, old;
	int rc;

	sigfillset(&all);
	sigdelset(&all, SIGURG);
	sigdelset(&all, SIGBUS);	/* a fault whose signal is blocked ends the process (lost.h) */
	pthread_sigmask(SIG_SETMASK, &all, &old);
	rc = pthread_create(&ch->thread, NULL, run, ch);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	ch->started = !rc;
	return -rc;
}

static void wake(int number)
{
	/* Nothing: it only makes a system call return EINTR. */
	(void)number;
}

int transport_start(struct transport *t, int threads)
{
	/* SIGURG is ignored by default, so a handler that does nothing changes nothing for others. No
	 * SA_RESTART: read(2) shall return. */
	struct sigaction sa = {.sa_handler = wake};
	int rc;

	sigaction(SIGURG, &sa, NULL);
	rc = dev_start(t, t->kind == TRANSPORT_URING ? 1 : threads);
	if (!rc && t->kind == TRANSPORT_URING)
		rc = uring_start(t);
	if (rc)
		transport_stop(t);
	return rc;
}

/* Join a thread that may sit in a system call: woken again and again, because it may have looked at `stop`
 * just before we set it and not be in the call yet. */
static void join(pthread_t thread, const int *finished)
{
	const struct timespec nap = {0, 500000};

	while (!__atomic_load_n(finished, __ATOMIC_ACQUIRE)) {
		pthread_kill(thread, SIGURG);
		nanosleep(&nap, NULL);
	}
	pthread_join(thread, NULL);
}

void transport_stop(struct transport *t)
{
	int i;

	__atomic_store_n(&t->stop, 1, __ATOMIC_RELEASE);
	if (t->kind == TRANSPORT_URING)
		uring_wake(t);
	for (i = 0; i < t->nchannels; i++) {
		if (t->channel[i]->started)
			join(t->channel[i]->thread, &t->channel[i]->finished);
		t->channel[i]->started = 0;
	}
}

void transport_destroy(struct transport *t)
{
	struct pending *p, *next;
	int i;

	for (i = 0; i < PENDING_BUCKETS; i++) {
		for (p = t->bucket[i]; p; p = next) {
			next = p->chain;
			if (p->how == HOW_CALLED && t->kind == TRANSPORT_DEV)
				free(p->place);
			free(p);
		}
	}
	for (i = 0; i < t->nchannels; i++) {
		if (t->channel[i]->reply == NULL)
			continue;
		if (t->kind == TRANSPORT_URING && i > 0)
			uring_free(t->channel[i]);
		else
			dev_free(t, t->channel[i]);
	}
	t->nchannels = 0;
	free(t->relayed);
	if (t->event_fd >= 0)
		close(t->event_fd);
	t->event_fd = t->server->park_event = -1;
	pthread_mutex_destroy(&t->lock);
}
