/* SPDX-License-Identifier: MIT
 *
 * The fault handler's clients (handler_clients.h): lists, as a process has few mappings and few userfaultfds.
 */
#define _GNU_SOURCE
#include "daxfs/native/handler_clients.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

static struct handler_client *client_of(struct handler *h, uint64_t key)
{
	struct handler_client *c;

	for (c = h->client; c && c->key != key; c = c->next)
		;
	return c;
}

/* The piece at `address`, or NULL. Under handler.lock. */
static struct handler_piece *piece_at(struct handler_client *c, uint64_t address)
{
	struct handler_piece *p;

	for (p = c->piece; p && p->end <= address; p = p->next)
		;
	return p && p->start <= address ? p : NULL;
}

struct handler_piece *handler_enter_piece(struct handler *h, const struct handler_queue *q, uint64_t address)
{
	struct handler_piece *p;

	pthread_mutex_lock(&h->lock);
	p = q->client ? piece_at(q->client, address) : NULL;
	if (p)
		p->users++;
	pthread_mutex_unlock(&h->lock);
	return p;
}

/* Under handler.lock; NULL: none. */
static struct handler_file *file_of(struct handler *h, const struct filemap *f)
{
	struct handler_file *file;

	for (file = h->file; file && file->f != f; file = file->next)
		;
	return file;
}

/* The file of f, made where there is none, counted in. Under handler.lock; NULL: no memory. */
static struct handler_file *hold_file(struct handler *h, struct filemap *f)
{
	struct handler_file *file = file_of(h, f);

	if (!file) {
		file = calloc(1, sizeof(*file));
		if (!file)
			return NULL;
		file->f = f;
		entry_map_init(&file->entries, NULL, NULL);
		file->next = h->file;
		h->file = file;
	}
	file->users++;
	return file;
}

/* Under handler.lock. What is dirty keeps the file. */
static void let_file_go(struct handler *h, struct handler_file *file)
{
	struct handler_file **at;
	uint64_t dirty;

	if (--file->users)
		return;
	entry_count(&file->entries, &dirty);
	if (dirty)
		return;
	for (at = &h->file; *at != file; at = &(*at)->next)
		;
	*at = file->next;
	entry_map_destroy(&file->entries);
	free(file);
}

struct handler_file *handler_enter_file(struct handler *h, const struct filemap *f)
{
	struct handler_file *file;

	pthread_mutex_lock(&h->lock);
	file = file_of(h, f);
	if (file)
		file->users++;
	pthread_mutex_unlock(&h->lock);
	return file;
}

void handler_leave_file(struct handler *h, struct handler_file *file)
{
	pthread_mutex_lock(&h->lock);
	let_file_go(h, file);
	pthread_mutex_unlock(&h->lock);
}

void handler_forget(struct handler *h, const struct filemap *f, uint64_t first, uint64_t last)
{
	struct handler_file *file = handler_enter_file(h, f);

	if (file) {
		entry_forget(&file->entries, first, last);
		handler_leave_file(h, file);
	}
}

int handler_spoil(struct handler *h, const struct handler_bad *bad, size_t count)
{
	struct handler_bad *new = calloc(count + 1, sizeof(*new));

	if (!new)
		return -ENOMEM;
	memcpy(new, bad, count * sizeof(*new));
	pthread_mutex_lock(&h->lock);
	free(h->bad);
	h->bad = new;
	h->bad_count = count;
	pthread_mutex_unlock(&h->lock);
	return 0;
}

uint32_t handler_is_bad(struct handler *h, const struct filemap *f, uint64_t pgoff)
{
	uint64_t base = pgoff & ~FAULT_COLOUR;
	uint32_t flags = 0;
	size_t i;

	if (!(__atomic_load_n(&f->state, __ATOMIC_RELAXED) & FILEMAP_POISONED))
		return 0;
	pthread_mutex_lock(&h->lock);
	for (i = 0; i < h->bad_count; i++) {
		if (h->bad[i].f != f || h->bad[i].last <= base || h->bad[i].first >= base + FAULT_PMD_PAGES)
			continue;
		flags |= FAULT_POISON_PMD;
		if (h->bad[i].first <= pgoff && pgoff < h->bad[i].last)
			flags |= FAULT_POISON;
	}
	pthread_mutex_unlock(&h->lock);
	return flags;
}

static void free_piece(struct handler *h, struct handler_piece *p)
{
	let_file_go(h, p->file);
	free(p);
}

static void put_in(struct handler_client *c, struct handler_piece *p)
{
	struct handler_piece **at = &c->piece;

	while (*at && (*at)->start < p->start)
		at = &(*at)->next;
	p->next = *at;
	*at = p;
}

/* *at is observed no more. Under handler.lock. */
static void take_out(struct handler *h, struct handler_piece **at)
{
	struct handler_piece *p = *at;

	*at = p->next;
	if (!p->users) {
		free_piece(h, p);
		return;
	}
	p->gone = 1;
	p->next = h->gone;
	h->gone = p;
}

/* Under handler.lock. */
static void leave_piece(struct handler *h, struct handler_piece *p)
{
	struct handler_piece **at;

	if (--p->users || !p->gone)
		return;
	for (at = &h->gone; *at != p; at = &(*at)->next)
		;
	*at = p->next;
	free_piece(h, p);
}

static int is_userfaultfd(int fd)
{
	char path[32], name[32] = "";

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return readlink(path, name, sizeof(name) - 1) > 0 && !strcmp(name, "anon_inode:[userfaultfd]");
}

/* The same userfaultfd by another number. Where the kernel can't say (no kcmp), each number is one. */
static int is_same(int a, int b)
{
	return syscall(SYS_kcmp, getpid(), getpid(), KCMP_FILE, (unsigned long)a, (unsigned long)b) == 0;
}

static void *close_one(void *fd)
{
	sigset_t all;

	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, NULL);
	close((int)(intptr_t)fd);
	return NULL;
}

void handler_close_uffd(int fd)
{
	pthread_attr_t alone;
	pthread_t thread;

	pthread_attr_init(&alone);
	pthread_attr_setdetachstate(&alone, PTHREAD_CREATE_DETACHED);
	if (pthread_create(&thread, &alone, close_one, (void *)(intptr_t)fd))
		close(fd);
	pthread_attr_destroy(&alone);
}

/* No thread is told of q any more. By hand: the client has the file open, so that to close our number does
 * not take it out. */
static void unwatch(struct handler *h, const struct handler_queue *q)
{
	unsigned i;

	for (i = 0; i < h->threads; i++)
		epoll_ctl(h->thread[i].epoll, EPOLL_CTL_DEL, q->fd, NULL);
}

/* Each message wakes one thread, the first one that waits (EPOLLEXCLUSIVE); one that comes while none does
 * is found by whoever is done first. With one epoll for all of them each message woke a second one in vain: a
 * level-triggered event goes back to the list, and the next thread is woken for it. 0 or -errno. */
static int watch(struct handler *h, struct handler_queue *q)
{
	struct epoll_event event = {.events = EPOLLIN | EPOLLEXCLUSIVE, .data.ptr = q};
	unsigned i;

	for (i = 0; i < h->threads; i++) {
		if (epoll_ctl(h->thread[i].epoll, EPOLL_CTL_ADD, q->fd, &event)) {
			int err = -errno;

			unwatch(h, q);
			return err;
		}
	}
	return 0;
}

/* fd is among the queues of c, and closed where it was already. Under handler.lock. */
static int add_queue(struct handler *h, struct handler_client *c, int fd)
{
	struct handler_queue *q;
	int flags, n = 0, err;

	for (q = c->queue; q && !is_same(q->fd, fd); q = q->next)
		n++;
	if (q) {
		close(fd);	/* not the last: that queue has one */
		return 0;
	}
	if (n == HANDLER_QUEUES) {
		handler_close_uffd(fd);
		return -EMFILE;
	}
	flags = fcntl(fd, F_GETFL);
	q = calloc(1, sizeof(*q));
	if (!q) {
		err = -ENOMEM;
	} else if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK)) {
		err = -errno;
	} else {
		*q = (struct handler_queue){fd, 0, c, c->queue};
		err = watch(h, q);
	}
	if (err) {
		free(q);
		handler_close_uffd(fd);
		return err;
	}
	c->queue = q;
	return 0;
}

static void close_queue(struct handler_queue *q)
{
	handler_close_uffd(q->fd);
	free(q);
}

struct handler_queue *handler_enter_queue(struct handler *h, const void *event)
{
	struct handler_client *c;
	struct handler_queue *q = NULL;

	pthread_mutex_lock(&h->lock);
	for (c = h->client; c && !q; c = c->next)
		for (q = c->queue; q && q != event; q = q->next)
			;
	if (q)
		q->users++;
	pthread_mutex_unlock(&h->lock);
	return q;
}

void handler_ignore(struct handler *h, struct handler_queue *q)
{
	pthread_mutex_lock(&h->lock);
	unwatch(h, q);
	pthread_mutex_unlock(&h->lock);
}

void handler_leave(struct handler *h, struct handler_queue *q, struct handler_piece *p)
{
	pthread_mutex_lock(&h->lock);
	if (p)
		leave_piece(h, p);
	if (!--q->users && !q->client)
		close_queue(q);
	pthread_mutex_unlock(&h->lock);
}

static struct handler_client *new_client(struct handler *h, uint64_t key)
{
	struct handler_client *c = calloc(1, sizeof(*c));

	if (c) {
		c->key = key;
		c->next = h->client;
		h->client = c;
	}
	return c;
}

static int overlaps(const struct handler_client *c, uint64_t start, uint64_t end)
{
	const struct handler_piece *p;

	for (p = c->piece; p && p->end <= start; p = p->next)
		;
	return p && p->start < end;
}

int handler_add(struct handler *h, uint64_t key, int fd, uint64_t id, uint64_t start, uint64_t length,
		uint64_t pgoff, struct filemap *f, int pmd, uint32_t pid)
{
	struct handler_piece *p = calloc(1, sizeof(*p));
	struct handler_client *c;
	int err;

	if (!p || !is_userfaultfd(fd)) {
		handler_close_uffd(fd);
		err = p ? -EINVAL : -ENOMEM;
		free(p);
		return err;
	}
	*p = (struct handler_piece){.start = start, .end = start + length, .pgoff = pgoff, .id = id,
				    .pmd = pmd, .pid = pid};
	pthread_mutex_lock(&h->lock);
	c = client_of(h, key);
	if (!c)
		c = new_client(h, key);
	p->file = hold_file(h, f);
	if (!c || !p->file || overlaps(c, p->start, p->end)) {
		handler_close_uffd(fd);
		err = c && p->file ? -EEXIST : -ENOMEM;
	} else {
		err = add_queue(h, c, fd);
	}
	/* A message that is read before this waits for handler.lock, too. */
	if (!err)
		put_in(c, p);
	else if (p->file)
		free_piece(h, p);
	else
		free(p);
	pthread_mutex_unlock(&h->lock);
	return err;
}

/* A piece for what of p lies in [start, end). */
static struct handler_piece *part_of(const struct handler_piece *p, uint64_t start, uint64_t end)
{
	struct handler_piece *part = calloc(1, sizeof(*part));

	if (part)
		*part = (struct handler_piece){.start = start, .end = end, .id = p->id, .file = p->file,
					       .pgoff = p->pgoff + ((start - p->start) >> DAXFS_PAGE_SHIFT),
					       .pmd = p->pmd, .pid = p->pid};
	return part;
}

/* *at without what of it lies in [start, end). 0 or -ENOMEM. Under handler.lock. */
static int cut(struct handler *h, struct handler_client *c, struct handler_piece **at, uint64_t start,
	       uint64_t end)
{
	struct handler_piece *p = *at, *left = NULL, *right = NULL;

	if (p->start < start && !(left = part_of(p, p->start, start)))
		return -ENOMEM;
	if (p->end > end && !(right = part_of(p, end, p->end))) {
		free(left);
		return -ENOMEM;
	}
	p->file->users += (left != NULL) + (right != NULL);
	take_out(h, at);
	if (left)
		put_in(c, left);
	if (right)
		put_in(c, right);
	return 0;
}

static struct handler_piece **piece_in(struct handler_client *c, uint64_t id, uint64_t start, uint64_t end)
{
	struct handler_piece **at = &c->piece;

	while (*at && ((*at)->id != id || (*at)->end <= start || (*at)->start >= end))
		at = &(*at)->next;
	return *at ? at : NULL;
}

int handler_remove(struct handler *h, uint64_t key, uint64_t id, uint64_t start, uint64_t length)
{
	struct handler_client *c;
	struct handler_piece **at;
	int err = 0;

	pthread_mutex_lock(&h->lock);
	c = client_of(h, key);
	while (c && !err && (at = piece_in(c, id, start, start + length)))
		err = cut(h, c, at, start, start + length);
	pthread_mutex_unlock(&h->lock);
	return err;
}

void handler_end(struct handler *h, uint64_t key)
{
	struct handler_client **at, *c;
	struct handler_queue *q;

	pthread_mutex_lock(&h->lock);
	for (at = &h->client; *at && (*at)->key != key; at = &(*at)->next)
		;
	c = *at;
	if (c) {
		*at = c->next;
		while (c->piece)
			take_out(h, &c->piece);
		while ((q = c->queue)) {
			c->queue = q->next;
			q->client = NULL;
			/* In use: closed by who has it, and told of nothing any more. Else messages for a client
			 * that begins anew, with the same userfaultfd, would wake threads for this one alone. */
			unwatch(h, q);
			if (!q->users)
				close_queue(q);
		}
		free(c);
	}
	pthread_mutex_unlock(&h->lock);
}

void handler_end_all(struct handler *h)
{
	struct handler_file *file;

	while (h->client)
		handler_end(h, h->client->key);
	while ((file = h->file)) {	/* what nobody wrote back */
		h->file = file->next;
		entry_map_destroy(&file->entries);
		free(file);
	}
}

int handler_uses(struct handler *h, const struct filemap *f)
{
	int uses;

	pthread_mutex_lock(&h->lock);
	uses = file_of(h, f) != NULL;
	pthread_mutex_unlock(&h->lock);
	return uses;
}

/* A copy of what of p shows the pages [first, last), its queue counted in; 0: nothing. Under handler.lock. */
static int view_of(struct handler_client *c, const struct handler_piece *p, uint64_t first, uint64_t last,
		   struct handler_view *out)
{
	uint64_t end = p->pgoff + ((p->end - p->start) >> DAXFS_PAGE_SHIFT);

	first = first > p->pgoff ? first : p->pgoff;
	last = last < end ? last : end;
	if (first >= last)
		return 0;
	*out = (struct handler_view){c->queue, p->start + ((first - p->pgoff) << DAXFS_PAGE_SHIFT),
				     (last - first) << DAXFS_PAGE_SHIFT, first};
	c->queue->users++;
	return 1;
}

int handler_views(struct handler *h, const struct handler_file *file, uint64_t first, uint64_t last,
		  struct handler_view **out)
{
	struct handler_client *c;
	struct handler_piece *p;
	int n = 0;

	pthread_mutex_lock(&h->lock);
	/* Each piece counts its file once. */
	*out = calloc((size_t)file->users, sizeof(**out));
	for (c = h->client; *out && c; c = c->next)
		for (p = c->piece; p; p = p->next)
			if (p->file == file)
				n += view_of(c, p, first, last, *out + n);
	pthread_mutex_unlock(&h->lock);
	return *out ? n : -ENOMEM;
}

void handler_leave_views(struct handler *h, struct handler_view *view, int count)
{
	while (count > 0)
		handler_leave(h, view[--count].queue, NULL);
	free(view);
}
