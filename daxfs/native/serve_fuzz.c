/* SPDX-License-Identifier: MIT
 *
 * The mutator (serve_fuzz.h). Each message is handed over in blocks of exactly its size, so that a
 * sanitizer sees every byte that is read behind it: one block, as from /dev/fuse, or three, as from io_uring.
 */
#include <stdlib.h>
#include <string.h>

#include "daxfs/native/serve_fuzz.h"

#define HEADER sizeof(struct wire_in)
#define SAMPLE_EVERY 16

static uint64_t random_next(struct serve_fuzz *z)
{
	/* xorshift64*: enough for choices, and the same everywhere. */
	z->random ^= z->random >> 12;
	z->random ^= z->random << 25;
	z->random ^= z->random >> 27;
	return z->random * UINT64_C(2685821657736338717);
}

static uint64_t below(struct serve_fuzz *z, uint64_t n)
{
	return n ? (random_next(z) >> 16) % n : 0;
}

/* -- mutation --------------------------------------------------------------------------- */

static const uint64_t numbers[] = {
	0, 1, 2, 3, 7, 8, 16, 40, 255, 256, 4095, 4096, 4097, 16384, 65535, 65536, 65537, 1 << 20, INT32_MAX,
	UINT32_MAX, UINT64_C(1) << 32, (UINT64_C(1) << 32) + 1, (UINT64_C(1) << 44) - 1, UINT64_C(1) << 44,
	INT64_MAX,
	UINT64_C(1) << 63, UINT64_MAX - 4096, UINT64_MAX,
};

static void put_number(struct serve_fuzz *z, size_t width)
{
	uint64_t value = numbers[below(z, sizeof(numbers) / sizeof(*numbers))];
	size_t at;

	if (z->last_size < width)
		return;
	at = below(z, z->last_size / width) * width;
	if (below(z, 3) == 0) {		/* near what is there */
		memcpy(&value, z->last + at, width);
		value += below(z, 3) - 1;
	}
	memcpy(z->last + at, &value, width);
}

static void splice(struct serve_fuzz *z)
{
	size_t other = below(z, z->n), size = z->size[other] < FUZZ_MESSAGE ? z->size[other] : FUZZ_MESSAGE;
	size_t at = below(z, size);

	memcpy(z->last + at, z->message[other] + at, size - at);
	z->last_size = size > at ? size : at;
}

static void grow(struct serve_fuzz *z)
{
	size_t n = 1 + below(z, 64), zeros = below(z, 2);

	for (; n && z->last_size < FUZZ_MESSAGE; n--)
		z->last[z->last_size++] = zeros ? 0 : (char)random_next(z);
}

static void mutate(struct serve_fuzz *z)
{
	size_t n = z->last_size;
	uint32_t opcode;

	switch (below(z, 9)) {
	case 0:
		if (n)
			z->last[below(z, n)] ^= (char)(1 << below(z, 8));
		break;
	case 1:
		if (n)
			z->last[below(z, n)] = (char)random_next(z);
		break;
	case 2: case 3:
		put_number(z, 4);
		break;
	case 4: case 5:
		put_number(z, 8);
		break;
	case 6:
		if (below(z, 2))
			z->last_size = HEADER + below(z, n > HEADER ? n - HEADER + 1 : 1);
		else
			grow(z);
		break;
	case 7:
		splice(z);
		break;
	default:
		opcode = (uint32_t)below(z, below(z, 8) ? WIRE_OPCODES : UINT32_MAX);
		if (n >= 8)
			memcpy(z->last + 4, &opcode, 4);
	}
}

static void make_message(struct serve_fuzz *z)
{
	size_t from = below(z, z->n), rounds = below(z, 5);
	uint32_t len;

	z->last_size = z->size[from] < FUZZ_MESSAGE ? z->size[from] : FUZZ_MESSAGE;
	memcpy(z->last, z->message[from], z->last_size);
	while (rounds--)
		mutate(z);
	if (z->last_size < HEADER)
		z->last_size = HEADER;
	len = (uint32_t)z->last_size;
	if (below(z, 16))	/* a wrong length is refused at once, and finds nothing else */
		memcpy(z->last, &len, 4);
}

/* -- what came of it -------------------------------------------------------------------- */

static int is_io(uint32_t opcode)
{
	return opcode == WIRE_READ || opcode == WIRE_WRITE || opcode == WIRE_FALLOCATE;
}

/* Bytes that a good answer of this opcode may have. */
static size_t longest(const struct serve_msg *m)
{
	switch (m->head->opcode) {
	case WIRE_READ:
		return ((const struct wire_read *)m->arg)->size;
	case WIRE_WRITE:
		return sizeof(struct wire_write_out);
	case WIRE_LSEEK:
		return sizeof(struct wire_lseek_out);
	case WIRE_GETATTR:
		return sizeof(struct wire_attr_out);
	case WIRE_OPEN:
		return sizeof(struct wire_open_out);
	}
	return 0;
}

static int pieces_are_wrong(const struct serve_reply *r)
{
	volatile const char *at;
	size_t total = 0, n;
	int i;

	if (r->npieces > SERVE_PIECES || (r->npieces && !r->handle))
		return 1;
	for (i = 0; i < r->npieces; i++) {
		at = r->piece[i].iov_base;
		for (n = 0; n < r->piece[i].iov_len; n += 512)	/* readable? */
			(void)at[n];
		total += r->piece[i].iov_len;
	}
	return r->npieces && total != r->len;
}

static enum fuzz_wrong fuzz_look(struct server *s, const struct serve_msg *m, const struct serve_reply *r,
				 int verdict, uint64_t stores)
{
	if (verdict < 0 || verdict >= FUZZ_VERDICTS)
		return FUZZ_VERDICT;
	if (r->error > 0 || r->error < -4095 || (r->error && verdict != SERVE_DONE))
		return FUZZ_ERROR;
	if (verdict != SERVE_DONE || r->error ? r->len || r->npieces || r->handle : r->len > longest(m))
		return FUZZ_LENGTH;
	if (pieces_are_wrong(r))
		return FUZZ_PIECES;
	if (stores && (verdict != SERVE_DONE || r->error || !is_io(m->head->opcode)))
		return FUZZ_STORED;
	if (s->io->table->users != !!r->handle)
		return FUZZ_ENTERED;
	return FUZZ_FINE;
}

static void keep_sample(struct serve_fuzz *z)
{
	uint32_t len = (uint32_t)z->last_size;

	if (below(z, SAMPLE_EVERY) || z->sample_cap - z->sample_used < len + sizeof(len))
		return;
	memcpy(z->sample + z->sample_used, &len, sizeof(len));
	memcpy(z->sample + z->sample_used + sizeof(len), z->last, len);
	z->sample_used += len + sizeof(len);
}

static uint64_t stores_of(const struct server *s)
{
	return s->io->ops->n_store + s->io->ops->n_nt;
}

/* A block of exactly `size` bytes with a copy of what is at `from`. */
static char *block(const char *from, size_t size)
{
	char *out = malloc(size ? size : 1);

	if (out && size)
		memcpy(out, from, size);
	return out;
}

/* The message in one block or three of its own. -1: no memory. */
static int take_apart(struct serve_fuzz *z, char *part[3], struct serve_msg *m)
{
	int three = (int)below(z, 2);

	part[1] = part[2] = NULL;
	part[0] = block(z->last, three ? HEADER : z->last_size);
	if (!part[0])
		return -1;
	serve_split(three ? z->last : part[0], z->last_size, m);
	if (!three)
		return 0;
	part[1] = block(m->arg, m->arg_len);
	part[2] = block(m->data, m->data_len);
	m->head = (const struct wire_in *)part[0];
	m->arg = part[1];
	m->data = part[2];
	return part[1] && part[2] ? 0 : -1;
}

static enum fuzz_wrong feed_one(struct server *s, struct serve_counts *c, struct serve_fuzz *z,
				struct serve_reply *r)
{
	enum fuzz_wrong wrong = FUZZ_MEMORY;
	struct serve_msg m;
	char *part[3];
	uint64_t before;
	int verdict;

	if (!take_apart(z, part, &m)) {
		r->by_pieces = (int)below(z, 2);
		before = stores_of(s);
		verdict = serve(s, c, &m, r);
		wrong = fuzz_look(s, &m, r, verdict, stores_of(s) - before);
		serve_done(s, r);
		if (!wrong) {
			z->verdict[verdict]++;
			z->refused += !!r->error;
			if (verdict == SERVE_RELAY || verdict == SERVE_CALL || verdict == SERVE_FORGET)
				keep_sample(z);
		}
	}
	free(part[0]);
	free(part[1]);
	free(part[2]);
	return wrong;
}

uint64_t serve_fuzz(struct server *s, struct serve_counts *c, struct serve_fuzz *z, uint64_t count)
{
	struct serve_reply r = {.cap = s->limits.max_write};
	uint64_t done;

	r.buf = malloc(r.cap);
	z->wrong = r.buf ? FUZZ_FINE : FUZZ_MEMORY;
	for (done = 0; done < count && !z->wrong; done++) {
		make_message(z);
		z->wrong = feed_one(s, c, z, &r);
	}
	free(r.buf);
	return done;
}
