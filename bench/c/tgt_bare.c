/*
 * The other sides of the provision bench: the same requests to a tgtd as lunpath's driver makes, by hand.
 *
 *   tgt_bare socket make COUNT TID IQN PATH LUN_PARAMETERS    over the control socket, nothing around it
 *   tgt_bare spawn  make COUNT TID IQN PATH LUN_PARAMETERS    by tgtadm, one process for each request (posix_spawn)
 *   tgt_bare socket remove COUNT TID
 *
 * The control socket is $TGT_IPC_SOCKET.$TGT_CONTROL_PORT. `make` prints the nanoseconds of all COUNT targets together.
 */
#include <errno.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

/* The request of tgtd 1.0.85. */
struct request {
  uint32_t mode, op;
  char lld[64];
  uint32_t len;
  int32_t tid;
  uint64_t sid, lun;
  uint32_t cid, host_no, device_type, ac_dir, pack, force;
};
_Static_assert(sizeof(struct request) == 120, "must match tgtd 1.0.85");

enum { TARGET = 1, DEVICE = 2 };
enum { NEW = 0, DELETE = 1, BIND = 3, UPDATE = 5 };

static struct sockaddr_un address = {.sun_family = AF_UNIX};

static void die(const char *what) {
  fprintf(stderr, "%s: %s\n", what, strerror(errno));
  exit(1);
}

static uint32_t ask(uint32_t mode, uint32_t op, int tid, uint64_t lun, const char *parameters) {
  char buffer[8192];
  size_t extra = parameters ? strlen(parameters) + 1 : 0;
  struct request request = {.mode = mode, .op = op, .lld = "iscsi", .tid = tid, .lun = lun};
  request.len = (uint32_t)(sizeof(request) + extra);
  if (request.len > sizeof(buffer)) exit(2);
  memcpy(buffer, &request, sizeof(request));
  if (extra) memcpy(buffer + sizeof(request), parameters, extra);
  int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  if (fd < 0) die("socket");
  if (connect(fd, (struct sockaddr *)&address, sizeof(address)) != 0) die("connect");
  if (write(fd, buffer, request.len) != (ssize_t)request.len) die("write");
  uint32_t reply[2];
  if (read(fd, reply, sizeof(reply)) != sizeof(reply)) die("read");
  close(fd);
  return reply[0];
}

static void by_socket(int tid, const char *iqn, const char *path, const char *lun_parameters) {
  char text[4200];
  snprintf(text, sizeof(text), "targetname=%s:%d", iqn, tid);
  uint32_t error = ask(TARGET, NEW, tid, 0, text);
  snprintf(text, sizeof(text), "path=%s,bstype=rdwr", path);
  error |= ask(DEVICE, NEW, tid, 1, text);
  error |= ask(DEVICE, UPDATE, tid, 1, lun_parameters);
  error |= ask(TARGET, BIND, tid, 0, "initiator-address=ALL");
  if (error) {
    fprintf(stderr, "tgtd refused target %d\n", tid);
    exit(1);
  }
}

static void tgtadm(char *const *arguments) {
  pid_t pid;
  int status;
  if (posix_spawnp(&pid, "tgtadm", NULL, NULL, arguments, environ) != 0) die("tgtadm");
  if (waitpid(pid, &status, 0) != pid || status != 0) {
    fprintf(stderr, "tgtadm failed\n");
    exit(1);
  }
}

static void by_spawn(int tid, char *iqn, char *path, char *lun_parameters) {
  char number[16], name[256];
  char *port = getenv("TGT_CONTROL_PORT");
  snprintf(number, sizeof(number), "%d", tid);
  snprintf(name, sizeof(name), "%s:%d", iqn, tid);
#define TGTADM "tgtadm", "-C", port, "--lld", "iscsi", "--tid", number
  tgtadm((char *[]){TGTADM, "--mode", "target", "--op", "new", "-T", name, NULL});
  tgtadm((char *[]){TGTADM, "--mode", "logicalunit", "--op", "new", "--lun", "1", "-b", path, "--bstype", "rdwr", NULL});
  tgtadm((char *[]){TGTADM, "--mode", "logicalunit", "--op", "update", "--lun", "1", "--params", lun_parameters, NULL});
  tgtadm((char *[]){TGTADM, "--mode", "target", "--op", "bind", "-I", "ALL", NULL});
}

int main(int argc, char **argv) {
  if (argc < 5) return 2;
  snprintf(address.sun_path, sizeof(address.sun_path), "%s.%s", getenv("TGT_IPC_SOCKET"), getenv("TGT_CONTROL_PORT"));
  int count = atoi(argv[3]);
  int tid = atoi(argv[4]);
  if (strcmp(argv[2], "remove") == 0) {
    for (int i = 0; i < count; i++) {
      ask(DEVICE, DELETE, tid + i, 1, NULL);
      ask(TARGET, DELETE, tid + i, 0, NULL);
    }
    return 0;
  }
  if (argc != 8) return 2;
  struct timespec from, to;
  clock_gettime(CLOCK_MONOTONIC, &from);
  for (int i = 0; i < count; i++) {
    if (strcmp(argv[1], "spawn") == 0) {
      by_spawn(tid + i, argv[5], argv[6], argv[7]);
    } else {
      by_socket(tid + i, argv[5], argv[6], argv[7]);
    }
  }
  clock_gettime(CLOCK_MONOTONIC, &to);
  printf("%lld\n", (long long)(to.tv_sec - from.tv_sec) * 1000000000LL + (to.tv_nsec - from.tv_nsec));
  return 0;
}
