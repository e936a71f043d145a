// rms_norm, layer_norm and their gradients against the formulas in f64.
#include <cmath>
#include <limits>

#include "variants.h"

using plumbline::Backend;
using plumbline::CpuBackend;

namespace {

constexpr float kEps = 1e-6f;

struct Case {
  int64_t T, C;
  std::vector<float> x, w, b, dy, dx, dw, db;
  Case(int64_t rows, int64_t width)
      : T(rows), C(width), x(noise(rows * width, 1)), w(noise(width, 2)), b(noise(width, 3)), dy(noise(rows * width, 4)),
        dx(noise(rows * width, 5)), dw(noise(width, 6)), db(noise(width, 7)) {
    for (float& weight : w) weight += 1.5f;
    for (int64_t t = 0; t < T; ++t)  // a large, a tiny, a zero and a far-off-centre row
      for (int64_t c = 0; c < C; ++c) {
        float& value = x[static_cast<size_t>(t * C + c)];
        value = t % 5 == 1 ? value * 1e3f : t % 5 == 2 ? value * 1e-4f : t % 5 == 3 ? 0.0f : t % 5 == 4 ? value + 10.0f : value;
      }
  }
};

struct Outputs {
  Guarded<float> y, mean, rstd, dx, dw, db;
  Outputs(const Case& c, bool accumulate)
      : y(c.T * c.C), mean(c.T), rstd(c.T), dx(accumulate ? Guarded<float>(c.T * c.C, c.dx) : Guarded<float>(c.T * c.C)), dw(c.C, c.dw),
        db(c.C, c.db) {}
  bool intact() const { return y.intact() && mean.intact() && rstd.intact() && dx.intact() && dw.intact() && db.intact(); }
};

Outputs run(Backend& backend, const Case& c, bool centred, bool accumulate, bool weights = true) {
  Outputs out(c, accumulate);
  float *dw = weights ? out.dw.data() : nullptr, *db = weights ? out.db.data() : nullptr;
  if (centred) {
    backend.layer_norm(c.x.data(), c.w.data(), c.b.data(), kEps, out.y.data(), out.mean.data(), out.rstd.data(), c.T, c.C);
    backend.layer_norm_grad(c.dy.data(), c.x.data(), c.w.data(), out.mean.data(), out.rstd.data(), out.dx.data(), dw, db, c.T, c.C,
                            accumulate);
  } else {
    backend.rms_norm(c.x.data(), c.w.data(), kEps, out.y.data(), out.rstd.data(), c.T, c.C);
    backend.rms_norm_grad(c.dy.data(), c.x.data(), c.w.data(), out.rstd.data(), out.dx.data(), dw, nullptr, c.T, c.C, accumulate);
  }
  return out;
}

// Worst case of a sum over C in 16 or more lanes: C/16 + 8 roundings. The mean's error moves every normal value of its row by
// rstd * mean|x| times that.
void check(const Case& c, Outputs& out, bool centred, bool accumulate, const char* where) {
  const double adds = static_cast<double>(c.C) / 16 + 8;
  std::vector<double> dw(static_cast<size_t>(c.C)), db(dw), dw_bound(dw), dw_size(dw), db_size(dw);
  for (int64_t t = 0; t < c.T; ++t) {
    const float *x = &c.x[static_cast<size_t>(t * c.C)], *dy = &c.dy[static_cast<size_t>(t * c.C)];
    double mean = 0, size = 0, square = 0, mean_g = 0, mean_gn = 0, size_g = 0, size_gn = 0;
    for (int64_t i = 0; i < c.C; ++i) mean += x[i] / static_cast<double>(c.C), size += std::fabs(x[i]) / static_cast<double>(c.C);
    if (!centred) mean = 0;
    for (int64_t i = 0; i < c.C; ++i) square += (x[i] - mean) * (x[i] - mean) / static_cast<double>(c.C);
    const double rstd = 1 / std::sqrt(square + kEps), drift = centred ? rstd * size * adds * kUnit : 0;
    for (int64_t i = 0; i < c.C; ++i) {
      const double g = static_cast<double>(c.w[static_cast<size_t>(i)]) * dy[i], n = (x[i] - mean) * rstd;
      mean_g += g / static_cast<double>(c.C), mean_gn += g * n / static_cast<double>(c.C);
      size_g += std::fabs(g) / static_cast<double>(c.C), size_gn += std::fabs(g) * (std::fabs(n) + drift) / static_cast<double>(c.C);
    }
    if (!centred) mean_g = size_g = 0;
    CHECK_CLOSE(out.rstd[t], rstd, rstd * (adds * kUnit + drift * drift + drift), "%s rstd %ld", where, t);
    if (centred) CHECK_CLOSE(out.mean[t], mean, (adds + 2) * kUnit * size, "%s mean %ld", where, t);
    for (int64_t i = 0; i < c.C; ++i) {
      const double w = c.w[static_cast<size_t>(i)], n = (x[i] - mean) * rstd, g = w * dy[i];
      const double n_error = std::fabs(n) * (adds + 6) * kUnit + 2 * drift;
      const double bias = centred ? c.b[static_cast<size_t>(i)] : 0;
      const double y_bound = std::fabs(w) * n_error + 2 * kUnit * (std::fabs(n * w) + std::fabs(bias));
      CHECK_CLOSE(out.y[t * c.C + i], n * w + bias, y_bound, "%s y %ld %ld", where, t, i);
      const double before = accumulate ? c.dx[static_cast<size_t>(t * c.C + i)] : 0, dx = rstd * (g - mean_g - n * mean_gn);
      const double magnitude = std::fabs(g) + size_g + std::fabs(n) * size_gn;
      const double dx_bound = rstd * (magnitude * (2 * adds + 16) * kUnit + 3 * drift * (size_gn + size_g + std::fabs(g)));
      CHECK_CLOSE(out.dx[t * c.C + i], before + dx, dx_bound + kUnit * std::fabs(before), "%s dx %ld %ld", where, t, i);
      dw[static_cast<size_t>(i)] += dy[i] * n, db[static_cast<size_t>(i)] += dy[i];
      dw_bound[static_cast<size_t>(i)] += std::fabs(dy[i]) * (n_error + std::fabs(n) * 2 * kUnit);
      dw_size[static_cast<size_t>(i)] += std::fabs(dy[i] * n);
      db_size[static_cast<size_t>(i)] += std::fabs(dy[i]);
    }
  }
  for (size_t i = 0; i < dw.size(); ++i) {
    const double sums = static_cast<double>(c.T + 34) * kUnit;  // T rows in at most 32 slices, then onto what was there
    const int64_t at = static_cast<int64_t>(i);
    CHECK_CLOSE(out.dw[at], c.dw[i] + dw[i], dw_bound[i] + sums * (std::fabs(c.dw[i]) + dw_size[i]), "%s dw %ld", where, at);
    if (centred) CHECK_CLOSE(out.db[at], c.db[i] + db[i], sums * (std::fabs(c.db[i]) + db_size[i]), "%s db %ld", where, at);
  }
  CHECK(out.intact(), "%s wrote outside", where);
}

void test_values() {
  for (const bool centred : {false, true})
    for (const int64_t C : kSizes)
      for (const int64_t T : {int64_t{0}, int64_t{1}, int64_t{7}, int64_t{129}}) {
        if (T == 129 && C > 1000) continue;
        const Case c(T, C);
        for_each_backend([&](Backend& backend, const char* name) {
          const std::string where = std::string(centred ? "layer " : "rms ") + std::to_string(T) + "x" + std::to_string(C) + " " + name;
          const bool accumulate = (T + C) % 2 == 0;
          Outputs out = run(backend, c, centred, accumulate);
          check(c, out, centred, accumulate, where.c_str());
        });
      }
}

// Slices are cut by shape: 1 and 2 threads, and a second run, give the same bits. Without dw, dx is the same.
void test_same_bits() {
  const Case c(331, 1000);
  for (const bool centred : {false, true})
    for (const plumbline::Isa isa : {plumbline::Isa::baseline, plumbline::best_isa()}) {
      CpuBackend one(1), two(kTwoThreads);
      one.set_isa(isa), two.set_isa(isa);
      const Outputs a = run(one, c, centred, false), b = run(two, c, centred, false), again = run(two, c, centred, false);
      CHECK(a.y == b.y && a.mean == b.mean && a.rstd == b.rstd && a.dx == b.dx && a.dw == b.dw && a.db == b.db, "threads change bits");
      CHECK(b.dx == again.dx && b.dw == again.dw && b.db == again.db, "a second run changes bits");
      const Outputs frozen = run(two, c, centred, false, false);
      const Guarded<float> dw(c.C, c.dw), db(c.C, c.db);
      CHECK(frozen.dx == a.dx && frozen.dw == dw && frozen.db == db, "null dw and db change dx or are written");
    }
}

// The norms are those of dx as written, also where the squares leave f32's range; the widest rows; and rows that are not aligned.
void test_dx_norm() {
  for_each_backend([&](Backend& backend, const char* name) {
    for (const int64_t C : {int64_t{1}, int64_t{33}, int64_t{128}, int64_t{1536}, int64_t{3584}, int64_t{5120}, int64_t{8196}})
      for (const bool accumulate : {false, true})
        for (const int64_t shift : {0, 1}) {
          Case c(5, C);
          for (int64_t i = 0; i < C; ++i) c.dy[static_cast<size_t>(C + i)] *= 1e-24f, c.dy[static_cast<size_t>(2 * C + i)] *= 1e20f;
          c.dx.assign(c.dx.size(), 0.0f);
          std::vector<float> dy(static_cast<size_t>(shift));
          dy.insert(dy.end(), c.dy.begin(), c.dy.end());
          Outputs out(c, accumulate), aligned(c, accumulate);
          Guarded<float> norm(c.T);
          backend.rms_norm(c.x.data(), c.w.data(), kEps, out.y.data(), out.rstd.data(), c.T, c.C);
          backend.rms_norm_grad(c.dy.data(), c.x.data(), c.w.data(), out.rstd.data(), aligned.dx.data(), aligned.dw.data(), nullptr, c.T, c.C, accumulate);
          backend.rms_norm_grad(dy.data() + shift, c.x.data(), c.w.data(), out.rstd.data(), out.dx.data(), out.dw.data(), norm.data(), c.T, c.C, accumulate);
          for (int64_t t = 0; t < c.T; ++t) {
            double square = 0, size = 0;
            for (int64_t i = 0; i < C; ++i) square += static_cast<double>(out.dx[t * C + i]) * out.dx[t * C + i], size = std::max(size, std::fabs(static_cast<double>(out.dx[t * C + i])));
            CHECK_CLOSE(norm[t], std::sqrt(square), 2 * kUnit * std::sqrt(square) + kTiny * kUnit, "%s norm of row %ld, C %ld", name, t, C);
            for (int64_t i = 0; i < C; ++i)  // the two paths add in other orders
              CHECK_CLOSE(out.dx[t * C + i], aligned.dx[t * C + i], (C / 16.0 + 32) * 4 * kUnit * size, "%s row %ld of C %ld", name, t, C);
          }
          CHECK(norm.intact() && out.intact(), "%s wrote outside", name);
        }
  });
}

// With one channel a layer norm's output is its bias, whatever x: the gradient is exactly 0, although rstd is 1000.
void test_one_channel() {
  const Case c(33, 1);
  for_each_backend([&](Backend& backend, const char* name) {
    Outputs out = run(backend, c, true, false);
    for (int64_t t = 0; t < c.T; ++t) CHECK(out.y[t] == c.b[0] && out.dx[t] == 0, "%s row %ld: dx %g", name, t, static_cast<double>(out.dx[t]));
  });
}

// A row's result does not depend on its neighbours; NaN and inf stay in their row.
void test_rows_alone() {
  Case c(3, 129);
  for_each_backend([&](Backend& backend, const char* name) {
    for (const bool centred : {false, true})
      for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 1e30f}) {
        Case broken = c;
        broken.x[129 + 70] = bad;
        Outputs clean = run(backend, c, centred, false), out = run(backend, broken, centred, false);
        for (int64_t i = 0; i < 129; ++i) {
          CHECK(out.y[i] == clean.y[i] && out.dx[i] == clean.dx[i], "%s row 0 changed at %ld", name, i);
          const int64_t next = 258 + i;
          CHECK(out.y[next] == clean.y[next] && out.dx[next] == clean.dx[next], "%s row 2 changed at %ld", name, i);
        }
        // x^2 overflows for 1e30: rstd is 0 and so is the row, as in the plain f32 formula
        const bool spreads = std::isnan(bad) || (centred && std::isinf(bad));
        CHECK(std::isnan(out.y[129]) == spreads, "%s first of the broken row: %g", name, static_cast<double>(out.y[129]));
        CHECK(std::isnan(out.y[129 + 70]) == !std::isfinite(bad), "%s the broken element: %g", name, static_cast<double>(out.y[129 + 70]));
      }
  });
}

}  // namespace

int main() {
  test_values();
  test_same_bits();
  test_dx_norm();
  test_one_channel();
  test_rows_alone();
  return finish_variants();
}
