/* Shows statvfs(3) of a directory as a program without large-file support gets it. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>

int main(int argc, char **argv) {
    struct statvfs s;
    if (argc != 2 || statvfs(argv[1], &s) != 0) {
        printf("statvfs: %s\n", strerror(errno));
        return 1;
    }
    printf("%lu %lu %llu %llu %llu %llu %llu %lu\n", s.f_bsize, s.f_frsize,
           (unsigned long long)s.f_blocks, (unsigned long long)s.f_bfree,
           (unsigned long long)s.f_bavail, (unsigned long long)s.f_files,
           (unsigned long long)s.f_ffree, s.f_namemax);
    return 0;
}
