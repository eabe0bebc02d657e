/*
 * Makes a program's writes or syncs fail on demand: preloaded into it, while the file
 * that the variable FAULTY names is there. The file holds one line,
 *
 *     write|sync ERRNO PART
 *
 * and each write, or fsync and fdatasync, to a file with PART in its path fails with
 * that error and does nothing.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

/* The error that this call is to fail with; 0: none. */
static int fault(const char *call, int fd)
{
    const char *control = getenv("FAULTY");
    int before = errno, error = 0;
    if (control == NULL)
        return 0;
    int file = open(control, O_RDONLY | O_CLOEXEC);
    if (file >= 0) {
        char line[512], wanted[16], part[256], link[64], path[4096];
        ssize_t length = read(file, line, sizeof line - 1);
        close(file);
        line[length > 0 ? length : 0] = '\0';
        if (sscanf(line, "%15s %d %255s", wanted, &error, part) != 3 || strcmp(wanted, call) != 0)
            error = 0;
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        length = error == 0 ? -1 : readlink(link, path, sizeof path - 1);
        path[length > 0 ? length : 0] = '\0';
        if (length <= 0 || strstr(path, part) == NULL)
            error = 0;
    }
    errno = before;
    return error;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define GUARDED(call, fd, real)      \
    do {                             \
        int error = fault(call, fd); \
        if (error != 0) {            \
            errno = error;           \
            return -1;               \
        }                            \
        return real;                 \
    } while (0)

ssize_t write(int fd, const void *from, size_t length)
{
    GUARDED("write", fd, REAL(write)(fd, from, length));
}

ssize_t pwrite(int fd, const void *from, size_t length, off_t at)
{
    GUARDED("write", fd, REAL(pwrite)(fd, from, length, at));
}

ssize_t pwrite64(int fd, const void *from, size_t length, off64_t at)
{
    GUARDED("write", fd, REAL(pwrite64)(fd, from, length, at));
}

int fsync(int fd)
{
    GUARDED("sync", fd, REAL(fsync)(fd));
}

int fdatasync(int fd)
{
    GUARDED("sync", fd, REAL(fdatasync)(fd));
}
