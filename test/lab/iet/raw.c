/*
 * Calls to the system, one for each line on standard input, each answered by a line: "ok ..." or "error NAME". Tests of
 * the double drive it by these, byte by byte. N is a descriptor, HEX bytes.
 *
 *   open PATH r|w|p            p: O_PATH                     ok N
 *   dup PID N                  pidfd_getfd(2)                ok N
 *   close N                                                  ok
 *   fork                       a child that exits at once    ok
 *   ioctl N CODE HEX                                         ok RESULT HEX (the bytes afterwards)
 *   pointer N CODE ADDRESS     an ioctl on any address       ok RESULT
 *   volume N CODE TID LUN TEXT ADD_VOLUME with its arguments ok RESULT
 *   arguments N CODE TID ADDRESS LENGTH                      ok RESULT
 *   connect LENGTH             of IET's abstract address     ok N
 *   peer N                     the pid of SO_PEERCRED        ok PID
 *   user UID                   this process is that user's   ok
 *   chroot PATH                                              ok
 *   write N HEX                                              ok LENGTH
 *   read N LENGTH              until that much or the end    ok HEX
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static char line[1 << 20];
static unsigned char bytes[1 << 19];

static size_t from_hex(const char *text) {
  size_t length = 0;
  unsigned value;
  while (text && sscanf(text + 2 * length, "%2x", &value) == 1) bytes[length++] = (unsigned char)value;
  return length;
}

static void print_hex(size_t length) {
  for (size_t i = 0; i < length; i++) printf("%02x", bytes[i]);
}

static char *word(void) { return strtok(NULL, " \n"); }
static unsigned long long number(void) {
  char *text = word();
  return text ? strtoull(text, NULL, 0) : 0;
}

static void answer(long result) {
  if (result < 0)
    printf("error %s\n", strerrorname_np(errno));
  else
    printf("ok %ld\n", result);
}

static void noted(int signal) { (void)signal; }

static int connect_to_iet(socklen_t length) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  strcpy(address.sun_path + 1, "IET_ABSTRACT_NAMESPACE");
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
  if (connect(fd, (struct sockaddr *)&address, length) == 0) {
    fcntl(fd, F_SETFL, 0);
    return fd;
  }
  int error = errno;
  close(fd);
  errno = error;
  return -1;
}

static long duplicate(pid_t pid, int fd) {
  int process = (int)syscall(SYS_pidfd_open, pid, 0);
  if (process < 0) return -1;
  long copy = syscall(SYS_pidfd_getfd, process, fd, 0);
  int error = errno;
  close(process);
  errno = error;
  return copy;
}

static void obey(const char *what) {
  if (strcmp(what, "open") == 0) {
    const char *path = word(), *mode = word();
    answer(open(path, *mode == 'r' ? O_RDONLY : *mode == 'w' ? O_RDWR : O_PATH));
  } else if (strcmp(what, "dup") == 0) {
    pid_t pid = (pid_t)number();
    answer(duplicate(pid, (int)number()));
  } else if (strcmp(what, "close") == 0) {
    answer(close((int)number()));
  } else if (strcmp(what, "fork") == 0) {
    pid_t child = fork();
    if (child == 0) _exit(0);
    answer(waitpid(child, NULL, 0) == child ? 0 : -1);
  } else if (strcmp(what, "ioctl") == 0) {
    int fd = (int)number();
    unsigned long code = number();
    size_t length = from_hex(word());
    int result = ioctl(fd, code, bytes);
    if (result < 0) return answer(result);
    printf("ok %d ", result);
    print_hex(length);
    printf("\n");
  } else if (strcmp(what, "pointer") == 0) {
    int fd = (int)number();
    unsigned long code = number();
    answer(ioctl(fd, code, (void *)(uintptr_t)number()));
  } else if (strcmp(what, "volume") == 0 || strcmp(what, "arguments") == 0) {
    int fd = (int)number();
    unsigned long code = number();
    struct {
      uint32_t tid, lun;
      uint64_t arguments;
      uint32_t length, padding;
    } info = {.tid = (uint32_t)number()};
    if (*what == 'v') {
      info.lun = (uint32_t)number();
      const char *text = strtok(NULL, "\n");
      info.arguments = (uintptr_t)text;
      info.length = text ? (uint32_t)strlen(text) : 0;
    } else {
      info.arguments = number();
      info.length = (uint32_t)number();
    }
    answer(ioctl(fd, code, &info));
  } else if (strcmp(what, "connect") == 0) {
    answer(connect_to_iet((socklen_t)number()));
  } else if (strcmp(what, "peer") == 0) {
    struct ucred peer = {0};
    socklen_t length = sizeof(peer);
    int result = getsockopt((int)number(), SOL_SOCKET, SO_PEERCRED, &peer, &length);
    answer(result < 0 ? result : peer.pid);
  } else if (strcmp(what, "user") == 0) {
    uid_t user = (uid_t)number();
    answer(setgroups(0, NULL) || setresgid(user, user, user) || setresuid(user, user, user) ? -1 : 0);
  } else if (strcmp(what, "chroot") == 0) {
    answer(chroot(word()) || chdir("/") ? -1 : 0);
  } else if (strcmp(what, "write") == 0) {
    int fd = (int)number();
    size_t length = from_hex(word());
    answer(write(fd, bytes, length));
  } else if (strcmp(what, "read") == 0) {
    int fd = (int)number();
    size_t wanted = number(), length = 0;
    ssize_t got = 0;
    while (length < wanted && (got = read(fd, bytes + length, wanted - length)) > 0) length += (size_t)got;
    if (got < 0 && length == 0) return answer(-1);
    printf("ok ");
    print_hex(length);
    printf("\n");
  } else {
    printf("error EPROTO\n");
  }
}

int main(void) {
  struct sigaction action = {.sa_handler = noted};
  sigaction(SIGUSR1, &action, NULL);
  signal(SIGPIPE, SIG_IGN);
  while (fgets(line, sizeof(line), stdin)) {
    const char *what = strtok(line, " \n");
    if (what) obey(what);
    fflush(stdout);
  }
  return 0;
}
