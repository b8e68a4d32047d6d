/* The root file system and the data disk. */
#include "init.h"
#include <linux/fs.h>
#include <linux/mount.h>

#define ROOT_DISK "/dev/vda"
#define DATA_DISK "/dev/vdb"
#define DATA "/var/lib/wherry"
#define VIRTIO "/sys/bus/virtio"
/* By their places on the PCI bus, see machine.command: the control channel is virtio0. */
#define ROOT_DEVICE "virtio1"
#define DATA_DEVICE "virtio2"
#define BYTECODE "/run/bytecode" /* where the caches in the agent's code are links to */
#define EXT4_IOC_RESIZE_FS _IOW('f', 16, __u64) /* include/uapi/linux/ext4.h, newer than some builders' headers */
enum { MNT_FLAGS = MS_NOSUID | MS_NODEV, BLOCK = 4096 };

static s64 mount(const char *source, const char *target, const char *type, u64 flags, const char *options) {
    return sys(mount, source, target, type, flags, options);
}

static void need_mount(const char *source, const char *target, const char *type, u64 flags, const char *options) {
    s64 result = mount(source, target, type, flags, options);
    if (result < 0)
        fail("cannot mount", target, result);
}

static void need_directory(const char *path) {
    s64 result = sys(mkdirat, AT_FDCWD, path, 0755);
    if (result < 0 && result != -EEXIST)
        fail("cannot make the directory", path, result);
}

static void give_driver(const char *device) { write_file(VIRTIO "/drivers/virtio_blk/bind", device); }

/* A driver looks at its disk's size and first blocks, which the data disk may not have any more when a template is
 * resumed. */
void load_root_disk(const char *modules) {
    need_directory("/sys");
    need_mount("sys", "/sys", "sysfs", MNT_FLAGS | MS_NOEXEC, NULL);
    write_file(VIRTIO "/drivers_autoprobe", "0");
    load_modules(modules, "boot");
    write_file(VIRTIO "/drivers_autoprobe", "1");
    give_driver(ROOT_DEVICE);
    sys(umount2, "/sys", 0);
}

/* What the host handed over in the initrd stays in memory; it is only bound to where the image expects it. */
static void bind_read_only(const char *source, const char *target) {
    need_mount(source, target, NULL, MS_BIND, NULL);
    need_mount(NULL, target, NULL, MS_BIND | MS_REMOUNT | MS_RDONLY | MNT_FLAGS, NULL);
}

/* Where the agent's code has links to for its compiled form, if it comes without: folders, parents first. */
static void make_bytecode_folders(const char *top) {
    static char names[8192];
    char path[512];
    s64 size = read_file(BOOT "/bytecode", names, sizeof names);
    if (size < 0)
        fail("cannot read what came with the initrd", BOOT "/bytecode", size);
    sys(mkdirat, AT_FDCWD, top, 0755);
    for (char *cursor = names, *name; (name = next_line(&cursor));) {
        join(path, sizeof path, top, "/", name, NULL);
        sys(mkdirat, AT_FDCWD, path, 0755);
    }
}

/* "/" itself is a small tmpfs, so that any folder of the host can be mounted under its own name; programs are on the
 * image's file system alone, which nobody can write. */
void mount_root(void) {
    static const char *const folders[] = {"image", "usr", "etc", "dev", "proc", "sys", "run", "tmp", "root",
                                          "var", "var/lib", "var/lib/wherry"};
    static const char *const links[][2] = {{"usr/bin", "bin"}, {"usr/sbin", "sbin"}, {"usr/lib", "lib"},
                                           {"usr/lib64", "lib64"}, {"/run", "var/run"}, {"/run/tmp", "var/tmp"}};
    need_directory("/root");
    need_mount("root", "/root", "tmpfs", MNT_FLAGS, "mode=0755,size=4m");
    sys(chdir, "/root");
    for (u64 i = 0; i < COUNT(folders); i++)
        need_directory(folders[i]);
    for (u64 i = 0; i < COUNT(links); i++)
        sys(symlinkat, links[i][0], AT_FDCWD, links[i][1]);
    need_mount(ROOT_DISK, "image", "erofs", MS_RDONLY | MNT_FLAGS, NULL);
    need_mount("image/usr", "usr", NULL, MS_BIND, NULL);
    need_mount("image/etc", "etc", NULL, MS_BIND, NULL);
    need_mount("dev", "/root/dev", "devtmpfs", MS_NOSUID | MS_NOEXEC, "mode=0755");
    need_mount("run", "/root/run", "tmpfs", MNT_FLAGS, "mode=0755");
    need_directory("/root/run/boot");
    need_directory("/root/run/host");
    need_directory("/root/run/host/tls");
    need_directory("/root/run/tmp");
    bind_read_only("/boot", "/root/run/boot");
    bind_read_only("/agent", "/root/usr/lib/wherry");
    need_mount(".", "/", NULL, MS_MOVE, NULL);
    s64 result = sys(chroot, ".");
    if (result < 0)
        fail("cannot enter", "the root file system", result);
    sys(chdir, "/");
    need_mount("proc", "/proc", "proc", MNT_FLAGS | MS_NOEXEC, NULL);
    need_mount("sys", "/sys", "sysfs", MNT_FLAGS | MS_NOEXEC, NULL);
    need_mount("cgroup", "/sys/fs/cgroup", "cgroup2", MNT_FLAGS | MS_NOEXEC, "nsdelegate,memory_recursiveprot");
    need_mount("tmp", "/tmp", "tmpfs", MNT_FLAGS, "mode=1777");
    need_directory("/dev/pts");
    need_directory("/dev/shm");
    need_directory("/dev/mqueue");
    need_mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "mode=0620,gid=5,ptmxmode=0666");
    need_mount("shm", "/dev/shm", "tmpfs", MNT_FLAGS, "mode=1777");
    need_mount("mqueue", "/dev/mqueue", "mqueue", MNT_FLAGS | MS_NOEXEC, NULL);
    sys(symlinkat, "/proc/self/fd", AT_FDCWD, "/dev/fd");
    make_bytecode_folders(BYTECODE); /* a template's; covered by the data disk's, which last */
}

void protect_handover(void) { bind_read_only(HOST, HOST); }

/* Whether the disk was never written: a damaged file system must not be taken for a new disk. */
static int is_blank(void) {
    static char start[64 * 1024];
    int fd = open_file(DATA_DISK, O_RDONLY);
    s64 got = fd < 0 ? fd : sys(read, fd, start, sizeof start);
    if (fd >= 0)
        sys(close, fd);
    if (got < (s64)sizeof start)
        fail("cannot read the data disk", DATA_DISK, got < 0 ? got : 0);
    for (u64 i = 0; i < sizeof start; i++)
        if (start[i])
            return 0;
    return 1;
}

static s64 mount_ext4(void) {
    /* Volumes live here: devices and set-user-id programs must work, as on a native host. */
    s64 result = mount(DATA_DISK, DATA, "ext4", MS_NOATIME, "discard,prjquota");
    if (result < 0) /* a disk of an older image has no project quotas */
        result = mount(DATA_DISK, DATA, "ext4", MS_NOATIME, "discard");
    return result;
}

void mount_data(void) {
    give_driver(DATA_DEVICE);
    s64 result = mount_ext4();
    if (result < 0 && is_blank()) {
        /* Nothing to discard on a new disk, and tables are initialised by the kernel in the background. */
        static const char *const format[] = {"/usr/sbin/mke2fs", "-q", "-t", "ext4", "-m", "0", "-b", "4096", "-L", "wherry", "-O",
                                             "quota,project", "-E",
                                             "quotatype=prjquota,nodiscard,lazy_itable_init=1,lazy_journal_init=1",
                                             DATA_DISK, NULL};
        s64 status = run(format);
        if (status)
            fail("cannot format the data disk; mke2fs ended with", decimal(status), 0);
        stage("data disk formatted");
        result = mount_ext4();
    }
    if (result < 0) /* the journal was replayed by the mount already: this is damage that needs a repair */
        fail("cannot mount the data disk (its file system is damaged)", DATA_DISK, result);
    if ((result = grow_data()) < 0)
        log_line("cannot grow the file system of the data disk: ", decimal(result), "");
    make_bytecode_folders(DATA "/bytecode");
    need_mount(DATA "/bytecode", BYTECODE, NULL, MS_BIND, NULL);
}

/* From the superblock (kernel documentation, filesystems/ext4): the kernel logs a resize even when it is none. */
static __u64 file_system_blocks(int disk) {
    char super[1024];
    unsigned low, high;
    if (sys(pread64, disk, super, sizeof super, 1024) != sizeof super)
        return 0;
    memcpy(&low, super + 0x4, sizeof low);
    memcpy(&high, super + 0x150, sizeof high);
    return (__u64)high << 32 | low;
}

s64 grow_data(void) {
    __u64 bytes = 0;
    int disk = open_file(DATA_DISK, O_RDONLY), folder = open_file(DATA, O_RDONLY | O_DIRECTORY);
    s64 result = disk < 0 ? disk : folder < 0 ? folder : sys(ioctl, disk, BLKGETSIZE64, &bytes);
    if (result >= 0) {
        __u64 blocks = bytes / BLOCK;
        if (blocks != file_system_blocks(disk))
            result = sys(ioctl, folder, EXT4_IOC_RESIZE_FS, &blocks);
    }
    if (disk >= 0)
        sys(close, disk);
    if (folder >= 0)
        sys(close, folder);
    return result;
}

s64 trim_data(void) {
    struct fstrim_range all = {0, (__u64)-1, 0};
    int folder = open_file(DATA, O_RDONLY | O_DIRECTORY);
    s64 result = folder < 0 ? folder : sys(ioctl, folder, FITRIM, &all);
    if (folder >= 0)
        sys(close, folder);
    return result;
}

void unmount_data(void) {
    sys(sync);
    sys(umount2, BYTECODE, 0);
    /* Overlay mounts and namespaces of containers died with their processes; what a kernel still holds is detached. */
    if (sys(umount2, DATA, 0) < 0) {
        mount(NULL, DATA, NULL, MS_REMOUNT | MS_RDONLY, NULL);
        sys(umount2, DATA, 2 /* MNT_DETACH */);
    }
}
