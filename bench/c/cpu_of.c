/*
 * Runs a program and tells what CPU time it cost, all its threads and children together.
 *
 *   cpu_of PROGRAM ARGUMENT...
 *
 * The program's output goes through; the last line on stderr is user plus system time in microseconds (getrusage(2): threads
 * that the kernel makes for io_uring, io-wq, are threads of the process and in it). The exit code is the program's.
 */
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv) {
  if (argc < 2) return 2;
  pid_t child = fork();
  if (child == 0) {
    execvp(argv[1], argv + 1);
    perror(argv[1]);
    _exit(127);
  }
  int status;
  if (child < 0 || waitpid(child, &status, 0) < 0) return 1;
  struct rusage used;
  getrusage(RUSAGE_CHILDREN, &used);
  fprintf(stderr, "%lld\n",
          (long long)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1000000 + used.ru_utime.tv_usec + used.ru_stime.tv_usec);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
