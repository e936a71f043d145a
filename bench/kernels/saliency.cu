// The ladder of visual replay: saliency of a batch over all layers, then selection and gather of the next rows.
//   attention_saliency  1 a thread per column  2 a warp per column, head by head  3 shipped: rows in registers for all heads, cut over layers
//   select_patches      1 a thread per sequence, then a gather (no window)  2 shipped: one launch, window and download included
#include <algorithm>
#include <cmath>

#include "../../cuda/saliency.cuh"
#include "harness.h"

namespace plumbline_bench {
namespace {

using namespace plumbline;

struct Naive {
  PageView pages;
  const float* q;         // [B, layers, H, d]
  const float* lse;       // [B, layers, H]
  const int32_t* columns; // [B, n]
  int32_t B, n, layers, H, Hkv, d;
  int64_t layer_stride;
  float q_scale, scale;
  float* saliency;
};

__global__ void thread_per_column_kernel(Naive c) {
  const int at = blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= c.B * c.n) return;
  const int b = at / c.n;
  float sum = 0;
  for (int layer = 0; layer < c.layers; ++layer)
    for (int h = 0; h < c.H; ++h) {
      const float* k = c.pages.row(b, c.columns[at], h / (c.H / c.Hkv)) + layer * c.layer_stride;
      const int64_t head = (static_cast<int64_t>(b) * c.layers + layer) * c.H + h;
      float dot = 0;
      for (int j = 0; j < c.d; ++j) dot = fmaf(c.q[head * c.d + j], k[j], dot);
      sum += expf(c.q_scale * dot - c.lse[head]);
    }
  c.saliency[at] += c.scale * sum;
}

__global__ void warp_per_column_kernel(Naive c) {
  const int at = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
  if (at >= c.B * c.n) return;
  const int b = at / c.n;
  float sum = 0;
  for (int layer = 0; layer < c.layers; ++layer)
    for (int h = 0; h < c.H; ++h) {
      const float* k = c.pages.row(b, c.columns[at], h / (c.H / c.Hkv)) + layer * c.layer_stride;
      const int64_t head = (static_cast<int64_t>(b) * c.layers + layer) * c.H + h;
      float dot = 0;
      for (int j = lane; j < c.d; j += 32) dot = fmaf(c.q[head * c.d + j], k[j], dot);
      sum += expf(c.q_scale * warp_sum(dot) - c.lse[head]);
    }
  if (lane == 0) c.saliency[at] += c.scale * sum;
}

// Sequences of equal length in pages of 64 rows, all layers above one another; image tokens from key 15 on.
struct SaliencyProblem {
  int32_t B, n, layers, H = 12, Hkv = 2, d = 128, page_rows = 64, keys;
  int64_t page_floats, layer_stride;
  std::vector<int32_t> page_start{0}, cu{0}, columns, row, kv_len;
  std::vector<float> k, q, lse;
  std::vector<double> want, bound;
  static constexpr float kScale = 0.125f, kQueryScale = 0.0883883f;

  SaliencyProblem(int32_t B_, int32_t n_, int32_t layers_) : B(B_), n(n_), layers(layers_), keys(n_ + 40) {
    layer_stride = int64_t{Hkv} * page_rows * d, page_floats = layers * layer_stride;
    for (int32_t b = 0; b < B; ++b) {
      page_start.push_back(page_start.back() + (keys + page_rows - 1) / page_rows);
      cu.push_back((b + 1) * n), row.push_back(b * layers), kv_len.push_back(keys);
      for (int32_t i = 0; i < n; ++i) columns.push_back(15 + i);
    }
    const size_t rows = static_cast<size_t>(B) * static_cast<size_t>(layers) * static_cast<size_t>(H);
    k = noise(static_cast<size_t>(page_start.back() * page_floats), 1), q = noise(rows * static_cast<size_t>(d), 2), lse = noise(rows, 3, 0.1f);
    for (float& x : lse) x += 7;
    for (int32_t b = 0; b < B; ++b)
      for (int32_t i = 0; i < n; ++i) add_reference(b, columns[b * n + i]);
  }
  double bytes() const { return static_cast<double>(columns.size()) * (double(layers) * Hkv * d * 4 + 12) + static_cast<double>(q.size() + lse.size()) * 4; }

 private:
  // A score is off by at most (d + 2) u sum|terms|, e^x by 10 u, the sum by one rounding a term.
  void add_reference(int32_t b, int32_t key) {
    double sum = 0, off = 0;
    const double u = 0x1p-24;
    for (int32_t layer = 0; layer < layers; ++layer)
      for (int32_t h = 0; h < H; ++h) {
        const float* x = k.data() + (page_start[b] + key / page_rows) * page_floats + layer * layer_stride + (int64_t{h / (H / Hkv)} * page_rows + key % page_rows) * d;
        const int64_t head = (int64_t{b} * layers + layer) * H + h;
        double s = 0, size = 0;
        for (int32_t j = 0; j < d; ++j) {
          const double term = static_cast<double>(q[head * d + j]) * static_cast<double>(x[j]);
          s += term, size += std::fabs(term);
        }
        const double own = static_cast<double>(lse[head]), p = std::exp(s * static_cast<double>(kQueryScale) - own);
        sum += p, off += p * u * ((d + 2) * size * static_cast<double>(kQueryScale) + std::fabs(s * static_cast<double>(kQueryScale)) + std::fabs(own) + 10 + layers * H);
      }
    want.push_back(static_cast<double>(kScale) * sum), bound.push_back(static_cast<double>(kScale) * off);
  }
};

void bench_attention_saliency(Harness& h) {
  if (!h.wants("attention_saliency")) return;
  const SaliencyProblem p = h.check_only() ? SaliencyProblem(2, 70, 2) : SaliencyProblem(8, 1024, 28);
  float *k = h.upload(p.k), *q = h.upload(p.q), *lse = h.upload(p.lse), *saliency = static_cast<float*>(h.allocate(p.columns.size() * sizeof(float)));
  std::vector<float*> pages;
  for (int32_t page = 0; page < p.page_start.back(); ++page) pages.push_back(k + page * p.page_floats);
  const Naive naive{{h.upload(pages), h.upload(p.page_start), int64_t{p.page_rows} * p.d, p.d, p.page_rows}, q, lse, h.upload(p.columns), p.B, p.n, p.layers, p.H, p.Hkv, p.d, p.layer_stride,
                    p.kQueryScale, p.kScale, saliency};
  const auto reset = [&] { h.backend().fill(saliency, 0.0f, static_cast<int64_t>(p.columns.size())); };
  const auto error = [&] {
    const std::vector<float> got = h.download(saliency, p.columns.size());
    double worst = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      const double share = std::fabs(static_cast<double>(got[i]) - p.want[i]) / p.bound[i];
      worst = share <= worst ? worst : share;  // NaN stays
    }
    return worst;
  };
  const std::string what = std::to_string(p.B) + " x " + std::to_string(p.n) + " columns, " + std::to_string(p.layers) + " layers, 12/2 heads";
  const auto entry = [&](const char* version) { return Entry{"attention_saliency", version, what, p.bytes(), 0}; };
  const int64_t count = static_cast<int64_t>(p.columns.size());
  h.measure(entry("1 a thread per column"), [&] { h.check(launch(thread_per_column_kernel, dim3(blocks_of(count, 128)), dim3(128), 0, h.stream(), naive)); }, error, reset);
  h.measure(entry("2 a warp per column"), [&] { h.check(launch(warp_per_column_kernel, dim3(blocks_of(count, 4)), dim3(128), 0, h.stream(), naive)); }, error, reset);
  const AttentionShape shape{p.B, nullptr, p.kv_len.data(), p.H, p.Hkv, p.d, p.kQueryScale, true, int64_t{p.H} * p.d};
  std::vector<const float*> q_L, lse_L;
  for (int32_t layer = 0; layer < p.layers; ++layer) q_L.push_back(q + int64_t{layer} * p.H * p.d), lse_L.push_back(lse + int64_t{layer} * p.H);
  const LastQueries queries{p.layers, q_L.data(), lse_L.data(), p.row.data(), p.row.data(), int64_t{p.H} * p.d, p.layer_stride};
  const KeyValuePages view{pages.data(), nullptr, p.page_start.data(), int64_t{p.page_rows} * p.d, p.d, p.page_rows};
  h.measure(entry("3 shipped"), [&] { h.backend().attention_saliency(shape, queries, view, {p.cu.data(), p.columns.data()}, p.kScale, saliency); }, error, reset);
}

__global__ void thread_per_sequence_kernel(const float* saliency, int n, int K, int32_t* selected, float* weight) {
  const float* own = saliency + static_cast<int64_t>(blockIdx.x) * n;
  int32_t* chosen = selected + static_cast<int64_t>(blockIdx.x) * K;
  double sum = 0;
  for (int place = 0; place < K; ++place) {
    int best = -1;
    for (int i = 0; i < n; ++i) {
      bool taken = false;
      for (int j = 0; j < place; ++j) taken = taken || chosen[j] == i;
      if (!taken && (best < 0 || own[i] > own[best])) best = i;
    }
    chosen[place] = best;
    sum += static_cast<double>(own[best]);
  }
  for (int i = 0; i < K; ++i) weight[static_cast<int64_t>(blockIdx.x) * K + i] = static_cast<float>(K * static_cast<double>(own[chosen[i]]) / sum);
}

__global__ void gather_kernel(const float* from, const int32_t* row, const int32_t* selected, const float* weight, int n, int K, int C, float* out) {
  const int64_t to = blockIdx.x, source = row[to / K * n + selected[to]];
  for (int c = threadIdx.x; c < C; c += blockDim.x) out[to * C + c] = weight[to] * from[source * C + c];
}

void bench_select_patches(Harness& h) {
  if (!h.wants("select_patches")) return;
  const int32_t B = h.check_only() ? 2 : 8, side = h.check_only() ? 10 : 32, n = side * side, K = 32, C = 1536;
  std::vector<int32_t> cu{0}, pictures{0}, grid, cu_selected{0}, row, want, selected(static_cast<size_t>(B * K)), window(static_cast<size_t>(6 * B));
  std::vector<float> scores = noise(static_cast<size_t>(B * n), 4, 1e-3f);
  for (float& a : scores) a = std::fabs(a);
  for (int32_t b = 0; b < B; ++b) {
    cu.push_back((b + 1) * n), pictures.push_back(b + 1), cu_selected.push_back((b + 1) * K), grid.insert(grid.end(), {side, side});
    std::vector<int32_t> order;
    for (int32_t i = 0; i < n; ++i) order.push_back(i), row.push_back(b * n + (i * 7 + 3) % n);
    std::stable_sort(order.begin(), order.end(), [&](int32_t i, int32_t j) { return scores[b * n + i] > scores[b * n + j]; });
    want.insert(want.end(), order.begin(), order.begin() + K);
  }
  const std::vector<float> from = noise(static_cast<size_t>(B * n) * C, 5);
  float *source = h.upload(from), *saliency = h.upload(scores);
  float *out = static_cast<float*>(h.allocate(static_cast<size_t>(B * K) * C * sizeof(float))), *weight = static_cast<float*>(h.allocate(static_cast<size_t>(B * K) * sizeof(float)));
  int32_t *device_row = h.upload(row), *device_selected = h.upload(selected);
  const auto error = [&](const std::vector<int32_t>& chosen) {
    const std::vector<float> got = h.download(out, static_cast<size_t>(B * K) * C);
    double worst = chosen == want ? 0 : std::nan("");
    for (int32_t b = 0; b < B; ++b) {
      double sum = 0;
      for (int32_t i = b * K; i < (b + 1) * K; ++i) sum += static_cast<double>(scores[b * n + want[i]]);
      for (int32_t i = b * K; i < (b + 1) * K; ++i)
        for (int32_t c = 0; c < C; ++c) {
          const double exact = K * static_cast<double>(scores[b * n + want[i]]) / sum * static_cast<double>(from[int64_t{row[b * n + want[i]]} * C + c]);
          const double share = std::fabs(static_cast<double>(got[int64_t{i} * C + c]) - exact) / (2.1 * 0x1p-24 * std::fabs(exact) + 0x1p-126);
          worst = share <= worst ? worst : share;
        }
    }
    return worst;
  };
  const std::string what = std::to_string(B) + " x " + std::to_string(K) + " of " + std::to_string(n) + ", C 1536";
  const auto entry = [&](const char* version) { return Entry{"select_patches", version, what, 2.0 * B * K * C * 4 + 9.0 * B * n, 0}; };
  h.measure(entry("1 a thread per sequence, gather"),
            [&] {
              h.check(launch(thread_per_sequence_kernel, dim3(static_cast<unsigned>(B)), dim3(1), 0, h.stream(), saliency, n, K, device_selected, weight));
              h.check(launch(gather_kernel, dim3(static_cast<unsigned>(B * K)), dim3(256), 0, h.stream(), source, device_row, device_selected, weight, n, K, C, out));
            },
            [&] { return error(h.download(device_selected, static_cast<size_t>(B * K))); });
  const ReplayRule rule{K, 4, 0, ReplayWeights::mean_preserving, false, false, false};
  const ReplayLayout layout{B, cu.data(), pictures.data(), grid.data(), cu_selected.data()};
  const ReplayRows rows{source, row.data(), cu_selected.data(), out, C};
  std::vector<uint8_t> used;
  h.measure(entry("2 shipped"), [&] { h.backend().select_patches(rule, layout, saliency, used.data(), selected.data(), weight, window.data(), &rows); }, [&] { return error(selected); },
            [&] { used.assign(static_cast<size_t>(B * n), 0); });
}

}  // namespace

void bench_saliency(Harness& h) {
  bench_attention_saliency(h);
  bench_select_patches(h);
}

}  // namespace plumbline_bench
