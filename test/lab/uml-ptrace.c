// Preloaded into linux.uml. Its kernel saves and restores the registers of its processes by ptrace(2) in a buffer of a
// size that it was built with (arch/x86/um/os-Linux/registers.c), 2,696 bytes in Debian's 6.1. Where the processor has
// more state than that (AMX alone is 8 KiB), the machine's kernel refuses a write that is not of the whole
// (xstate_regset_set in arch/x86/kernel/fpu/regset.c), and UML panics at its first process: "ptrace set fp regs
// failed". So a write is made whole here: what came, and zeros where the rest would be, which are marked as not in use.
//
// Such a write costs the machine's kernel an allocation of pages each time (vmalloc in the same function), and UML asks for
// one before each return to a process, mostly with what it has just read from there (userspace() in
// arch/um/os-Linux/skas/process.c). So what a process already has is not written.
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

// Of the XSAVE area (Intel SDM volume 1, 13.4): its header's first word says which components are in use. Those up to
// PKRU (bit 9) lie within what UML knows.
enum { xstate_bv = 512, most_bytes = 4096, slots = 256 };
static const uint64_t known_components = 0x3ff;
static uint8_t whole[1 << 16];

// What processes that stand still have, as far as that has been read or written.
static struct {
  pid_t pid;
  size_t length;
  uint8_t bytes[most_bytes];
} had[slots];

static long xstate(enum __ptrace_request request, pid_t pid, void *bytes, size_t *length) {
  struct iovec area = {bytes, *length};
  const long done = syscall(SYS_ptrace, request, pid, NT_X86_XSTATE, &area);
  *length = area.iov_len;
  return done;
}

static void remember(pid_t pid, const void *bytes, size_t length) {
  const unsigned slot = (unsigned)pid % slots;
  had[slot].pid = length > most_bytes ? 0 : pid;
  had[slot].length = length;
  if (length <= most_bytes) memcpy(had[slot].bytes, bytes, length);
}

static void forget(pid_t pid) {
  const unsigned slot = (unsigned)pid % slots;
  if (had[slot].pid == pid) had[slot].pid = 0;
}

static bool has(pid_t pid, const void *bytes, size_t length) {
  const unsigned slot = (unsigned)pid % slots;
  if (had[slot].pid != pid || had[slot].length != length) {
    if (length > most_bytes) return false;
    size_t read = length;
    had[slot].pid = 0;
    if (xstate(PTRACE_GETREGSET, pid, had[slot].bytes, &read) < 0) return false;
    had[slot].pid = pid;
    had[slot].length = read;
  }
  return had[slot].length == length && memcmp(had[slot].bytes, bytes, length) == 0;
}

static long get_xstate(pid_t pid, struct iovec *into) {
  const long done = xstate(PTRACE_GETREGSET, pid, into->iov_base, &into->iov_len);
  if (done >= 0) remember(pid, into->iov_base, into->iov_len);
  return done;
}

static long write_xstate(pid_t pid, const struct iovec *given) {
  static size_t whole_length;
  if (whole_length == 0) {
    size_t length = sizeof whole;
    if (xstate(PTRACE_GETREGSET, pid, whole, &length) < 0) return -1;
    whole_length = length;
  }
  size_t length = given->iov_len;
  if (length >= whole_length || length < xstate_bv + sizeof(uint64_t))
    return xstate(PTRACE_SETREGSET, pid, given->iov_base, &length);
  memcpy(whole, given->iov_base, length);
  memset(whole + length, 0, whole_length - length);
  uint64_t components;
  memcpy(&components, whole + xstate_bv, sizeof components);
  components &= known_components;
  memcpy(whole + xstate_bv, &components, sizeof components);
  length = whole_length;
  return xstate(PTRACE_SETREGSET, pid, whole, &length);
}

static long set_xstate(pid_t pid, const struct iovec *given) {
  if (has(pid, given->iov_base, given->iov_len)) return 0;
  forget(pid);
  return write_xstate(pid, given);
}

long ptrace(enum __ptrace_request request, ...) {
  va_list arguments;
  va_start(arguments, request);
  const pid_t pid = va_arg(arguments, pid_t);
  void *const address = va_arg(arguments, void *);
  void *const data = va_arg(arguments, void *);
  va_end(arguments);
  const bool of_xstate = (uintptr_t)address == NT_X86_XSTATE;
  if (request == PTRACE_SETREGSET && of_xstate) return set_xstate(pid, data);
  if (request == PTRACE_GETREGSET && of_xstate) return get_xstate(pid, data);
  if (request < PTRACE_PEEKTEXT || request > PTRACE_PEEKUSER) {
    // The general registers are apart from these. Whatever else is asked for may let the process run, or be of a new one.
    if (request != PTRACE_GETREGS && request != PTRACE_SETREGS) forget(pid);
    return syscall(SYS_ptrace, request, pid, address, data);
  }
  // The system call writes the word where glibc's function returns it.
  long word = 0;
  if (syscall(SYS_ptrace, request, pid, address, &word) < 0) return -1;
  errno = 0;
  return word;
}
