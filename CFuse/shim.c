#include "CFuse.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/uio.h>
#include <unistd.h>

// MARK: Replies

int cfuse_reply_open(fuse_req_t request, uint64_t handle, uint32_t open_flags) {
    struct fuse_open_out out = {.fh = handle, .open_flags = open_flags};
    return fuse_reply_buf(request, (const char *)&out, sizeof out);
}

// The kernel's form of a timeout; as in libfuse, what does not fit is the longest there is.
static void set_timeout(double seconds, uint64_t *whole, uint32_t *ns) {
    if (seconds < 0) seconds = 0;
    if (seconds > (double)UINT32_MAX) seconds = (double)UINT32_MAX;
    *whole = (uint64_t)seconds;
    *ns = (uint32_t)((seconds - (double)*whole) * 1e9);
}

int cfuse_reply_create(
    fuse_req_t request, const struct fuse_entry_param *entry, uint64_t handle,
    uint32_t open_flags) {
    struct {
        struct fuse_entry_out entry;
        struct fuse_open_out open;
    } out;
    memset(&out, 0, sizeof out);
    out.entry.nodeid = entry->ino;
    out.entry.generation = entry->generation;
    set_timeout(entry->entry_timeout, &out.entry.entry_valid, &out.entry.entry_valid_nsec);
    set_timeout(entry->attr_timeout, &out.entry.attr_valid, &out.entry.attr_valid_nsec);
    const struct stat *from = &entry->attr;
    struct fuse_attr *to = &out.entry.attr;
    to->ino = from->st_ino;
    to->size = (uint64_t)from->st_size;
    to->blocks = (uint64_t)from->st_blocks;
    to->atime = (uint64_t)from->st_atim.tv_sec;
    to->mtime = (uint64_t)from->st_mtim.tv_sec;
    to->ctime = (uint64_t)from->st_ctim.tv_sec;
    to->atimensec = (uint32_t)from->st_atim.tv_nsec;
    to->mtimensec = (uint32_t)from->st_mtim.tv_nsec;
    to->ctimensec = (uint32_t)from->st_ctim.tv_nsec;
    to->mode = from->st_mode;
    to->nlink = (uint32_t)from->st_nlink;
    to->uid = from->st_uid;
    to->gid = from->st_gid;
    to->blksize = (uint32_t)from->st_blksize;
    out.open.fh = handle;
    out.open.open_flags = open_flags;
    return fuse_reply_buf(request, (const char *)&out, sizeof out);
}

// MARK: Scratch

static __thread void *scratch;
static __thread size_t scratch_size;
static pthread_key_t scratch_key;
static pthread_once_t scratch_once = PTHREAD_ONCE_INIT;

static void make_key(void) { pthread_key_create(&scratch_key, free); }

void *cfuse_scratch(size_t size) {
    if (__builtin_expect(size <= scratch_size, 1)) return scratch;
    pthread_once(&scratch_once, make_key);
    void *larger = NULL;
    if (posix_memalign(&larger, 4096, (size + 4095) & ~(size_t)4095) != 0) return NULL;
    free(scratch);
    scratch = larger;
    scratch_size = (size + 4095) & ~(size_t)4095;
    pthread_setspecific(scratch_key, scratch);
    return scratch;
}

// MARK: Negotiation

// FUSE_INIT is read, worked on and answered by one thread, so what the kernel
// offered waits in that thread for the reply to pass by.
static __thread uint64_t init_unique;
static __thread uint32_t init_offered2;
static atomic_int direct_mmap = -1;

#define INIT_EXT (1u << 30)
// Bit 36 of the flags, so bit 4 of the second word; newer than the header here.
#define DIRECT_IO_ALLOW_MMAP2 (1u << 4)

static ssize_t read_hook(int fd, void *buffer, size_t length, void *userdata) {
    (void)userdata;
    ssize_t n = read(fd, buffer, length);
    if (n < (ssize_t)(sizeof(struct fuse_in_header) + 20)) return n;
    const struct fuse_in_header *header = buffer;
    if (__builtin_expect(header->opcode != FUSE_INIT, 1)) return n;
    const uint32_t *words = (const uint32_t *)(header + 1);  // major, minor, readahead, flags, flags2
    init_unique = header->unique;
    init_offered2 = (words[3] & INIT_EXT) ? words[4] : 0;
    return n;
}

static ssize_t writev_hook(int fd, struct iovec *iov, int count, void *userdata) {
    (void)userdata;
    if (__builtin_expect(init_unique != 0, 0) && count >= 2 &&
        iov[0].iov_len == sizeof(struct fuse_out_header)) {
        const struct fuse_out_header *header = iov[0].iov_base;
        if (header->unique == init_unique) {
            init_unique = 0;
            struct fuse_init_out *out = iov[1].iov_base;
            bool offered = (init_offered2 & DIRECT_IO_ALLOW_MMAP2) != 0;
            bool fits = header->error == 0 &&
                        iov[1].iov_len >= offsetof(struct fuse_init_out, flags2) + 4;
            if (offered && fits) {
                out->flags |= INIT_EXT;
                out->flags2 |= DIRECT_IO_ALLOW_MMAP2;
            }
            atomic_store(&direct_mmap, offered && fits);
        }
    }
    return writev(fd, iov, count);
}

int cfuse_negotiate(struct fuse_session *session) {
    static const struct fuse_custom_io io = {.writev = writev_hook, .read = read_hook};
    return fuse_session_custom_io(session, &io, fuse_session_fd(session));
}

int cfuse_direct_mmap(void) { return atomic_load(&direct_mmap); }

// MARK: Log

static void (*log_sink)(int level, const char *line);

static void log_line(enum fuse_log_level level, const char *format, va_list arguments) {
    char line[512];
    int n = vsnprintf(line, sizeof line, format, arguments);
    if (n < 0) return;
    size_t length = strlen(line);
    while (length > 0 && line[length - 1] == '\n') line[--length] = 0;
    if (length > 0 && log_sink) log_sink((int)level, line);
}

void cfuse_set_log(void (*sink)(int level, const char *line)) {
    log_sink = sink;
    fuse_set_log_func(sink ? log_line : NULL);
}

// MARK: Mounts

int cfuse_umount(const char *path, int flags) {
    int f = 0;
    if (flags & CFUSE_UMOUNT_LAZY) f |= MNT_DETACH;
    if (flags & CFUSE_UMOUNT_NOFOLLOW) f |= UMOUNT_NOFOLLOW;
    if (flags & CFUSE_UMOUNT_FORCE) f |= MNT_FORCE;
    return umount2(path, f) < 0 ? -errno : 0;
}

int cfuse_syncfs(int fd) { return syncfs(fd) < 0 ? -errno : 0; }
int cfuse_pipe(int ends[2]) { return pipe2(ends, O_CLOEXEC) < 0 ? -errno : 0; }

int cfuse_loop(struct fuse_session *session, unsigned max_threads, unsigned idle_threads) {
    struct fuse_loop_config *config = fuse_loop_cfg_create();
    if (!config) return -ENOMEM;
    fuse_loop_cfg_set_clone_fd(config, 0);
    fuse_loop_cfg_set_max_threads(config, max_threads);
    fuse_loop_cfg_set_idle_threads(config, idle_threads);
    int result = fuse_session_loop_mt(session, config);
    fuse_loop_cfg_destroy(config);
    return result;
}
