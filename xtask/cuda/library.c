/* Stands for one of CUDA's libraries while a program is linked, and opens the real one when the first of
 * its functions is called: a program that is linked with it starts on every machine. Where the library is
 * not there, every function returns the code by which it says so itself.
 *
 * LIBRARY is its file's name, ABSENT the code, and NAME(x) a name that no other library has. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>

extern void *NAME(functions)[];
extern const char *const NAME(names)[];

static int absent(void) { return ABSENT; }

/* The function of this number, which the next call finds without asking. */
__attribute__((visibility("hidden"))) void *NAME(find)(unsigned long number) {
    void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_GLOBAL);
    void *function = library ? dlsym(library, NAME(names)[number]) : NULL;
    if (library && !function) fprintf(stderr, "%s has no function %s\n", LIBRARY, NAME(names)[number]);
    if (!function) return (void *)absent;
    __atomic_store_n(&NAME(functions)[number], function, __ATOMIC_RELEASE);
    return function;
}
