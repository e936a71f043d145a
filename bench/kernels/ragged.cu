// Ragged, variable-depth batching: choose the rows above a threshold, gather them with their norm, bring them back through a gate.
//   route_tokens     1 a thread per sequence   2 count, scan, write: three launches   3 one pass with look-back   4 shipped, with its copies
//   gather_rms_norm  1 a thread per row        2 copy, then norm: two launches         3 shipped
//   gated_scatter    1 a thread per row        2 a thread per element                  3 shipped
// Bytes: every input once, every output once; of h only the rows that are gathered.
#include <algorithm>
#include <cmath>

#include "../../cuda/routing_threshold.cuh"
#include "harness.h"

namespace plumbline_bench {
namespace {

using namespace plumbline;

constexpr int kBlock = 256;
constexpr float kThreshold = 1.2816f;  // a tenth of normal scores lie above
constexpr double kUnit = 0x1p-24;

__device__ int64_t thread_number() { return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }

// Version 1 of route_tokens: numbers, their sums, then rows.
__global__ void count_sequence_kernel(const float* scores, const int32_t* cu, int32_t B, int32_t* count) {
  const int64_t b = thread_number();
  if (b >= B) return;
  int32_t n = 0;
  for (int32_t i = cu[b]; i < cu[b + 1]; ++i) n += scores[i] > kThreshold;
  count[b + 1] = n;
}
__global__ void add_up_kernel(int32_t* count, int64_t n) {
  count[0] = 0;
  for (int64_t i = 1; i <= n; ++i) count[i] += count[i - 1];
}
__global__ void write_sequence_kernel(const float* scores, const int32_t* cu, int32_t B, const int32_t* cu_routed, int32_t* rows) {
  const int64_t b = thread_number();
  if (b >= B) return;
  int32_t at = cu_routed[b];
  for (int32_t i = cu[b]; i < cu[b + 1]; ++i)
    if (scores[i] > kThreshold) rows[at++] = i;
}

// Version 2: the same by blocks of candidates; a sequence's start is looked up in the rows.
__global__ void count_block_kernel(const float* scores, int64_t T, int32_t* count) {
  const int64_t i = thread_number();
  const int n = __syncthreads_count(i < T && scores[i] > kThreshold);
  if (threadIdx.x == 0) count[blockIdx.x + 1] = n;
}
__global__ void scan_kernel(int32_t* count, int64_t n) {  // one block
  __shared__ int32_t sums[kBlock];
  const int64_t share = (n + kBlock - 1) / kBlock, begin = 1 + threadIdx.x * share, end = min(n + 1, begin + share);
  int32_t sum = 0;
  for (int64_t i = begin; i < end; ++i) sum += count[i];
  sums[threadIdx.x] = sum;
  __syncthreads();
  int32_t before = 0;
  for (unsigned t = 0; t < threadIdx.x; ++t) before += sums[t];
  for (int64_t i = begin; i < end; ++i) count[i] = before += count[i];
  if (threadIdx.x == 0) count[0] = 0;
}
__global__ void write_block_kernel(const float* scores, int64_t T, const int32_t* count, int32_t* rows, const int32_t* cu, int32_t B, int32_t* cu_routed) {
  __shared__ int32_t before[kBlock / 32];
  const int64_t i = thread_number();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const bool is_above = i < T && scores[i] > kThreshold;
  const unsigned ballot = __ballot_sync(kFullMask, is_above);
  if (lane == 0) before[warp] = __popc(ballot);
  __syncthreads();
  int32_t rank = count[blockIdx.x] + __popc(ballot & ((1u << lane) - 1u));
  for (int w = 0; w < warp; ++w) rank += before[w];
  if (is_above) rows[rank] = static_cast<int32_t>(i);
  if (i >= T) return;
  for (int32_t b = first_beyond(cu, B, i) - 1; b >= 0 && cu[b] == i; --b) cu_routed[b] = rank;
  if (i == T - 1)
    for (int32_t b = B; b >= 0 && cu[b] == T; --b) cu_routed[b] = rank + is_above;
}

struct Routing {
  int32_t B;
  int64_t T;
  std::vector<float> scores;
  std::vector<int32_t> cu{0}, want_rows, want_cu{0};
  Routing(int64_t tokens, int32_t sequences) : B(sequences), T(tokens), scores(noise(static_cast<size_t>(tokens), 1)) {
    for (int32_t b = 1; b <= B; ++b) cu.push_back(b == B ? static_cast<int32_t>(T) : static_cast<int32_t>(T * b * b / B / B));  // short ones and long ones
    for (int32_t b = 0; b < B; ++b) {
      for (int32_t i = cu[b]; i < cu[b + 1]; ++i)
        if (scores[i] > kThreshold) want_rows.push_back(i);
      want_cu.push_back(static_cast<int32_t>(want_rows.size()));
    }
  }
};

void bench_route(Harness& h) {
  const Routing r(h.check_only() ? 30000 : int64_t{1} << 21, 64);
  const int64_t n = static_cast<int64_t>(r.want_rows.size()), blocks = blocks_of(r.T, kBlock), tiles = blocks_of(r.T, kRouteTile);
  const float* scores = h.upload(r.scores);
  const int32_t* cu = h.upload(r.cu);
  const float* threshold = h.upload(std::vector<float>{kThreshold});
  int32_t* rows = h.upload(std::vector<int32_t>(static_cast<size_t>(r.T), -1));
  int32_t* cu_routed = h.upload(std::vector<int32_t>(static_cast<size_t>(r.B) + 1, -1));
  int32_t* counts = static_cast<int32_t*>(h.allocate(static_cast<size_t>(blocks + 1) * sizeof(int32_t)));
  uint64_t* state = static_cast<uint64_t*>(h.allocate(static_cast<size_t>(tiles + 1) * sizeof(uint64_t)));
  std::vector<int32_t> host_rows(static_cast<size_t>(r.T)), host_cu(r.want_cu.size());
  const auto is_right = [&] { return std::equal(r.want_rows.begin(), r.want_rows.end(), host_rows.begin()) && host_cu == r.want_cu ? 0.0 : 2.0; };
  const auto error = [&] {
    host_rows = h.download(rows, static_cast<size_t>(r.T)), host_cu = h.download(cu_routed, r.want_cu.size());
    return is_right();
  };
  const std::string what = std::to_string(r.T) + " scores, 64 sequences";
  const double bytes = 4.0 * static_cast<double>(r.T + n);
  const auto grid = [](int64_t count) { return dim3(blocks_of(count, kBlock)); };
  h.measure({"route_tokens", "1 a thread per sequence", what, bytes}, [&] {
    h.check(launch(count_sequence_kernel, grid(r.B), dim3(kBlock), 0, h.stream(), scores, cu, r.B, cu_routed));
    h.check(launch(add_up_kernel, dim3(1), dim3(1), 0, h.stream(), cu_routed, r.B));
    h.check(launch(write_sequence_kernel, grid(r.B), dim3(kBlock), 0, h.stream(), scores, cu, r.B, cu_routed, rows));
  }, error);
  h.measure({"route_tokens", "2 count, scan, write", what, bytes}, [&] {
    h.check(launch(count_block_kernel, grid(r.T), dim3(kBlock), 0, h.stream(), scores, r.T, counts));
    h.check(launch(scan_kernel, dim3(1), dim3(kBlock), 0, h.stream(), counts, blocks));
    h.check(launch(write_block_kernel, grid(r.T), dim3(kBlock), 0, h.stream(), scores, r.T, counts, rows, cu, r.B, cu_routed));
  }, error);
  const ThresholdRoute one_pass = {scores, threshold, cu, r.B, r.T, tiles, state, rows, cu_routed, RouteGate::raw, nullptr, true};
  h.measure({"route_tokens", "3 one pass with look-back", what, bytes}, [&] {
    h.check(cudaMemsetAsync(state, 0, static_cast<size_t>(tiles + 1) * sizeof(uint64_t), h.stream()));
    h.check(launch(route_threshold_kernel, dim3(static_cast<unsigned>(tiles)), dim3(kRouteThreads), 0, h.stream(), one_pass));
  }, error);
  const RouteTokens route = {RouteRule::threshold, r.B, r.cu.data(), threshold, 0, nullptr, nullptr};
  h.measure({"route_tokens", "4 shipped, rows fetched", what, bytes}, [&] { h.backend().route_tokens(route, scores, host_rows.data(), host_cu.data(), nullptr, RouteGate::raw, nullptr); }, is_right);
}

// Versions 1 and 2 of gather_rms_norm.
__global__ void gather_norm_row_kernel(const float* h, const int32_t* row, const float* w, float eps, float* x, float* y, float* rstd, int64_t n, int64_t C) {
  const int64_t i = thread_number();
  if (i >= n) return;
  float sum = 0.0f;
  for (int64_t c = 0; c < C; ++c) {
    const float v = h[row[i] * C + c];
    x[i * C + c] = v;
    sum = fmaf(v, v, sum);
  }
  rstd[i] = 1.0f / sqrtf(sum / static_cast<float>(C) + eps);
  for (int64_t c = 0; c < C; ++c) y[i * C + c] = x[i * C + c] * rstd[i] * w[c];
}
__global__ void copy_row_kernel(const float* h, const int32_t* row, float* x, int64_t n, int64_t C) {
  const int64_t e = thread_number();
  if (e < n * C) x[e] = h[row[e / C] * C + e % C];
}
__global__ void norm_row_kernel(const float* x, const float* w, float eps, float* y, float* rstd, int64_t C) {
  __shared__ float room[kBlock / 32];
  const int64_t i = blockIdx.x;
  float sum = 0.0f;
  for (int64_t c = threadIdx.x; c < C; c += kBlock) sum = fmaf(x[i * C + c], x[i * C + c], sum);
  const float r = 1.0f / sqrtf(block_sum<kBlock>(sum, room) / static_cast<float>(C) + eps);
  if (threadIdx.x == 0) rstd[i] = r;
  for (int64_t c = threadIdx.x; c < C; c += kBlock) y[i * C + c] = x[i * C + c] * r * w[c];
}

// Rows of a pass, and those of them that are routed.
struct Rows {
  int64_t T, n, C;
  std::vector<int32_t> row;
  std::vector<float> h, w, y, gate;
  Rows(int64_t tokens, int64_t channels)
      : T(tokens), n(tokens / 2), C(channels), h(noise(static_cast<size_t>(T * C), 2)), w(noise(static_cast<size_t>(C), 3)), y(noise(static_cast<size_t>(n * C), 4)), gate(noise(static_cast<size_t>(T), 5)) {
    for (int64_t i = 0; i < n; ++i) row.push_back(static_cast<int32_t>(2 * i + i % 2));
  }
  std::string what() const { return std::to_string(n) + " of " + std::to_string(T) + " rows, C " + std::to_string(C) + " f32"; }
};

void bench_gather(Harness& h, const Rows& r) {
  const size_t size = static_cast<size_t>(r.n * r.C);
  const float eps = 1e-6f, *from = h.upload(r.h), *w = h.upload(r.w);
  const int32_t* row = h.upload(r.row);
  float* x = static_cast<float*>(h.allocate(size * sizeof(float)));
  float* y = static_cast<float*>(h.allocate(size * sizeof(float)));
  float* rstd = static_cast<float*>(h.allocate(static_cast<size_t>(r.n) * sizeof(float)));
  const auto error = [&] {  // the sum adds C roundings at most, to each of which y is half as sensitive
    const std::vector<float> got_x = h.download(x, size), got_y = h.download(y, size);
    double worst = 0;
    for (int64_t i = 0; i < r.n; ++i) {
      const float* want = r.h.data() + r.row[i] * r.C;
      double sum = 0;
      for (int64_t c = 0; c < r.C; ++c) sum += static_cast<double>(want[c]) * static_cast<double>(want[c]);
      const double rstd_i = 1 / std::sqrt(sum / static_cast<double>(r.C) + 1e-6);
      for (int64_t c = 0; c < r.C; ++c) {
        if (got_x[i * r.C + c] != want[c]) return 2.0;
        const double y_c = static_cast<double>(want[c]) * rstd_i * static_cast<double>(r.w[c]);
        worst = std::max(worst, std::fabs(static_cast<double>(got_y[i * r.C + c]) - y_c) / ((0.5 * static_cast<double>(r.C) + 6) * kUnit * std::fabs(y_c) + 0x1p-126));
      }
    }
    return worst;
  };
  const double bytes = 4.0 * static_cast<double>(r.n) * (3.0 * static_cast<double>(r.C) + 1);
  h.measure({"gather_rms_norm", "1 a thread per row", r.what(), bytes},
            [&] { h.check(launch(gather_norm_row_kernel, dim3(blocks_of(r.n, 32)), dim3(32), 0, h.stream(), from, row, w, eps, x, y, rstd, r.n, r.C)); }, error);
  h.measure({"gather_rms_norm", "2 copy, then norm", r.what(), bytes}, [&] {
    h.check(launch(copy_row_kernel, dim3(blocks_of(r.n * r.C, kBlock)), dim3(kBlock), 0, h.stream(), from, row, x, r.n, r.C));
    h.check(launch(norm_row_kernel, dim3(static_cast<unsigned>(r.n)), dim3(kBlock), 0, h.stream(), x, w, eps, y, rstd, r.C));
  }, error);
  h.measure({"gather_rms_norm", "3 shipped", r.what(), bytes}, [&] { h.backend().gather_rms_norm(from, r.row.data(), nullptr, w, eps, x, y, rstd, r.n, r.C, nullptr); }, error);
}

// Versions 1 and 2 of gated_scatter.
__global__ void scatter_row_kernel(const float* y, const float* gate, float* h, const int32_t* row, int64_t n, int64_t C) {
  const int64_t i = thread_number();
  for (int64_t c = 0; i < n && c < C; ++c) h[row[i] * C + c] += gate[row[i]] * (y[i * C + c] - h[row[i] * C + c]);
}
__global__ void scatter_element_kernel(const float* y, const float* gate, float* h, const int32_t* row, int64_t n, int64_t C) {
  const int64_t e = thread_number(), i = e / C;
  if (i >= n) return;
  float* to = h + row[i] * C + e % C;
  *to += gate[row[i]] * (y[e] - *to);
}

void bench_scatter(Harness& h, const Rows& r) {
  const float *y = h.upload(r.y), *gate = h.upload(r.gate), *before = h.upload(r.h);
  const int32_t* row = h.upload(r.row);
  float* to = h.upload(r.h);
  const auto reset = [&] { h.backend().copy(to, before, r.h.size() * sizeof(float)); };
  const auto error = [&] {
    const std::vector<float> got = h.download(to, r.h.size());
    std::vector<double> want(r.h.begin(), r.h.end()), bound(r.h.size(), 0x1p-126);
    for (int64_t i = 0; i < r.n; ++i)
      for (int64_t c = 0; c < r.C; ++c) {
        const size_t at = static_cast<size_t>(r.row[i] * r.C + c);
        const double g = static_cast<double>(r.gate[r.row[i]]), v = static_cast<double>(r.y[i * r.C + c]), old = want[at];
        want[at] = old + g * (v - old);
        bound[at] = 4 * kUnit * (std::fabs(old) + std::fabs(g) * (2 * std::fabs(v) + std::fabs(old)));
      }
    double worst = 0;
    for (size_t at = 0; at < want.size(); ++at) worst = std::max(worst, std::fabs(static_cast<double>(got[at]) - want[at]) / bound[at]);
    return worst;
  };
  const double bytes = 4.0 * static_cast<double>(r.n) * (3.0 * static_cast<double>(r.C) + 1);
  h.measure({"gated_scatter", "1 a thread per row", r.what(), bytes}, [&] { h.check(launch(scatter_row_kernel, dim3(blocks_of(r.n, 32)), dim3(32), 0, h.stream(), y, gate, to, row, r.n, r.C)); },
            error, reset);
  h.measure({"gated_scatter", "2 a thread per element", r.what(), bytes},
            [&] { h.check(launch(scatter_element_kernel, dim3(blocks_of(r.n * r.C, kBlock)), dim3(kBlock), 0, h.stream(), y, gate, to, row, r.n, r.C)); }, error, reset);
  h.measure({"gated_scatter", "3 shipped", r.what(), bytes},
            [&] { h.backend().gated_scatter(Fusion::interpolate, y, gate, r.row.data(), nullptr, to, r.row.data(), r.n, r.C); }, error, reset);
}

}  // namespace

void bench_ragged(Harness& h) {
  if (h.wants("route_tokens")) bench_route(h);
  h.clear();
  const std::vector<int64_t> tokens = h.check_only() ? std::vector<int64_t>{40} : std::vector<int64_t>{64, 1024, 16384};
  for (const int64_t C : {1536, 3584})
    for (const int64_t T : tokens) {
      const Rows rows(T, C);
      if (h.wants("gather_rms_norm")) bench_gather(h, rows);
      h.clear();
      if (h.wants("gated_scatter")) bench_scatter(h, rows);
      h.clear();
    }
}

}  // namespace plumbline_bench
