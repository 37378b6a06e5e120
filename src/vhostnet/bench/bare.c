/* SPDX-License-Identifier: Apache-2.0
 *
 * What the kernel alone can do: the limits that the benchmark compares with, one system call a
 * packet, and a source of packets for a TAP.  Built by bare.py.
 *
 *   bare tap-write NAME SIZE SECONDS    write frames into a TAP
 *   bare tap-read NAME SECONDS          read frames from a TAP
 *   bare fill NAME COUNT SIZE           send COUNT frames out of an interface, then end
 *   bare eventfd CPU CPU SECONDS US     a token between two threads over two eventfds, US
 *                                       microseconds of rest in between; prints each round
 *                                       trip in nanoseconds, one a line
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define HDR_LEN 10 /* virtio_net_hdr, all zero: no offload */
#define BATCH 64
#define TRIPS 1000000

static void die(const char *what) {
  perror(what);
  exit(1);
}

static int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* UDP from 198.18.0.1 to 198.18.0.2, to a station that is nobody's: what testpmd sends. */
static void make_frame(unsigned char *frame, int size) {
  static const unsigned char head[] = {
      0x02, 0, 0, 0, 0, 0, 0x02, 0, 0, 0, 0, 1, 0x08, 0x00,
      0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 198, 18, 0, 1, 198, 18, 0, 2,
      0, 9, 0, 9, 0, 0, 0, 0};
  memset(frame, 0, size);
  memcpy(frame, head, size < (int)sizeof head ? size : (int)sizeof head);
  frame[16] = (size - 14) >> 8, frame[17] = (size - 14) & 0xff;
  frame[38] = (size - 34) >> 8, frame[39] = (size - 34) & 0xff;
}

static int open_tap(const char *name) {
  struct ifreq ifr = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
  int fd = open("/dev/net/tun", O_RDWR);
  if (fd < 0) die("/dev/net/tun");
  strncpy(ifr.ifr_name, name, IFNAMSIZ - 1);
  if (ioctl(fd, TUNSETIFF, &ifr) < 0) die("TUNSETIFF");
  return fd;
}

static int tap_write(const char *name, int size, double seconds) {
  static unsigned char packet[HDR_LEN + 65536];
  int fd = open_tap(name);
  int64_t end = now_ns() + (int64_t)(seconds * 1e9);
  make_frame(packet + HDR_LEN, size);
  while (now_ns() < end)
    for (int i = 0; i < 1024; i++)
      if (write(fd, packet, HDR_LEN + size) < 0 && errno != EIO) die("write");
  return 0;
}

static int tap_read(const char *name, double seconds) {
  static unsigned char packet[HDR_LEN + 65536];
  int fd = open_tap(name);
  int64_t end = now_ns() + (int64_t)(seconds * 1e9);
  fcntl(fd, F_SETFL, O_NONBLOCK);
  while (now_ns() < end)
    for (int i = 0; i < 1024; i++)
      if (read(fd, packet, sizeof packet) < 0 && errno != EAGAIN) die("read");
  return 0;
}

static int fill(const char *name, long count, int size) {
  static unsigned char frame[65536];
  struct iovec iov = {frame, size};
  struct mmsghdr messages[BATCH];
  int on = 1, fd = socket(AF_PACKET, SOCK_RAW, 0);
  struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_ifindex = if_nametoindex(name)};
  if (fd < 0) die("socket");
  if (!to.sll_ifindex) die(name);
  if (setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, &on, sizeof on)) die("PACKET_QDISC_BYPASS");
  if (bind(fd, (struct sockaddr *)&to, sizeof to)) die("bind");
  make_frame(frame, size);
  memset(messages, 0, sizeof messages);
  for (int i = 0; i < BATCH; i++) messages[i].msg_hdr.msg_iov = &iov, messages[i].msg_hdr.msg_iovlen = 1;
  while (count > 0) {
    int n = sendmmsg(fd, messages, count < BATCH ? count : BATCH, 0);
    if (n < 0 && errno == ENOBUFS) return 0; /* the queue is full: that is what was wanted */
    if (n < 0) die("sendmmsg");
    count -= n;
  }
  return 0;
}

static int there, back, echo_cpu;

static void pin(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  if (sched_setaffinity(0, sizeof set, &set)) die("sched_setaffinity");
}

static void *echo(void *unused) {
  uint64_t n;
  pin(echo_cpu);
  while (read(there, &n, 8) == 8 && n == 1)
    if (write(back, &n, 8) != 8) die("write");
  return unused;
}

static int ping_pong(int here, double seconds, int rest_us) {
  static int64_t trips[TRIPS];
  pthread_t thread;
  long n_trips = 0;
  uint64_t n = 1;
  int64_t end = now_ns() + (int64_t)(seconds * 1e9);
  there = eventfd(0, 0), back = eventfd(0, 0);
  if (pthread_create(&thread, NULL, echo, NULL)) die("pthread_create");
  pin(here);
  while (now_ns() < end && n_trips < TRIPS) {
    int64_t began = now_ns();
    n = 1;
    if (write(there, &n, 8) != 8 || read(back, &n, 8) != 8) die("eventfd");
    trips[n_trips] = now_ns() - began;
    n_trips++;
    for (int64_t until = now_ns() + rest_us * 1000; now_ns() < until;) continue;
  }
  for (long i = 0; i < n_trips; i++) printf("%lld\n", (long long)trips[i]);
  return 0;
}

int main(int argc, char **argv) {
  if (argc == 5 && !strcmp(argv[1], "tap-write"))
    return tap_write(argv[2], atoi(argv[3]), atof(argv[4]));
  if (argc == 4 && !strcmp(argv[1], "tap-read")) return tap_read(argv[2], atof(argv[3]));
  if (argc == 5 && !strcmp(argv[1], "fill")) return fill(argv[2], atol(argv[3]), atoi(argv[4]));
  if (argc == 6 && !strcmp(argv[1], "eventfd")) {
    echo_cpu = atoi(argv[3]);
    return ping_pong(atoi(argv[2]), atof(argv[4]), atoi(argv[5]));
  }
  fprintf(stderr, "bare: see bare.c\n");
  return 2;
}
