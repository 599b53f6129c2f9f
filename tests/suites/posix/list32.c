/* Lists a directory as a program of 32 bits does, with an off_t of 32 bits; for
 * tests/posix/listing.rs, which compiles it with -m32.
 *
 *   list32 DIR all         every name, one a line, by readdir
 *   list32 DIR seek        the same, and a seekdir to where it is after each hundredth name
 *   list32 DIR small       the same by getdents64 with room for little more than one name
 *   list32 DIR places N    every place that telldir gives, each Nth and all at names that begin
 *                          with "pair-": seekdir to it must lead to the name that followed it
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static void fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

static struct dirent *next(DIR *dir)
{
    errno = 0;
    struct dirent *entry = readdir(dir);
    if (!entry && errno)
        fail("readdir");
    return entry;
}

static void list(const char *path, int seek)
{
    struct dirent *entry;
    DIR *dir = opendir(path);
    if (!dir)
        fail(path);
    for (int n = 1; (entry = next(dir)); n++) {
        puts(entry->d_name);
        if (seek && n % 100 == 0) {
            long place = telldir(dir);
            rewinddir(dir);
            seekdir(dir, place);
        }
    }
    closedir(dir);
}

static void list_small(const char *path)
{
    struct { unsigned long long ino, place; unsigned short len; unsigned char type; char name[]; } *entry;
    char room[600] __attribute__((aligned(8)));
    int fd = open(path, O_RDONLY | O_DIRECTORY), len;
    if (fd < 0)
        fail(path);
    while ((len = syscall(SYS_getdents64, fd, room, sizeof room)) > 0)
        for (int at = 0; at < len; at += entry->len) {
            entry = (void *)(room + at);
            puts(entry->name);
        }
    if (len < 0)
        fail("getdents64");
}

static void places(const char *path, int step)
{
    static struct { long place; char *name; } *all;
    int count = 0;
    struct dirent *entry;
    DIR *dir = opendir(path);
    if (!dir)
        fail(path);
    for (;;) {
        if (count % 1024 == 0 && !(all = realloc(all, (count + 1024) * sizeof *all)))
            fail("realloc");
        all[count].place = telldir(dir);
        if (all[count].place < 0)
            fail("telldir");
        if (!(entry = next(dir)))
            break;
        all[count++].name = strdup(entry->d_name);
    }
    for (int n = count - 1; n >= 0; n--) {
        if (n % step && strncmp(all[n].name, "pair-", 5))
            continue;
        seekdir(dir, all[n].place);
        entry = next(dir);
        if (!entry || strcmp(entry->d_name, all[n].name)) {
            printf("place %ld: %s, then %s\n", all[n].place, all[n].name, entry ? entry->d_name : "nothing");
            exit(1);
        }
    }
    seekdir(dir, all[count].place);
    if (next(dir)) {
        puts("more behind the end");
        exit(1);
    }
    closedir(dir);
}

int main(int argc, char **argv)
{
    if (sizeof(off_t) != 4 || sizeof(long) != 4)
        return 3;
    if (argc == 4)
        places(argv[1], atoi(argv[3]));
    else if (!strcmp(argv[2], "small"))
        list_small(argv[1]);
    else
        list(argv[1], !strcmp(argv[2], "seek"));
    return fflush(stdout) || ferror(stdout);
}
