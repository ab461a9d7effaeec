/* A link library that replaces one of CUDA's libraries. It opens the real library at the first call of one of its
 * functions, so programs that are linked with it start on every machine. If the real library is not installed, every
 * function returns the error code of the real library for this case.
 *
 * LIBRARY is the file name of the real library. ABSENT is the error code. NAME(x) is a name that is unique to the
 * library. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>

extern void *NAME(functions)[];
extern const char *const NAME(names)[];

static int absent(void) { return ABSENT; }

/* Looks up the function with this number, and stores it for the next call. */
__attribute__((visibility("hidden"))) void *NAME(find)(unsigned long number) {
    void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_GLOBAL);
    void *function = library ? dlsym(library, NAME(names)[number]) : NULL;
    if (library && !function) fprintf(stderr, "%s has no function %s\n", LIBRARY, NAME(names)[number]);
    if (!function) return (void *)absent;
    __atomic_store_n(&NAME(functions)[number], function, __ATOMIC_RELEASE);
    return function;
}
