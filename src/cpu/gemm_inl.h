// Packed GEMM for one instruction set (see gemm.cpp). Scheme: Goto & van de Geijn, "Anatomy of High-Performance Matrix
// Multiplication", 2008: a kTileRows x kTileCols block of C stays in registers while a panel of B (kTileCols wide, in L1) and
// rows of A (in L2) stream past.
#if PLUMBLINE_LANES == 16
static constexpr int kTileRows = 12, kTileVecs = 2;  // 24 of 32 registers hold sums
#elif PLUMBLINE_LANES == 8
static constexpr int kTileRows = 6, kTileVecs = 2;   // 12 of 16
#else
static constexpr int kTileRows = 4, kTileVecs = 2;   // 8 of 16
#endif
static constexpr int kTileCols = kTileVecs * kLanes;
static constexpr int64_t kPrefetchRows = 16;  // fetched ahead while packing: between nothing and 18 % of a gradient in four pairs of runs (Zen 3)

// Interleaving within each group of four lanes (128 bits), which is one cheap instruction on every set.
#if PLUMBLINE_LANES == 16
PLUMBLINE_INLINE vec low_singles(vec a, vec b) { return (vec)_mm512_unpacklo_ps((__m512)a, (__m512)b); }
PLUMBLINE_INLINE vec high_singles(vec a, vec b) { return (vec)_mm512_unpackhi_ps((__m512)a, (__m512)b); }
PLUMBLINE_INLINE vec low_pairs(vec a, vec b) { return (vec)_mm512_unpacklo_pd((__m512d)a, (__m512d)b); }
PLUMBLINE_INLINE vec high_pairs(vec a, vec b) { return (vec)_mm512_unpackhi_pd((__m512d)a, (__m512d)b); }
#elif PLUMBLINE_LANES == 8
PLUMBLINE_INLINE vec low_singles(vec a, vec b) { return (vec)_mm256_unpacklo_ps((__m256)a, (__m256)b); }
PLUMBLINE_INLINE vec high_singles(vec a, vec b) { return (vec)_mm256_unpackhi_ps((__m256)a, (__m256)b); }
PLUMBLINE_INLINE vec low_pairs(vec a, vec b) { return (vec)_mm256_unpacklo_pd((__m256d)a, (__m256d)b); }
PLUMBLINE_INLINE vec high_pairs(vec a, vec b) { return (vec)_mm256_unpackhi_pd((__m256d)a, (__m256d)b); }
#else
PLUMBLINE_INLINE vec low_singles(vec a, vec b) { return __builtin_shuffle(a, b, ivec{0, 4, 1, 5}); }
PLUMBLINE_INLINE vec high_singles(vec a, vec b) { return __builtin_shuffle(a, b, ivec{2, 6, 3, 7}); }
PLUMBLINE_INLINE vec low_pairs(vec a, vec b) { return __builtin_shuffle(a, b, ivec{0, 1, 4, 5}); }
PLUMBLINE_INLINE vec high_pairs(vec a, vec b) { return __builtin_shuffle(a, b, ivec{2, 3, 6, 7}); }
#endif

// Group g of four lanes comes from row 4 * g: four floats each.
PLUMBLINE_INLINE vec load_groups(const float* p, int64_t row_stride) {
#if PLUMBLINE_LANES == 16
  const __m256 low = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(p + 4 * row_stride), 1);
  const __m256 high =
      _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p + 8 * row_stride)), _mm_loadu_ps(p + 12 * row_stride), 1);
  return (vec)_mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
#elif PLUMBLINE_LANES == 8
  return (vec)_mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(p + 4 * row_stride), 1);
#else
  (void)row_stride;
  return load(p);
#endif
}

// panel[k * kTileCols + j] = rows[j * stride + k], j < kTileCols: 4 x kLanes blocks, transposed in registers.
static inline void pack_transposed_full(const float* rows, int64_t stride, int64_t K, float* panel) {
  for (int v = 0; v < kTileVecs; ++v, rows += kLanes * stride, panel += kLanes) {
    int64_t k = 0;
    for (; k + 4 <= K; k += 4) {
      const vec r0 = load_groups(rows + k, stride), r1 = load_groups(rows + stride + k, stride);
      const vec r2 = load_groups(rows + 2 * stride + k, stride), r3 = load_groups(rows + 3 * stride + k, stride);
      const vec a = low_singles(r0, r1), b = low_singles(r2, r3), c = high_singles(r0, r1), d = high_singles(r2, r3);
      float* const to = panel + k * kTileCols;
      store(to, low_pairs(a, b));
      store(to + kTileCols, high_pairs(a, b));
      store(to + 2 * kTileCols, low_pairs(c, d));
      store(to + 3 * kTileCols, high_pairs(c, d));
    }
    for (; k < K; ++k)
      for (int j = 0; j < kLanes; ++j) panel[k * kTileCols + j] = rows[j * stride + k];
  }
}

static inline void pack_transposed(const float* rows, int64_t stride, int64_t K, int64_t cols, float* panel) {
  if (cols == kTileCols) return pack_transposed_full(rows, stride, K, panel);
  for (int64_t k = 0; k < K; ++k)
    for (int64_t j = 0; j < kTileCols; ++j) panel[k * kTileCols + j] = j < cols ? rows[j * stride + k] : 0.0f;
}

// panel[k * kTileCols + j] = rows[k * stride + j]
static inline void pack_straight(const float* rows, int64_t stride, int64_t K, int64_t cols, float* panel) {
  if (cols == kTileCols) {
    for (int64_t k = 0; k < K; ++k) {
      __builtin_prefetch(rows + (k + kPrefetchRows) * stride);
      for (int v = 0; v < kTileVecs; ++v) store(panel + k * kTileCols + v * kLanes, load(rows + k * stride + v * kLanes));
    }
    return;
  }
  for (int64_t k = 0; k < K; ++k)
    for (int64_t j = 0; j < kTileCols; ++j) panel[k * kTileCols + j] = j < cols ? rows[k * stride + j] : 0.0f;
}

static inline void widen_row(const uint16_t* from, float* to, int64_t size) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) store(to + i, load_bf16(from + i));
  for (; i < size; ++i) {
    const uint32_t wide = (uint32_t)from[i] << 16;
    std::memcpy(to + i, &wide, 4);
  }
}

// B[k0 .. k0+K, 0 .. N) as panels of kTileCols columns, zero-filled to the right. `wide` holds one panel of widened bf16.
static inline void pack_b(const GemmCall& call, int64_t k0, int64_t K, float* panels, float* wide) {
  for (int64_t j = 0; j < call.N; j += kTileCols, panels += K * kTileCols) {
    const int64_t cols = call.N - j < kTileCols ? call.N - j : kTileCols;
    const bool transposed = call.b_row == 1;
    int64_t stride = transposed ? call.b_col : call.b_row;
    const int64_t offset = k0 * call.b_row + j * call.b_col;
    const float* rows = (const float*)call.b + offset;
    if (call.b_is_bf16) {
      const uint16_t* const narrow = (const uint16_t*)call.b + offset;
      const int64_t count = transposed ? cols : K, length = transposed ? K : cols;
      const int64_t padded = (length + 7) / 8 * 8;
      for (int64_t r = 0; r < count; ++r) widen_row(narrow + r * stride, wide + r * padded, length);
      rows = wide;
      stride = padded;
    }
    if (transposed)
      pack_transposed(rows, stride, K, cols, panels);
    else
      pack_straight(rows, stride, K, cols, panels);
  }
}

// A[i0 .. i0+M, k0 .. k0+K) where A's columns are contiguous (a_row = 1): panels of kTileRows rows, zero-filled at the bottom.
static inline void pack_a(const GemmCall& call, int64_t i0, int64_t M, int64_t k0, int64_t K, float* panels) {
  for (int64_t i = 0; i < M; i += kTileRows, panels += K * kTileRows) {
    const float* const from = call.a + (i0 + i) + k0 * call.a_col;
    if (M - i >= kTileRows) {
      for (int64_t k = 0; k < K; ++k) {
        __builtin_prefetch(from + (k + kPrefetchRows) * call.a_col);
        std::memcpy(panels + k * kTileRows, from + k * call.a_col, 4 * kTileRows);
      }
    } else {
      for (int64_t k = 0; k < K; ++k)
        for (int64_t r = 0; r < kTileRows; ++r) panels[k * kTileRows + r] = i + r < M ? from[k * call.a_col + r] : 0.0f;
    }
  }
}

// Rows of A that lie a page or more apart share few cache sets and need a page table entry each: they are copied together.
PLUMBLINE_INLINE bool copies_a(const GemmCall& call) { return call.a_col == 1 && call.a_row >= kFarApart && call.N >= kFarApart / 8; }

static inline void copy_a(const GemmCall& call, int64_t i0, int64_t M, int64_t k0, int64_t K, float* rows) {
  for (int64_t i = 0; i < M; ++i) std::memcpy(rows + i * K, call.a + (i0 + i) * call.a_row + k0, (size_t)K * sizeof(float));
}

// c (+)= a b over K. Row r of A at a_row_ptr(r), consecutive k `a_step` apart. Only rows x cols of the block are stored.
PLUMBLINE_INLINE void micro_kernel(const float* a, int64_t a_row, int64_t a_step, int64_t last_row, const float* panel, int64_t K,
                                   float* c, int64_t ldc, int64_t rows, int64_t cols, bool add) {
  const float* row[kTileRows];
  for (int r = 0; r < kTileRows; ++r) row[r] = a + (r < last_row ? r : last_row) * a_row;
  vec sum[kTileRows][kTileVecs];
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kTileVecs; ++v) sum[r][v] = vec{};
  for (int64_t k = 0; k < K; ++k, panel += kTileCols) {
    vec b[kTileVecs];
#pragma GCC unroll 4
    for (int v = 0; v < kTileVecs; ++v) b[v] = load(panel + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) {
      const vec x = splat(row[r][k * a_step]);
#pragma GCC unroll 4
      for (int v = 0; v < kTileVecs; ++v) sum[r][v] = fma(x, b[v], sum[r][v]);
    }
  }
  if (rows == kTileRows && cols == kTileCols) {
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kTileVecs; ++v) {
        float* const to = c + r * ldc + v * kLanes;
        store(to, add ? load(to) + sum[r][v] : sum[r][v]);
      }
    return;
  }
  float block[kTileRows * kTileCols];
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kTileVecs; ++v) store(block + r * kTileCols + v * kLanes, sum[r][v]);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t j = 0; j < cols; ++j) c[r * ldc + j] = add ? c[r * ldc + j] + block[r * kTileCols + j] : block[r * kTileCols + j];
}

static void micro_rows(const float* a, int64_t a_row, const float* panel, int64_t K, float* c, int64_t ldc, int64_t rows, int64_t cols,
                       bool add) {
  micro_kernel(a, a_row, 1, rows - 1, panel, K, c, ldc, rows, cols, add);
}
static void micro_packed(const float* a, const float* panel, int64_t K, float* c, int64_t ldc, int64_t rows, int64_t cols, bool add) {
  micro_kernel(a, 1, kTileRows, kTileRows - 1, panel, K, c, ldc, rows, cols, add);
}

static inline int64_t panel_floats(int64_t N) { return (N + kTileCols - 1) / kTileCols * kTileCols; }

static size_t workspace_floats(const GemmCall& call) {
  const int64_t K = block_depth(call.K);
  const int64_t rows = call.M < kBlockRows ? call.M : kBlockRows;
  const int64_t packed_a = call.a_col == 1 && !copies_a(call) ? 0 : (rows + kTileRows - 1) / kTileRows * kTileRows * K;
  const int64_t wide = call.b_is_bf16 ? kTileCols * (K + 8) : 0;
  return (size_t)(panel_floats(call.N) * K + packed_a + wide);
}

static void multiply(const GemmCall& call, float* workspace) {
  const int64_t depth = block_depth(call.K);
  float* const packed_b = workspace;
  float* const wide = packed_b + panel_floats(call.N) * depth;
  float* const packed_a = wide + (call.b_is_bf16 ? kTileCols * (depth + 8) : 0);
  for (int64_t k0 = 0; k0 < call.K; k0 += depth) {
    const int64_t K = call.K - k0 < depth ? call.K - k0 : depth;
    const bool add = k0 > 0 || call.accumulate;
    pack_b(call, k0, K, packed_b, wide);
    for (int64_t i0 = 0; i0 < call.M; i0 += kBlockRows) {
      const int64_t M = call.M - i0 < kBlockRows ? call.M - i0 : kBlockRows;
      const bool panels = call.a_col != 1, copied = copies_a(call);
      if (panels) pack_a(call, i0, M, k0, K, packed_a);
      if (copied) copy_a(call, i0, M, k0, K, packed_a);
      const float* const rows_of_a = copied ? packed_a : call.a + i0 * call.a_row + k0;
      const int64_t a_row = copied ? K : call.a_row;
      for (int64_t j = 0; j < call.N; j += kTileCols) {
        const int64_t cols = call.N - j < kTileCols ? call.N - j : kTileCols;
        const float* const panel = packed_b + j * K;
        for (int64_t i = 0; i < M; i += kTileRows) {
          const int64_t rows = M - i < kTileRows ? M - i : kTileRows;
          float* const c = call.c + (i0 + i) * call.ldc + j;
          if (panels)
            micro_packed(packed_a + i * K, panel, K, c, call.ldc, rows, cols, add);
          else
            micro_rows(rows_of_a + i * a_row, a_row, panel, K, c, call.ldc, rows, cols, add);
        }
      }
    }
  }
}
