// Zstandard as a few calls that Swift can import: one frame out of runs of bytes, and back, with contexts that are used
// again and again.
#ifndef DOPPEL_CZSTD_H
#define DOPPEL_CZSTD_H
#include <stddef.h>

// NULL where there is no memory.
void *doppel_zstd_compressor(int level);
void doppel_zstd_compressor_free(void *compressor);
// Three runs of bytes, as if they were one, to one frame that states their length.
// Returns its length; 0 where it is not shorter than `capacity`, or there is no memory.
size_t doppel_zstd_compress(void *compressor, void *frame, size_t capacity, const void *a,
                            size_t a_length, const void *b, size_t b_length, const void *c,
                            size_t c_length);

void *doppel_zstd_decompressor(void);
void doppel_zstd_decompressor_free(void *decompressor);
// One frame, that is all of `frame`, to exactly `length` bytes, which it has to state.
// Returns 0; otherwise why not: 1 it is no frame, or more than one, 2 it states another length, 3 its content is damaged.
int doppel_zstd_decompress(void *decompressor, void *content, size_t length, const void *frame,
                           size_t frame_length);
#endif
