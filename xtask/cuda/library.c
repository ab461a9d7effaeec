/* A link library in place of one of CUDA's libraries. It opens the real library when one of its functions is first
 * called, so programs that are linked with it start on every machine. If the real library is not installed, every
 * function returns the library's own error code for this.
 *
 * LIBRARY is the file name of the real library, ABSENT the error code, and NAME(x) a name that is unique to the
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
