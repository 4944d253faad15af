/* SPDX-License-Identifier: MIT
 *
 * What the C tests of native units share: a check that ends the program with its place and text; cases, of
 * which one is run by its name.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(what) do { \
	if (!(what)) { \
		fprintf(stderr, "line %d: %s\n", __LINE__, #what); \
		abort(); \
	} \
} while (0)

struct test_case {
	const char *name;
	void (*run)(void);
};

/* The program's status: 2 where none of the n cases has that name. */
static inline int run_case(const struct test_case *cases, size_t n, const char *name)
{
	for (size_t i = 0; i < n; i++)
		if (!strcmp(cases[i].name, name)) {
			cases[i].run();
			return 0;
		}
	fprintf(stderr, "no such case: %s\n", name);
	return 2;
}
