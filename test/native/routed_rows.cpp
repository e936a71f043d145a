// gather_rms_norm against f64, and on the CPU the bits of copy, add and norm. gated_scatter and its gradient against the formulas in f64.
#include <algorithm>
#include <cmath>

#include "variants.h"

using namespace plumbline;

namespace {

// Distinct rows in ascending order out of T.
std::vector<int32_t> some_rows(int64_t T, int64_t n, uint64_t seed) {
  Noise source(seed);
  std::vector<int32_t> rows;
  for (int64_t i = 0; i < T && n > 0; ++i)
    if (source.below(T - i) < n) rows.push_back(static_cast<int32_t>(i)), --n;
  return rows;
}

// Rows of h, and their norm in f64. x = h + step rounds once; the sum of C squares adds at most C + 2 roundings to each.
struct Gathering {
  int64_t T, n, C;
  std::vector<int32_t> rows;
  std::vector<float> h, step, w;
  Gathering(int64_t tokens, int64_t some, int64_t channels) : T(tokens), n(some), C(channels), rows(some_rows(T, n, 64)), h(noise(T * C, 61, 3.0f)), step(noise(C, 62)), w(noise(C, 63)) {}

  void check(Backend& backend, const char* name, bool with_step) const {
    Guarded<float> x(n * C), y(n * C), rstd(n);
    backend.gather_rms_norm(h.data(), rows.data(), with_step ? step.data() : nullptr, w.data(), 1e-6f, x.data(), y.data(), rstd.data(), n, C, nullptr);
    CHECK(x.intact() && y.intact() && rstd.intact(), "%s wrote outside", name);
    for (int64_t i = 0; i < n; ++i) {
      double squares = 0;
      bool same = true;
      for (int64_t c = 0; c < C; ++c) {
        const float want = h[static_cast<size_t>(rows[i] * C + c)] + (with_step ? step[static_cast<size_t>(c)] : 0.0f);
        same = same && x[i * C + c] == want;
        squares += static_cast<double>(want) * static_cast<double>(want);
      }
      CHECK(same, "%s x of row %ld, C %ld", name, i, C);
      const double r = 1 / std::sqrt(squares / static_cast<double>(C) + 1e-6), relative = (0.5 * static_cast<double>(C) + 6) * kUnit;
      CHECK_CLOSE(rstd[i], r, relative * r, "%s rstd of row %ld, C %ld", name, i, C);
      for (int64_t c = 0; c < C; ++c) {
        const double want = static_cast<double>(x[i * C + c]) * r * static_cast<double>(w[static_cast<size_t>(c)]);
        CHECK_CLOSE(y[i * C + c], want, relative * std::fabs(want) + kTiny, "%s y of row %ld, C %ld", name, i, C);
      }
    }
  }
};

void test_gather_rms_norm() {
  for_each_backend([](Backend& backend, const char* name) {
    for (const int64_t C : kSizes)
      for (const int64_t n : {0, 1, 33})
        for (const bool with_step : {false, true}) Gathering(60, n, C).check(backend, name, with_step);
    if (!is_emulated(backend)) return;
    for (const int64_t C : {4, 36, 600}) Gathering(4200, 4099, C).check(backend, name, true);  // blocks of several rows, the last one short
    Gathering(4200, 4097, 2052).check(backend, name, true);                                    // of two
    Gathering(200, 130, 36).check(backend, name, true);                                        // row numbers beside the arguments
    for (const int64_t C : {25000, 25001}) Gathering(5, 3, C).check(backend, name, true);      // rows beyond shared memory
  });
}

// A NaN or infinity stays in its row; the rotary rows come along, whether or not they are whole packets.
void test_gather_corners() {
  for_each_backend([](Backend& backend, const char* name) {
    for (const int64_t half : {1, 6, 64}) {
      const int64_t T = 40, n = 3, C = 64;
      std::vector<float> h = noise(T * C, 65);
      const std::vector<float> w = noise(C, 66), cos = noise(T * half, 67), sin = noise(T * half, 68);
      h[5 * C + 7] = NAN, h[9 * C + 1] = INFINITY;
      const int32_t rows[] = {5, 9, 30};
      Guarded<float> x(n * C), y(n * C), rstd(n), cos_n(n * half), sin_n(n * half);
      const RotaryRows rotary = {cos.data(), sin.data(), cos_n.data(), sin_n.data(), half};
      backend.gather_rms_norm(h.data(), rows, nullptr, w.data(), 1e-6f, x.data(), y.data(), rstd.data(), n, C, &rotary);
      for (int64_t c = 0; c < C; ++c) CHECK(std::isnan(y[c]), "%s NaN at %ld", name, c);
      for (int64_t c = 0; c < C; ++c) CHECK(c == 1 ? std::isnan(y[C + c]) : y[C + c] == 0, "%s infinity at %ld", name, c);
      for (int64_t c = 0; c < C; ++c) CHECK(std::isfinite(y[2 * C + c]), "%s a NaN reached another row", name);
      for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < half; ++j)
          CHECK(cos_n[i * half + j] == cos[rows[i] * half + j] && sin_n[i * half + j] == sin[rows[i] * half + j], "%s rotary row %ld", name, i);
      CHECK(x.intact() && y.intact() && rstd.intact() && cos_n.intact() && sin_n.intact(), "%s wrote outside", name);
    }
  });
}

// On the CPU the bits are those of copy, add and norm.
void test_gather_bits() {
  for_each_variant([](CpuBackend& backend, const char* name) {
    for (const int64_t C : kSizes)
      for (const int64_t n : {1, 128})
        for (const bool with_step : {false, true}) {
          const Gathering g(200, n, C);
          Guarded<float> x(n * C), y(n * C), rstd(n), want_x(n * C), want_y(n * C), want_rstd(n);
          backend.gather_rms_norm(g.h.data(), g.rows.data(), with_step ? g.step.data() : nullptr, g.w.data(), 1e-6f, x.data(), y.data(), rstd.data(), n, C, nullptr);
          backend.copy_rows({g.h.data(), DType::f32, g.T, C}, g.rows.data(), want_x.data(), nullptr, n);
          const std::vector<int32_t> zeros(static_cast<size_t>(n), 0);
          if (with_step) backend.add_rows(g.step.data(), zeros.data(), want_x.data(), nullptr, n, C);
          backend.rms_norm(want_x.data(), g.w.data(), 1e-6f, want_y.data(), want_rstd.data(), n, C);
          CHECK(x == want_x && y == want_y && rstd == want_rstd, "%s n %ld C %ld step %d", name, n, C, with_step);
        }
  });
}

// More than any cache holds takes another path through memory; the bits stay.
void test_large_gather() {
  const int64_t C = 3584, T = 3000, n = 2990;
  const std::vector<float> h = noise(T * C, 65), step = noise(C, 66), w = noise(C, 67);
  const std::vector<int32_t> rows = some_rows(T, n, 68);
  for_each_variant([&](CpuBackend& backend, const char* name) {
    Guarded<float> rstd(n), small_x(10 * C), small_y(10 * C), small_rstd(10);
    constexpr int64_t kGuard = 16;  // of the backend's memory, which is aligned
    float* memory = static_cast<float*>(backend.allocate(static_cast<size_t>(2 * n * C + 3 * kGuard) * sizeof(float)));
    std::fill_n(memory, 2 * n * C + 3 * kGuard, -7.5f);
    float *x = memory + kGuard, *y = x + n * C + kGuard;
    backend.gather_rms_norm(h.data(), rows.data(), step.data(), w.data(), 1e-6f, x, y, rstd.data(), n, C, nullptr);
    bool intact = rstd.intact();
    for (int64_t i = 0; i < kGuard; ++i) intact = intact && memory[i] == -7.5f && x[n * C + i] == -7.5f && y[n * C + i] == -7.5f;
    CHECK(intact, "%s wrote outside", name);
    for (int64_t i = 0; i < n; i += 299) {
      const int64_t count = std::min<int64_t>(10, n - i);
      backend.gather_rms_norm(h.data(), rows.data() + i, step.data(), w.data(), 1e-6f, small_x.data(), small_y.data(), small_rstd.data(), count, C, nullptr);
      CHECK(std::equal(x + i * C, x + (i + count) * C, small_x.data()) && std::equal(y + i * C, y + (i + count) * C, small_y.data()) &&
                std::equal(rstd.data() + i, rstd.data() + i + count, small_rstd.data()),
            "%s rows from %ld differ", name, i);
    }
    backend.release(memory, 0);
  });
}

struct Mix {
  Fusion fusion;
  int64_t T, n, C;
  std::vector<int32_t> rows, at;
  std::vector<float> h, y, gate, step, base, dh;
  bool has_step;
  Mix(Fusion kind, int64_t n_rows, int64_t channels, bool with_step, int64_t tokens = 150) : fusion(kind), T(tokens), n(n_rows), C(channels), has_step(with_step) {
    rows = some_rows(T, n, 71), at = some_rows(T, n, 72);
    h = noise(T * C, 73), y = noise(n * C, 74), gate = noise(T, 75), step = noise(C, 76), base = noise(T * C, 77), dh = noise(T * C, 78);
    std::reverse(at.begin(), at.end());
  }
  const float* step_data() const { return has_step ? step.data() : nullptr; }
  double s(int64_t c) const { return has_step ? static_cast<double>(step[c]) : 0.0; }
};

void check_scatter(Backend& backend, const char* name, const Mix& m) {
  Guarded<float> h(m.T * m.C, m.h);
  backend.gated_scatter(m.fusion, m.y.data(), m.gate.data(), m.at.data(), m.step_data(), h.data(), m.rows.data(), m.n, m.C);
  std::vector<int64_t> token(static_cast<size_t>(m.T), -1);
  for (int64_t i = 0; i < m.n; ++i) token[m.rows[i]] = i;
  for (int64_t t = 0; t < m.T; ++t)
    for (int64_t c = 0; c < m.C; ++c) {
      const float before = m.h[t * m.C + c];
      const int64_t i = token[t];
      if (i < 0) {
        CHECK(h[t * m.C + c] == before, "%s row %ld changed", name, t);
        continue;
      }
      const double v = static_cast<double>(m.y[i * m.C + c]), g = static_cast<double>(m.gate[m.at[i]]), old = static_cast<double>(before);
      const double want = m.fusion == Fusion::interpolate ? old + g * (v - old) : m.fusion == Fusion::plain ? old + g * v : old + g * v * (1 + m.s(c));
      CHECK_CLOSE(h[t * m.C + c], want, 4 * kUnit * (std::fabs(old) + std::fabs(g) * (2 * std::fabs(v) + std::fabs(old))), "%s row %ld", name, t);
    }
  CHECK(h.intact(), "%s wrote outside", name);
}

void check_scatter_grad(Backend& backend, const char* name, const Mix& m) {
  const std::vector<float> start(static_cast<size_t>(m.C), 0.5f);
  Guarded<float> dh(m.T * m.C, m.dh), dy(m.n * m.C), dgate(m.T, std::vector<float>(static_cast<size_t>(m.T), -9.0f)), dstep(m.C, start);
  const bool scaled = m.fusion == Fusion::scaled;
  const float* base = m.fusion == Fusion::interpolate ? m.base.data() : nullptr;
  backend.gated_scatter_grad(m.fusion, m.y.data(), base, m.gate.data(), m.at.data(), m.step_data(), dh.data(), m.rows.data(), dy.data(),
                             dgate.data(), scaled ? dstep.data() : nullptr, m.n, m.C);
  std::vector<double> want_dh(m.dh.begin(), m.dh.end()), want_gate(static_cast<size_t>(m.T), -9.0), gate_size(want_gate.size(), 0.0);
  std::vector<double> step(start.begin(), start.end()), step_size(step);
  for (int64_t i = 0; i < m.n; ++i) {
    const size_t at = static_cast<size_t>(m.at[i]);
    const double g = static_cast<double>(m.gate[at]);
    want_gate[at] = 0;
    for (int64_t c = 0; c < m.C; ++c) {
      const size_t row = static_cast<size_t>(m.rows[i] * m.C + c);
      const double d = static_cast<double>(m.dh[row]), v = static_cast<double>(m.y[i * m.C + c]);
      const double other = static_cast<double>(m.base[at * static_cast<size_t>(m.C) + static_cast<size_t>(c)]);
      const double factor = m.fusion == Fusion::scaled ? 1 + m.s(c) : 1.0, share = m.fusion == Fusion::interpolate ? v - other : v * factor;
      if (m.fusion == Fusion::interpolate) want_dh[row] = d * (1 - g);
      CHECK_CLOSE(dy[i * m.C + c], g * d * factor, 4 * kUnit * std::fabs(g * d) * (1 + std::fabs(factor)), "%s dy %ld", name, i);
      want_gate[at] += d * share;
      gate_size[at] += std::fabs(d) * (std::fabs(share) + std::fabs(v) + std::fabs(other));
      step[c] += d * g * v;
      step_size[c] += std::fabs(d * g * v);
    }
  }
  for (int64_t i = 0; i < m.T * m.C; ++i) CHECK_CLOSE(dh[i], want_dh[i], 4 * kUnit * std::fabs(static_cast<double>(m.dh[i])), "%s dh %ld", name, i);
  for (int64_t t = 0; t < m.T; ++t) CHECK_CLOSE(dgate[t], want_gate[t], static_cast<double>(m.C + 4) * kUnit * gate_size[t], "%s dgate %ld", name, t);
  for (int64_t c = 0; c < m.C; ++c)
    CHECK_CLOSE(dstep[c], scaled ? step[c] : 0.5, scaled ? static_cast<double>(m.n + 4) * kUnit * step_size[c] : 0, "%s dstep %ld", name, c);
  CHECK(dh.intact() && dy.intact() && dgate.intact() && dstep.intact(), "%s wrote outside", name);
}

void test_scatter() {
  for_each_backend([](Backend& backend, const char* name) {
    const std::vector<int64_t> counts = is_emulated(backend) ? std::vector<int64_t>{0, 1, 57, 65} : std::vector<int64_t>{0, 1, 57, 150};
    for (const Fusion fusion : {Fusion::interpolate, Fusion::plain, Fusion::scaled}) {
      for (const int64_t C : {1, 7, 31, 32, 33, 129, 1000})
        for (const int64_t n : counts)
          for (const bool with_step : {false, true}) {
            const Mix m(fusion, n, C, with_step);
            check_scatter(backend, name, m);
            check_scatter_grad(backend, name, m);
          }
      if (is_emulated(backend)) {
        check_scatter(backend, name, Mix(fusion, 4099, 20, true, 4200));  // blocks of several rows, the last one short
        check_scatter(backend, name, Mix(fusion, 3, 4100, true));         // several blocks to a row
      }
      if (is_emulated(backend)) check_scatter_grad(backend, name, Mix(fusion, 2, 25004, true));  // sums beyond shared memory
      if (is_emulated(backend)) check_scatter_grad(backend, name, Mix(fusion, 600, 36, true, 700));  // slices of several rows
    }
  });
}

// The emulated kernels twice: the same bits.
void test_repeats() {
  CudaBackend backend;
  const Mix m(Fusion::scaled, 600, 100, true, 700);
  const auto run = [&](Guarded<float>& dstep, Guarded<float>& dgate) {
    Guarded<float> dh(m.T * m.C, m.dh), dy(m.n * m.C);
    backend.gated_scatter_grad(m.fusion, m.y.data(), nullptr, m.gate.data(), m.at.data(), m.step_data(), dh.data(), m.rows.data(), dy.data(), dgate.data(), dstep.data(), m.n, m.C);
  };
  Guarded<float> a(m.C, m.step), b(m.C, m.step), gate_a(m.T), gate_b(m.T);
  run(a, gate_a), run(b, gate_b);
  CHECK(a == b && gate_a == gate_b, "a second run changes bits");
}

// dstep gathers over all rows: one and two threads, and a second run, give the same bits.
void test_threads() {
  const int64_t T = 1200, n = 900, C = 1537;
  const std::vector<int32_t> rows = some_rows(T, n, 81);
  const std::vector<float> y = noise(n * C, 82), gate = noise(T, 83), step = noise(C, 84), before = noise(T * C, 85);
  struct Result {
    Guarded<float> h, dh, dy, dgate, dstep;
  };
  const auto run = [&](int32_t threads) {
    CpuBackend backend(threads);
    Result r{Guarded<float>(T * C, before), Guarded<float>(T * C, before), Guarded<float>(n * C), Guarded<float>(T), Guarded<float>(C, step)};
    backend.gated_scatter(Fusion::scaled, y.data(), gate.data(), rows.data(), step.data(), r.h.data(), rows.data(), n, C);
    backend.gated_scatter_grad(Fusion::scaled, y.data(), nullptr, gate.data(), rows.data(), step.data(), r.dh.data(),
                               rows.data(), r.dy.data(), r.dgate.data(), r.dstep.data(), n, C);
    return r;
  };
  const Result a = run(1), b = run(kTwoThreads), c = run(kTwoThreads);
  for (const Result* other : {&b, &c})
    CHECK(a.h == other->h && a.dh == other->dh && a.dy == other->dy && a.dgate == other->dgate && a.dstep == other->dstep, "threads or runs change bits");
}

// What the forward pass does, by central differences in f64 of sum(dh * h after).
void test_differences() {
  for (const Fusion fusion : {Fusion::interpolate, Fusion::plain, Fusion::scaled}) {
    const int64_t C = 5, n = 3;
    Mix m(fusion, n, C, true);
    for (int64_t i = 0; i < n; ++i)  // base is h before, where the gates are counted
      std::copy_n(m.h.begin() + m.rows[i] * C, C, m.base.begin() + m.at[i] * C);
    const auto objective = [&](const std::vector<double>& h, const std::vector<double>& y, const std::vector<double>& gate, const std::vector<double>& step) {
      double sum = 0;
      for (int64_t i = 0; i < n; ++i)
        for (int64_t c = 0; c < C; ++c) {
          const size_t row = static_cast<size_t>(m.rows[i] * C + c);
          const double g = gate[m.at[i]], v = y[i * C + c];
          const double factor = fusion == Fusion::scaled ? 1 + step[c] : 1.0;
          const double after = fusion == Fusion::interpolate ? h[row] + g * (v - h[row]) : h[row] + g * v * factor;
          sum += static_cast<double>(m.dh[row]) * after;
        }
      return sum;
    };
    std::vector<double> h(m.h.begin(), m.h.end()), y(m.y.begin(), m.y.end()), gate(m.gate.begin(), m.gate.end()), step(m.step.begin(), m.step.end());
    const auto slope = [&](double& x) {
      const double before = x;
      x = before + 1e-5;
      const double high = objective(h, y, gate, step);
      x = before - 1e-5;
      const double low = objective(h, y, gate, step);
      x = before;
      return (high - low) / 2e-5;
    };
    CpuBackend backend(1);
    Guarded<float> dh(m.T * C, m.dh), dy(n * C), dgate(m.T), dstep(C, std::vector<float>(static_cast<size_t>(C), 0.0f));
    backend.gated_scatter_grad(fusion, m.y.data(), m.base.data(), m.gate.data(), m.at.data(), m.step.data(), dh.data(), m.rows.data(),
                               dy.data(), dgate.data(), dstep.data(), n, C);
    for (int64_t i = 0; i < n; ++i) {
      const int32_t at = m.at[i], row = m.rows[i];
      CHECK_CLOSE(dgate[at], slope(gate[at]), 1e-6, "dgate %ld", i);
      for (int64_t c = 0; c < C; ++c) {
        CHECK_CLOSE(dy[i * C + c], slope(y[i * C + c]), 1e-6, "dy %ld", i);
        CHECK_CLOSE(dh[row * C + c], slope(h[row * C + c]), 1e-6, "dh %ld", i);
      }
    }
    for (int64_t c = 0; c < C; ++c) CHECK_CLOSE(dstep[c], slope(step[c]), 1e-6, "dstep %ld", c);
  }
}

}  // namespace

int main() {
  test_gather_rms_norm();
  test_gather_corners();
  test_gather_bits();
  test_large_gather();
  test_scatter();
  test_repeats();
  test_threads();
  test_differences();
  return finish_variants();
}
