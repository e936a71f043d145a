// gram and symmetric_eigenvalues: against sums in long double, matrices built from known spectra, and a serial Jacobi method.
#include <algorithm>
#include <cmath>
#include <limits>

#include "../../src/core/dtype.h"
#include "variants.h"

using plumbline::Backend;
using plumbline::DType;
using plumbline::MatrixBatch;

namespace {

constexpr double kUnit64 = 0x1p-53;
using Square = std::vector<double>;

// Cyclic Jacobi in long double, one rotation at a time; largest first.
std::vector<double> reference_values(const Square& matrix, int n) {
  std::vector<long double> a(matrix.begin(), matrix.end());
  const auto at = [&](int i, int j) -> long double& { return a[static_cast<size_t>(i * n + j)]; };
  for (int sweep = 0; sweep < 40; ++sweep) {
    long double off = 0, all = 0;
    for (int i = 0; i < n; ++i)
      for (int j = 0; j < n; ++j) all += at(i, j) * at(i, j), off += i == j ? 0 : at(i, j) * at(i, j);
    if (off <= 1e-38L * all) break;
    for (int p = 0; p < n; ++p)
      for (int q = p + 1; q < n; ++q) {
        if (at(p, q) == 0) continue;
        const long double angle = 0.5L * std::atan2(2 * at(p, q), at(q, q) - at(p, p)), c = std::cos(angle), s = std::sin(angle);
        for (int k = 0; k < n; ++k) {
          const long double x = at(k, p), y = at(k, q);
          at(k, p) = c * x - s * y, at(k, q) = s * x + c * y;
        }
        for (int k = 0; k < n; ++k) {
          const long double x = at(p, k), y = at(q, k);
          at(p, k) = c * x - s * y, at(q, k) = s * x + c * y;
        }
      }
  }
  std::vector<double> values;
  for (int i = 0; i < n; ++i) values.push_back(static_cast<double>(at(i, i)));
  std::sort(values.rbegin(), values.rend());
  return values;
}

// Q diag(values) Q^T with Q a product of reflections.
Square with_spectrum(const std::vector<double>& values, uint64_t seed) {
  const size_t n = values.size();
  std::vector<long double> a(n * n);
  for (size_t i = 0; i < n; ++i) a[i * n + i] = values[i];
  for (int turn = 0; turn < 3 && n > 1; ++turn) {
    const std::vector<float> v = noise(static_cast<int64_t>(n), seed + static_cast<uint64_t>(turn));
    long double length = 0;
    for (const float x : v) length += static_cast<long double>(x) * x;
    for (const bool columns : {false, true})
      for (size_t i = 0; i < n; ++i) {
        const auto at = [&](size_t k) -> long double& { return columns ? a[k * n + i] : a[i * n + k]; };
        long double inner = 0;
        for (size_t k = 0; k < n; ++k) inner += at(k) * v[k];
        for (size_t k = 0; k < n; ++k) at(k) -= 2 * inner / length * v[k];
      }
  }
  Square out(n * n);
  for (size_t i = 0; i < n; ++i)
    for (size_t j = 0; j < n; ++j) out[i * n + j] = static_cast<double>(a[std::min(i, j) * n + std::max(i, j)]);
  return out;
}

std::vector<double> eigenvalues(Backend& backend, const std::vector<Square>& matrices, const std::vector<int32_t>& sizes) {
  Square packed;
  int64_t total = 0;
  for (const Square& matrix : matrices) packed.insert(packed.end(), matrix.begin(), matrix.end());
  for (const int32_t n : sizes) total += n;
  Guarded<double> values(total), room(static_cast<int64_t>(packed.size()), packed);
  backend.symmetric_eigenvalues(static_cast<int32_t>(sizes.size()), sizes.data(), room.data(), values.data());
  CHECK(values.intact() && room.intact(), "%s wrote outside", backend.name());
  return std::vector<double>(values.data(), values.data() + total);
}

void check_values(const std::vector<double>& got, size_t from, const std::vector<double>& want, const char* where) {
  double size = 0;
  for (const double value : want) size = std::max(size, std::fabs(value));
  const double n = static_cast<double>(want.size());
  for (size_t i = 0; i < want.size(); ++i)  // backward stable: an error of a few n units of the largest; building the matrix costs as much
    CHECK_CLOSE(got[from + i], want[i], (8 + 2 * n) * kUnit64 * size, "%s value %ld of %ld", where, static_cast<long>(i), static_cast<long>(want.size()));
}

void test_known_spectra() {
  std::vector<Square> matrices;
  std::vector<int32_t> sizes;
  std::vector<std::vector<double>> want;
  for (const int n : {1, 2, 3, 4, 5, 7, 8, 16, 31, 32, 33, 64, 127, 128})
    for (const int kind : {0, 1, 2, 3, 4}) {
      if (n > 64 && kind > 2) continue;
      std::vector<double> values;
      for (int i = 0; i < n; ++i) {
        const double part = n > 1 ? static_cast<double>(i) / (n - 1) : 0;
        values.push_back(kind == 0 ? 3 - 4 * part                   // of both signs
                         : kind == 1 ? std::pow(10.0, -14 * part)   // condition 1e14
                         : kind == 2 ? (i < n / 3 + 1 ? 1.0 : 0.0)  // rank n / 3 + 1, equal values
                         : kind == 3 ? 1e-200 * (1 + part)          // squares vanish
                                     : 1e150 * (1 + part));         // squares overflow in sums
      }
      std::sort(values.rbegin(), values.rend());
      matrices.push_back(with_spectrum(values, 21 + static_cast<uint64_t>(n))), sizes.push_back(n), want.push_back(values);
    }
  for_each_backend([&](Backend& backend, const char* name) {
    const std::vector<double> got = eigenvalues(backend, matrices, sizes);
    size_t from = 0;
    for (size_t b = 0; b < want.size(); ++b) {
      check_values(got, from, want[b], (std::string(name) + " matrix " + std::to_string(b)).c_str());
      from += want[b].size();
    }
    CHECK(eigenvalues(backend, matrices, sizes) == got, "%s a second run changes bits", name);
  });
}

// Zero, diagonal, singular, empty ones between others, and not finite.
void test_special() {
  const double nan = std::nan(""), inf = std::numeric_limits<double>::infinity();
  std::vector<Square> matrices = {{}, Square(81), {5, 0, 0, 0, -1, 0, 0, 0, 7}, {}, {1, nan, nan, 1}, {2, 1, 0, 1, 2, 0, 0, 0, inf}, {4, -2, -2, 1}};
  const std::vector<int32_t> sizes = {0, 9, 3, 0, 2, 3, 2};
  for_each_backend([&](Backend& backend, const char* name) {
    const std::vector<double> got = eigenvalues(backend, matrices, sizes);
    for (size_t i = 0; i < 9; ++i) CHECK(got[i] == 0, "%s zero matrix: %g", name, got[i]);
    CHECK(got[9] == 7 && got[10] == 5 && got[11] == -1, "%s diagonal: %g %g %g", name, got[9], got[10], got[11]);
    for (size_t i = 12; i < 17; ++i) CHECK(std::isnan(got[i]), "%s not finite: %g", name, got[i]);
    CHECK_CLOSE(got[17], 5, 8 * kUnit64 * 5, "%s", name);
    CHECK_CLOSE(got[18], 0, 8 * kUnit64 * 5, "%s", name);
    CHECK(eigenvalues(backend, {}, {}).empty(), "%s no matrices", name);
  });
}

void test_large() {
  std::vector<double> want;
  for (int i = 0; i < 301; ++i) want.push_back(301.0 - i);
  const Square matrix = with_spectrum(want, 29);
  for_each_backend([&](Backend& backend, const char* name) {
    if (!is_emulated(backend)) return check_values(eigenvalues(backend, {matrix}, {301}), 0, want, name);
    CHECK_THROWS(eigenvalues(backend, {matrix}, {301}), "ERR_UNSUPPORTED", "[symmetric_eigenvalues] Expected sizes up to 128 on CUDA but received 301; use device 'cpu'");
  });
}

struct Matrices {
  DType dtype;
  std::vector<int32_t> rows, cols;
  std::vector<std::vector<float>> value;
  std::vector<std::vector<uint16_t>> bits;
  std::vector<const void*> data;
  Matrices(DType type, const std::vector<std::pair<int, int>>& shapes) : dtype(type) {
    for (const auto& shape : shapes) {
      rows.push_back(shape.first), cols.push_back(shape.second);
      value.push_back(noise(static_cast<int64_t>(shape.first) * shape.second, 31 + static_cast<uint64_t>(shape.first)));
      bits.emplace_back();
      for (float& x : value.back()) {
        if (type == DType::f32) continue;
        bits.back().push_back(type == DType::f16 ? plumbline::float_to_half(x) : plumbline::float_to_bf16(x));
        x = type == DType::f16 ? plumbline::half_to_float(bits.back().back()) : plumbline::bf16_to_float(bits.back().back());
      }
    }
    for (size_t b = 0; b < value.size(); ++b) data.push_back(type == DType::f32 ? static_cast<const void*>(value[b].data()) : bits[b].data());
  }
  MatrixBatch batch() const { return {dtype, static_cast<int32_t>(data.size()), data.data(), rows.data(), cols.data()}; }
  int64_t side(size_t b) const { return std::min(rows[b], cols[b]); }
  int64_t elements() const {
    int64_t total = 0;
    for (size_t b = 0; b < data.size(); ++b) total += side(b) * side(b);
    return total;
  }
};

void test_gram() {
  const std::vector<std::vector<std::pair<int, int>>> batches = {
      {}, {{1, 1}, {1, 33}, {7, 1}, {0, 5}, {8, 1000}, {16, 129}, {31, 31}, {200, 32}}, {{64, 70}, {65, 300}, {3, 4}, {129, 128}, {150, 140}}};
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16})
    for (const auto& shapes : batches) {
      const Matrices all(dtype, shapes);
      for_each_backend([&](Backend& backend, const char* name) {
        Guarded<double> got(all.elements()), again(all.elements());
        backend.gram(all.batch(), got.data());
        backend.gram(all.batch(), again.data());
        CHECK(got.intact() && got == again, "%s guards, same bits", name);
        int64_t at = 0;
        for (size_t b = 0; b < shapes.size(); ++b) {
          const int64_t r = all.side(b), cols = all.cols[b], depth = std::max(all.rows[b], all.cols[b]);
          const bool wide = all.rows[b] <= all.cols[b];
          const auto element = [&](int64_t i, int64_t k) { return static_cast<double>(all.value[b][static_cast<size_t>(wide ? i * cols + k : k * cols + i)]); };
          for (int64_t i = 0; i < r; ++i)
            for (int64_t j = 0; j < r; ++j) {
              long double want = 0, size = 0;
              for (int64_t k = 0; k < depth; ++k) want += static_cast<long double>(element(i, k)) * element(j, k), size += std::fabs(element(i, k) * element(j, k));
              CHECK_CLOSE(got[at + i * r + j], static_cast<double>(want), static_cast<double>(size) * static_cast<double>(depth) * kUnit64, "%s matrix %ld at %ld, %ld", name, static_cast<long>(b), i, j);
              CHECK(got[at + i * r + j] == got[at + j * r + i], "%s not symmetric", name);
            }
          at += r * r;
        }
      });
    }
}

// Both together, as the profiler uses them: random matrices against the serial method; NaN in one matrix stays there.
void test_together() {
  Matrices all(DType::f32, {{4, 100}, {100, 4}, {23, 40}, {8, 8}, {60, 60}});
  all.value[3][5] = std::nanf("");
  for_each_backend([&](Backend& backend, const char* name) {
    Square gram(static_cast<size_t>(all.elements()));
    backend.gram(all.batch(), gram.data());
    std::vector<int32_t> sizes;
    std::vector<std::vector<double>> want;
    size_t at = 0;
    for (size_t b = 0; b < all.data.size(); ++b) {
      const int64_t r = all.side(b);
      sizes.push_back(static_cast<int32_t>(r));
      want.push_back(reference_values(Square(gram.begin() + static_cast<int64_t>(at), gram.begin() + static_cast<int64_t>(at) + r * r), static_cast<int>(r)));
      at += static_cast<size_t>(r * r);
    }
    const std::vector<double> got = eigenvalues(backend, {gram}, sizes);
    at = 0;
    for (size_t b = 0; b < want.size(); ++b) {
      if (b != 3) check_values(got, at, want[b], name);
      else for (size_t i = 0; i < 8; ++i) CHECK(std::isnan(got[at + i]), "%s matrix with NaN: %g", name, got[at + i]);
      at += want[b].size();
    }
  });
}

}  // namespace

int main() {
  test_known_spectra();
  test_special();
  test_large();
  test_gram();
  test_together();
  return finish_variants();
}
