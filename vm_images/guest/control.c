#include "init.h"
#include <linux/poll.h>
#include <linux/random.h>
#include <linux/time_types.h>

/* Port 1 of virtio device 0: the host puts it in the first slot. */
#define PORT "/dev/vport0p1"
enum { CLOCK_REALTIME = 0, IN_CREATE = 0x100 };

static int port = -1, watch = -1, host_seen;
static char input[64 * 1024], pending[4096];
static u64 have, pending_size;

/* A file that is being handed over. */
static int put_file = -1;
static u64 put_left;
static s64 put_result;
static char put_id[24];

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

/* "put NAME MODE SIZE": a file below HOST, whose bytes follow the line; it is answered after them. */
static void put(const char *id, char **arguments) {
    char *name = next_word(arguments), *mode = next_word(arguments), *size = next_word(arguments), path[256];
    join(put_id, sizeof put_id, id, NULL);
    join(path, sizeof path, HOST "/", name ? name : "", NULL);
    put_left = number(size) < 0 ? 0 : (u64)number(size);
    put_file = (int)sys(openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, number(mode));
    put_result = number(size) < 0 || number(mode) < 0 ? -EINVAL : put_file < 0 ? put_file : 0;
}

static void say_result(const char *id, s64 result) {
    char head[64];
    join(head, sizeof head, id, result < 0 ? " error " : " ok", NULL);
    control_say(head, result < 0 ? decimal(-result) : "");
}

static void end_put(void) {
    if (put_file >= 0)
        sys(close, put_file);
    put_file = -1;
    say_result(put_id, put_result);
    put_id[0] = 0;
}

/* Some of the file's bytes; how many were taken. */
static u64 take_put(const char *bytes, u64 size) {
    u64 taken = size < put_left ? size : put_left;
    for (u64 done = 0; put_result >= 0 && done < taken;) {
        s64 result = sys(write, put_file, bytes + done, taken - done);
        if (result < 0)
            put_result = result;
        else
            done += result;
    }
    put_left -= taken;
    return taken;
}

/* See random(4). A resumed template would otherwise continue the random numbers of the one before. */
void take_entropy(void) {
    static struct {
        int bits, size;
        char bytes[1024];
    } pool;
    s64 size = read_file(HOST "/entropy", pool.bytes, sizeof pool.bytes);
    int device = open_file("/dev/urandom", O_WRONLY);
    pool.size = (int)size;
    pool.bits = pool.size * 8;
    s64 result = size <= 0 ? -EINVAL : device < 0 ? device : sys(ioctl, device, RNDADDENTROPY, &pool);
    if (result >= 0)
        result = sys(ioctl, device, RNDRESEEDCRNG, 0);
    if (result < 0)
        fail("cannot take the host's entropy", HOST "/entropy", result);
    memset(&pool, 0, sizeof pool);
    sys(close, device);
    sys(unlinkat, AT_FDCWD, HOST "/entropy", 0);
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
    if (equal(verb, "start")) {
        start_wanted();
        return 0;
    }
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
    if (equal(verb, "put"))
        put(id, &line);
    else
        say_result(id, carry_out(verb, &line));
}

static void receive(void) {
    s64 got = sys(read, port, input + have, sizeof input - have - 1);
    if (got <= 0)
        return; /* the host's end is closed for now */
    have += got;
    u64 at = 0, end = 0;
    while (end < have) {
        if (put_left)
            at = end += take_put(input + at, have - at);
        else if (input[end++] == '\n') {
            input[end - 1] = 0;
            answer(input + at);
            at = end;
        }
        if (put_id[0] && !put_left)
            end_put();
    }
    have -= at;
    memcpy(input, input + at, have);
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
