// Calls that the tests of the mount make and Swift's Glibc module lacks. Each returns -errno on
// failure.
#ifndef DOPPEL_MOUNTCALLS_H
#define DOPPEL_MOUNTCALLS_H
#include <stdint.h>
#include <sys/types.h>

enum { MC_DIRECT = 1, MC_NOREPLACE = 1, MC_EXCHANGE = 2, MC_WHITEOUT = 4 };
enum { MC_KEEP_SIZE = 1, MC_PUNCH_HOLE = 2, MC_COLLAPSE = 8, MC_ZERO_RANGE = 16 };

int mc_open(const char *path, int flags, int mode, int extra);
int mc_fallocate(int fd, int mode, int64_t offset, int64_t length);
int64_t mc_seek_data(int fd, int64_t offset);
int64_t mc_seek_hole(int fd, int64_t offset);
int mc_rename(const char *from, const char *to, unsigned flags);
int mc_setxattr(const char *path, const char *name, const void *value, size_t size, int flags);
int64_t mc_getxattr(const char *path, const char *name, void *value, size_t size);
int64_t mc_listxattr(const char *path, char *list, size_t size);
int mc_removexattr(const char *path, const char *name);
int64_t mc_pwrite_dsync(int fd, const void *data, size_t size, int64_t offset);
// A shared lock of the open file description on one byte.
int mc_lock_byte(int fd, int64_t offset);
int mc_pipe(int ends[2]);
#endif
