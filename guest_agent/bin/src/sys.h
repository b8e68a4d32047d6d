/* The few Linux system calls these programs need, without a C library: each binary stays at a few kilobytes, static,
 * and independent of what an image contains. Numbers: arch/x86/entry/syscalls/syscall_64.tbl and
 * include/uapi/asm-generic/unistd.h. */
#pragma once

typedef long s64;
typedef unsigned long u64;

#if defined(__x86_64__)
enum { NR_write = 1, NR_ioctl = 16, NR_rt_sigprocmask = 14, NR_rt_sigtimedwait = 128, NR_clone = 56, NR_execve = 59,
       NR_exit_group = 231, NR_wait4 = 61, NR_kill = 62, NR_uname = 63, NR_setpgid = 109, NR_getpid = 39 };
static inline s64 sys(s64 n, s64 a, s64 b, s64 c, s64 d, s64 e) {
    s64 r;
    register s64 r10 __asm__("r10") = d;
    register s64 r8 __asm__("r8") = e;
    __asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8) : "rcx", "r11", "memory");
    return r;
}
__asm__(".globl _start\n_start:\n xor %ebp,%ebp\n mov %rsp,%rdi\n and $-16,%rsp\n call start\n");
#elif defined(__aarch64__)
enum { NR_write = 64, NR_ioctl = 29, NR_rt_sigprocmask = 135, NR_rt_sigtimedwait = 137, NR_clone = 220, NR_execve = 221,
       NR_exit_group = 94, NR_wait4 = 260, NR_kill = 129, NR_uname = 160, NR_setpgid = 154, NR_getpid = 172 };
static inline s64 sys(s64 n, s64 a, s64 b, s64 c, s64 d, s64 e) {
    register s64 x8 __asm__("x8") = n;
    register s64 x0 __asm__("x0") = a;
    register s64 x1 __asm__("x1") = b;
    register s64 x2 __asm__("x2") = c;
    register s64 x3 __asm__("x3") = d;
    register s64 x4 __asm__("x4") = e;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4) : "memory");
    return x0;
}
__asm__(".globl _start\n_start:\n mov x29,#0\n mov x0,sp\n bl start\n");
#else
#error "no system call table for this architecture"
#endif

static u64 length(const char *s) {
    u64 n = 0;
    while (s[n])
        n++;
    return n;
}

static void print(int fd, const char *s) { sys(NR_write, fd, (s64)s, length(s), 0, 0); }

static void __attribute__((noreturn)) leave(int code) {
    for (;;)
        sys(NR_exit_group, code, 0, 0, 0, 0);
}
