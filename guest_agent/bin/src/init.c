/* The init that `--init` puts in front of a container's command: `docker-init -- COMMAND [ARG ...]`.
 *
 * It starts COMMAND in a process group of its own (in the foreground of the terminal where there is one), passes every
 * signal it gets on to it, reaps every orphan, and ends with COMMAND's exit code, or 128+n after signal n. This is what
 * tini does, whose exit codes and texts it follows. */
#include "sys.h"

enum { SIG_BLOCK = 0, SIG_SETMASK = 2, SIGFPE = 8, SIGILL = 4, SIGSEGV = 11, SIGBUS = 7, SIGABRT = 6, SIGTRAP = 5,
       SIGSYS = 31, SIGTTIN = 21, SIGTTOU = 22, SIGCHLD = 17, WNOHANG = 1, ECHILD = 10, ENOENT = 2, EACCES = 13,
       ENOTDIR = 20, TIOCSPGRP = 0x5410 };

static void fatal(const char *what, const char *on, const char *why) {
    print(2, "[FATAL wherry-init] ");
    print(2, what);
    print(2, on);
    print(2, why);
    print(2, "\n");
}

static int starts_with(const char *s, const char *prefix) {
    while (*prefix)
        if (*s++ != *prefix++)
            return 0;
    return 1;
}

static s64 search_and_execute(char **argv, char **envp) {
    char path[4096];
    const char *name = argv[0], *dirs = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    for (const char *c = name; *c; c++)
        if (*c == '/')
            return sys(NR_execve, (s64)name, (s64)argv, (s64)envp, 0, 0);
    for (char **e = envp; *e; e++)
        if (starts_with(*e, "PATH="))
            dirs = *e + 5;
    s64 error = -ENOENT;
    u64 name_length = length(name);
    while (*name) {
        u64 n = 0;
        while (dirs[n] && dirs[n] != ':')
            n++;
        if (n + name_length + 2 <= sizeof path) {
            for (u64 i = 0; i < n; i++)
                path[i] = dirs[i];
            if (n)
                path[n] = '/';
            u64 at = n ? n + 1 : 0;
            for (u64 i = 0; i <= name_length; i++)
                path[at + i] = name[i];
            s64 r = sys(NR_execve, (s64)path, (s64)argv, (s64)envp, 0, 0);
            if (r != -ENOENT && r != -ENOTDIR)
                error = r;
        }
        if (!dirs[n])
            break;
        dirs += n + 1;
    }
    return error;
}

static void __attribute__((noreturn, used)) start(s64 *stack) {
    s64 argc = stack[0];
    char **argv = (char **)(stack + 1), **envp = argv + argc + 1;
    char **command = argv + 1;
    if (*command && (*command)[0] == '-' && (*command)[1] == '-' && !(*command)[2])
        command++;
    if (argc < 2 || !*command) {
        fatal("usage: ", "docker-init", " -- COMMAND [ARG ...]");
        leave(1);
    }
    /* Everything but the signals a program raises against itself is taken synchronously below. */
    u64 all = ~0ul, before;
    int own[] = {SIGFPE, SIGILL, SIGSEGV, SIGBUS, SIGABRT, SIGTRAP, SIGSYS, SIGTTIN, SIGTTOU};
    for (u64 i = 0; i < sizeof own / sizeof *own; i++)
        all &= ~(1ul << (own[i] - 1));
    u64 tty_stop = all | 1ul << (SIGTTIN - 1) | 1ul << (SIGTTOU - 1);
    sys(NR_rt_sigprocmask, SIG_SETMASK, (s64)&tty_stop, (s64)&before, 8, 0);
    s64 child = sys(NR_clone, SIGCHLD, 0, 0, 0, 0);
    if (child < 0) {
        fatal("fork failed for ", *command, "");
        leave(1);
    }
    if (child == 0) {
        s64 self = sys(NR_getpid, 0, 0, 0, 0, 0);
        int group = self;
        sys(NR_setpgid, 0, 0, 0, 0, 0);
        sys(NR_ioctl, 0, TIOCSPGRP, (s64)&group, 0, 0); /* ENOTTY without a terminal is fine */
        sys(NR_rt_sigprocmask, SIG_SETMASK, (s64)&before, 0, 8, 0);
        s64 r = search_and_execute(command, envp);
        fatal("exec ", *command,
              r == -ENOENT ? " failed: No such file or directory" : r == -EACCES ? " failed: Permission denied" : " failed");
        leave(r == -ENOENT ? 127 : 126);
    }
    int code = 0;
    for (;;) {
        s64 signal = sys(NR_rt_sigtimedwait, (s64)&all, 0, 0, 8, 0);
        if (signal > 0 && signal != SIGCHLD)
            sys(NR_kill, child, signal, 0, 0, 0);
        for (;;) {
            int status;
            s64 pid = sys(NR_wait4, -1, (s64)&status, WNOHANG, 0, 0);
            if (pid == -ECHILD)
                leave(code);
            if (pid <= 0)
                break;
            if (pid == child) {
                code = status & 0x7f ? 128 + (status & 0x7f) : (status >> 8) & 0xff;
                leave(code);
            }
        }
    }
}
