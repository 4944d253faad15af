/* SPDX-License-Identifier: MIT
 *
 * Who the fault handler's clients are (handler.h): their queues and pieces, and who uses them right now. What
 * is taken away while it is in use goes with its last user. For handler.c; all take handler.lock themselves.
 */
#ifndef DAXFS_HANDLER_CLIENTS_H
#define DAXFS_HANDLER_CLIENTS_H

#include "daxfs/native/handler.h"

/* The daemon's copy of a client's userfaultfd. */
struct handler_queue {
	int fd;
	int users;			/* messages of it that are being answered */
	struct handler_client *client;	/* NULL: it has ended, the last user closes it */
	struct handler_queue *next;	/* of its client */
};

/* The queue behind an event, counted in; NULL: its client has ended since. */
struct handler_queue *handler_enter_queue(struct handler *h, const void *event);
/* Close a userfaultfd. The last close of one waits for the client's mmap lock, and the client may have closed
 * its own: so neither the thread that serves the mount does it, nor is it done under handler.lock. */
void handler_close_uffd(int fd);
/* No message of q is read from now on: who faults there waits until its process ends. */
void handler_ignore(struct handler *h, struct handler_queue *q);
/* The piece at an address of the queue's client, counted in, or NULL. */
struct handler_piece *handler_enter_piece(struct handler *h, const struct handler_queue *q, uint64_t address);
/* A message of q has been answered, which was a fault in p, where that is not NULL. */
void handler_leave(struct handler *h, struct handler_queue *q, struct handler_piece *p);
/* The file of f, counted in, or NULL: nothing of it is or was observed. */
struct handler_file *handler_enter_file(struct handler *h, const struct filemap *f);
void handler_leave_file(struct handler *h, struct handler_file *file);
/* No client is left, nor any file. */
void handler_end_all(struct handler *h);
/* UFFDIO_WRITEPROTECT of all of it, on or off. 0 or -errno. */
int handler_set_protection(int fd, uint64_t start, uint64_t length, int on);
/* UFFDIO_CONTINUE: map [start, start + length), without the right to store with `wp`; also where
 * handler_poison was. How much of it, or -errno. */
int64_t handler_map(int fd, uint64_t start, uint64_t length, int wp);

/* Where clients show pages of a file. */
struct handler_view {
	struct handler_queue *queue;	/* counted in */
	uint64_t start, length;		/* addresses */
	uint64_t pgoff;			/* page of the file at start */
};
/* All views of the pages [first, last) as they are now, in *out, for handler_leave_views; or -ENOMEM. */
int handler_views(struct handler *h, const struct handler_file *file, uint64_t first, uint64_t last,
		  struct handler_view **out);
void handler_leave_views(struct handler *h, struct handler_view *view, int count);

#endif
