/* The parts of the guest's init. */
#pragma once
#include "sys.h"

#define BOOT "/run/boot" /* what is the same at each boot: the agent's command line, where bytecode is */
#define HOST "/run/host" /* what the host hands over at this boot */

/* Ends the boot or the machine with a cause that the host reads on the control channel and in the console log. */
void __attribute__((noreturn)) fail(const char *what, const char *on, s64 error);
/* Runs a program of the image and waits; its exit status, 128 + signal, or a negated errno. */
s64 run(const char *const *arguments);
u64 milliseconds(void); /* since the kernel started */

/* modules.c */
int modprobe_main(int count, char **arguments); /* this program under the name the kernel calls */
void load_modules(const char *folder, const char *list);

/* emulation.c */
void register_emulator(void); /* programs of the other architecture run */

/* disks.c */
void load_root_disk(const char *modules); /* the data disk stays without a driver */
void mount_root(void);    /* the image's erofs becomes "/"; what came with the initrd goes with it */
void protect_handover(void); /* nobody changes any more what the host handed over */
void mount_data(void);    /* formatted at its first use, grown when the disk was */
s64 grow_data(void);
s64 trim_data(void);
void unmount_data(void);

/* ports.c */
int open_port(const char *path); /* a virtio-serial port, waited for */

/* shares.c */
/* Mounts the file server behind a virtio-serial port; 0 when processes of ours serve it, else a negated errno. */
s64 serve_shares(const char *mount, const char *files, const char *changes);
void start_shares(void); /* by init itself */
void mount_shares(void); /* folders of the host, under their own names */

/* net.c */
void set_up_network(void);

/* control.c: lines of text with the host over a virtio-serial port.
 * guest to host: "stage MS NAME", "ready MS", "agent-exit STATUS", "failed TEXT", and "ID ok" or "ID error TEXT";
 * host to guest: "ID VERB ARGUMENTS", after "put" the file's bytes. */
void control_open(void);
int control_fd(void); /* to wait for: the port, or what tells of its appearance */
int control_waits_to_write(void);
void control_ready(int events); /* carries out what the host asked */
void control_say(const char *a, const char *b);
void stage(const char *name); /* tells how far the boot is */
void take_entropy(void);      /* what the host handed over goes into the kernel's random numbers */

/* init.c, for control.c */
void power_off_wanted(void);
void start_wanted(void); /* everything of this boot is handed over */
