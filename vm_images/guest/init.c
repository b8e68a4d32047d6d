/* The guest's first and only service program. From the initrd it finds the root and data disks and enters them, sets up
 * the network, starts the agent, and then waits: for the host's requests, for children, for the power-off. */
#include "init.h"
#include <linux/mount.h>
#include <linux/poll.h>
#include <linux/reboot.h>
#include <linux/time_types.h>
#include <linux/wait.h>

enum { CLOCK_MONOTONIC = 1, SIGNAL_SET = 8, AGENT_FD = 3, STOP_SECONDS = 10, WORDS = 64 };
#define MODULES "/usr/lib/modules"
/* Rather than a stream, so that what the agent says arrives word by word. */
#define SOCKET_KIND (5 /* SOCK_SEQPACKET */ | O_CLOEXEC)

static s64 agent, helper;
static int agent_channel = -1, children = -1, loaded, handed_over, answering, stopping;
static char agent_command[1024], agent_environment[1024], host_name[128];

/* What the kernel's defaults are too small for: databases map many areas, watchers watch many files. */
static const char *const settings[][2] = {
    {"/proc/sys/vm/max_map_count", "1048576"},
    {"/proc/sys/fs/inotify/max_user_instances", "8192"},
    {"/proc/sys/fs/inotify/max_user_watches", "1048576"},
    {"/proc/sys/kernel/pid_max", "4194304"},
    {"/proc/sys/kernel/panic", "-1"},
};

u64 milliseconds(void) {
    struct __kernel_timespec now;
    sys(clock_gettime, CLOCK_MONOTONIC, &now);
    return (u64)now.tv_sec * 1000 + (u64)now.tv_nsec / 1000000;
}

static void __attribute__((noreturn)) power_off(void) {
    for (;;)
        sys(reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_POWER_OFF, NULL);
}

void fail(const char *what, const char *on, s64 error) {
    char text[512];
    join(text, sizeof text, what, ": ", on, error ? ": error " : "", error ? decimal(-error) : "", NULL);
    log_line("failed: ", text, "");
    control_open();
    control_say("failed ", text);
    unmount_data();
    power_off();
}

static s64 start(const char *const *arguments, const char *const *environment, int session) {
    s64 child = sys(clone, 17 /* SIGCHLD */, 0, 0, 0, 0);
    if (child)
        return child;
    u64 none = 0;
    sys(rt_sigprocmask, 2 /* SIG_SETMASK */, &none, NULL, SIGNAL_SET);
    if (session)
        sys(setsid);
    s64 result = sys(execve, arguments[0], arguments, environment);
    log_line("cannot start ", arguments[0], decimal(result));
    for (;;)
        sys(exit_group, 127);
}

static s64 status_of(int status) { return status & 0x7f ? 128 + (status & 0x7f) : status >> 8 & 0xff; }

s64 run(const char *const *arguments) {
    static const char *const environment[] = {"PATH=/usr/sbin:/usr/bin", NULL};
    int status = 0;
    s64 child = start(arguments, environment, 0), result;
    if (child < 0)
        return child;
    while ((result = sys(wait4, child, &status, 0, NULL)) == -EINTR)
        ;
    return result < 0 ? result : status_of(status);
}

/* A list the host handed over, one entry a line. */
static void read_lines(const char *path, char *text, u64 size, const char **lines) {
    s64 result = read_file(path, text, size);
    if (result < 0)
        fail("cannot read what the host handed over", path, result);
    int n = 0;
    for (char *cursor = text, *line; n + 1 < WORDS && (line = next_line(&cursor));)
        lines[n++] = line;
    lines[n] = NULL;
}

/* The agent loads its code and waits for what is of this boot alone; see guest_agent.held. */
static void start_agent(void) {
    static const char *arguments[WORDS], *environment[WORDS];
    read_lines(BOOT "/command", agent_command, sizeof agent_command, arguments);
    read_lines(BOOT "/environment", agent_environment, sizeof agent_environment, environment);
    int ends[2];
    s64 result = sys(socketpair, 1 /* AF_UNIX */, SOCKET_KIND, 0, ends);
    if (result < 0)
        fail("cannot start the agent", "socketpair", result);
    sys(dup3, ends[1], AGENT_FD, 0);
    agent = start(arguments, environment, 1);
    sys(dup3, 2, AGENT_FD, O_CLOEXEC);
    sys(close, ends[1]);
    if (agent < 0)
        fail("cannot start the agent", arguments[0], agent);
    agent_channel = ends[0];
}

static void tell_ready(void) {
    if (answering && !helper)
        control_say("ready ", decimal((s64)milliseconds()));
}

/* "loaded", then "ready"; the end of the channel is followed by the agent's own. */
static void agent_spoke(void) {
    char text[16];
    s64 size = sys(read, agent_channel, text, sizeof text);
    if (size > 0 && text[0] == 'l') {
        loaded = 1;
        return;
    }
    answering = size > 0;
    sys(close, agent_channel);
    agent_channel = -1;
    tell_ready();
}

/* Whether there are still children; processes whose parents end become init's, so none means no process at all. */
static int reap(void) {
    int status;
    s64 child;
    while ((child = sys(wait4, -1, &status, WNOHANG, NULL)) > 0)
        if (child == helper) {
            helper = 0;
            tell_ready();
        } else if (child == agent) {
            agent = 0;
            control_say("agent-exit ", decimal(status_of(status)));
            log_line("the agent ended with status ", decimal(status_of(status)), "");
        }
    return child != -ECHILD;
}

void power_off_wanted(void) { stopping = 1; }

void start_wanted(void) { handed_over = 1; }

/* Everything is asked to end, waited for, and then killed: file systems must not be in use when they are unmounted. */
static void stop_everything(void) {
    static const int signals[] = {15, 9};
    char discarded[1024];
    for (u64 i = 0; i < COUNT(signals); i++) {
        u64 until = milliseconds() + (signals[i] == 9 ? 2 : STOP_SECONDS) * 1000;
        sys(kill, -1, signals[i]);
        while (reap() && milliseconds() < until) {
            struct pollfd wait = {children, POLLIN, 0};
            struct __kernel_timespec left = {(s64)(until - milliseconds()) / 1000, 1000000};
            sys(ppoll, &wait, 1, &left, NULL, SIGNAL_SET);
            sys(read, children, discarded, sizeof discarded);
        }
    }
}

static void __attribute__((noreturn)) stop(void) {
    stop_everything();
    unmount_data();
    power_off();
}

/* Until `done`, or for good if there is none; a power-off ends everything. */
static void serve(const int *done) {
    char discarded[1024];
    while (!done || !*done) {
        struct pollfd waits[] = {{children, POLLIN, 0}, {agent_channel, POLLIN, 0}, {control_fd(), POLLIN, 0}};
        waits[2].events |= control_waits_to_write() ? POLLOUT : 0;
        sys(ppoll, waits, COUNT(waits), NULL, NULL, SIGNAL_SET);
        if (waits[0].revents)
            sys(read, children, discarded, sizeof discarded);
        reap();
        if (waits[1].revents)
            agent_spoke();
        if (waits[2].revents)
            control_ready(waits[2].revents);
        if (stopping)
            stop();
    }
}

/* Done beside the starting agent: emulation and shared folders, which the machine is not ready without, and modules
 * that are needed soon (the kernel lets a request for one of them wait). */
static void help(void) {
    start_shares();
    helper = sys(clone, 17 /* SIGCHLD */, 0, 0, 0, 0);
    if (!helper) {
        if (!loaded)
            register_emulator();
        mount_shares();
    } else if (sys(clone, 17 /* SIGCHLD */, 0, 0, 0, 0))
        return;
    else if (!loaded)
        load_modules(MODULES, "later");
    for (;;)
        sys(exit_group, 0);
}

/* What is the same at each boot. Where the host wants a template of it (docs/internals.md), also the agent's code is
 * loaded; nothing here depends on the data disk, which is not even bound to its driver. */
static void set_up(void) {
    load_root_disk("/modules");
    mount_root();
    stage("root");
    load_modules(MODULES, "boot");
    for (u64 i = 0; i < COUNT(settings); i++)
        write_file(settings[i][0], settings[i][1]);
    if (!exists(BOOT "/template"))
        return;
    load_modules(MODULES, "later");
    register_emulator();
    start_agent();
    serve(&loaded);
}

static void __attribute__((noreturn)) boot(void) {
    sys(dup3, 2, AGENT_FD, O_CLOEXEC); /* keeps the number free for the agent */
    u64 child_signal = 1UL << (17 - 1);
    sys(rt_sigprocmask, 0 /* SIG_BLOCK */, &child_signal, NULL, SIGNAL_SET);
    children = (int)sys(signalfd4, -1, &child_signal, SIGNAL_SET, O_CLOEXEC | O_NONBLOCK);
    sys(mount, "dev", "/dev", "devtmpfs", MS_NOSUID, NULL);
    control_open();
    stage("init");
    set_up();
    stage("waiting");
    serve(&handed_over); /* a template is resumed in here */
    take_entropy();
    protect_handover();
    set_up_network();
    s64 size = read_file(HOST "/name", host_name, sizeof host_name);
    if (size > 0)
        sys(sethostname, host_name, size);
    stage("network");
    mount_data();
    stage("data");
    if (agent_channel < 0)
        start_agent();
    sys(write, agent_channel, "go\n", 3);
    help();
    serve(NULL);
    power_off();
}

void __attribute__((used, noreturn)) entry(s64 *stack) {
    int count = (int)stack[0], status = 1;
    char **arguments = (char **)(stack + 1);
    if (sys(getpid) == 1 && count > 1 && equal(arguments[1], "probe"))
        power_off(); /* the host only wants to know that the machine runs code */
    else if (sys(getpid) == 1)
        boot();
    else
        status = modprobe_main(count, arguments);
    for (;;)
        sys(exit_group, status);
}

#if defined(__x86_64__)
__asm__(".globl _start\n_start:\n xor %ebp,%ebp\n mov %rsp,%rdi\n and $-16,%rsp\n call entry\n");
#else
__asm__(".globl _start\n_start:\n mov x29,#0\n mov x0,sp\n bl entry\n");
#endif
