#include "MountCalls.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <unistd.h>

static int64_t result(int64_t r) { return r < 0 ? -errno : r; }

int mc_open(const char *path, int flags, int mode, int extra) {
    int f = flags | O_CLOEXEC | ((extra & MC_DIRECT) ? O_DIRECT : 0);
    return (int)result(open(path, f, mode));
}
int mc_fallocate(int fd, int mode, int64_t offset, int64_t length) {
    return (int)result(fallocate(fd, mode, offset, length));
}
int64_t mc_seek_data(int fd, int64_t offset) { return result(lseek(fd, offset, SEEK_DATA)); }
int64_t mc_seek_hole(int fd, int64_t offset) { return result(lseek(fd, offset, SEEK_HOLE)); }
int mc_rename(const char *from, const char *to, unsigned flags) {
    return (int)result(renameat2(AT_FDCWD, from, AT_FDCWD, to, flags));
}
int mc_setxattr(const char *path, const char *name, const void *value, size_t size, int flags) {
    return (int)result(lsetxattr(path, name, value, size, flags));
}
int64_t mc_getxattr(const char *path, const char *name, void *value, size_t size) {
    return result(lgetxattr(path, name, value, size));
}
int64_t mc_listxattr(const char *path, char *list, size_t size) {
    return result(llistxattr(path, list, size));
}
int mc_removexattr(const char *path, const char *name) { return (int)result(lremovexattr(path, name)); }
int64_t mc_pwrite_dsync(int fd, const void *data, size_t size, int64_t offset) {
    struct iovec iov = {.iov_base = (void *)data, .iov_len = size};
    return result(pwritev2(fd, &iov, 1, offset, RWF_DSYNC));
}
int mc_lock_byte(int fd, int64_t offset) {
    struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = offset, .l_len = 1};
    return (int)result(fcntl(fd, F_OFD_SETLK, &lock));
}
int mc_pipe(int ends[2]) { return (int)result(pipe2(ends, O_CLOEXEC)); }
