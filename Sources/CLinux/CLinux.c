#include "CLinux.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <poll.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <sys/xattr.h>
#include <time.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#endif

static inline int result(int r) { return r < 0 ? -errno : r; }
static inline int64_t result64(int64_t r) { return r < 0 ? -errno : r; }

int clx_open(const char *path, int flags, uint32_t mode) {
    int f = O_CLOEXEC;
    f |= (flags & CLX_OPEN_READWRITE) ? O_RDWR : O_RDONLY;
    if (flags & CLX_OPEN_CREATE) f |= O_CREAT;
    if (flags & CLX_OPEN_EXCLUSIVE) f |= O_EXCL;
    if (flags & CLX_OPEN_TRUNCATE) f |= O_TRUNC;
    if (flags & CLX_OPEN_DIRECTORY) f |= O_DIRECTORY;
    int r;
    do r = open(path, f, mode);
    while (r < 0 && errno == EINTR);
    return result(r);
}
int clx_close(int fd) { return result(close(fd)); }
int64_t clx_pread(int fd, void *b, size_t n, uint64_t o) {
    int64_t r;
    do r = pread(fd, b, n, (off_t)o);
    while (r < 0 && errno == EINTR);
    return result64(r);
}
int64_t clx_pwrite(int fd, const void *b, size_t n, uint64_t o) {
    int64_t r;
    do r = pwrite(fd, b, n, (off_t)o);
    while (r < 0 && errno == EINTR);
    return result64(r);
}
int64_t clx_pwritev(int fd, const clx_piece *p, int n, uint64_t o) {
    struct iovec v[CLX_MAX_PIECES];
    int64_t r;
    if (n > CLX_MAX_PIECES) return -EINVAL;
    for (int i = 0; i < n; i++) v[i] = (struct iovec){(void *)p[i].base, p[i].length};
    do r = pwritev(fd, v, n, (off_t)o);
    while (r < 0 && errno == EINTR);
    return result64(r);
}
// A failed sync is reported once and never repeated here: the kernel has
// dropped the dirty state, so a second call would report success for lost data.
int clx_fdatasync(int fd) { return result(fdatasync(fd)); }
int clx_fsync(int fd) { return result(fsync(fd)); }
int clx_syncfs(int fd) { return result(syncfs(fd)); }
int clx_start_writeback(int fd, uint64_t o, uint64_t n) {
    return result(sync_file_range(fd, (off64_t)o, (off64_t)n, SYNC_FILE_RANGE_WRITE));
}
int clx_drop_cache(int fd, uint64_t o, uint64_t n) {
    return -posix_fadvise(fd, (off_t)o, (off_t)n, POSIX_FADV_DONTNEED);
}
int clx_ftruncate(int fd, uint64_t n) {
    int r;
    do r = ftruncate(fd, (off_t)n);
    while (r < 0 && errno == EINTR);
    return result(r);
}
static int allocate(int fd, int mode, uint64_t o, uint64_t n) {
    int r;
    do r = fallocate(fd, mode, (off_t)o, (off_t)n);
    while (r < 0 && errno == EINTR);
    return result(r);
}
int clx_punch_hole(int fd, uint64_t o, uint64_t n) {
    return allocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, o, n);
}
int clx_zero_range(int fd, uint64_t o, uint64_t n) {
    return allocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, o, n);
}
int clx_allocate(int fd, uint64_t o, uint64_t n, bool keep) {
    return allocate(fd, keep ? FALLOC_FL_KEEP_SIZE : 0, o, n);
}
int64_t clx_seek_data(int fd, uint64_t o) { return result64(lseek(fd, (off_t)o, SEEK_DATA)); }
int64_t clx_seek_hole(int fd, uint64_t o) { return result64(lseek(fd, (off_t)o, SEEK_HOLE)); }

static int64_t ns(struct timespec t) { return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec; }
static struct timespec spec(int64_t v) {
    struct timespec t = {.tv_sec = v / 1000000000, .tv_nsec = v % 1000000000};
    if (t.tv_nsec < 0) t.tv_nsec += 1000000000, t.tv_sec -= 1;
    return t;
}
static void fill(const struct stat *s, clx_status *o) {
    o->size_bytes = (uint64_t)s->st_size;
    o->allocated_bytes = (uint64_t)s->st_blocks * 512;
    o->inode = s->st_ino;
    o->device = s->st_dev;
    o->mode = s->st_mode;
    o->uid = s->st_uid;
    o->gid = s->st_gid;
    o->link_count = (uint32_t)s->st_nlink;
    o->atime_ns = ns(s->st_atim);
    o->mtime_ns = ns(s->st_mtim);
    o->ctime_ns = ns(s->st_ctim);
    o->rdev = s->st_rdev;
}
int clx_fstat(int fd, clx_status *o) {
    struct stat s;
    if (fstat(fd, &s) < 0) return -errno;
    fill(&s, o);
    return 0;
}
int clx_lstat(const char *p, clx_status *o) {
    struct stat s;
    if (lstat(p, &s) < 0) return -errno;
    fill(&s, o);
    return 0;
}
static int fsstatus(int r, const struct statfs *s, clx_fsstatus *o) {
    if (r < 0) return -errno;
    o->total_bytes = (uint64_t)s->f_blocks * s->f_bsize;
    o->free_bytes = (uint64_t)s->f_bfree * s->f_bsize;
    o->available_bytes = (uint64_t)s->f_bavail * s->f_bsize;
    o->total_files = s->f_files;
    o->free_files = s->f_ffree;
    o->filesystem_type = (uint64_t)s->f_type;
    o->name_max = (uint32_t)s->f_namelen;
    o->block_size_bytes = (uint32_t)s->f_bsize;
    return 0;
}
int clx_fstatfs(int fd, clx_fsstatus *o) {
    struct statfs s;
    return fsstatus(fstatfs(fd, &s), &s, o);
}
int clx_statfs(const char *p, clx_fsstatus *o) {
    struct statfs s;
    return fsstatus(statfs(p, &s), &s, o);
}
int clx_rename(const char *a, const char *b, bool no_replace) {
    return result(renameat2(AT_FDCWD, a, AT_FDCWD, b, no_replace ? RENAME_NOREPLACE : 0));
}
int clx_unlink(const char *p) { return result(unlink(p)); }
int clx_rmdir(const char *p) { return result(rmdir(p)); }
int clx_mkdir(const char *p, uint32_t m) { return result(mkdir(p, m)); }
int clx_symlink(const char *t, const char *p) { return result(symlink(t, p)); }
int64_t clx_readlink(const char *p, char *b, size_t n) { return result64(readlink(p, b, n)); }
int clx_chmod(const char *p, uint32_t m) { return result(chmod(p, m)); }
int clx_lchown(const char *p, uint32_t u, uint32_t g) { return result(lchown(p, u, g)); }
int clx_utimens(const char *p, int64_t a, int64_t m) {
    struct timespec t[2] = {spec(a), spec(m)};
    return result(utimensat(AT_FDCWD, p, t, AT_SYMLINK_NOFOLLOW));
}
int clx_futimens(int fd, int64_t a, int64_t m) {
    struct timespec t[2] = {spec(a), spec(m)};
    return result(futimens(fd, t));
}
int clx_clone_range(int to, uint64_t to_offset, int from, uint64_t from_offset, uint64_t n) {
    struct file_clone_range r = {
        .src_fd = from, .src_offset = from_offset, .src_length = n, .dest_offset = to_offset};
    return result(ioctl(to, FICLONERANGE, &r));
}
int64_t clx_copy_range(int to, uint64_t to_offset, int from, uint64_t from_offset, uint64_t n) {
    off_t in = (off_t)from_offset, out = (off_t)to_offset;
    int64_t r;
    do r = copy_file_range(from, &in, to, &out, n, 0);
    while (r < 0 && errno == EINTR);
    return result64(r);
}
int64_t clx_list_xattr(const char *p, char *b, size_t n) { return result64(llistxattr(p, b, n)); }
int64_t clx_get_xattr(const char *p, const char *k, void *b, size_t n) {
    return result64(lgetxattr(p, k, b, n));
}
int clx_set_xattr(const char *p, const char *k, const void *v, size_t n) {
    return result(lsetxattr(p, k, v, n, 0));
}
int clx_remove_xattr(const char *p, const char *k) { return result(lremovexattr(p, k)); }
int clx_try_lock(int fd) {
    struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    int r = result(fcntl(fd, F_OFD_SETLK, &l));
    return r == -EACCES ? -EAGAIN : r;
}
int clx_unlock(int fd) {
    struct flock l = {.l_type = F_UNLCK, .l_whence = SEEK_SET};
    return result(fcntl(fd, F_OFD_SETLK, &l));
}
int clx_try_lock_directory(int fd) { return result(flock(fd, LOCK_EX | LOCK_NB)); }
int clx_unlock_directory(int fd) { return result(flock(fd, LOCK_UN)); }
int clx_set_io_flusher(void) { return result(prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0)); }
int clx_raise_file_limit(void) {
    struct rlimit l;
    if (getrlimit(RLIMIT_NOFILE, &l) < 0) return -errno;
    l.rlim_cur = l.rlim_max;
    return result(setrlimit(RLIMIT_NOFILE, &l));
}
int64_t clx_realtime_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return ns(t);
}
int64_t clx_monotonic_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return ns(t);
}
void *clx_map_zeroed(size_t n) {
    void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}
void clx_unmap(void *p, size_t n) { munmap(p, n); }
int clx_random(void *b, size_t n) { return getrandom(b, n, 0) == (ssize_t)n ? 0 : -EIO; }
char *const *clx_environment(void) { return environ; }
int clx_get_thread_id(void) { return (int)gettid(); }
int clx_set_thread_name(const char *n) { return result(prctl(PR_SET_NAME, n)); }
// The calling thread alone: to Linux a thread is what a process is elsewhere.
int clx_set_thread_nice(int nice) { return result(setpriority(PRIO_PROCESS, (id_t)gettid(), nice)); }
int clx_watch_folder(const char *p) {
    int fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    if (fd < 0) return -errno;
    uint32_t what = IN_CLOSE_WRITE | IN_MOVED_TO | IN_MOVED_FROM | IN_DELETE | IN_ATTRIB | IN_DELETE_SELF
        | IN_MOVE_SELF | IN_ONLYDIR;
    if (inotify_add_watch(fd, p, what) >= 0) return fd;
    int r = -errno;
    close(fd);
    return r;
}
int clx_make_event(void) { return result(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)); }
int clx_signal_event(int fd) { return result(eventfd_write(fd, 1)); }
int clx_wait_watch(int watch, int event, int timeout_ms) {
    // A negative descriptor is passed over.
    struct pollfd fds[2] = {{.fd = event, .events = POLLIN}, {.fd = watch, .events = POLLIN}};
    int r = poll(fds, 2, timeout_ms);
    if (r < 0) return errno == EINTR ? 0 : -errno;
    if (fds[0].revents) return 2;
    if (!fds[1].revents) return 0;
    char buffer[4096];
    while (read(watch, buffer, sizeof buffer) > 0) {}
    return 1;
}
int clx_list(const char *p, bool (*each)(void *, const char *, uint8_t), void *context) {
    DIR *d = opendir(p);
    if (!d) return -errno;
    for (;;) {
        errno = 0;
        struct dirent *e = readdir(d);
        if (!e) break;
        const char *n = e->d_name;
        if (n[0] == '.' && (!n[1] || (n[1] == '.' && !n[2]))) continue;
        if (!each(context, n, e->d_type)) break;
    }
    int r = errno ? -errno : 0;
    closedir(d);
    return r;
}
