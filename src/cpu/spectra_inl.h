// Kernels of spectra.cpp.
#include "squares_inl.h"

PLUMBLINE_INLINE dvec load_doubles(const double* p) {
  dvec v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
PLUMBLINE_INLINE void store_doubles(double* p, dvec v) { std::memcpy(p, &v, sizeof(v)); }
PLUMBLINE_INLINE dvec fma_doubles(dvec a, dvec b, dvec c) {
#if PLUMBLINE_LANES == 16
  return (dvec)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif PLUMBLINE_LANES == 8
  return (dvec)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#else
  return a * b + c;
#endif
}
PLUMBLINE_INLINE double sum_doubles(dvec v) {
  double lane[kLanes / 2];
  store_doubles(lane, v);
  for (int width = kLanes / 4; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  return lane[0];
}

// Rows first .. first + rows of element (i, k), at i * row_stride + k * depth_stride, columns from .. from + columns, as f64 rows of
// kGramDepth. The rest is 0.
template <typename Type>
static void pack_rows(const void* data, int64_t row_stride, int64_t depth_stride, int64_t rows, int64_t columns, double* out) {
  const typename Type::Element* x = (const typename Type::Element*)data;
  std::memset(out, 0, sizeof(double) * kGramRows * kGramDepth);
  if (depth_stride == 1) {
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t k = 0; k < columns; ++k) out[i * kGramDepth + k] = (double)Type::one(x[i * row_stride + k]);
  } else {
    for (int64_t k = 0; k < columns; ++k)
      for (int64_t i = 0; i < rows; ++i) out[i * kGramDepth + k] = (double)Type::one(x[i * row_stride + k * depth_stride]);
  }
}
static void pack_rows_f32(const void* x, int64_t row_stride, int64_t depth_stride, int64_t rows, int64_t columns, double* out) { pack_rows<F32>(x, row_stride, depth_stride, rows, columns, out); }
static void pack_rows_f16(const void* x, int64_t row_stride, int64_t depth_stride, int64_t rows, int64_t columns, double* out) { pack_rows<F16>(x, row_stride, depth_stride, rows, columns, out); }
static void pack_rows_bf16(const void* x, int64_t row_stride, int64_t depth_stride, int64_t rows, int64_t columns, double* out) { pack_rows<BF16>(x, row_stride, depth_stride, rows, columns, out); }

// out[i * stride + j] += <a_i, b_j>, i < rows, j < columns. Four by two products at a time keep their sums in registers.
static void add_products(const double* a, const double* b, double* out, int64_t stride, int64_t rows, int64_t columns) {
  for (int64_t i = 0; i < rows; i += 4)
    for (int64_t j = 0; j < columns; j += 2) {
      dvec sum[4][2] = {};
      for (int64_t k = 0; k < kGramDepth; k += kLanes / 2) {
        const dvec right[2] = {load_doubles(b + j * kGramDepth + k), load_doubles(b + (j + 1) * kGramDepth + k)};
        for (int p = 0; p < 4; ++p) {
          const dvec left = load_doubles(a + (i + p) * kGramDepth + k);
          for (int q = 0; q < 2; ++q) sum[p][q] = fma_doubles(left, right[q], sum[p][q]);
        }
      }
      for (int p = 0; p < 4; ++p)
        for (int q = 0; q < 2; ++q)
          if (i + p < rows && j + q < columns) out[(i + p) * stride + j + q] += sum_doubles(sum[p][q]);
    }
}

PLUMBLINE_INLINE double dot_doubles(const double* x, const double* y, int64_t size) {
  dvec a = {}, b = {};
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    a = fma_doubles(load_doubles(x + i), load_doubles(y + i), a);
    b = fma_doubles(load_doubles(x + i + kLanes / 2), load_doubles(y + i + kLanes / 2), b);
  }
  double sum = sum_doubles(a + b);
  for (; i < size; ++i) sum += x[i] * y[i];
  return sum;
}

// y = A x for the square block at a, rows of `stride`.
static void multiply_block(const double* a, int64_t stride, const double* x, double* y, int64_t size) {
  for (int64_t i = 0; i < size; ++i) y[i] = dot_doubles(a + i * stride, x, size);
}
// A -= x y^T + y x^T
static void subtract_products(double* a, int64_t stride, const double* x, const double* y, int64_t size) {
  for (int64_t i = 0; i < size; ++i) {
    double* row = a + i * stride;
    const dvec p = x[i] - dvec{}, q = y[i] - dvec{};
    int64_t j = 0;
    for (; j + kLanes / 2 <= size; j += kLanes / 2)
      store_doubles(row + j, load_doubles(row + j) - fma_doubles(p, load_doubles(y + j), q * load_doubles(x + j)));
    for (; j < size; ++j) row[j] -= x[i] * y[j] + y[i] * x[j];
  }
}
