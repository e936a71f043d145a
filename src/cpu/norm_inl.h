// Row kernels of norm.cpp. Sums run over four vectors of lanes, added in a fixed order.
#include "slices_inl.h"
#include "squares_inl.h"
#include "rms_inl.h"

PLUMBLINE_INLINE float sum_row(const float* x, int64_t C) {
  vec a = {}, b = {}, c = {}, d = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= C; i += 4 * kLanes) {
    a += load(x + i);
    b += load(x + i + kLanes);
    c += load(x + i + 2 * kLanes);
    d += load(x + i + 3 * kLanes);
  }
  for (; i + kLanes <= C; i += kLanes) a += load(x + i);
  if (i < C) b += load_partial(x + i, C - i, 0.0f);
  return fold(a, b, c, d);
}

static void layer_norm_rows(const float* x, const float* w, const float* b, float eps, float* y, float* mean, float* rstd, int64_t rows,
                            int64_t C) {
  for (int64_t t = 0; t < rows; ++t, x += C, y += C) {
    mean[t] = sum_row(x, C) / (float)C;
    rstd[t] = inverse_root(sum_squares_row(x, mean[t], C), C, eps);
    const vec m = splat(mean[t]), r = splat(rstd[t]);
    int64_t i = 0;
    for (; i + kLanes <= C; i += kLanes) store(y + i, fma((load(x + i) - m) * r, load(w + i), load(b + i)));
    if (i < C) {
      const int64_t n = C - i;
      const vec normal = (load_partial(x + i, n, 0.0f) - m) * r;
      store_partial(y + i, fma(normal, load_partial(w + i, n, 0.0f), load_partial(b + i, n, 0.0f)), n);
    }
  }
}

// Sums of g = w dy and of g (x - mean), which the gradient of the statistics needs.
struct RowSums {
  float g, gx;
};
PLUMBLINE_INLINE RowSums gradient_sums(const float* dy, const float* x, const float* w, float mean, int64_t C) {
  const vec m = splat(mean);
  vec g0 = {}, g1 = {}, x0 = {}, x1 = {};
  int64_t i = 0;
  for (; i + 2 * kLanes <= C; i += 2 * kLanes) {
    const vec p = load(dy + i) * load(w + i), q = load(dy + i + kLanes) * load(w + i + kLanes);
    g0 += p;
    g1 += q;
    x0 = fma(p, load(x + i) - m, x0);
    x1 = fma(q, load(x + i + kLanes) - m, x1);
  }
  for (; i < C; i += kLanes) {
    const int64_t n = C - i < kLanes ? C - i : kLanes;
    const vec p = load_partial(dy + i, n, 0.0f) * load_partial(w + i, n, 0.0f);
    g0 += p;
    x0 = fma(p, load_partial(x + i, n, mean) - m, x0);
  }
  return {sum_lanes(g0 + g1), sum_lanes(x0 + x1)};
}

// What one vector of channels needs to turn dy into dx: dx = rstd (g - mean(g) - normal mean(g normal)), normal = (x - mean) rstd.
// An RMS norm is the case mean = mean_g = 0. The product dy w is rounded before the subtraction, as it was in the mean: with C = 1 the
// difference must be 0, and rstd may be 1000.
struct RowGradient {
  vec mean, rstd, mean_g, mean_gx;
};
PLUMBLINE_INLINE vec gradient_of(const RowGradient& row, vec dy, vec w, vec normal) {
  return row.rstd * ((dy * w - row.mean_g) - normal * row.mean_gx);
}

// dw and db are partial sums of this slice of rows, or null both. Returns the sum of squares of dx as written, for `squares`.
PLUMBLINE_INLINE float gradient_row(const RowGradient& row, const float* dy, const float* x, const float* w, float* dx, float* dw, float* db,
                                    int64_t C, bool accumulate, bool squares) {
  constexpr int64_t kRun = 64 * kLanes;  // squares run into sums of this length: 2,000 in one lane of four lose bits that the norm keeps
  vec sum = {}, runs = {};
  int64_t i = 0;
  for (; i + kLanes <= C; i += kLanes) {
    if (squares && i % kRun == 0) runs += sum, sum = vec{};
    const vec d = load(dy + i), normal = (load(x + i) - row.mean) * row.rstd;
    const vec out = gradient_of(row, d, load(w + i), normal), total = accumulate ? load(dx + i) + out : out;
    store(dx + i, total);
    if (squares) sum = fma(total, total, sum);
    if (dw) store(dw + i, fma(d, normal, load(dw + i)));
    if (db) store(db + i, load(db + i) + d);
  }
  if (i < C) {
    const int64_t n = C - i;
    const vec d = load_partial(dy + i, n, 0.0f), normal = (load_partial(x + i, n, 0.0f) - row.mean) * row.rstd;
    const vec out = gradient_of(row, d, load_partial(w + i, n, 0.0f), normal);
    store_partial(dx + i, accumulate ? load_partial(dx + i, n, 0.0f) + out : out, n);
    if (squares) {
      const vec total = load_partial(dx + i, n, 0.0f);
      sum = fma(total, total, sum);
    }
    if (dw) store_partial(dw + i, fma(d, normal, load_partial(dw + i, n, 0.0f)), n);
    if (db) store_partial(db + i, load_partial(db + i, n, 0.0f) + d, n);
  }
  return squares ? sum_lanes(runs + sum) : 0.0f;
}

// Root of a sum of squares in f32; one that may have lost bits at either end of f32's range is summed again, in f64, from the cache.
PLUMBLINE_INLINE float norm_of_row(float sum, const float* x, int64_t C) {
  if (sum >= 0x1p-100f && sum <= 0x1p120f) return __builtin_sqrtf(sum);
  return (float)__builtin_sqrt(sum_squares_range<F32>(x, C));
}

static void rms_norm_grad_rows(const float* dy, const float* x, const float* w, const float* rstd, float* dx, float* dw, float* norm,
                               int64_t rows, int64_t C, bool accumulate) {
  for (int64_t t = 0; t < rows; ++t, dy += C, x += C, dx += C) {
    const RowSums sums = gradient_sums(dy, x, w, 0.0f, C);
    const RowGradient row = {splat(0.0f), splat(rstd[t]), splat(0.0f), splat(sums.gx * rstd[t] / (float)C)};
    if (norm) norm[t] = norm_of_row(gradient_row(row, dy, x, w, dx, dw, nullptr, C, accumulate, true), dx, C);
    else gradient_row(row, dy, x, w, dx, dw, nullptr, C, accumulate, false);
  }
}

static void layer_norm_grad_rows(const float* dy, const float* x, const float* w, const float* mean, const float* rstd, float* dx,
                                 float* dw, float* db, int64_t rows, int64_t C, bool accumulate) {
  for (int64_t t = 0; t < rows; ++t, dy += C, x += C, dx += C) {
    const RowSums sums = gradient_sums(dy, x, w, mean[t], C);
    const float mean_g = sums.g / (float)C, mean_gx = sums.gx * rstd[t] / (float)C;
    const RowGradient row = {splat(mean[t]), splat(rstd[t]), splat(mean_g), splat(mean_gx)};
    gradient_row(row, dy, x, w, dx, dw, db, C, accumulate, false);
  }
}
