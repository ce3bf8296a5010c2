// XXH3 as one call that Swift can import: the library's own header is macros.
#ifndef DOPPEL_CXXHASH_H
#define DOPPEL_CXXHASH_H
#include <stddef.h>
#include <stdint.h>
uint64_t doppel_xxh3_64(const void *data, size_t length, uint64_t seed);
// The same, unseeded, of three runs of bytes as if they were one.
uint64_t doppel_xxh3_64_joined(const void *a, size_t a_length, const void *b, size_t b_length,
                               const void *c, size_t c_length);
#endif
