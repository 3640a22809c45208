/*
 * The other sides of the iet bench: the same calls as lunpath's native part makes, by hand.
 *
 *   iet_bare device TID COUNT    adds COUNT volumes with one duplicate of ietd's descriptor, and deletes them with
 * another one iet_bare socket TID LUN      adds a volume over ietd's socket iet_bare unsocket TID LUN    deletes it
 * there
 *
 * `device` prints the nanoseconds of both batches. Each asks ietd for its process id, as nobody here keeps it.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

struct request {
  uint32_t command, tid;
  uint64_t sid;
  uint32_t cid, lun;
  char args[2048];
};
struct reply {
  struct request request;
  int32_t error;
};
struct volume {
  uint32_t tid, lun;
  uint64_t args;
  uint32_t length, unused;
};
enum { LUN_NEW = 13, LUN_DELETE = 14, NOTHING = 24 };
#define ADD_VOLUME 0x40186918ul
#define DEL_VOLUME 0x40186919ul

static const char arguments[] = "Type=nullio";

static void die(const char *what) {
  fprintf(stderr, "%s: %s\n", what, strerror(errno));
  exit(1);
}

static pid_t ask(uint32_t command, uint32_t tid, uint32_t lun, const char *args) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  strcpy(address.sun_path + 1, "IET_ABSTRACT_NAMESPACE");
  struct request request = {.command = command, .tid = tid, .lun = lun};
  strcpy(request.args, args);
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) != 0) die("connect");
  struct ucred peer;
  socklen_t size = sizeof(peer);
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) die("getsockopt");
  if (write(fd, &request, sizeof(request)) != sizeof(request)) die("write");
  static struct reply reply;
  size_t have = 0, want = sizeof(reply.request) + sizeof(reply.error);
  while (have < want) {
    ssize_t got = read(fd, (char *)&reply + have, want - have);
    if (got <= 0) die("read");
    have += (size_t)got;
  }
  close(fd);
  if (reply.error != 0) {
    errno = -reply.error;
    die("ietd");
  }
  return peer.pid;
}

static unsigned control_major(void) {
  FILE *devices = fopen("/proc/devices", "r");
  char line[128], name[64];
  unsigned number;
  while (devices && fgets(line, sizeof(line), devices)) {
    if (sscanf(line, "%u %63s", &number, name) == 2 && strcmp(name, "ietctl") == 0) {
      fclose(devices);
      return number;
    }
  }
  die("/proc/devices");
  return 0;
}

static int duplicate(void) {
  pid_t pid = ask(NOTHING, 0, 0, "");
  char path[64];
  snprintf(path, sizeof(path), "/proc/%d/fd", pid);
  unsigned number = control_major();
  DIR *directory = opendir(path);
  int found = -1;
  for (struct dirent *entry; directory && found < 0 && (entry = readdir(directory));) {
    struct stat status;
    if (fstatat(dirfd(directory), entry->d_name, &status, 0) != 0) continue;
    if (S_ISCHR(status.st_mode) && major(status.st_rdev) == number) found = atoi(entry->d_name);
  }
  if (directory) closedir(directory);
  int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
  int fd = (int)syscall(SYS_pidfd_getfd, pidfd, found, 0);
  if (fd < 0) die("pidfd_getfd");
  close(pidfd);
  return fd;
}

static void batch(unsigned long call, uint32_t tid, uint32_t count) {
  int fd = duplicate();
  for (uint32_t lun = 1; lun <= count; lun++) {
    struct volume volume = {.tid = tid, .lun = lun, .args = (uintptr_t)arguments, .length = sizeof(arguments) - 1};
    if (ioctl(fd, call, &volume) != 0) die("ioctl");
  }
  close(fd);
}

int main(int argc, char **argv) {
  if (argc != 4) return 2;
  uint32_t tid = (uint32_t)atoi(argv[2]);
  uint32_t number = (uint32_t)atoi(argv[3]);
  if (strcmp(argv[1], "socket") == 0) {
    ask(LUN_NEW, tid, number, arguments);
    return 0;
  }
  if (strcmp(argv[1], "unsocket") == 0) {
    ask(LUN_DELETE, tid, number, "");
    return 0;
  }
  struct timespec from, to;
  clock_gettime(CLOCK_MONOTONIC, &from);
  batch(ADD_VOLUME, tid, number);
  batch(DEL_VOLUME, tid, number);
  clock_gettime(CLOCK_MONOTONIC, &to);
  printf("%lld\n", (long long)(to.tv_sec - from.tv_sec) * 1000000000LL + (to.tv_nsec - from.tv_nsec));
  return 0;
}
