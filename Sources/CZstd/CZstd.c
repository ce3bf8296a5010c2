#include "CZstd.h"

#include <zstd.h>

void *doppel_zstd_compressor(int level) {
    ZSTD_CCtx *context = ZSTD_createCCtx();
    if (context && ZSTD_isError(ZSTD_CCtx_setParameter(context, ZSTD_c_compressionLevel, level))) {
        ZSTD_freeCCtx(context);
        return NULL;
    }
    return context;
}

void doppel_zstd_compressor_free(void *compressor) { ZSTD_freeCCtx(compressor); }

size_t doppel_zstd_compress(void *compressor, void *frame, size_t capacity, const void *a,
                            size_t a_length, const void *b, size_t b_length, const void *c,
                            size_t c_length) {
    ZSTD_CCtx *context = compressor;
    ZSTD_inBuffer runs[3] = {{a, a_length, 0}, {b, b_length, 0}, {c, c_length, 0}};
    ZSTD_outBuffer out = {frame, capacity, 0};
    ZSTD_CCtx_reset(context, ZSTD_reset_session_only);
    if (ZSTD_isError(ZSTD_CCtx_setPledgedSrcSize(context, a_length + b_length + c_length))) return 0;
    int last = c_length ? 2 : b_length ? 1 : 0;
    for (int run = 0; run <= last; run++) {
        ZSTD_EndDirective directive = run == last ? ZSTD_e_end : ZSTD_e_continue;
        for (;;) {
            size_t left = ZSTD_compressStream2(context, &out, &runs[run], directive);
            if (ZSTD_isError(left)) return 0;
            if (directive == ZSTD_e_end ? left == 0 : runs[run].pos == runs[run].size) break;
            if (out.pos == out.size) return 0;
        }
    }
    return out.pos < capacity ? out.pos : 0;
}

void *doppel_zstd_decompressor(void) { return ZSTD_createDCtx(); }
void doppel_zstd_decompressor_free(void *decompressor) { ZSTD_freeDCtx(decompressor); }

int doppel_zstd_decompress(void *decompressor, void *content, size_t length, const void *frame,
                           size_t frame_length) {
    if (ZSTD_findFrameCompressedSize(frame, frame_length) != frame_length) return 1;
    if (ZSTD_getFrameContentSize(frame, frame_length) != length) return 2;
    return ZSTD_decompressDCtx(decompressor, content, length, frame, frame_length) == length ? 0 : 3;
}
