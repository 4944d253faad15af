/* SPDX-License-Identifier: MIT
 *
 * Broken requests for serve(), many a second: for tools/fuzz_serve.py and its test, never for a mount.
 * Mutates messages of a corpus and looks at what comes of each; the caller looks at the region afterwards.
 */
#ifndef DAXFS_SERVE_FUZZ_H
#define DAXFS_SERVE_FUZZ_H

#include "daxfs/native/serve.h"

#define FUZZ_MESSAGE 8192		/* longest message; longer ones of the corpus are cut */
#define FUZZ_VERDICTS 6

/* What must not be; see fuzz_look. */
enum fuzz_wrong {
	FUZZ_FINE = 0, FUZZ_VERDICT, FUZZ_ERROR, FUZZ_LENGTH, FUZZ_PIECES, FUZZ_STORED, FUZZ_ENTERED, FUZZ_MEMORY,
};

struct serve_fuzz {
	const char **message;		/* the corpus */
	const size_t *size;
	size_t n;
	uint64_t random;		/* seed, not 0; goes on where it stopped */
	/* Room for samples of what is passed on to others: a uint32_t of length before each. */
	char *sample;
	size_t sample_cap, sample_used;
	/* out, added up */
	uint64_t verdict[FUZZ_VERDICTS], refused;
	enum fuzz_wrong wrong;		/* the last message was answered wrongly */
	char last[FUZZ_MESSAGE];
	size_t last_size;
};

/* Feed `count` mutated messages, or fewer where z->wrong says why: how many. */
uint64_t serve_fuzz(struct server *s, struct serve_counts *c, struct serve_fuzz *z, uint64_t count);

#endif
