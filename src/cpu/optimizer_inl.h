// Kernels of optimizer.cpp.
#include "squares_inl.h"

typedef uint32_t uvec __attribute__((vector_size(4 * PLUMBLINE_LANES)));
typedef uint16_t narrow_vec __attribute__((vector_size(2 * PLUMBLINE_LANES)));

template <typename Bits>
PLUMBLINE_INLINE Bits bits_at(const void* x, int64_t i) {
  Bits bits;
  std::memcpy(&bits, (const char*)x + i * (int64_t)sizeof(Bits), sizeof(Bits));
  return bits;
}

// The first index whose exponent is all ones, or -1. Blocks are tested without a branch, then the guilty one is searched.
template <typename Bits, Bits exponent>
static int64_t first_non_finite_of(const void* x, int64_t size) {
  constexpr int64_t kBlock = 512;
  for (int64_t start = 0; start < size; start += kBlock) {
    const int64_t end = size - start < kBlock ? size : start + kBlock;
    Bits bad = 0;
    for (int64_t i = start; i < end; ++i) bad |= (Bits)((bits_at<Bits>(x, i) & exponent) == exponent);
    if (!bad) continue;
    for (int64_t i = start; i < end; ++i)
      if ((bits_at<Bits>(x, i) & exponent) == exponent) return i;
  }
  return -1;
}
static int64_t first_non_finite_f32(const void* x, int64_t size) { return first_non_finite_of<uint32_t, 0x7f800000u>(x, size); }
static int64_t first_non_finite_bf16(const void* x, int64_t size) { return first_non_finite_of<uint16_t, 0x7f80>(x, size); }

PLUMBLINE_INLINE vec square_root(vec x) {
#if PLUMBLINE_LANES == 16
  return (vec)_mm512_maskz_sqrt_ps((__mmask16)-1, (__m512)x);
#elif PLUMBLINE_LANES == 8
  return (vec)_mm256_sqrt_ps((__m256)x);
#elif defined(__x86_64__)
  return (vec)_mm_sqrt_ps((__m128)x);
#else
  for (int i = 0; i < kLanes; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}

// As float_to_bf16 of dtype.h.
PLUMBLINE_INLINE void store_bf16(uint16_t* p, vec x) {
  const uvec bits = (uvec)x;
  const uvec rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uvec value = x != x ? (bits >> 16) | 0x40u : rounded;
  const narrow_vec narrow = __builtin_convertvector(value, narrow_vec);
  std::memcpy(p, &narrow, sizeof(narrow));
}

struct Adam {
  vec weight, first, second;
};
PLUMBLINE_INLINE Adam adamw_step(const AdamWFactors& f, vec w, vec gradient, vec m, vec v) {
  const vec g = gradient * f.clip;
  m = fma(splat(f.beta1), m, f.keep1 * g);
  v = fma(splat(f.beta2), v, f.keep2 * g * g);
  const vec bottom = fma(square_root(v), splat(f.inverse_root), splat(f.epsilon));
  return {w - fma(w, splat(f.shrink), f.rate * m / bottom), m, v};
}

static void adamw_range(const AdamWFactors& f, float* w, uint16_t* working, const float* gradient, float* first, float* second,
                        int64_t size) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    const Adam next = adamw_step(f, load(w + i), load(gradient + i), load(first + i), load(second + i));
    store(w + i, next.weight);
    store(first + i, next.first);
    store(second + i, next.second);
    if (working) store_bf16(working + i, next.weight);
  }
  if (i == size) return;
  const int64_t n = size - i;
  const Adam next = adamw_step(f, load_partial(w + i, n, 0.0f), load_partial(gradient + i, n, 0.0f), load_partial(first + i, n, 0.0f),
                               load_partial(second + i, n, 0.0f));
  store_partial(w + i, next.weight, n);
  store_partial(first + i, next.first, n);
  store_partial(second + i, next.second, n);
  for (int64_t k = 0; working && k < n; ++k) working[i + k] = float_to_bf16(w[i + k]);
}
