#pragma once
// Instruction sets are chosen at run time. A kernel body lives in `<op>_inl.h` and is compiled once per set by
// foreach_isa.h, into namespaces isa_baseline, isa_avx2, isa_avx512 (x86-64; elsewhere the baseline alone).
#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace plumbline {

enum class Isa { baseline = 0, avx2 = 1, avx512 = 2 };

#if defined(__x86_64__)
inline bool has_f16c() {  // __builtin_cpu_supports knows the word from g++ 11 on only
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

inline Isa best_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && has_f16c())
    return Isa::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c()) return Isa::avx2;
#endif
  return Isa::baseline;
}

// PLUMBLINE_PICK(isa, fn): the variant of function `fn` for this instruction set.
#if defined(__x86_64__)
#define PLUMBLINE_PICK(isa, fn) \
  ((isa) == Isa::avx512 ? isa_avx512::fn : (isa) == Isa::avx2 ? isa_avx2::fn : isa_baseline::fn)
#else
#define PLUMBLINE_PICK(isa, fn) (isa_baseline::fn)
#endif

}  // namespace plumbline
