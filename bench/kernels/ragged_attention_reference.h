#pragma once
// One batch of ragged attention with values that its type holds, and in double what single rows and keys must come to.
#include <algorithm>
#include <cmath>

#include "harness.h"

namespace plumbline_bench {

using plumbline::DType;

inline size_t size_of(DType dtype) { return dtype == DType::f32 ? 4 : 2; }

// Elements of one type, as bytes of the device.
struct Elements {
  DType dtype;
  std::vector<uint8_t> bytes;
  double operator[](int64_t i) const {
    if (dtype == DType::f32) return static_cast<double>(reinterpret_cast<const float*>(bytes.data())[i]);
    const uint16_t bits = reinterpret_cast<const uint16_t*>(bytes.data())[i];
    return static_cast<double>(dtype == DType::f16 ? plumbline::half_to_float(bits) : plumbline::bf16_to_float(bits));
  }
  // Noise of a prime period: a million draws serve any size.
  static Elements noise(DType dtype, int64_t size, uint64_t seed) {
    const std::vector<float> drawn = plumbline_bench::noise(static_cast<size_t>(std::min<int64_t>(size, 1048573)), seed);
    Elements all{dtype, std::vector<uint8_t>(static_cast<size_t>(size) * size_of(dtype))};
    for (size_t i = 0; i < static_cast<size_t>(size); ++i) {
      const float x = drawn[i % drawn.size()];
      if (dtype == DType::f32) reinterpret_cast<float*>(all.bytes.data())[i] = x;
      else reinterpret_cast<uint16_t*>(all.bytes.data())[i] = dtype == DType::f16 ? plumbline::float_to_half(x) : plumbline::float_to_bf16(x);
    }
    return all;
  }
};

struct AttentionProblem {
  static constexpr int32_t d = 128;
  DType dtype;
  int32_t H, Hkv;
  std::string name;
  std::vector<int32_t> cu_q{0}, cu_k{0}, sequence_T, sequence_S;
  Elements q, k, v, dout;
  float scale = 0.08838835f;

  AttentionProblem(DType type, int32_t heads, int32_t kv_heads, const std::string& lengths, const std::vector<std::pair<int32_t, int32_t>>& rows_and_keys) : dtype(type), H(heads), Hkv(kv_heads) {
    for (const auto& [rows, keys] : rows_and_keys) {
      const int32_t b = static_cast<int32_t>(cu_q.size()) - 1;
      cu_q.push_back(cu_q.back() + rows), cu_k.push_back(cu_k.back() + keys);
      sequence_T.insert(sequence_T.end(), static_cast<size_t>(rows), b), sequence_S.insert(sequence_S.end(), static_cast<size_t>(keys), b);
    }
    q = Elements::noise(dtype, row_size(), 1), k = Elements::noise(dtype, key_size(), 2), v = Elements::noise(dtype, key_size(), 3), dout = Elements::noise(dtype, row_size(), 4);
    name = lengths + ", " + std::to_string(H) + "/" + std::to_string(Hkv) + (dtype == DType::f32 ? " f32" : dtype == DType::f16 ? " f16" : " bf16");
  }
  int64_t row_heads() const { return int64_t{cu_q.back()} * H; }
  int64_t key_heads() const { return int64_t{cu_k.back()} * Hkv; }
  int64_t row_size() const { return row_heads() * d; }
  int64_t key_size() const { return key_heads() * d; }
  int32_t visible(int64_t t) const {  // causal, aligned at the end; at least as many keys as rows
    const size_t b = static_cast<size_t>(sequence_T[static_cast<size_t>(t)]);
    return cu_k[b + 1] - cu_k[b] - (cu_q[b + 1] - cu_q[b]) + static_cast<int32_t>(t) - cu_q[b] + 1;
  }
  double meetings() const {  // (row, head, key)
    double count = 0;
    for (int64_t t = 0; t < cu_q.back(); ++t) count += visible(t);
    return count * H;
  }
  double bytes(int row_arrays, int key_arrays) const {
    return static_cast<double>(row_arrays * row_size() + key_arrays * key_size()) * static_cast<double>(size_of(dtype)) + 4.0 * static_cast<double>(row_heads());
  }
  plumbline::RaggedAttention shape() const { return {dtype, static_cast<int32_t>(cu_q.size()) - 1, cu_q.data(), cu_k.data(), H, Hkv, d, scale, true}; }

  // u: rounding of f32; half(): of the type that weights and results are rounded to; tiny(): what rounding to f16 loses below its normal range.
  static constexpr double u = 0x1p-24;
  double half() const { return dtype == DType::f32 ? u : dtype == DType::f16 ? 0x1p-11 : 0x1p-8; }
  double tiny() const { return dtype == DType::f16 ? 0x1p-25 : 0x1p-126; }

  double forward_error(const Elements& out, const std::vector<float>& lse, int64_t step) const;
  double grad_error(const Elements& out, const std::vector<float>& lse, const Elements& dq, const Elements& dk, const Elements& dv, int64_t row_step, int64_t key_step) const;

 private:
  struct Product {
    double sum = 0, size = 0;  // size: of the absolute values
  };
  static Product dot(const Elements& a, int64_t at_a, const Elements& b, int64_t at_b) {
    Product p;
    for (int64_t c = 0; c < d; ++c) {
      const double term = a[at_a + c] * b[at_b + c];
      p.sum += term, p.size += std::fabs(term);
    }
    return p;
  }
  int64_t key_row(int64_t row, int32_t key) const {  // offset of a key that a row of [T, H] meets
    return ((int64_t{cu_k[static_cast<size_t>(sequence_T[static_cast<size_t>(row / H)])]} + key) * Hkv + row % H / (H / Hkv)) * d;
  }
  // Score with what its sum of d terms (tensor cores cut instead of rounding: 2 u each) and the exponential may be off by.
  struct Score {
    double s, off;
  };
  Score score(int64_t row, int64_t key_at) const {
    const Product p = dot(q, row * d, k, key_at);
    const double s = p.sum * static_cast<double>(scale);
    return {s, 2 * u * d * p.size * static_cast<double>(scale) + u * (4 + 4 * std::fabs(s))};
  }
  struct Grad {
    double weight, dscore, weight_off, dscore_off;  // before rounding to the type
  };
  Grad grad(const Elements& out, double lse, int64_t row, int64_t key_at) const {
    const Score s = score(row, key_at);
    const Product dp = dot(dout, row * d, v, key_at), delta = dot(dout, row * d, out, row * d);
    const double weight = std::exp(s.s - lse), weight_off = weight * (s.off + 4 * u * std::fabs(lse));
    return {weight, weight * (dp.sum - delta.sum), weight_off, weight_off * std::fabs(dp.sum - delta.sum) + weight * 2 * u * d * (dp.size + delta.size)};
  }
  static double larger(double worst, double share) { return share <= worst ? worst : share; }  // NaN stays
};

// A weight is off by its score's error and one rounding to the type; sums of n keys by 2 n u; the result is rounded.
inline double AttentionProblem::forward_error(const Elements& out, const std::vector<float>& lse, int64_t step) const {
  double worst = 0;
  for (int64_t row = 0; row < row_heads(); row += step) {
    const int32_t keys = visible(row / H);
    std::vector<Score> scores;
    double peak = -INFINITY, sum = 0, off = 0;
    for (int32_t key = 0; key < keys; ++key) scores.push_back(score(row, key_row(row, key))), peak = std::max(peak, scores.back().s);
    for (const Score& s : scores) sum += std::exp(s.s - peak), off += std::exp(s.s - peak) * s.off;
    off = off / sum + 2 * u * keys;
    worst = larger(worst, std::fabs(static_cast<double>(lse[static_cast<size_t>(row)]) - (peak + std::log(sum))) / (off + u * (4 + 4 * std::fabs(peak + std::log(sum)))));
    for (int64_t c = 0; c < d; ++c) {
      double want = 0, bound = 0;
      for (int32_t key = 0; key < keys; ++key) {
        const double weight = std::exp(scores[static_cast<size_t>(key)].s - peak) / sum, value = v[key_row(row, key) + c];
        want += weight * value, bound += std::fabs(value) * (weight * (scores[static_cast<size_t>(key)].off + half() + 2 * u * keys) + tiny() / sum);
      }
      worst = larger(worst, std::fabs(out[row * d + c] - want) / (bound + std::fabs(want) * (off + half()) + tiny()));
    }
  }
  return worst;
}

// Of out and lse as they are. Weights and gradients of scores are rounded to the type, sums of n are off by 2 n u, results are rounded.
inline double AttentionProblem::grad_error(const Elements& out, const std::vector<float>& lse, const Elements& dq, const Elements& dk, const Elements& dv, int64_t row_step, int64_t key_step) const {
  double worst = 0;
  const auto compare = [&](const Elements& got, int64_t at, const std::vector<double>& want, const std::vector<double>& bound, double factor) {
    for (size_t c = 0; c < want.size(); ++c) worst = larger(worst, std::fabs(got[at + static_cast<int64_t>(c)] - want[c] * factor) / (factor * (bound[c] + half() * std::fabs(want[c])) + tiny()));
  };
  const auto add = [&](std::vector<double>& want, std::vector<double>& bound, double value, double off, const Elements& with, int64_t at, int64_t terms) {
    for (size_t c = 0; c < want.size(); ++c) {
      const double x = with[at + static_cast<int64_t>(c)];
      want[c] += value * x, bound[c] += std::fabs(x) * (off + std::fabs(value) * (half() + 2 * u * static_cast<double>(terms)) + tiny());
    }
  };
  const std::vector<double> zeros(d);
  for (int64_t row = 0; row < row_heads(); row += row_step) {
    std::vector<double> want = zeros, bound = zeros;
    for (int32_t key = 0; key < visible(row / H); ++key) {
      const Grad g = grad(out, static_cast<double>(lse[static_cast<size_t>(row)]), row, key_row(row, key));
      add(want, bound, g.dscore, g.dscore_off, k, key_row(row, key), visible(row / H));
    }
    compare(dq, row * d, want, bound, static_cast<double>(scale));
  }
  for (int64_t at = 0; at < key_heads(); at += key_step) {
    std::vector<double> dk_want = zeros, dk_bound = zeros, dv_want = zeros, dv_bound = zeros;
    const size_t b = static_cast<size_t>(sequence_S[static_cast<size_t>(at / Hkv)]);
    const int64_t group = H / Hkv, terms = (cu_q[b + 1] - cu_q[b]) * group;
    for (int64_t t = cu_q[b]; t < cu_q[b + 1]; ++t)
      for (int64_t member = 0; at / Hkv - cu_k[b] < visible(t) && member < group; ++member) {
        const int64_t row = t * H + at % Hkv * group + member;
        const Grad g = grad(out, static_cast<double>(lse[static_cast<size_t>(row)]), row, at * d);
        add(dk_want, dk_bound, g.dscore, g.dscore_off, q, row * d, terms);
        add(dv_want, dv_bound, g.weight, g.weight_off, dout, row * d, terms);
      }
    compare(dk, at * d, dk_want, dk_bound, static_cast<double>(scale));
    compare(dv, at * d, dv_want, dv_bound, 1);
  }
  return worst;
}

}  // namespace plumbline_bench
