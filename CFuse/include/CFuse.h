// libfuse3's low-level API for Swift, and the few things it lacks or that do
// not import. FuseFrontend is the only user among Doppel's modules.
//
// _GNU_SOURCE must not be defined here: it would change what Glibc's module
// sees, and debug builds then fail with colliding definitions.
#ifndef DOPPEL_CFUSE_H
#define DOPPEL_CFUSE_H

#ifndef FUSE_USE_VERSION
#define FUSE_USE_VERSION 314
#endif
#include <fuse3/fuse_lowlevel.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// FOPEN_* of the kernel: libfuse 3.14 has no field for the newer ones.
enum {
    CFUSE_OPEN_DIRECT_IO = 1 << 0,
    CFUSE_OPEN_KEEP_CACHE = 1 << 1,
    CFUSE_OPEN_NOFLUSH = 1 << 5,
    CFUSE_OPEN_PARALLEL_DIRECT_WRITES = 1 << 6,
};

// Replies with flags as the kernel knows them. As fuse_reply_open and
// fuse_reply_create: -ENOENT when the caller was interrupted and took no handle.
int cfuse_reply_open(fuse_req_t request, uint64_t handle, uint32_t open_flags);
int cfuse_reply_create(
    fuse_req_t request, const struct fuse_entry_param *entry, uint64_t handle,
    uint32_t open_flags);

// A page-aligned buffer of at least `size` bytes that belongs to the calling
// thread and lives as long as it; NULL when memory is out.
void *cfuse_scratch(size_t size);

// To be called between mount and loop: lets FUSE_INIT carry flags that are newer
// than the library. Returns 0 or -errno.
int cfuse_negotiate(struct fuse_session *session);
// 1: the kernel lets direct I/O files be mapped shared; 0: it does not; -1: not known yet.
int cfuse_direct_mmap(void);

// Everything libfuse has to say goes to `sink`, one line a call.
void cfuse_set_log(void (*sink)(int level, const char *line));

// Each returns 0 or -errno.
enum { CFUSE_UMOUNT_LAZY = 1, CFUSE_UMOUNT_NOFOLLOW = 2, CFUSE_UMOUNT_FORCE = 4 };
int cfuse_umount(const char *path, int flags);
int cfuse_syncfs(int fd);
// Both ends closed on exec.
int cfuse_pipe(int ends[2]);

// The loop over the session with `max_threads` workers at most, of which
// `idle_threads` are kept. As fuse_session_loop_mt.
int cfuse_loop(struct fuse_session *session, unsigned max_threads, unsigned idle_threads);

#endif
