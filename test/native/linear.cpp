// linear, linear_grad_input, linear_grad_weight against plain double loops: every instruction set of this machine, both GEMMs,
// 1 and 2 threads and more threads than tiles, f32 and bf16 weights, sizes around every tile edge.
//
// Bound: a sum of K products in f32, in whatever order, fused or not, is off by at most K eps/2 * sum |a||b| (Higham, Accuracy and
// Stability, 3.1, first order); bias and the old value of an accumulated result add two roundings. eps = 2^-23. The factor
// 1.01 covers the second order for K <= 20000. bf16 weights are exact numbers here: the reference uses the same.
#include <utility>
#include <vector>

#include "../../cuda/cuda_backend.h"
#include "../../src/cpu/cpu_backend.h"
#include "check.h"

using namespace plumbline;

// A sanitizer's allocator ends the process on an absurd size unless told to return null like the real one.
extern "C" const char* __asan_default_options() { return "allocator_may_return_null=1"; }
extern "C" const char* __tsan_default_options() { return "allocator_may_return_null=1"; }

namespace {

constexpr double kHalfEps = 1.0 / (1 << 24);
constexpr float kSentinel = 12345.0f;
constexpr size_t kGuard = 64;

// An output between sentinels, `shift` floats after an aligned address: at 1 no vector access is aligned.
struct Guarded {
  std::vector<float> memory;
  size_t size, shift;
  explicit Guarded(size_t n, size_t shift_ = 1) : memory(n + 2 * kGuard + shift_, kSentinel), size(n), shift(shift_) {}
  float* data() { return memory.data() + kGuard + shift; }
  bool intact() const {
    for (size_t i = 0; i < kGuard + shift; ++i)
      if (memory[i] != kSentinel) return false;
    for (size_t i = kGuard + shift + size; i < memory.size(); ++i)
      if (memory[i] != kSentinel) return false;
    return true;
  }
};

// Inputs end where their allocation ends: under ASan a read past the end is an error.
struct Case {
  int64_t M, N, K;
  std::vector<float> x, w, dy, bias, old_y, old_dx, old_dw, old_db;
  std::vector<uint16_t> narrow;
  Case(int64_t m, int64_t n, int64_t k) : M(m), N(n), K(k) {
    Noise noise(static_cast<uint64_t>(m * 1000003 + n * 1009 + k));
    const auto make = [&](int64_t size) {
      std::vector<float> values(static_cast<size_t>(size));
      for (float& value : values) value = noise.next();
      values.shrink_to_fit();
      return values;
    };
    x = make(M * K), w = make(N * K), dy = make(M * N), bias = make(N);
    old_y = make(M * N), old_dx = make(M * K), old_dw = make(N * K), old_db = make(N);
    for (float& value : w) {  // exact in bf16, so that one reference serves both weights
      narrow.push_back(float_to_bf16(value));
      value = bf16_to_float(narrow.back());
    }
    narrow.shrink_to_fit();
  }
  Weight weight(bool bf16) const {
    return bf16 ? Weight{narrow.data(), DType::bf16, N, K} : Weight{w.data(), DType::f32, N, K};
  }
};

struct Reference {
  std::vector<double> value, size;  // size: sum of |a||b| and of what is added
};

// element(i, j) = start + sum_k left(i, k) right(k, j)
template <typename Start, typename Left, typename Right>
Reference reference(int64_t rows, int64_t cols, int64_t depth, const Start& start, const Left& left, const Right& right) {
  Reference r;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < cols; ++j) {
      double value = 0, size = 0;
      start(i, j, value, size);
      for (int64_t k = 0; k < depth; ++k) {
        const double product = static_cast<double>(left(i, k)) * static_cast<double>(right(k, j));
        value += product;
        size += std::fabs(product);
      }
      r.value.push_back(value);
      r.size.push_back(size);
    }
  return r;
}

void compare(const char* what, Guarded& got, const Reference& want, int64_t depth) {
  bool ok = true;
  size_t at = 0;
  for (size_t i = 0; i < got.size && ok; ++i) {
    const double bound = 1.01 * kHalfEps * static_cast<double>(depth + 2) * want.size[i];
    if (!plumbline_test::close(got.data()[i], want.value[i], bound)) ok = false, at = i;
  }
  const double g = got.size ? got.data()[at] : 0, w = got.size ? want.value[at] : 0;
  CHECK(ok, "%s: element %zu is %.9g, want %.9g", what, at, g, w);
  CHECK(got.intact(), "%s: wrote outside its result", what);
}

// Runs `body` into two guarded copies of `old`, one of them aligned, and wants the same bits twice.
template <typename Body>
Guarded run_twice(const char* what, const std::vector<float>& old, bool poison, const Body& body) {
  Guarded first(old.size()), second(old.size(), 0);
  for (Guarded* out : {&first, &second}) {
    for (size_t i = 0; i < old.size(); ++i) out->data()[i] = poison ? NAN : old[i];
    body(out->data());
  }
  CHECK(old.empty() || std::memcmp(first.data(), second.data(), old.size() * 4) == 0, "%s: not the same bits twice", what);
  return first;
}

void linear_case(Backend& backend, const Case& c, const char* setup, int modes = 4) {
  const auto at = [](const std::vector<float>& v, int64_t i) { return v[static_cast<size_t>(i)]; };
  for (int mode = 4 - modes; mode < 4; ++mode) {
    const bool use_bias = mode & 1, accumulate = mode & 2;
    const Reference want = reference(
        c.M, c.N, c.K,
        [&](int64_t i, int64_t j, double& value, double& size) {
          if (use_bias) value += at(c.bias, j), size += std::fabs(at(c.bias, j));
          if (accumulate) value += at(c.old_y, i * c.N + j), size += std::fabs(at(c.old_y, i * c.N + j));
        },
        [&](int64_t i, int64_t k) { return at(c.x, i * c.K + k); }, [&](int64_t k, int64_t j) { return at(c.w, j * c.K + k); });
    for (bool bf16 : {false, true}) {
      char what[200];
      std::snprintf(what, sizeof(what), "%s linear %lldx%lldx%lld bias %d accumulate %d bf16 %d", setup, static_cast<long long>(c.M),
                    static_cast<long long>(c.N), static_cast<long long>(c.K), use_bias, accumulate, bf16);
      Guarded got = run_twice(what, c.old_y, !accumulate, [&](float* y) {
        backend.linear(c.x.data(), c.weight(bf16), use_bias ? c.bias.data() : nullptr, y, c.M, accumulate);
      });
      compare(what, got, want, c.K);
    }
  }
}

void grad_case(Backend& backend, const Case& c, const char* setup) {
  const auto at = [](const std::vector<float>& v, int64_t i) { return v[static_cast<size_t>(i)]; };
  char what[200];
  for (bool accumulate : {false, true}) {
    const Reference want = reference(
        c.M, c.K, c.N,
        [&](int64_t i, int64_t j, double& value, double& size) {
          if (accumulate) value = at(c.old_dx, i * c.K + j), size = std::fabs(value);
        },
        [&](int64_t i, int64_t n) { return at(c.dy, i * c.N + n); }, [&](int64_t n, int64_t j) { return at(c.w, n * c.K + j); });
    for (bool bf16 : {false, true}) {
      std::snprintf(what, sizeof(what), "%s grad_input %lldx%lldx%lld accumulate %d bf16 %d", setup, static_cast<long long>(c.M),
                    static_cast<long long>(c.N), static_cast<long long>(c.K), accumulate, bf16);
      Guarded got = run_twice(what, c.old_dx, !accumulate,
                              [&](float* dx) { backend.linear_grad_input(c.dy.data(), c.weight(bf16), dx, c.M, accumulate); });
      compare(what, got, want, c.N);
    }
  }
  const Reference want_dw = reference(
      c.N, c.K, c.M,
      [&](int64_t n, int64_t k, double& value, double& size) { value = at(c.old_dw, n * c.K + k), size = std::fabs(value); },
      [&](int64_t n, int64_t m) { return at(c.dy, m * c.N + n); }, [&](int64_t m, int64_t k) { return at(c.x, m * c.K + k); });
  const Reference want_db = reference(
      1, c.N, c.M, [&](int64_t, int64_t n, double& value, double& size) { value = at(c.old_db, n), size = std::fabs(value); },
      [&](int64_t, int64_t) { return 1.0f; }, [&](int64_t m, int64_t n) { return at(c.dy, m * c.N + n); });
  for (bool with_bias : {true, false}) {
    std::snprintf(what, sizeof(what), "%s grad_weight %lldx%lldx%lld bias %d", setup, static_cast<long long>(c.M),
                  static_cast<long long>(c.N), static_cast<long long>(c.K), with_bias);
    std::vector<Guarded> db;
    Guarded dw = run_twice(what, c.old_dw, false, [&](float* to) {
      db.emplace_back(c.old_db.size());
      std::copy(c.old_db.begin(), c.old_db.end(), db.back().data());
      backend.linear_grad_weight(c.dy.data(), c.x.data(), to, with_bias ? db.back().data() : nullptr, c.M, c.N, c.K);
    });
    compare(what, dw, want_dw, c.M);
    CHECK(c.N == 0 || std::memcmp(db[0].data(), db[1].data(), c.old_db.size() * 4) == 0, "%s: db not the same bits twice", what);
    if (with_bias)
      compare(what, db[0], want_db, c.M);
    else
      CHECK(std::equal(c.old_db.begin(), c.old_db.end(), db[0].data()), "%s: db untouched", what);
  }
}

// The portable paths promise it outright: among few rows, a row's bits do not depend on how many stand beside it.
void rows_alone(CpuBackend& backend, const char* setup) {
  const Case c(8, 203, 301);
  for (bool bf16 : {false, true}) {
    std::vector<float> all(static_cast<size_t>(c.M * c.N)), one(static_cast<size_t>(c.N));
    backend.linear(c.x.data(), c.weight(bf16), c.bias.data(), all.data(), c.M, false);
    for (int64_t i = 0; i < c.M; ++i) {
      backend.linear(c.x.data() + i * c.K, c.weight(bf16), c.bias.data(), one.data(), 1, false);
      CHECK(std::memcmp(one.data(), all.data() + i * c.N, static_cast<size_t>(c.N) * 4) == 0, "%s row %lld alone, bf16 %d", setup,
            static_cast<long long>(i), bf16);
    }
  }
}

// NaN and infinity reach the results they belong to and no other (the padding of a panel must not turn inf into NaN elsewhere).
void not_finite(Backend& backend, const char* setup) {
  for (const auto& [M, K] : {std::pair<int64_t, int64_t>{3, 53}, {29, 53}, {9, 56}}) {
    Case c(M, 37, K);
    c.x[static_cast<size_t>(1 * c.K + 50)] = NAN;
    c.w[static_cast<size_t>(20 * c.K + 7)] = INFINITY;
    std::vector<float> y(static_cast<size_t>(M * c.N));
    backend.linear(c.x.data(), c.weight(false), nullptr, y.data(), M, false);
    bool ok = true;
    for (int64_t i = 0; i < M; ++i)
      for (int64_t j = 0; j < c.N; ++j) {
        const float got = y[static_cast<size_t>(i * c.N + j)];
        ok = ok && (i == 1 ? std::isnan(got) : j == 20 ? std::isinf(got) : std::isfinite(got));
      }
    CHECK(ok, "%s: NaN and infinity, %lld rows", setup, static_cast<long long>(M));
  }
}

// A value that bf16 rounds to infinity: kernels that split f32 into bf16 parts must notice.
void largest_values(Backend& backend, const char* setup) {
  for (int64_t M : {9, 29}) {
    Case c(M, 37, 56);
    c.x[static_cast<size_t>(2 * c.K + 1)] = 3.4e38f;
    for (bool bf16 : {false, true}) {
      std::vector<float> y(static_cast<size_t>(M * c.N));
      backend.linear(c.x.data(), c.weight(bf16), nullptr, y.data(), M, false);
      for (int64_t j = 0; j < c.N; ++j) {
        double want = 0, size = 0;
        for (int64_t k = 0; k < c.K; ++k) {
          const double product = static_cast<double>(c.x[static_cast<size_t>(2 * c.K + k)]) * c.w[static_cast<size_t>(j * c.K + k)];
          want += product;
          size += std::fabs(product);
        }
        CHECK_CLOSE(y[static_cast<size_t>(2 * c.N + j)], want, kHalfEps * static_cast<double>(c.K + 2) * size, "%s: %lld rows, column %lld", setup,
                    static_cast<long long>(M), static_cast<long long>(j));
      }
    }
  }
}

// A tile of so many k that it is done in several sweeps: 24 results of each call against the reference.
void long_k(GemmKind kind) {
  CpuBackend backend(1);
  backend.set_gemm(kind);
  const int64_t M = 16, N = 512, K = 18500;
  Noise noise(7);
  std::vector<float> x(M * K), w(N * K), bias(N, 3.0f), y(M * N, NAN);
  for (float& value : x) value = noise.next();
  for (float& value : w) value = noise.next();
  backend.linear(x.data(), {w.data(), DType::f32, N, K}, bias.data(), y.data(), M, false);
  for (int64_t at = 0; at < 24; ++at) {
    const int64_t i = at % M, j = noise.below(N);
    double want = 3, size = 3;
    for (int64_t k = 0; k < K; ++k) {
      const double product = static_cast<double>(x[static_cast<size_t>(i * K + k)]) * w[static_cast<size_t>(j * K + k)];
      want += product;
      size += std::fabs(product);
    }
    CHECK_CLOSE(y[static_cast<size_t>(i * N + j)], want, 1.01 * kHalfEps * static_cast<double>(K + 2) * size, "long k, row %lld",
                static_cast<long long>(i));
  }
}

void setup_and_memory() {
  CpuBackend backend(0);
  CHECK(backend.threads() == available_cores(), "%d threads", backend.threads());
  CHECK_THROWS(backend.set_threads(-1), "ERR_RANGE", "[setThreads] Expected the number of threads to be from 0 to 1024 but received -1");
  CHECK_THROWS(CpuBackend(1025), "ERR_RANGE", "[setThreads] Expected the number of threads to be from 0 to 1024 but received 1025");
  if (best_isa() < Isa::avx512)
    CHECK_THROWS(backend.set_isa(Isa::avx512), "ERR_BACKEND_UNAVAILABLE", nullptr);
  if (CpuBackend::gemm_name() == "portable")
    CHECK_THROWS(backend.set_gemm(GemmKind::onednn), "ERR_BACKEND_UNAVAILABLE",
                 "[setGemm] Expected a build with oneDNN (install libdnnl-dev, then build again) but received one without");
  for (size_t bytes : {SIZE_MAX, SIZE_MAX - 64, SIZE_MAX / 2}) {
    const std::string message = "[allocate] Expected " + std::to_string(bytes) + " bytes of memory but received none";
    CHECK_THROWS(backend.allocate(bytes), "ERR_OUT_OF_MEMORY", message.c_str());
  }
  for (size_t size : {0, 1, 1000, 3'000'001}) {
    auto* const a = static_cast<float*>(backend.allocate(size * 4));
    auto* const b = static_cast<float*>(backend.allocate(size * 4));
    CHECK(reinterpret_cast<uintptr_t>(a) % 64 == 0 && reinterpret_cast<uintptr_t>(b) % 64 == 0, "%zu floats aligned", size);
    backend.fill(a, 1.5f, static_cast<int64_t>(size));
    bool filled = true;
    for (size_t i = 0; i < size; ++i) filled = filled && a[i] == 1.5f;
    CHECK(filled, "%zu floats filled", size);
    std::vector<float> host(size), back(size + 1, kSentinel);
    Noise noise(size);
    for (float& value : host) value = noise.next();
    backend.upload(a, host.data(), size * 4);
    backend.copy(b, a, size * 4);
    backend.download(back.data(), b, size * 4);
    CHECK(std::equal(host.begin(), host.end(), back.begin()) && back[size] == kSentinel, "%zu floats there and back", size);
    backend.release(a, size * 4);
    backend.release(b, size * 4);
  }
  backend.fill(nullptr, 0, 0);
  backend.copy(nullptr, nullptr, 0);
}

void accounting_and_cancel() {
  CpuBackend backend(2);
  const Case c(40, 50, 60);
  std::vector<float> y(2000), dx(2400), dw(3000);
  CHECK(backend.gemm_flops() == 0 && backend.gemm_seconds() == 0, "nothing done yet");
  backend.linear(c.x.data(), c.weight(false), nullptr, y.data(), 40, false);
  backend.linear_grad_input(c.dy.data(), c.weight(false), dx.data(), 40, false);
  backend.linear_grad_weight(c.dy.data(), c.x.data(), dw.data(), nullptr, 40, 50, 60);
  CHECK(backend.gemm_flops() == 3.0 * 2 * 40 * 50 * 60, "flops %g", backend.gemm_flops());
  CHECK(backend.gemm_seconds() > 0, "seconds %g", backend.gemm_seconds());
  CancelFlag flag;
  flag.set();
  backend.set_cancel(&flag);
  bool cancelled = false;
  try {
    backend.linear(c.x.data(), c.weight(false), nullptr, y.data(), 40, false);
  } catch (const Cancelled&) {
    cancelled = true;
  }
  CHECK(cancelled, "a set flag cancels");
  backend.set_cancel(nullptr);
}

// The kernels of cuda/, each path of their plan and the edges of their tiles: few rows, few columns, short sums, tiles, slices of K.
void emulated_kernels() {
  CudaBackend backend;
  const char* const setup = "emulated cuda";
  const int modes = kEmulatedOnly ? 1 : 4;  // with bias and old values, which read the most
  CHECK(std::string(backend.gemm_library()) == "own kernels", "%s", backend.gemm_library());
  for (const int64_t M : {0, 1, 2, 5, 16})
    for (const int64_t size : {0, 1, 7, 33}) {
      const Case c(M, size, size == 0 ? 5 : 40 - size);
      linear_case(backend, c, setup, modes);
      grad_case(backend, c, setup);
    }
  const int64_t sizes[][3] = {{1, 20, 264}, {3, 9, 1032}, {5, 33, 24},  {16, 70, 520}, {9, 300, 40},  {40, 2, 131},  {300, 1, 264},
                              {70, 3, 40},  {37, 35, 0},  {37, 0, 20},  {37, 35, 1},   {17, 17, 17},  {37, 65, 72}};
  for (const auto& [M, N, K] : sizes) {
    const Case c(M, N, K);
    linear_case(backend, c, setup, modes);
    grad_case(backend, c, setup);
  }
  // Large ones, with bias and old values: several tiles each way, slices of K, nine tiles of rows (a band and one more).
  const int64_t large[][3] = {{129, 130, 33}, {33, 40, 1100}, {1030, 130, 17}, {20, 300, 170}};
  for (const auto& [M, N, K] : large) linear_case(backend, Case(M, N, K), setup, 1);
  grad_case(backend, Case(150, 40, 24), setup);
  not_finite(backend, setup);
  largest_values(backend, setup);
}

}  // namespace

int main() {
  emulated_kernels();
  if (kEmulatedOnly) return finish();
  setup_and_memory();
  accounting_and_cancel();
  long_k(GemmKind::portable);
  if (CpuBackend::gemm_name() != "portable") long_k(GemmKind::onednn);
  std::vector<Case> cases;
  for (int64_t M : {0, 1, 2, 3, 4, 5, 8, 9, 13})  // streamed and packed, every number of rows of a block
    for (int64_t size : {0, 1, 7, 31, 33}) cases.emplace_back(M, size, size == 0 ? 5 : 40 - size);
  for (int64_t K : {0, 1, 2, 15, 16, 17, 63, 64, 65, 319, 320, 321, 325, 643}) {
    cases.emplace_back(4, 19, K);
    cases.emplace_back(37, 35, K);
  }
  cases.emplace_back(127, 129, 128);
  cases.emplace_back(241, 33, 70);     // more than two blocks of rows
  cases.emplace_back(33, 1100, 20);    // more than two column tiles
  cases.emplace_back(9000, 5, 6);      // a gradient that is cut along M
  cases.emplace_back(3, 700, 1001);    // several tiles of a streamed weight
  cases.emplace_back(1, 1500, 129);
  cases.emplace_back(20, 130, 1030);   // rows of x, then of dy, a page apart
  cases.emplace_back(20, 1030, 130);
  for (Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512}) {
    const char* const isa_name = isa == Isa::baseline ? "baseline" : isa == Isa::avx2 ? "avx2" : "avx512";
    if (isa > best_isa()) {
      plumbline_test::skip(isa_name);
      continue;
    }
    for (GemmKind kind : {GemmKind::portable, GemmKind::onednn, GemmKind::automatic}) {
      if (kind == GemmKind::onednn && CpuBackend::gemm_name() == "portable") {
        plumbline_test::skip("oneDNN: not in this build");
        continue;
      }
      for (int32_t threads : {1, 2, 7}) {
        CpuBackend backend(threads);
        backend.set_isa(isa);
        backend.set_gemm(kind);
        char setup[80];
        std::snprintf(setup, sizeof(setup), "%s gemm %d threads %d", isa_name, static_cast<int>(kind), threads);
        for (const Case& c : cases) {
          if (threads == 7 && c.M * c.N * c.K > 4'000'000) continue;
          linear_case(backend, c, setup);
          grad_case(backend, c, setup);
        }
        if (kind == GemmKind::portable) rows_alone(backend, setup);
        not_finite(backend, setup);
        largest_values(backend, setup);
      }
    }
  }
  return finish();
}
