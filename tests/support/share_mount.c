/* The guest's part of shared folders on a mount of this host's: share_mount MOUNT FILES CHANGES, the latter two being
 * descriptors of streams to the file server. Ends when it is mounted; its processes serve on. */
#include "init.h"

void fail(const char *what, const char *on, s64 error) {
    log_line(what, on, decimal(error));
    for (;;)
        sys(exit_group, 1);
}

int open_port(const char *path) { return (int)number(path); }

int modprobe_main(int count, char **arguments) { return count && !arguments; }

void __attribute__((used, noreturn)) entry(s64 *stack) {
    char **arguments = (char **)(stack + 1);
    s64 result = stack[0] == 4 ? serve_shares(arguments[1], arguments[2], arguments[3]) : -EINVAL;
    for (;;)
        sys(exit_group, -result);
}

#if defined(__x86_64__)
__asm__(".globl _start\n_start:\n xor %ebp,%ebp\n mov %rsp,%rdi\n and $-16,%rsp\n call entry\n");
#else
__asm__(".globl _start\n_start:\n mov x29,#0\n mov x0,sp\n bl entry\n");
#endif
