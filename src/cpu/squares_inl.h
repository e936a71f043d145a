// Sums of squares of f32, f16 or bf16 values in f64: shared by norm.cpp, optimizer.cpp and grad_norm.cpp.
typedef double dvec __attribute__((vector_size(4 * PLUMBLINE_LANES)));
typedef float half_vec __attribute__((vector_size(2 * PLUMBLINE_LANES)));

// Bytes that are fetched before their turn: the hardware's prefetchers stop where a page of 4 KB ends.
static constexpr int64_t kFetchAhead = 2048;

PLUMBLINE_INLINE half_vec load_half(const float* p) {
  half_vec v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
PLUMBLINE_INLINE dvec widen(half_vec x) {  // g++ 12 takes __builtin_convertvector apart into two conversions and their joining
#if PLUMBLINE_LANES == 16
  return (dvec)_mm512_maskz_cvtps_pd((__mmask8)-1, (__m256)x);
#elif PLUMBLINE_LANES == 8
  return (dvec)_mm256_cvtps_pd((__m128)x);
#else
  return __builtin_convertvector(x, dvec);
#endif
}
struct Wide {  // kLanes values in f64
  dvec low, high;
};
PLUMBLINE_INLINE Wide widen_both(vec v) {
#if PLUMBLINE_LANES == 16
  return {widen(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7)), widen(__builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15))};
#elif PLUMBLINE_LANES == 8
  return {widen(__builtin_shufflevector(v, v, 0, 1, 2, 3)), widen(__builtin_shufflevector(v, v, 4, 5, 6, 7))};
#else
  return {widen(__builtin_shufflevector(v, v, 0, 1)), widen(__builtin_shufflevector(v, v, 2, 3))};
#endif
}

struct F32 {
  typedef float Element;
  PLUMBLINE_INLINE float one(float x) { return x; }
  PLUMBLINE_INLINE Wide wide(const float* p) { return {widen(load_half(p)), widen(load_half(p + kLanes / 2))}; }
};
struct F16 {
  typedef uint16_t Element;
  PLUMBLINE_INLINE float one(uint16_t x) { return half_to_float(x); }
  PLUMBLINE_INLINE vec floats(const uint16_t* p) {
#if PLUMBLINE_LANES == 16
    return (vec)_mm512_maskz_cvtph_ps((__mmask16)-1, _mm256_loadu_si256((const __m256i*)p));
#elif PLUMBLINE_LANES == 8
    return (vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
    vec v;
    for (int i = 0; i < kLanes; ++i) v[i] = half_to_float(p[i]);
    return v;
#endif
  }
  PLUMBLINE_INLINE Wide wide(const uint16_t* p) { return widen_both(floats(p)); }
};
struct BF16 {
  typedef uint16_t Element;
  PLUMBLINE_INLINE float one(uint16_t x) { return bf16_to_float(x); }
  PLUMBLINE_INLINE vec floats(const uint16_t* p) { return load_bf16(p); }
  PLUMBLINE_INLINE Wide wide(const uint16_t* p) { return widen_both(floats(p)); }
};

PLUMBLINE_INLINE dvec add_square(dvec x, dvec sum) {  // the product is exact, so that a fused one gives the same bits
#if PLUMBLINE_LANES == 16
  return (dvec)_mm512_fmadd_pd((__m512d)x, (__m512d)x, (__m512d)sum);
#elif PLUMBLINE_LANES == 8
  return (dvec)_mm256_fmadd_pd((__m256d)x, (__m256d)x, (__m256d)sum);
#else
  return x * x + sum;
#endif
}

constexpr int kSums = 16, kSumVectors = kSums / kLanes;  // lanes of f64 whatever the instruction set: the same bits everywhere

// The lanes' sum, after the last elements, fewer than 32, have gone to them one by one.
template <typename Type>
PLUMBLINE_INLINE double finish_squares(const Wide* sum, const typename Type::Element* x, int64_t left) {
  double lane[kSums];
  std::memcpy(lane, sum, sizeof(lane));
  for (int k = 0; k < left; ++k) lane[k % kSums] += (double)Type::one(x[k]) * (double)Type::one(x[k]);
  for (int width = kSums / 2; width > 0; width /= 2)
    for (int k = 0; k < width; ++k) lane[k] += lane[k + width];
  return lane[0];
}

// In f64, where squares of f32 are exact.
template <typename Type>
static double sum_squares_range(const void* data, int64_t size) {
  const typename Type::Element* x = (const typename Type::Element*)data;
  Wide sum[kSumVectors] = {};
  int64_t i = 0;
  for (; i + kSums <= size; i += kSums) {
    __builtin_prefetch((const char*)(x + i) + kFetchAhead);  // past the end is harmless
    for (int v = 0; v < kSumVectors; ++v) {
      const Wide value = Type::wide(x + i + v * kLanes);
      sum[v].low = add_square(value.low, sum[v].low);
      sum[v].high = add_square(value.high, sum[v].high);
    }
  }
  return finish_squares<Type>(sum, x + i, size - i);
}

// For a norm that is rounded to f32 anyway: squares of 16-bit values, exact in f32, meet there in twos, and only then go on in f64. To
// widen every value takes longer than to read it. No fma: the same bits without one.
template <typename Type>
static double sum_squares_in_twos(const void* data, int64_t size) {
  const uint16_t* x = (const uint16_t*)data;
  Wide sum[kSumVectors] = {};
  int64_t i = 0;
  for (; i + 2 * kSums <= size; i += 2 * kSums) {
    __builtin_prefetch((const char*)(x + i) + kFetchAhead);
    for (int v = 0; v < kSumVectors; ++v) {
      const vec a = Type::floats(x + i + v * kLanes), b = Type::floats(x + i + kSums + v * kLanes);
      const Wide two = widen_both(a * a + b * b);
      sum[v].low += two.low;
      sum[v].high += two.high;
    }
  }
  return finish_squares<Type>(sum, x + i, size - i);
}

static inline double sum_squares_f32(const void* x, int64_t size) { return sum_squares_range<F32>(x, size); }
static inline double sum_squares_f16(const void* x, int64_t size) { return sum_squares_range<F16>(x, size); }
static inline double sum_squares_bf16(const void* x, int64_t size) { return sum_squares_range<BF16>(x, size); }
static inline double norm_squares_f16(const void* x, int64_t size) { return sum_squares_in_twos<F16>(x, size); }
// Squares of bf16 may leave the range of f32. Once more where the sum tells that one overflowed, or that what was lost below may count.
static inline double norm_squares_bf16(const void* x, int64_t size) {
  const double sum = sum_squares_in_twos<BF16>(x, size);
  return sum > 0x1p-80 && sum < 0x1p120 ? sum : sum_squares_range<BF16>(x, size);
}
