// Preloaded into linux.uml. Its kernel saves and restores the registers of its processes by ptrace(2) in a buffer of a
// size that it was built with (arch/x86/um/os-Linux/registers.c), 2,696 bytes in Debian's 6.1. Where the processor has
// more state than that (AMX alone is 8 KiB), the machine's kernel refuses a write that is not of the whole
// (xstate_regset_set in arch/x86/kernel/fpu/regset.c), and UML panics at its first process: "ptrace set fp regs
// failed". So a write is made whole here: what came, and zeros where the rest would be, which are marked as not in use.
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

// Of the XSAVE area (Intel SDM volume 1, 13.4): its header's first word says which components are in use. Those up to
// PKRU (bit 9) lie within what UML knows.
enum { xstate_bv = 512 };
static const uint64_t known_components = 0x3ff;
static uint8_t whole[1 << 16];

static long set_xstate(pid_t pid, const struct iovec *given) {
  static size_t whole_length;
  if (whole_length == 0) {
    struct iovec all = {whole, sizeof whole};
    if (syscall(SYS_ptrace, PTRACE_GETREGSET, pid, NT_X86_XSTATE, &all) < 0) return -1;
    whole_length = all.iov_len;
  }
  if (given->iov_len >= whole_length || given->iov_len < xstate_bv + sizeof(uint64_t))
    return syscall(SYS_ptrace, PTRACE_SETREGSET, pid, NT_X86_XSTATE, given);
  memcpy(whole, given->iov_base, given->iov_len);
  memset(whole + given->iov_len, 0, whole_length - given->iov_len);
  uint64_t components;
  memcpy(&components, whole + xstate_bv, sizeof components);
  components &= known_components;
  memcpy(whole + xstate_bv, &components, sizeof components);
  struct iovec all = {whole, whole_length};
  return syscall(SYS_ptrace, PTRACE_SETREGSET, pid, NT_X86_XSTATE, &all);
}

long ptrace(enum __ptrace_request request, ...) {
  va_list arguments;
  va_start(arguments, request);
  const pid_t pid = va_arg(arguments, pid_t);
  void *const address = va_arg(arguments, void *);
  void *const data = va_arg(arguments, void *);
  va_end(arguments);
  if (request == PTRACE_SETREGSET && (uintptr_t)address == NT_X86_XSTATE) return set_xstate(pid, data);
  if (request < PTRACE_PEEKTEXT || request > PTRACE_PEEKUSER) return syscall(SYS_ptrace, request, pid, address, data);
  // The system call writes the word where glibc's function returns it.
  long word = 0;
  if (syscall(SYS_ptrace, request, pid, address, &word) < 0) return -1;
  errno = 0;
  return word;
}
