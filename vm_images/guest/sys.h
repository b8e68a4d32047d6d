/* System calls, strings and the log for the guest's init, without a C library: the program stays at a few kilobytes,
 * needs only the compiler and the kernel's headers to build for either architecture, and starts at once. */
#pragma once

#include <asm/unistd.h>
#include <linux/fcntl.h>
#include <stddef.h>

typedef long s64;
typedef unsigned long u64;

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* From include/uapi/asm-generic/errno-base.h: the few that are told apart. */
enum { ENOENT = 2, EINTR = 4, EEXIST = 17, EINVAL = 22, EAGAIN = 11, ECHILD = 10 };

#if defined(__x86_64__)
static inline s64 syscall6(s64 n, s64 a, s64 b, s64 c, s64 d, s64 e, s64 f) {
    s64 r;
    register s64 r10 __asm__("r10") = d;
    register s64 r8 __asm__("r8") = e;
    register s64 r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(r)
                     : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return r;
}
#elif defined(__aarch64__)
static inline s64 syscall6(s64 n, s64 a, s64 b, s64 c, s64 d, s64 e, s64 f) {
    register s64 x8 __asm__("x8") = n;
    register s64 x0 __asm__("x0") = a;
    register s64 x1 __asm__("x1") = b;
    register s64 x2 __asm__("x2") = c;
    register s64 x3 __asm__("x3") = d;
    register s64 x4 __asm__("x4") = e;
    register s64 x5 __asm__("x5") = f;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
    return x0;
}
#else
#error "no system call convention for this architecture"
#endif

/* sys(name, arguments...): the raw call; a result in -4095..-1 is a negated errno. */
#define sys(...) SYS_PICK(__VA_ARGS__, SYS6, SYS5, SYS4, SYS3, SYS2, SYS1, SYS0)(__VA_ARGS__)
#define SYS_PICK(n, a, b, c, d, e, f, pick, ...) pick
#define SYS0(n) syscall6(__NR_##n, 0, 0, 0, 0, 0, 0)
#define SYS1(n, a) syscall6(__NR_##n, (s64)(a), 0, 0, 0, 0, 0)
#define SYS2(n, a, b) syscall6(__NR_##n, (s64)(a), (s64)(b), 0, 0, 0, 0)
#define SYS3(n, a, b, c) syscall6(__NR_##n, (s64)(a), (s64)(b), (s64)(c), 0, 0, 0)
#define SYS4(n, a, b, c, d) syscall6(__NR_##n, (s64)(a), (s64)(b), (s64)(c), (s64)(d), 0, 0)
#define SYS5(n, a, b, c, d, e) syscall6(__NR_##n, (s64)(a), (s64)(b), (s64)(c), (s64)(d), (s64)(e), 0)
#define SYS6(n, a, b, c, d, e, f) syscall6(__NR_##n, (s64)(a), (s64)(b), (s64)(c), (s64)(d), (s64)(e), (s64)(f))

static inline int exists(const char *path) { return sys(faccessat, AT_FDCWD, path, 0 /* F_OK */) >= 0; }
static inline int open_file(const char *path, int flags) { return (int)sys(openat, AT_FDCWD, path, flags | O_CLOEXEC, 0); }

/* strings.c */
u64 length(const char *text);
int equal(const char *a, const char *b);
/* Cuts the next word out of *cursor (words end at a space, a newline or the end); NULL when there is none. */
char *next_word(char **cursor);
/* The next line, without its newline; NULL at the end. */
char *next_line(char **cursor);
/* A decimal number; -1 if the text is not one. */
s64 number(const char *text);
/* Joins texts (up to a NULL) into `out`, cut at `size`; returns the length. */
u64 join(char *out, u64 size, ...);
/* A number in decimal, in a buffer that the next four calls leave alone. */
const char *decimal(s64 value);
void *memcpy(void *to, const void *from, u64 size);
void *memset(void *to, int value, u64 size);

/* The text of a whole file in `buffer`, closed by NUL; its length, or a negated errno (the file is longer: -EINVAL). */
s64 read_file(const char *path, char *buffer, u64 size);
/* Writes a kernel parameter; the image and the kernel belong together, so failure is only logged. */
void write_file(const char *path, const char *text);

/* One line in the console log. */
void log_line(const char *a, const char *b, const char *c);
