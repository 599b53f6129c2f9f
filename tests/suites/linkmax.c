/* LD_PRELOADed into pjdfstest: pathconf(_PC_LINK_MAX) of glibc goes by a list of file systems it
 * knows and says 127 for any other, for which pjdfstest skips link::link_count_max. This says what
 * sealfs has, so that the case runs: 65,000 links are made, and one more must fail. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <unistd.h>

long pathconf(const char *path, int name) {
    if (name == _PC_LINK_MAX)
        return 65000;
    long (*next)(const char *, int) = (long (*)(const char *, int))dlsym(RTLD_NEXT, "pathconf");
    return next(path, name);
}
