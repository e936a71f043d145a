// Compiles the file named by PLUMBLINE_INL once per instruction set. No include guard on purpose.
//
//   #include <cmath> ...                       everything the kernels need, before this file
//   #define PLUMBLINE_INL "norm_inl.h"
//   #include "foreach_isa.h"
//
// An _inl.h file includes nothing and calls no std:: template that might not be inlined: a copy of it compiled for AVX-512 could
// be the one that the linker keeps for all. Everything in it is `static` or `inline` inside its namespace.
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // g++ 12's own AVX-512 header warns about itself (GCC bug 105593)
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

#define PLUMBLINE_LANES 4
namespace plumbline {
namespace isa_baseline {
#include "simd_inl.h"
#include PLUMBLINE_INL
}  // namespace isa_baseline
}  // namespace plumbline
#undef PLUMBLINE_LANES

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#define PLUMBLINE_LANES 8
namespace plumbline {
namespace isa_avx2 {
#include "simd_inl.h"
#include PLUMBLINE_INL
}  // namespace isa_avx2
}  // namespace plumbline
#undef PLUMBLINE_LANES
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#define PLUMBLINE_LANES 16
namespace plumbline {
namespace isa_avx512 {
#include "simd_inl.h"
#include PLUMBLINE_INL
}  // namespace isa_avx512
}  // namespace plumbline
#undef PLUMBLINE_LANES
#pragma GCC pop_options
#endif
#undef PLUMBLINE_INL
