// gram, symmetric_eigenvalues: what singular values of small gradients are made of.
//   gram    g = m m^T (rows <= cols) or m^T m, r = min(rows, cols); products of f32 values are exact in f64, sums in f64 in a fixed order;
//           exactly symmetric. Tiles of 32 rows are cut by shape: the same bits for any number of threads. r^2/2 multiply-adds per column
//   values  Householder reflections to tridiagonal form, then QR steps with Wilkinson's shift, values only: 2 n^3 + O(n^2) operations, errors
//           of a few n units of f64 of the largest |value|; a thread per matrix          (Golub and Van Loan, Matrix Computations, 8.3)
//   limits  any size. NaN where a matrix is not finite
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "../core/error.h"
#include "cpu_backend.h"

namespace plumbline {
namespace {

constexpr int64_t kGramRows = 32;
constexpr int64_t kGramDepth = 128;  // two panels of 32 rows: 64 KB

}  // namespace
}  // namespace plumbline

#define PLUMBLINE_INL "spectra_inl.h"
#include "foreach_isa.h"

namespace plumbline {
namespace {

struct GramTile {  // rows first ... of one matrix's result, from the diagonal on
  int32_t matrix;
  int64_t first, out;
};

struct Side {  // element (i, k) of the matrix whose rows are multiplied
  int64_t r, depth, row_stride, depth_stride;
  Side(int64_t rows, int64_t cols)
      : r(std::min(rows, cols)), depth(std::max(rows, cols)), row_stride(rows <= cols ? cols : 1), depth_stride(rows <= cols ? 1 : cols) {}
};

std::vector<GramTile> gram_tiles(const MatrixBatch& matrices) {
  std::vector<GramTile> tiles;
  int64_t out = 0;
  for (int32_t b = 0; b < matrices.count; ++b) {
    const Side side(matrices.rows[b], matrices.cols[b]);
    for (int64_t first = 0; first < side.r; first += kGramRows) tiles.push_back({b, first, out});
    out += side.r * side.r;
  }
  return tiles;
}

struct Tridiagonal {
  std::vector<double> diagonal, beside;  // beside[i] joins i and i + 1
};

// What the reduction needs of the vector kernels.
struct BlockKernels {
  void (*multiply)(const double* a, int64_t stride, const double* x, double* y, int64_t size);
  void (*subtract)(double* a, int64_t stride, const double* x, const double* y, int64_t size);
};

// H A H with H = I - 2 v v^T / v^T v, column by column. Elements are at most 1.
Tridiagonal reduce(double* a, int64_t n, const BlockKernels& kernels) {
  Tridiagonal t;
  std::vector<double> p(static_cast<size_t>(n));
  for (int64_t k = 0; k + 1 < n; ++k) {
    double* v = a + k * n + k + 1;  // the row to the right of the diagonal becomes the reflection's vector
    const int64_t size = n - k - 1;
    double rest = 0;
    for (int64_t i = 1; i < size; ++i) rest += v[i] * v[i];
    t.diagonal.push_back(a[k * n + k]);
    if (rest == 0) {
      t.beside.push_back(v[0]);
      continue;
    }
    const double length = std::copysign(std::sqrt(v[0] * v[0] + rest), v[0]);
    t.beside.push_back(-length);
    v[0] += length;
    const double factor = 2 / (v[0] * v[0] + rest);
    double* block = a + (k + 1) * n + k + 1;
    kernels.multiply(block, n, v, p.data(), size);
    double inner = 0;
    for (int64_t i = 0; i < size; ++i) p[static_cast<size_t>(i)] *= factor, inner += p[static_cast<size_t>(i)] * v[i];
    for (int64_t i = 0; i < size; ++i) p[static_cast<size_t>(i)] -= factor / 2 * inner * v[i];
    kernels.subtract(block, n, v, p.data(), size);
  }
  t.diagonal.push_back(a[n * n - 1]);
  return t;
}

// One implicit QR step on rows low .. high, shifted by the eigenvalue of the last 2 x 2 block that is nearer to its corner.
void shifted_step(Tridiagonal& t, size_t low, size_t high) {
  std::vector<double>&d = t.diagonal, &e = t.beside;
  const double gap = (d[high - 1] - d[high]) / 2, corner = e[high - 1];
  double x = d[low] - (d[high] - corner * corner / (gap + std::copysign(std::hypot(gap, corner), gap))), z = e[low];
  for (size_t k = low; k < high; ++k) {
    const double r = std::hypot(x, z), c = r == 0 ? 1 : x / r, s = r == 0 ? 0 : z / r;
    if (k > low) e[k - 1] = r;
    const double top = d[k], bottom = d[k + 1], joint = e[k];
    d[k] = c * c * top + 2 * c * s * joint + s * s * bottom;
    d[k + 1] = s * s * top - 2 * c * s * joint + c * c * bottom;
    e[k] = c * s * (bottom - top) + (c * c - s * s) * joint;
    if (k + 1 == high) break;
    x = e[k], z = s * e[k + 1];
    e[k + 1] *= c;
  }
}

// Steps until every element beside the diagonal is negligible, then the diagonal holds the values.
void diagonalise(Tridiagonal& t) {
  const std::vector<double>& d = t.diagonal;
  std::vector<double>& e = t.beside;
  constexpr double kUnit64 = 0x1p-53;
  int64_t steps = 0;
  for (size_t high = e.size(); high > 0;) {
    const auto is_negligible = [&](size_t i) { return std::fabs(e[i]) <= kUnit64 * (std::fabs(d[i]) + std::fabs(d[i + 1])) || std::fabs(e[i]) < 0x1p-200; };
    if (is_negligible(high - 1)) {
      e[--high] = 0;
      continue;
    }
    size_t low = high - 1;
    while (low > 0 && !is_negligible(low - 1)) --low;
    require(++steps <= 60 * static_cast<int64_t>(d.size()), "ERR_INTERNAL", "[symmetric_eigenvalues] Expected QR steps to converge but received a matrix on which they do not");
    shifted_step(t, low, high);
  }
}

void eigenvalues(double* a, int64_t n, double* values, const BlockKernels& kernels) {
  double largest = 0, bad = 0;
  for (int64_t i = 0; i < n * n; ++i) largest = std::max(largest, std::fabs(a[i])), bad += a[i] - a[i];
  if (bad != 0) return std::fill_n(values, n, std::numeric_limits<double>::quiet_NaN()), void();  // inf - inf and NaN alike
  if (largest == 0) return std::fill_n(values, n, 0.0), void();
  int exponent;
  std::frexp(largest, &exponent);
  for (int64_t i = 0; i < n * n; ++i) a[i] = std::ldexp(a[i], -exponent);  // squares then neither overflow nor vanish
  Tridiagonal t = reduce(a, n, kernels);
  diagonalise(t);
  std::sort(t.diagonal.begin(), t.diagonal.end(), [](double x, double y) { return x > y; });
  for (int64_t i = 0; i < n; ++i) values[i] = std::ldexp(t.diagonal[static_cast<size_t>(i)], exponent);
}

}  // namespace

void CpuBackend::gram(const MatrixBatch& matrices, double* gram) {
  const auto pack = matrices.dtype == DType::f32   ? PLUMBLINE_PICK(isa_, pack_rows_f32)
                    : matrices.dtype == DType::f16 ? PLUMBLINE_PICK(isa_, pack_rows_f16)
                                                   : PLUMBLINE_PICK(isa_, pack_rows_bf16);
  const auto multiply = PLUMBLINE_PICK(isa_, add_products);
  const std::vector<GramTile> tiles = gram_tiles(matrices);
  parallel(static_cast<int64_t>(tiles.size()), [&](int64_t index, int32_t thread) {
    const GramTile& tile = tiles[static_cast<size_t>(index)];
    const Side side(matrices.rows[tile.matrix], matrices.cols[tile.matrix]);
    const int64_t rows = std::min(kGramRows, side.r - tile.first), element = static_cast<int64_t>(dtype_bytes(matrices.dtype));
    const char* data = static_cast<const char*>(matrices.data[tile.matrix]);
    double* left = static_cast<double*>(scratch(thread, 2 * kGramRows * kGramDepth * sizeof(double)));
    double *right = left + kGramRows * kGramDepth, *out = gram + tile.out;
    for (int64_t i = tile.first; i < tile.first + rows; ++i) std::fill(out + i * side.r + tile.first, out + (i + 1) * side.r, 0.0);
    for (int64_t from = 0; from < side.depth; from += kGramDepth) {
      const int64_t columns = std::min(kGramDepth, side.depth - from);
      const auto panel = [&](int64_t first, double* to) {
        pack(data + (first * side.row_stride + from * side.depth_stride) * element, side.row_stride, side.depth_stride, std::min(kGramRows, side.r - first), columns, to);
      };
      panel(tile.first, left);
      for (int64_t other = tile.first; other < side.r; other += kGramRows) {
        if (other != tile.first) panel(other, right);
        multiply(left, other == tile.first ? left : right, out + tile.first * side.r + other, side.r, rows, std::min(kGramRows, side.r - other));
      }
    }
    for (int64_t i = tile.first; i < tile.first + rows; ++i)
      for (int64_t j = std::max(i, tile.first) + 1; j < side.r; ++j) out[j * side.r + i] = out[i * side.r + j];
  });
}

void CpuBackend::symmetric_eigenvalues(int32_t count, const int32_t* size_B, double* matrices, double* values) {
  const BlockKernels kernels = {PLUMBLINE_PICK(isa_, multiply_block), PLUMBLINE_PICK(isa_, subtract_products)};
  std::vector<int64_t> matrix_B(1, 0), value_B(1, 0);
  for (int32_t b = 0; b < count; ++b) {
    matrix_B.push_back(matrix_B.back() + static_cast<int64_t>(size_B[b]) * size_B[b]);
    value_B.push_back(value_B.back() + size_B[b]);
  }
  parallel(count, [&](int64_t b, int32_t) {
    const size_t at = static_cast<size_t>(b);
    if (size_B[b] > 0) eigenvalues(matrices + matrix_B[at], size_B[b], values + value_B[at], kernels);
  });
}

}  // namespace plumbline
