/* Makes a process take this CPU for an older one of x86-64: preloaded by .ci/on_cpu.
 *
 * ONNX Runtime, oneDNN, MKL and PyTorch choose their kernels by the CPUID instruction, and ONNX
 * Runtime has no switch for it. Linux can let CPUID fault (arch_prctl(2), ARCH_SET_CPUID) where the
 * CPU and its hypervisor allow it (cpuid_fault in /proc/cpuinfo). Each CPUID is then answered here,
 * with bits cleared; all else runs at full speed. ON_CPU names what is left:
 *   avx512  no VNNI, AMX, bfloat16 or float16 (such as Skylake-X)
 *   avx2    no AVX-512 and none of the above (such as Haswell, Zen 2)
 *   sse4    no AVX either
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_SET_CPUID 0x1012
#define BIT(n) (1u << (n))

typedef int (*Sigaction)(int, const struct sigaction *, struct sigaction *);
enum { SSE4, AVX2, AVX512 };

static int level;

static Sigaction real_sigaction(void) {
  return (Sigaction)dlsym(RTLD_NEXT, "sigaction");
}

static void let_cpuid(int work) {
  syscall(SYS_arch_prctl, ARCH_SET_CPUID, work);
}

/* The bits have the numbers of Intel's manual, volume 2A, CPUID. */
static void hide(unsigned leaf, unsigned sub, unsigned *a, unsigned *b, unsigned *c, unsigned *d) {
  if (leaf == 7 && sub == 0) {
    *c &= ~BIT(11);                                       /* AVX512_VNNI */
    *d &= ~(BIT(22) | BIT(23) | BIT(24) | BIT(25));       /* AMX, AVX512_FP16 */
    if (level < AVX512) {
      *b &= ~(BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31));
      *c &= ~(BIT(1) | BIT(6) | BIT(12) | BIT(14));       /* VBMI, VBMI2, BITALG, VPOPCNTDQ */
      *d &= ~(BIT(2) | BIT(3) | BIT(8));
    }
    if (level < AVX2)
      *b &= ~BIT(5);
  }
  if (leaf == 7 && sub == 1) {
    *a &= ~(BIT(4) | BIT(5) | BIT(21) | BIT(23));         /* AVX_VNNI, AVX512_BF16, AMX, AVX_IFMA */
    *d &= ~(BIT(4) | BIT(5) | BIT(10) | BIT(19));         /* AVX_VNNI_INT8, _INT16, AVX10 */
  }
  if (leaf == 1 && level < AVX2)
    *c &= ~(BIT(12) | BIT(27) | BIT(28) | BIT(29));       /* FMA, OSXSAVE, AVX, F16C */
}

static void on_fault(int number, siginfo_t *info, void *context) {
  greg_t *at = ((ucontext_t *)context)->uc_mcontext.gregs;
  const unsigned char *code = (const unsigned char *)at[REG_RIP];
  unsigned a, b, c, d;

  if (info->si_code != SI_KERNEL || code[0] != 0x0f || code[1] != 0xa2) {
    signal(number, SIG_DFL); /* another fault: returning repeats it */
    return;
  }
  let_cpuid(1);
  __cpuid_count((unsigned)at[REG_RAX], (unsigned)at[REG_RCX], a, b, c, d);
  let_cpuid(0);
  hide((unsigned)at[REG_RAX], (unsigned)at[REG_RCX], &a, &b, &c, &d);
  at[REG_RAX] = a, at[REG_RBX] = b, at[REG_RCX] = c, at[REG_RDX] = d;
  at[REG_RIP] += 2;
}

/* Nobody else may take this signal: pytest's faulthandler would. */
int sigaction(int number, const struct sigaction *act, struct sigaction *old) {
  return real_sigaction()(number, number == SIGSEGV ? NULL : act, old);
}

static void end(const char *reason) {
  fprintf(stderr, "other_cpu: %s\n", reason);
  _exit(2);
}

__attribute__((constructor)) static void start(void) {
  const char *name = getenv("ON_CPU");
  struct sigaction act;

  if (!name)
    end("ON_CPU is not set: avx512, avx2 or sse4");
  else if (!strcmp(name, "avx512"))
    level = AVX512;
  else if (!strcmp(name, "avx2"))
    level = AVX2;
  else if (!strcmp(name, "sse4"))
    level = SSE4;
  else
    end("ON_CPU must be avx512, avx2 or sse4");
  memset(&act, 0, sizeof act);
  act.sa_sigaction = on_fault;
  act.sa_flags = SA_SIGINFO | SA_NODEFER;
  real_sigaction()(SIGSEGV, &act, NULL);
  if (syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0))
    end("CPUID cannot be made to fault here");
}
