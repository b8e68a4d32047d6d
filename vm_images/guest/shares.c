/* Folders of the host. Its file server speaks the kernel's FUSE protocol over a virtio-serial port: two processes carry
 * requests and replies between /dev/fuse and the port as they are, and a third does again what others changed on the host,
 * so that who watches these files in the guest learns of it. See host_client/machine/file_server. */
#include "init.h"
#include <linux/mount.h>
#include <linux/openat2.h>
#include <linux/prctl.h>
#include <linux/stat.h>
#include <linux/time_types.h>

#define FILES "/dev/vport6p1" /* virtio device 6 is in slot 7, see machine.command */
#define CHANGES "/dev/vport6p2"
#define MOUNT "/run/shares"
#define LIST HOST "/shares"
enum { BUFFER = (1 << 20) + 65536, SIGNAL_SET = 8, KILL = 9 };
enum { UTIME_NOW = (1 << 30) - 1, UTIME_OMIT = (1 << 30) - 2 }; /* include/linux/stat.h of the kernel */
enum { CREATE = 1, MODIFY, ATTRIBUTES, DELETE, RENAME, FORGET };

/* host_client/machine/file_server/changes.py */
struct order {
    unsigned size, number, kind, share, mode;
    char strings[16384];
};
struct done {
    unsigned number;
    int result;
};

static char buffer[BUFFER];

static void __attribute__((noreturn)) end(void) {
    for (;;)
        sys(exit_group, 0);
}

static int write_all(int fd, const char *bytes, u64 size) {
    while (size) {
        s64 done = sys(write, fd, bytes, size);
        if (done == -EINTR)
            continue;
        if (done <= 0)
            return 0;
        bytes += done;
        size -= done;
    }
    return 1;
}

static int read_all(int fd, char *bytes, u64 size) {
    while (size) {
        s64 got = sys(read, fd, bytes, size);
        if (got == -EINTR)
            continue;
        if (got <= 0)
            return 0;
        bytes += got;
        size -= got;
    }
    return 1;
}

/* A process that init does not wait for when it waits for all others to end: containers write to the end. */
static s64 start_aside(void) { return sys(clone, 0, 0, 0, 0, 0); }

/* One of it that ends with the process that starts it. */
static s64 start_helper(void) {
    s64 child = start_aside();
    if (!child)
        sys(prctl, PR_SET_PDEATHSIG, KILL, 0, 0, 0);
    return child;
}

/* Replies, each to be written at once. Every message begins with its length. */
static void __attribute__((noreturn)) carry_replies(int device, int port) {
    unsigned size;
    while (read_all(port, buffer, sizeof size)) {
        memcpy(&size, buffer, sizeof size);
        if (size < sizeof size || size > sizeof buffer || !read_all(port, buffer + sizeof size, size - sizeof size))
            break;
        sys(write, device, buffer, size); /* ENOENT: who asked was killed meanwhile */
    }
    log_line("the host's file server has gone", "", "");
    sys(kill, sys(getppid), KILL); /* with the last descriptor of the device every request fails */
    end();
}

static s64 open_folder(int root, const char *path) {
    struct open_how how = {O_PATH | O_DIRECTORY | O_CLOEXEC, 0,
                           RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV};
    return sys(openat2, root, *path ? path : ".", &how, sizeof how);
}

static s64 modify(s64 folder, const char *name) {
    static const struct __kernel_timespec times[] = {{0, UTIME_OMIT}, {0, UTIME_NOW}};
    s64 file = sys(openat, folder, name, O_WRONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0);
    if (file < 0)
        return file;
    s64 result = sys(utimensat, file, NULL, times, 0); /* the time of modification alone is IN_MODIFY */
    sys(close, file);
    return result;
}

static s64 create(s64 folder, const char *name, unsigned mode) {
    if (S_ISDIR(mode))
        return sys(mkdirat, folder, name, mode & 0777);
    if (S_ISLNK(mode))
        return sys(symlinkat, "?", folder, name);
    return sys(mknodat, folder, name, mode & (S_IFMT | 0777), 0);
}

static s64 do_again(const struct order *order, const char *name, s64 folder, const char *new_name, s64 new_folder) {
    switch (order->kind) {
    case CREATE:
        return create(folder, name, order->mode);
    case MODIFY:
        return modify(folder, name);
    case ATTRIBUTES:
        return sys(utimensat, folder, name, NULL, AT_SYMLINK_NOFOLLOW);
    case DELETE:
        return sys(unlinkat, folder, name, S_ISDIR(order->mode) ? AT_REMOVEDIR : 0);
    case RENAME:
        return sys(renameat2, folder, name, new_folder, new_name, 0);
    }
    return -EINVAL;
}

static s64 carry_out(const char *mount, const struct order *order) {
    if (order->kind == FORGET) {
        write_file("/proc/sys/vm/drop_caches", "2"); /* names and inodes */
        return 0;
    }
    const char *path = order->strings, *name = path + length(path) + 1;
    const char *new_path = name + length(name) + 1, *new_name = order->kind == RENAME ? new_path + length(new_path) + 1 : name;
    char share[512];
    join(share, sizeof share, mount, "/share", decimal(order->share), NULL);
    s64 root = open_file(share, O_PATH | O_DIRECTORY);
    s64 folder = root < 0 ? root : open_folder((int)root, path);
    s64 new_folder = folder < 0 || order->kind != RENAME ? folder : open_folder((int)root, new_path);
    s64 result = new_folder < 0 ? new_folder : do_again(order, name, folder, new_name, new_folder);
    if (new_folder >= 0 && new_folder != folder)
        sys(close, new_folder);
    if (folder >= 0)
        sys(close, folder);
    if (root >= 0)
        sys(close, root);
    return result;
}

/* The server knows this process by its number, and answers its requests without changing anything. */
static void __attribute__((noreturn)) follow_changes(const char *mount, int port) {
    static struct order order;
    struct done done = {0, (int)sys(getpid)};
    enum { HEAD = sizeof order - sizeof order.strings };
    while (write_all(port, (char *)&done, sizeof done) && read_all(port, (char *)&order, HEAD)) {
        if (order.size < HEAD || order.size >= sizeof order || !read_all(port, order.strings, order.size - HEAD))
            break;
        memset(order.strings + order.size - HEAD, 0, 4); /* as many strings as are read, whatever was sent */
        done.number = order.number;
        done.result = (int)carry_out(mount, &order);
    }
    end();
}

/* Carries until the host's server is gone. The port can be opened only once, so nobody else in the machine can. */
static void __attribute__((noreturn)) carry(const char *mount, int device, const char *files, const char *changes) {
    u64 all = ~0UL;
    sys(rt_sigprocmask, 0 /* SIG_BLOCK */, &all, NULL, SIGNAL_SET); /* everything is asked to end before the power-off */
    sys(setsid);
    int port = open_port(files), replies = 0;
    for (;;) {
        s64 size = sys(read, device, buffer, sizeof buffer);
        if (size == -EINTR || size == -ENOENT || size == -EAGAIN)
            continue; /* the request was taken back */
        if (size <= 0 || !write_all(port, buffer, size))
            end();
        if (replies++)
            continue;
        /* What was written has waited until the host's end is there: before, a read is told the end of the stream. */
        if (!start_helper())
            carry_replies(device, port);
        if (!start_helper())
            follow_changes(mount, open_port(changes));
    }
}

s64 serve_shares(const char *mount, const char *files, const char *changes) {
    char options[128];
    int device = open_file("/dev/fuse", O_RDWR);
    if (device < 0)
        return device;
    join(options, sizeof options, "fd=", decimal(device), ",rootmode=40000,user_id=0,group_id=0,allow_other", NULL);
    s64 result = sys(mount, "host", mount, "fuse", MS_NODEV | MS_NOSUID, options);
    if (result >= 0) {
        s64 child = start_aside();
        if (!child)
            carry(mount, device, files, changes);
        result = child < 0 ? child : 0;
    }
    sys(close, device);
    return result;
}

/* Where there are folders to share. */
void start_shares(void) {
    static char text[64];
    static char *const arguments[] = {"modprobe", "fuse", NULL};
    s64 size = read_file(LIST, text, sizeof text);
    if (!size)
        return;
    sys(mkdirat, AT_FDCWD, MOUNT, 0700);
    modprobe_main(2, (char **)arguments); /* where it is not built in */
    s64 result = serve_shares(MOUNT, FILES, CHANGES);
    if (result < 0)
        log_line("cannot share folders of the host: ", decimal(result), "");
}

/* One request is dear: files are read far ahead. See Documentation/ABI/testing/sysfs-class-bdi in the kernel. */
static void read_ahead(void) {
    struct statx about;
    char path[64];
    if (sys(statx, AT_FDCWD, MOUNT, 0, STATX_BASIC_STATS, &about) < 0)
        return;
    join(path, sizeof path, "/sys/class/bdi/", decimal(about.stx_dev_major), ":", decimal(about.stx_dev_minor), "/read_ahead_kb",
         NULL);
    write_file(path, "1024");
}

static void make_folders_to(char *path) {
    for (char *at = path + 1; *at; at++)
        if (*at == '/') {
            *at = 0;
            sys(mkdirat, AT_FDCWD, path, 0755);
            *at = '/';
        }
    sys(mkdirat, AT_FDCWD, path, 0755);
}

/* One folder of the host a line: its name in the server's list, and its path, which may have spaces in it. */
void mount_shares(void) {
    static char text[16384];
    s64 size = read_file(LIST, text, sizeof text);
    if (size < 0)
        fail("cannot read what the host handed over", LIST, size);
    for (char *cursor = text, *line; (line = next_line(&cursor));) {
        char source[64], *tag = next_word(&line);
        if (!tag || *line != '/')
            continue;
        make_folders_to(line);
        join(source, sizeof source, MOUNT "/", tag, NULL);
        s64 result = sys(mount, source, line, NULL, MS_BIND, NULL);
        if (result < 0)
            log_line("cannot mount the shared folder ", line, decimal(result));
    }
    if (size)
        read_ahead();
    /* What is not shared cannot be made up by a container's mount: that would hide the mistake. */
    sys(mount, NULL, "/", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV, NULL);
}
