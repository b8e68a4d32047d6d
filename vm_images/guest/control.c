#include "init.h"
#include <linux/poll.h>
#include <linux/time_types.h>

/* Port 1 of virtio device 0: the host puts it in the first slot. */
#define PORT "/dev/vport0p1"
enum { CLOCK_REALTIME = 0, IN_CREATE = 0x100 };

static int port = -1, watch = -1, host_seen;
static char input[4096], pending[4096];
static u64 have, pending_size;

static void flush(void) {
    if (port < 0 || !pending_size)
        return;
    s64 done = sys(write, port, pending, pending_size);
    if (done <= 0)
        return; /* the host's end is not there yet: the loop waits until it is */
    host_seen = 1;
    pending_size -= done;
    memcpy(pending, pending + done, pending_size);
}

/* The kernel makes the device when the host has named the port, which may be after init has started: the folder is
 * watched before the look, so that nothing has to be asked twice. The port can be open only once, so as long as this
 * program has it nobody else in the machine can read or write it. */
void control_open(void) {
    if (port >= 0)
        return;
    if (watch < 0) {
        watch = (int)sys(inotify_init1, O_CLOEXEC | O_NONBLOCK);
        sys(inotify_add_watch, watch, "/dev", IN_CREATE);
    }
    port = open_file(PORT, O_RDWR | O_NONBLOCK);
    if (port < 0) {
        static char events[4096];
        while (sys(read, watch, events, sizeof events) > 0)
            ;
        return;
    }
    sys(close, watch);
    watch = -1;
    flush();
}

int control_fd(void) { return port >= 0 ? port : watch; }

int control_waits_to_write(void) { return port >= 0 && pending_size; }

void control_say(const char *a, const char *b) {
    u64 left = sizeof pending - pending_size;
    pending_size += join(pending + pending_size, left, a, b, "\n", NULL);
    flush();
}

static s64 set_clock(const char *seconds, const char *nanoseconds) {
    struct __kernel_timespec now = {number(seconds), number(nanoseconds)};
    if (now.tv_sec < 0 || now.tv_nsec < 0)
        return -EINVAL;
    return sys(clock_settime, CLOCK_REALTIME, &now);
}

static s64 carry_out(const char *verb, char **arguments) {
    if (equal(verb, "time")) {
        char *seconds = next_word(arguments), *nanoseconds = next_word(arguments);
        return set_clock(seconds, nanoseconds);
    }
    if (equal(verb, "grow"))
        return grow_data();
    if (equal(verb, "trim"))
        return trim_data();
    if (equal(verb, "poweroff")) {
        power_off_wanted();
        return 0;
    }
    return -EINVAL;
}

static void answer(char *line) {
    char *id = next_word(&line), *verb = next_word(&line);
    if (!verb)
        return;
    s64 result = carry_out(verb, &line);
    char head[64];
    join(head, sizeof head, id, result < 0 ? " error " : " ok", NULL);
    control_say(head, result < 0 ? decimal(-result) : "");
}

static void receive(void) {
    s64 got = sys(read, port, input + have, sizeof input - have - 1);
    if (got <= 0)
        return; /* the host's end is closed for now */
    have += got;
    input[have] = 0;
    char *line = input;
    for (char *end = input; end < input + have; end++)
        if (*end == '\n') {
            *end = 0;
            answer(line);
            line = end + 1;
        }
    have -= line - input;
    memcpy(input, line, have);
    if (have == sizeof input - 1)
        have = 0; /* no request is that long */
}

void control_ready(int events) {
    if (port < 0) {
        control_open();
        return;
    }
    flush();
    if (events & POLLIN)
        receive();
    if (events & POLLHUP && host_seen)
        power_off_wanted(); /* the supervisor is gone: without it nobody would ever stop this machine */
}

void stage(const char *name) {
    char head[64];
    join(head, sizeof head, "stage ", decimal((s64)milliseconds()), " ", NULL);
    control_say(head, name);
}
