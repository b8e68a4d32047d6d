/* Times file operations in a folder: files DIRECTORY COUNT MEGABYTES. A line for each: name and operations or MB a second. */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static int count, megabytes;
static char block[1 << 20];

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static void need(long result, const char *what) {
    if (result < 0) {
        perror(what);
        exit(1);
    }
}

static const char *name(int i) {
    static char text[32];
    snprintf(text, sizeof text, "d%d/f%d", i % 10, i);
    return text;
}

static void make(void) {
    for (int i = 0; i < count; i++) {
        int fd = open(name(i), O_CREAT | O_WRONLY | O_EXCL, 0644);
        need(fd, "create");
        need(write(fd, block, 4096), "write");
        close(fd);
    }
}

static void read_small(void) {
    for (int i = 0; i < count; i++) {
        int fd = open(name(i), O_RDONLY);
        need(fd, "open");
        need(read(fd, block, sizeof block), "read");
        close(fd);
    }
}

static void look(void) {
    struct stat about;
    for (int i = 0; i < count; i++)
        need(stat(name(i), &about), "stat");
}

static void list(void) {
    for (int i = 0; i < 10; i++) {
        char path[16];
        struct stat about;
        snprintf(path, sizeof path, "d%d", i);
        DIR *folder = opendir(path);
        for (struct dirent *entry; (entry = readdir(folder));)
            need(fstatat(dirfd(folder), entry->d_name, &about, 0), "stat");
        closedir(folder);
    }
}

static void take_away(void) {
    for (int i = 0; i < count; i++)
        need(unlink(name(i)), "unlink");
}

static void write_large(void) {
    int fd = open("large", O_CREAT | O_WRONLY | O_TRUNC, 0644);
    for (int i = 0; i < megabytes; i++)
        need(write(fd, block, sizeof block), "write");
    close(fd);
}

static void read_large(void) {
    int fd = open("large", O_RDONLY);
    while (read(fd, block, sizeof block) > 0)
        ;
    close(fd);
}

static void timed(const char *what, void (*work)(void), double amount) {
    double start = now();
    work();
    printf("%s %.1f\n", what, amount / (now() - start));
}

int main(int arguments, char **values) {
    if (arguments != 4)
        return 2;
    count = atoi(values[2]);
    megabytes = atoi(values[3]);
    need(chdir(values[1]), values[1]);
    for (int i = 0; i < 10; i++)
        need(mkdir((char[]){'d', '0' + i, 0}, 0755), "mkdir");
    timed("make", make, count);
    timed("read", read_small, count);
    timed("stat", look, count);
    timed("stat-again", look, count);
    timed("list", list, count);
    timed("list-again", list, count);
    sleep(3); /* what has just been written is not trusted to stay */
    read_small();
    timed("read-again", read_small, count);
    timed("remove", take_away, count);
    timed("write-MB", write_large, megabytes);
    timed("read-MB", read_large, megabytes);
    unlink("large");
    for (int i = 0; i < 10; i++)
        rmdir((char[]){'d', '0' + i, 0});
    return 0;
}
