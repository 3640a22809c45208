/*
 * The other sides of the iet bench: the same requests and calls as lunpath's native part makes, by hand.
 *
 *   iet_bare device TID COUNT    adds COUNT volumes with one duplicate of ietd's descriptor, and deletes them with
 * another iet_bare socket TID LUN      adds a volume over ietd's socket iet_bare unsocket TID LUN    deletes it there
 *   iet_bare step WHAT TID TEXT  one request of an export, as ietadm makes it: target, account, volume or delete
 *   iet_bare steps COUNT WORKERS FIRST PATH    COUNT exports by a process for each step, and their ends; WORKERS at
 * once iet_bare calls COUNT FIRST PATH            the requests and calls of a restoration of COUNT exports, nothing
 * else
 *
 * `device`, `steps` and `calls` print nanoseconds. `device` and those over the socket ask ietd for its process id, as
 * nobody here keeps it.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <spawn.h>
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
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct request {
  uint32_t command, tid;
  uint64_t sid;
  uint32_t cid, lun;
  union {
    char args[2048];
    struct {
      uint32_t direction;
      char name[256], secret[256];
    } account;
  };
};
struct reply {
  struct request request;
  int32_t error;
};
struct target {
  uint32_t tid;
  char name[256];
};
struct volume {
  uint32_t tid, lun;
  uint64_t args;
  uint32_t length, unused;
};
enum {
  TARGET_NEW = 0,
  TARGET_DELETE = 1,
  TARGET_REDIRECT = 4,
  LUN_NEW = 13,
  LUN_DELETE = 14,
  ACCOUNT_NEW = 17,
  NOTHING = 24
};
#define ADD_TARGET 0xc1046915ul
#define DEL_TARGET 0x41046916ul
#define ADD_VOLUME 0x40186918ul
#define DEL_VOLUME 0x40186919ul

static const char arguments[] = "Type=nullio";

static void die(const char *what) {
  fprintf(stderr, "%s: %s\n", what, strerror(errno));
  exit(1);
}

/* The errno that ietd answers with. */
static int send_request(const struct request *asked, pid_t *pid) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  strcpy(address.sun_path + 1, "IET_ABSTRACT_NAMESPACE");
  struct request request = *asked;
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
  *pid = peer.pid;
  return -reply.error;
}

static pid_t must(const struct request *request) {
  pid_t pid;
  errno = send_request(request, &pid);
  if (errno != 0) die("ietd");
  return pid;
}

static pid_t ask(uint32_t command, uint32_t tid, uint32_t lun, const char *args) {
  struct request request = {.command = command, .tid = tid, .lun = lun};
  strcpy(request.args, args);
  return must(&request);
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

static long long now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static void name_of(char *name, uint32_t tid) { sprintf(name, "iqn.2026-01.io.lunpath.bench:other-%u", tid); }

static void step(const char *what, uint32_t tid, const char *text) {
  if (strcmp(what, "target") == 0) {
    ask(TARGET_NEW, tid, 0, text);
  } else if (strcmp(what, "account") == 0) {
    struct request request = {.command = ACCOUNT_NEW, .tid = tid};
    strcpy(request.account.name, text);
    strcpy(request.account.secret, "a-good-secret-01");
    must(&request);
  } else if (strcmp(what, "volume") == 0) {
    ask(LUN_NEW, tid, 1, text);
  } else {
    ask(TARGET_DELETE, tid, 0, "");
  }
}

extern char **environ;

static void spawn_step(const char *what, uint32_t tid, const char *text) {
  char number[16];
  sprintf(number, "%u", tid);
  char *const args[] = {"iet_bare", "step", (char *)what, number, (char *)text, NULL};
  pid_t child;
  errno = posix_spawn(&child, "/proc/self/exe", NULL, NULL, args, environ);
  if (errno != 0) die("posix_spawn");
  int status;
  if (waitpid(child, &status, 0) != child || status != 0) die("a step");
}

static void steps(uint32_t count, uint32_t workers, uint32_t first, const char *path) {
  for (uint32_t worker = 0; worker < workers; worker++) {
    if (fork() != 0) continue;
    char name[256], volume[2048];
    snprintf(volume, sizeof(volume), "ScsiId=0123456789abcdef,ScsiSN=0123456789abcdef,IOMode=wt,Type=fileio,Path=%s",
             path);
    for (uint32_t i = worker; i < count; i += workers) {
      name_of(name, first + i);
      spawn_step("target", first + i, name);
      spawn_step("account", first + i, "guest");
      spawn_step("volume", first + i, volume);
      spawn_step("delete", first + i, "");
    }
    _exit(0);
  }
  int status;
  while (wait(&status) > 0) {
    if (status != 0) die("a worker");
  }
}

/* ietd cannot be made to forget here, so the target that the kernel is given back is another one than that which is
 * made. */
static void calls(uint32_t count, uint32_t first, const char *path) {
  const long long began = now();
  pid_t pid;
  for (uint32_t i = 0; i < count; i++) {
    struct request question = {.command = TARGET_REDIRECT, .tid = first + i};
    if (send_request(&question, &pid) != ENOENT) die("the number is known");
  }
  int fd = duplicate();
  for (uint32_t i = 0; i < count; i++) {
    struct target target = {.tid = first + count + i};
    name_of(target.name, target.tid);
    if (ioctl(fd, ADD_TARGET, &target) != 0) die("ADD_TARGET");
  }
  close(fd);
  char text[2048];
  for (uint32_t i = 0; i < count; i++) {
    name_of(text, first + i);
    ask(TARGET_NEW, first + i, 0, text);
  }
  fd = duplicate();
  int length = snprintf(text, sizeof(text),
                        "ScsiId=0123456789abcdef,ScsiSN=0123456789abcdef,IOMode=wt,Type=fileio,Path=%s", path);
  for (uint32_t i = 0; i < count; i++) {
    struct volume volume = {.tid = first + i, .lun = 1, .args = (uintptr_t)text, .length = (uint32_t)length};
    if (ioctl(fd, ADD_VOLUME, &volume) != 0) die("ADD_VOLUME");
  }
  close(fd);
  for (uint32_t i = 0; i < count; i++) ask(TARGET_DELETE, first + i, 0, "");
  printf("%lld\n", now() - began);
  fd = duplicate();
  for (uint32_t i = 0; i < count; i++) {
    struct target target = {.tid = first + count + i};
    if (ioctl(fd, DEL_TARGET, &target) != 0) die("DEL_TARGET");
  }
  close(fd);
}

int main(int argc, char **argv) {
  if (argc < 4) return 2;
  uint32_t tid = (uint32_t)atoi(argv[2]);
  uint32_t number = (uint32_t)atoi(argv[3]);
  if (strcmp(argv[1], "step") == 0 && argc == 5) {
    step(argv[2], number, argv[4]);
    return 0;
  }
  if (strcmp(argv[1], "steps") == 0 && argc == 6) {
    const long long began = now();
    steps(tid, number, (uint32_t)atoi(argv[4]), argv[5]);
    printf("%lld\n", now() - began);
    return 0;
  }
  if (strcmp(argv[1], "calls") == 0 && argc == 5) {
    calls(tid, number, argv[4]);
    return 0;
  }
  if (argc != 4) return 2;
  if (strcmp(argv[1], "socket") == 0) {
    ask(LUN_NEW, tid, number, arguments);
    return 0;
  }
  if (strcmp(argv[1], "unsocket") == 0) {
    ask(LUN_DELETE, tid, number, "");
    return 0;
  }
  const long long began = now();
  batch(ADD_VOLUME, tid, number);
  batch(DEL_VOLUME, tid, number);
  printf("%lld\n", now() - began);
  return 0;
}
