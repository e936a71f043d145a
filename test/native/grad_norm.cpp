// grad_norm and norm_statistics against sums, means and deviations in long double.
#include <cmath>
#include <cstring>
#include <limits>

#include "../../src/core/dtype.h"
#include "variants.h"

using plumbline::Backend;
using plumbline::CpuBackend;
using plumbline::DType;
using plumbline::NormStatistics;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr DType kTypes[] = {DType::f32, DType::f16, DType::bf16};
const char* const kTypeNames[] = {"f32", "bf16", "i32", "u8", "f16"};

// The same numbers as f32 and in the bytes of the type, `skew` elements behind a 64-byte boundary.
struct Rows {
  DType dtype;
  int64_t T, C, skew;
  std::vector<float> value;
  std::vector<uint8_t> bytes;
  Rows(DType type, int64_t rows, int64_t width, const std::vector<float>& from, int64_t skewed = 0)
      : dtype(type), T(rows), C(width), skew(skewed), value(from), bytes(64 + static_cast<size_t>(skewed + rows * width) * plumbline::dtype_bytes(type)) {
    for (size_t i = 0; i < value.size(); ++i) {
      if (type == DType::f32) {
        std::memcpy(at(i), &value[i], 4);
        continue;
      }
      const uint16_t half = type == DType::f16 ? plumbline::float_to_half(value[i]) : plumbline::float_to_bf16(value[i]);
      std::memcpy(at(i), &half, 2);
      value[i] = type == DType::f16 ? plumbline::half_to_float(half) : plumbline::bf16_to_float(half);
    }
  }
  uint8_t* at(size_t i) {
    const size_t start = (64 - reinterpret_cast<uintptr_t>(bytes.data()) % 64) % 64;
    return bytes.data() + start + (static_cast<size_t>(skew) + i) * plumbline::dtype_bytes(dtype);
  }
  long double norm(int64_t t) const {
    long double sum = 0;
    for (int64_t c = 0; c < C; ++c) sum += static_cast<long double>(value[static_cast<size_t>(t * C + c)]) * value[static_cast<size_t>(t * C + c)];
    return std::sqrt(sum);
  }
};

// Rows of all sizes that their type has.
std::vector<float> wild(int64_t T, int64_t C, DType dtype, uint64_t seed) {
  std::vector<float> x = noise(T * C, seed);
  for (int64_t t = 0; t < T; ++t)
    for (int64_t c = 0; c < C; ++c) {
      float& value = x[static_cast<size_t>(t * C + c)];
      const bool narrow = dtype == DType::f16;
      value *= t % 7 == 1 ? (narrow ? 6e4f : 3e36f) : t % 7 == 2 ? (narrow ? 1e-6f : 1e-37f) : t % 7 == 3 ? 0.0f : t % 7 == 4 ? (narrow ? 1e-7f : 3e-42f) : 1.0f;
    }
  return x;
}

// Squares are exact in f64 or rounded once in f32; sums over at least 16 lanes: C/16 + 8 roundings, halved by the root, which adds one.
double bound(long double norm, int64_t C) { return static_cast<double>(norm) * (static_cast<double>(C) / 32 + 6) * kUnit + 0x1p-149; }

void test_norms() {
  for (const DType dtype : kTypes)
    for (const int64_t C : {int64_t{1}, int64_t{31}, int64_t{32}, int64_t{33}, int64_t{127}, int64_t{128}, int64_t{129}, int64_t{1000}, int64_t{1536}, int64_t{4097}, int64_t{8960}})
      for (const int64_t T : {int64_t{0}, int64_t{1}, int64_t{9}, int64_t{65}}) {
        if (T > 9 && C > 1000) continue;
        Rows rows(dtype, T, C, wild(T, C, dtype, 11), (T + C) % 5);
        for_each_backend([&](Backend& backend, const char* name) {
          if (is_emulated(backend) && T * C > 20000) return;
          Guarded<float> norm(T);
          backend.grad_norm(rows.at(0), dtype, nullptr, 1, 1.0f, norm.data(), nullptr, T, C);
          for (int64_t t = 0; t < T; ++t)
            CHECK_CLOSE(norm[t], static_cast<double>(rows.norm(t)), bound(rows.norm(t), C), "%s %s %ld x %ld row %ld", name, kTypeNames[static_cast<int>(dtype)], T, C, t);
          CHECK(norm.intact(), "%s wrote outside", name);
        });
      }
}

// One bad element makes its row's norm so, and no other's.
void test_not_finite() {
  for (const DType dtype : kTypes)
    for (const int64_t C : {33, 4100})
      for (const float bad : {std::nanf(""), kInf, -kInf}) {
        std::vector<float> x = noise(3 * C, 12);
        x[static_cast<size_t>(C + C / 2)] = bad;
        Rows rows(dtype, 3, C, x);
        for_each_backend([&](Backend& backend, const char* name) {
          Guarded<float> norm(3);
          std::vector<NormStatistics> statistics(1);
          backend.grad_norm(rows.at(0), dtype, nullptr, 1, 1.0f, norm.data(), statistics.data(), 3, C);
          CHECK(std::isnan(bad) ? std::isnan(norm[1]) : norm[1] == kInf, "%s %g", name, static_cast<double>(norm[1]));
          CHECK(std::isfinite(norm[0]) && std::isfinite(norm[2]), "%s a neighbour changed", name);
          CHECK(statistics[0].count == 2 && statistics[0].not_finite == 1, "%s counted %ld and %ld", name, static_cast<long>(statistics[0].count), static_cast<long>(statistics[0].not_finite));
        });
      }
  Rows largest(DType::f32, 1, 16, std::vector<float>(16, 3e38f));  // the norm itself is beyond f32
  for_each_backend([&](Backend& backend, const char* name) {
    float norm = 0;
    backend.grad_norm(largest.at(0), DType::f32, nullptr, 1, 1.0f, &norm, nullptr, 1, 16);
    CHECK(norm == kInf, "%s %g", name, static_cast<double>(norm));
  });
}

struct Want {
  long double sum = 0, m2 = 0, low = 1e300L, high = 0;
  int64_t count = 0, not_finite = 0;
  int32_t histogram[plumbline::kNormBins] = {};
  long double mean() const { return sum / static_cast<long double>(count); }
};

std::vector<Want> expect(const std::vector<float>& norms, const std::vector<uint8_t>& classes, int32_t count) {
  std::vector<Want> want(static_cast<size_t>(count));
  for (size_t t = 0; t < norms.size(); ++t) {
    Want& w = want[classes[t]];
    if (!std::isfinite(norms[t])) {
      ++w.not_finite;
      continue;
    }
    w.sum += norms[t], ++w.count, w.low = std::min<long double>(w.low, norms[t]), w.high = std::max<long double>(w.high, norms[t]);
    const double octave = norms[t] > 0 ? std::floor(std::log2(static_cast<double>(norms[t]))) : -1000;  // four bins, linear inside an octave
    const double bin = (octave + 40) * 4 + (norms[t] > 0 ? std::floor(4 * (norms[t] / std::exp2(octave) - 1)) : 0);
    ++w.histogram[static_cast<int>(std::min(255.0, std::max(0.0, bin)))];
  }
  for (size_t t = 0; t < norms.size(); ++t)
    if (std::isfinite(norms[t])) want[classes[t]].m2 += (norms[t] - want[classes[t]].mean()) * (norms[t] - want[classes[t]].mean());
  return want;
}

void check_statistics(const std::vector<NormStatistics>& got, const std::vector<Want>& want, const char* where) {
  for (size_t k = 0; k < want.size(); ++k) {
    const NormStatistics& s = got[k];
    const Want& w = want[k];
    CHECK(s.count == w.count && s.not_finite == w.not_finite, "%s class %ld: %ld, %ld", where, static_cast<long>(k), static_cast<long>(s.count), static_cast<long>(s.not_finite));
    CHECK(std::memcmp(s.histogram, w.histogram, sizeof(w.histogram)) == 0, "%s class %ld histogram", where, static_cast<long>(k));
    if (w.count == 0) continue;
    const double mean = static_cast<double>(w.mean()), adds = static_cast<double>(w.count + 16) * 0x1p-53;
    CHECK_CLOSE(s.mean, mean, 4 * adds * mean, "%s class %ld mean", where, static_cast<long>(k));
    const double spread = static_cast<double>(w.m2) + static_cast<double>(w.count) * mean * mean * adds;
    CHECK_CLOSE(s.m2, static_cast<double>(w.m2), 8 * adds * spread, "%s class %ld m2", where, static_cast<long>(k));
    CHECK(s.min == static_cast<float>(w.low) && s.max == static_cast<float>(w.high), "%s class %ld range", where, static_cast<long>(k));
  }
}

// Norms of three octaves, some 0, some not finite; classes in runs and mixed, one of them empty. In two calls as well as in one.
void test_statistics() {
  for (const int32_t classes : {1, 6, 40})
    for (const int64_t T : {0, 1, 255, 257, 3000, 40000}) {
      std::vector<float> norms = noise(T, 13);
      std::vector<uint8_t> label(static_cast<size_t>(T));
      for (size_t t = 0; t < norms.size(); ++t) {
        norms[t] = t % 97 == 5 ? kInf : t % 97 == 7 ? std::nanf("") : t % 31 == 3 ? 0.0f : (1.0f + std::fabs(norms[t])) * (t % 3 == 0 ? 1e-6f : t % 3 == 1 ? 1.0f : 1e9f);
        label[t] = static_cast<uint8_t>(classes == 1 ? 0 : t < norms.size() / 2 ? t % static_cast<size_t>(classes - 1) : t / 500 % static_cast<size_t>(classes - 1));
      }
      const std::vector<float> scaled = [&] { std::vector<float> all; for (const float norm : norms) all.push_back(0.37f * norm); return all; }();
      const std::vector<Want> want = expect(scaled, label, classes);
      for_each_backend([&](Backend& backend, const char* name) {
        const std::string where = std::string(name) + " " + std::to_string(T) + " of " + std::to_string(classes);
        for (const int64_t first : {T, T / 3}) {
          std::vector<NormStatistics> got(static_cast<size_t>(classes));
          const uint8_t* kinds = classes == 1 ? nullptr : label.data();
          backend.norm_statistics(norms.data(), kinds, classes, 0.37f, got.data(), first);
          backend.norm_statistics(norms.data() + first, kinds ? kinds + first : nullptr, classes, 0.37f, got.data(), T - first);
          check_statistics(got, want, where.c_str());
        }
      });
    }
}

// With rows: statistics are those of the norms written, the norms are the same without statistics and the other way round, and a second
// run and other threads give the same bits.
void test_together() {
  constexpr int64_t T = 700, C = 24;
  Rows rows(DType::bf16, T, C, noise(T * C, 14));
  std::vector<uint8_t> label(T);
  for (size_t t = 0; t < label.size(); ++t) label[t] = static_cast<uint8_t>(t % 5);
  std::vector<std::vector<NormStatistics>> all;
  for_each_backend([&](Backend& backend, const char* name) {
    Guarded<float> norm(T), plain(T);
    std::vector<NormStatistics> got(6), alone(6);
    backend.grad_norm(rows.at(0), DType::bf16, label.data(), 6, 2.0f, norm.data(), got.data(), T, C);
    backend.grad_norm(rows.at(0), DType::bf16, label.data(), 6, 2.0f, nullptr, alone.data(), T, C);
    backend.grad_norm(rows.at(0), DType::bf16, nullptr, 1, 1.0f, plain.data(), nullptr, T, C);
    CHECK(norm == plain, "%s statistics change norms", name);
    CHECK(std::memcmp(got.data(), alone.data(), 6 * sizeof(NormStatistics)) == 0, "%s a second run changes bits", name);
    std::vector<float> scaled(T);
    for (size_t t = 0; t < scaled.size(); ++t) scaled[t] = 2.0f * norm[static_cast<int64_t>(t)];
    check_statistics(got, expect(scaled, label, 6), name);
    if (!is_emulated(backend)) all.push_back(got);
  });
  for (size_t i = 1; i < all.size(); i += 2)  // one and two threads
    CHECK(std::memcmp(all[i - 1].data(), all[i].data(), 6 * sizeof(NormStatistics)) == 0, "threads change bits");
}

// rms_norm_grad gives the norms of dx as it wrote it, tiny and huge rows too, and dx is the same without them.
void test_fused() {
  for (const int64_t C : {1, 33, 129, 1536})
    for (const bool accumulate : {false, true}) {
      constexpr int64_t T = 9;
      const std::vector<float> x = noise(T * C, 15), w = noise(C, 16), dx = noise(T * C, 17);
      std::vector<float> dy = noise(T * C, 18), rstd(T, 1.5f);
      for (int64_t t = 0; t < T; ++t)
        for (int64_t c = 0; c < C; ++c) dy[static_cast<size_t>(t * C + c)] *= t % 4 == 1 ? 1e-25f : t % 4 == 2 ? 1e25f : t % 4 == 3 ? 0.0f : 1.0f;
      for_each_variant([&](CpuBackend& backend, const char* name) {
        Guarded<float> norm(T), with(T * C, dx), without(T * C, dx);
        backend.rms_norm_grad(dy.data(), x.data(), w.data(), rstd.data(), with.data(), nullptr, norm.data(), T, C, accumulate);
        backend.rms_norm_grad(dy.data(), x.data(), w.data(), rstd.data(), without.data(), nullptr, nullptr, T, C, accumulate);
        CHECK(with == without && norm.intact(), "%s norms change dx", name);
        const Rows rows(DType::f32, T, C, std::vector<float>(with.data(), with.data() + T * C));
        for (int64_t t = 0; t < T; ++t)  // one vector of lanes: 4 at least
          CHECK_CLOSE(norm[t], static_cast<double>(rows.norm(t)), static_cast<double>(rows.norm(t)) * (static_cast<double>(C) / 8 + 4) * kUnit + 0x1p-149, "%s C %ld row %ld", name, C, t);
      });
    }
}

}  // namespace

int main() {
  test_norms();
  test_not_finite();
  test_statistics();
  test_together();
  test_fused();
  return finish_variants();
}
