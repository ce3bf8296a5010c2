// Linux calls that Swift's Glibc module lacks, and the few whose C form does
// not import. SystemIO is the only caller.
#ifndef DOPPEL_CLINUX_H
#define DOPPEL_CLINUX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

typedef struct {
    uint64_t size_bytes, allocated_bytes, inode, device;
    uint32_t mode, uid, gid, link_count;
    int64_t atime_ns, mtime_ns, ctime_ns;
    uint64_t rdev;
} clx_status;

typedef struct {
    uint64_t total_bytes, free_bytes, available_bytes, total_files, free_files;
    uint64_t filesystem_type;
    uint32_t name_max, block_size_bytes;
} clx_fsstatus;

enum {
    CLX_OPEN_READ = 0, CLX_OPEN_READWRITE = 1, CLX_OPEN_CREATE = 2,
    CLX_OPEN_EXCLUSIVE = 4, CLX_OPEN_TRUNCATE = 8, CLX_OPEN_DIRECTORY = 16,
};

// Every call returns -errno on failure, so that no caller has to read errno
// after Swift may have run something in between.
int clx_open(const char *path, int flags, uint32_t mode);
int clx_close(int fd);
int64_t clx_pread(int fd, void *buffer, size_t length, uint64_t offset);
int64_t clx_pwrite(int fd, const void *buffer, size_t length, uint64_t offset);
/// One call for several pieces, one after another in the file; at most CLX_MAX_PIECES.
enum { CLX_MAX_PIECES = 8 };
typedef struct {
    const void *base;
    size_t length;
} clx_piece;
int64_t clx_pwritev(int fd, const clx_piece *pieces, int count, uint64_t offset);
int clx_fdatasync(int fd);
int clx_fsync(int fd);
int clx_syncfs(int fd);
/// Begins to write a range's pages back and waits for none of it. What fails is told by the next sync.
int clx_start_writeback(int fd, uint64_t offset, uint64_t length);
/// Lets go of the memory that holds a range's pages, so far as they are clean.
int clx_drop_cache(int fd, uint64_t offset, uint64_t length);
int clx_ftruncate(int fd, uint64_t length);
int clx_punch_hole(int fd, uint64_t offset, uint64_t length);
int clx_zero_range(int fd, uint64_t offset, uint64_t length);
int clx_allocate(int fd, uint64_t offset, uint64_t length, bool keep_size);
int64_t clx_seek_data(int fd, uint64_t offset);
int64_t clx_seek_hole(int fd, uint64_t offset);
int clx_fstat(int fd, clx_status *out);
int clx_lstat(const char *path, clx_status *out);
int clx_fstatfs(int fd, clx_fsstatus *out);
int clx_statfs(const char *path, clx_fsstatus *out);
int clx_rename(const char *from, const char *to, bool no_replace);
int clx_unlink(const char *path);
int clx_rmdir(const char *path);
int clx_mkdir(const char *path, uint32_t mode);
int clx_symlink(const char *target, const char *path);
int64_t clx_readlink(const char *path, char *buffer, size_t length);
int clx_chmod(const char *path, uint32_t mode);
int clx_lchown(const char *path, uint32_t uid, uint32_t gid);
int clx_utimens(const char *path, int64_t atime_ns, int64_t mtime_ns);
int clx_futimens(int fd, int64_t atime_ns, int64_t mtime_ns);
int clx_clone_range(int to, uint64_t to_offset, int from, uint64_t from_offset, uint64_t length);
int64_t clx_copy_range(int to, uint64_t to_offset, int from, uint64_t from_offset, uint64_t length);
int64_t clx_list_xattr(const char *path, char *buffer, size_t length);
int64_t clx_get_xattr(const char *path, const char *name, void *buffer, size_t length);
int clx_set_xattr(const char *path, const char *name, const void *value, size_t length);
int clx_remove_xattr(const char *path, const char *name);
/// Exclusive open-file-description lock on the whole file; -EAGAIN when held.
int clx_try_lock(int fd);
int clx_unlock(int fd);
/// The same for a directory, which nobody can open for writing: flock(2); -EAGAIN when held.
int clx_try_lock_directory(int fd);
int clx_unlock_directory(int fd);
int clx_set_io_flusher(void);
int clx_raise_file_limit(void);
int64_t clx_realtime_ns(void);
int64_t clx_monotonic_ns(void);
void *clx_map_zeroed(size_t length);
void clx_unmap(void *address, size_t length);
int clx_random(void *buffer, size_t length);
/// The process's environment, for starting others with it.
char *const *clx_environment(void);
int clx_get_thread_id(void);
int clx_set_thread_name(const char *name);
/// Of the calling thread.
int clx_set_thread_nice(int nice);
/// Watches a folder: names that come and go, files that were written, changed modes.
int clx_watch_folder(const char *path);
int clx_make_event(void);
int clx_signal_event(int fd);
/// Waits until something happened in the folder (1), the event was signalled (2) or the time passed (0), and
/// forgets what happened. `watch` may be -1.
int clx_wait_watch(int watch, int event, int timeout_ms);
/// Calls `each` for every entry but . and ..; stops when it returns false.
int clx_list(const char *path, bool (*each)(void *, const char *, uint8_t), void *context);
#endif
