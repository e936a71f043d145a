#pragma once
// Attention, its gradients, and how far an f32 implementation may be off, from the formulas in double with every score in memory.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace plumbline_test {

// One sequence and one query head: q [n, d], k v [keys, d], dout [n, d]; the results have a bound on the rounding error beside them.
struct AttentionReference {
  int64_t n, keys, d;
  bool causal;
  double scale;
  bool exact_scores;  // the inputs are such that every dot product is exact in f32
  // The weights, the gradients of the scores and the results may be rounded to 16 bits: by a share of half_unit, at least half_tiny.
  double half_unit = 0, half_tiny = 0;
  std::vector<double> q, k, v, dout;
  std::vector<double> out, lse, dq, dk, dv, out_bound, lse_bound, dq_bound, dk_bound, dv_bound;

  void run() {
    for (auto* x : {&out, &dq, &out_bound, &dq_bound}) x->assign(n * d, 0.0);
    for (auto* x : {&dk, &dv, &dk_bound, &dv_bound}) x->assign(keys * d, 0.0);
    lse.assign(n, -std::numeric_limits<double>::infinity());
    lse_bound.assign(n, 0.0);
    for (int64_t i = 0; i < n; ++i) row(i);
  }

 private:
  static constexpr double kUnit = 1.0 / (1 << 24);  // relative rounding error of one f32 operation
  static constexpr double kFlush = 1.2e-38;         // weights below the normal range may become 0

  double dot(const double* x, const double* y) const {
    double sum = 0;
    for (int64_t j = 0; j < d; ++j) sum += x[j] * y[j];
    return sum;
  }
  double dot_abs(const double* x, const double* y) const {
    double sum = 0;
    for (int64_t j = 0; j < d; ++j) sum += std::fabs(x[j] * y[j]);
    return sum;
  }

  // Standard first-order error analysis: a sum of m products is off by at most m u sum|terms|, so a score by `score_error`, a
  // weight by a share of twice that (numerator and denominator) and of 8 u for exp, a sum over the keys by keys u.
  void row(int64_t i) {
    const int64_t visible = causal ? std::min(keys, std::max<int64_t>(0, keys - n + i + 1)) : keys;
    if (visible == 0) return;
    std::vector<double> score(visible), weight(visible);
    double peak = -std::numeric_limits<double>::infinity(), score_error = 0, largest = 0;
    for (int64_t t = 0; t < visible; ++t) {
      score[t] = scale * dot(&q[i * d], &k[t * d]);
      peak = std::max(peak, score[t]);
      largest = std::max(largest, std::fabs(score[t]));
      if (!exact_scores) score_error = std::max(score_error, (d + 2) * kUnit * scale * dot_abs(&q[i * d], &k[t * d]));
    }
    double sum = 0;
    for (int64_t t = 0; t < visible; ++t) sum += std::exp(score[t] - peak);
    lse[i] = peak + std::log(sum);
    const double summing = (visible + 8) * kUnit;
    lse_bound[i] = score_error + summing + 4 * kUnit * largest;
    double* o = &out[i * d];
    double* o_bound = &out_bound[i * d];
    for (int64_t t = 0; t < visible; ++t) {
      weight[t] = std::exp(score[t] - lse[i]);
      for (int64_t j = 0; j < d; ++j) {
        o[j] += weight[t] * v[t * d + j];
        o_bound[j] += ((2 * score_error + 2 * summing + half_unit) * weight[t] + kFlush + half_tiny) * std::fabs(v[t * d + j]);
      }
    }
    for (int64_t j = 0; j < d; ++j) o_bound[j] += half_unit * std::fabs(o[j]) + half_tiny;
    gradients(i, score_error + lse_bound[i] + 8 * kUnit, weight);
  }

  void gradients(int64_t i, double weight_error, const std::vector<double>& weight) {
    const double* g = &dout[i * d];
    const double delta = dot(g, &out[i * d]);
    const double delta_error = dot_abs(g, &out_bound[i * d]) + (d + 1) * kUnit * dot_abs(g, &out[i * d]);
    for (size_t t = 0; t < weight.size(); ++t) {
      const double* value = &v[t * d];
      const double dweight = dot(g, value), dscore = weight[t] * (dweight - delta);
      const double dweight_error = (d + 1) * kUnit * dot_abs(g, value);
      const double dscore_error = weight[t] * (dweight_error + delta_error) + (weight_error + 2 * kUnit + half_unit) * std::fabs(dscore) +
                                  half_tiny + kFlush * (1 + std::fabs(dweight) + std::fabs(delta));
      // Sums over keys (dq) and over rows (dk, dv, n of them per head of a group of at most 16) add their own rounding.
      const double by_keys = dscore_error + (weight.size() + 2) * kUnit * std::fabs(dscore);
      const double by_rows = dscore_error + (16 * n + 2) * kUnit * std::fabs(dscore);
      for (int64_t j = 0; j < d; ++j) {
        dq[i * d + j] += scale * dscore * k[t * d + j];
        dk[t * d + j] += scale * dscore * q[i * d + j];
        dv[t * d + j] += weight[t] * g[j];
        dq_bound[i * d + j] += scale * by_keys * std::fabs(k[t * d + j]);
        dk_bound[t * d + j] += scale * by_rows * std::fabs(q[i * d + j]);
        dv_bound[t * d + j] += ((weight_error + half_unit + (16 * n + 2) * kUnit) * weight[t] + kFlush + half_tiny) * std::fabs(g[j]);
      }
    }
  }
};

}  // namespace plumbline_test
