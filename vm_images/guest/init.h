/* The parts of the guest's init. */
#pragma once
#include "sys.h"

/* Ends the boot or the machine with a cause that the host reads on the control channel and in the console log. */
void __attribute__((noreturn)) fail(const char *what, const char *on, s64 error);
/* Runs a program of the image and waits; its exit status, 128 + signal, or a negated errno. */
s64 run(const char *const *arguments);
u64 milliseconds(void); /* since the kernel started */

/* modules.c */
int modprobe_main(int count, char **arguments); /* this program under the name the kernel calls */
void load_modules(const char *folder, const char *list);

/* disks.c */
void mount_root(void);    /* the image's erofs becomes "/"; what the host handed over goes with it */
void mount_data(void);    /* formatted at its first use, grown when the disk was */
s64 grow_data(void);
s64 trim_data(void);
void unmount_data(void);
void mount_shares(void);  /* folders of the host, under their own names */

/* net.c */
void set_up_network(void);

/* control.c: lines of text with the host over a virtio-serial port.
 * guest to host: "stage MS NAME", "ready MS", "agent-exit STATUS", "failed TEXT", and "ID ok" or "ID error TEXT";
 * host to guest: "ID VERB ARGUMENTS". */
void control_open(void);
int control_fd(void); /* to wait for: the port, or what tells of its appearance */
int control_waits_to_write(void);
void control_ready(int events); /* carries out what the host asked */
void control_say(const char *a, const char *b);
void stage(const char *name); /* tells how far the boot is */

/* init.c, for control.c */
void power_off_wanted(void);
