// Vectors of PLUMBLINE_LANES floats for one instruction set; included by foreach_isa.h inside its namespace.
typedef float vec __attribute__((vector_size(4 * PLUMBLINE_LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * PLUMBLINE_LANES)));
typedef uint32_t uvec __attribute__((vector_size(4 * PLUMBLINE_LANES)));
typedef float quad __attribute__((vector_size(16)));
static constexpr int kLanes = PLUMBLINE_LANES;

#define PLUMBLINE_INLINE static inline __attribute__((always_inline))

PLUMBLINE_INLINE vec load(const float* p) {
  vec v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
PLUMBLINE_INLINE void store(float* p, vec v) { std::memcpy(p, &v, sizeof(v)); }
// The first n < kLanes lanes; a tail goes through the same arithmetic as whole vectors, so a result does not depend on where a cut falls.
PLUMBLINE_INLINE vec load_partial(const float* p, int64_t n, float rest) {
  float lane[PLUMBLINE_LANES];
  for (int i = 0; i < kLanes; ++i) lane[i] = i < n ? p[i] : rest;
  return load(lane);
}
PLUMBLINE_INLINE void store_partial(float* p, vec v, int64_t n) {
  float lane[PLUMBLINE_LANES];
  store(lane, v);
  for (int64_t i = 0; i < n; ++i) p[i] = lane[i];
}
PLUMBLINE_INLINE vec splat(float x) { return x - vec{}; }
PLUMBLINE_INLINE ivec splat_int(int32_t x) { return x - ivec{}; }

PLUMBLINE_INLINE vec fma(vec a, vec b, vec c) {  // a * b + c
#if PLUMBLINE_LANES == 16
  return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif PLUMBLINE_LANES == 8
  return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

PLUMBLINE_INLINE vec max(vec a, vec b) { return a > b ? a : b; }

// Widens kLanes bf16 values.
PLUMBLINE_INLINE vec load_bf16(const uint16_t* p) {
#if PLUMBLINE_LANES == 16
  // the zero-masking form: g++ 12 warns of the undefined register inside the plain one
  return (vec)((ivec)_mm512_maskz_cvtepu16_epi32((__mmask16)-1, _mm256_loadu_si256((const __m256i*)p)) << 16);
#elif PLUMBLINE_LANES == 8
  return (vec)_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
#else
  ivec wide;
  for (int i = 0; i < kLanes; ++i) wide[i] = (int32_t)((uint32_t)p[i] << 16);
  return (vec)wide;
#endif
}

// Sum of the lanes, halves added pairwise (a fixed tree).
PLUMBLINE_INLINE float sum_lanes(vec v) {
  float lane[PLUMBLINE_LANES];
  store(lane, v);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  return lane[0];
}
PLUMBLINE_INLINE float max_lanes(vec v) {
  float best = v[0];
  for (int i = 1; i < kLanes; ++i) best = v[i] > best ? v[i] : best;
  return best;
}

// e^x for x <= 0 (or NaN, which stays), relative error below 1.1e-7 (measured over the normal range); 0 below -87.3. Cody-Waite
// reduction by ln 2 in two parts, degree-7 polynomial on [-ln2/2, ln2/2].
PLUMBLINE_INLINE vec exp_nonpositive(vec x) {
  const vec limit = splat(-87.336544f), magic = splat(12582912.0f);
  const vec clamped = max(limit, x);  // in this order NaN passes, and stays in p
  const vec shifted = fma(clamped, splat(1.44269504f), magic);
  const vec n = shifted - magic;
  vec r = fma(n, splat(-0.693145752f), clamped);
  r = fma(n, splat(-1.42860677e-6f), r);
  vec p = splat(1.9841270e-4f);
  p = fma(p, r, splat(1.3888889e-3f));
  p = fma(p, r, splat(8.3333333e-3f));
  p = fma(p, r, splat(4.1666667e-2f));
  p = fma(p, r, splat(1.6666667e-1f));
  p = fma(p, r, splat(0.5f));
  p = fma(p, r, splat(1.0f));
  p = fma(p, r, splat(1.0f));
  const uvec scale = ((uvec)shifted << 23) + (uvec)splat_int(127 << 23);  // 2^n; the bits of `magic` leave at the top
  return x < limit ? splat(0.0f) : p * (vec)scale;
}
