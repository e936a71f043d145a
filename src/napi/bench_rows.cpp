// Operations on rows against a plain read of as many bytes. Cold: each call has inputs and outputs of its own, out of sets that fill
// kColdBytes, and a set comes back only when all others have been used. Bytes: what a call must move, each input read once and each
// output written once; the line that a store to the caches reads first is not counted.
#include <algorithm>
#include <cstring>
#include <memory>

#include "../model/memory.h"
#include "bench_loops.h"
#include "contiguous_pages.h"

namespace plumbline {
namespace {

constexpr int64_t kColdBytes = int64_t{1} << 28;    // beyond the last cache of the machines of 2026 with one socket, as the roof's
constexpr int64_t kRepeatBytes = int64_t{1} << 23;  // small calls are timed several at once: a clock read beside 30 us is noise
constexpr float kEpsilon = 1e-6f;
constexpr DType kDTypes[] = {DType::f32, DType::f16, DType::bf16};

// One thread's part of the reading roof: eight streams side by side, as many as the hardware prefetchers of one core follow. One
// stream alone reads a fifth less (Zen 3), which would flatter everything that is divided by it.
float read_streams(const float* data, int64_t floats) {
  typedef float wide __attribute__((vector_size(32)));
  constexpr int64_t kStreams = 8, kWide = 8;
  const int64_t length = floats / kStreams / (2 * kWide) * (2 * kWide);
  wide sum[2 * kStreams] = {};
  for (int64_t i = 0; i < length; i += 2 * kWide)
    for (int64_t stream = 0; stream < kStreams; ++stream) {
      wide first, second;
      std::memcpy(&first, data + stream * length + i, sizeof(wide));
      std::memcpy(&second, data + stream * length + i + kWide, sizeof(wide));
      sum[2 * stream] += first, sum[2 * stream + 1] += second;
    }
  wide total = {};
  for (const wide& part : sum) total += part;
  float result = 0;
  for (int64_t lane = 0; lane < kWide; ++lane) result += total[lane];
  return result;
}

void read_all(CpuBackend& backend, const float* data, int64_t bytes, const CancelFlag& flag) {
  const int64_t parts = 4 * backend.threads(), length = bytes / 4 / parts;
  std::vector<float> sums(static_cast<size_t>(parts));
  volatile float sink = 0;
  backend.pool().parallel_for(parts, &flag, [&](int64_t part, int32_t) { sums[static_cast<size_t>(part)] = read_streams(data + part * length, length); });
  sink = sink + sums[0];
}

// Sets of arrays in the backend's own memory, filled with noise, the first array with that of its type. An array starts on a cache line.
class ColdSets {
 public:
  ColdSets(CpuBackend& backend, const std::vector<int64_t>& floats, DType dtype) {
    for (const int64_t size : floats) {
      at_.push_back(stride_);
      stride_ += (size + 15) / 16 * 16;
    }
    count_ = std::max<int64_t>(2, kColdBytes / 4 / stride_ + 1);
    block_ = std::make_unique<Block>(backend, static_cast<size_t>(count_ * stride_) * sizeof(float));
    fill_noise(block_->floats(), stride_);
    if (dtype != DType::f32) {
      const std::vector<float> values = noise(2 * floats[0]);
      uint16_t* first = static_cast<uint16_t*>(block_->data());
      for (const float value : values) *first++ = dtype == DType::f16 ? float_to_half(value) : float_to_bf16(value);
    }
    for (int64_t set = 1; set < count_; ++set) std::copy_n(block_->floats(), stride_, block_->floats() + set * stride_);
  }
  int64_t count() const { return count_; }
  float* array(int64_t set, size_t index) const { return block_->floats() + set * stride_ + at_[index]; }

 private:
  std::vector<int64_t> at_;
  int64_t stride_ = 0, count_ = 0;
  std::unique_ptr<Block> block_;
};

// Rows of a row kernel: the n taken of T come in order, at uneven distances.
std::vector<int32_t> spread_rows(int64_t T, int64_t n) {
  std::vector<int32_t> rows;
  uint32_t state = 1;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t begin = i * T / n, end = (i + 1) * T / n;
    state = state * 1664525u + 1013904223u;
    rows.push_back(static_cast<int32_t>(begin + static_cast<int64_t>(state >> 8) % (end - begin)));
  }
  return rows;
}

// One operation: the arrays of a set, the bytes it must move, and the call on a set.
struct RowCase {
  std::vector<int64_t> floats;
  int64_t bytes;
  std::function<void(const ColdSets&, int64_t set)> call;
  DType dtype = DType::f32;
};

RowCase norm_case(RowKernel kernel, CpuBackend& backend, int64_t T, int64_t C, bool with_norm) {
  const auto w = std::make_shared<std::vector<float>>(noise(C)), dw = std::make_shared<std::vector<float>>(noise(C));
  const int64_t size = T * C;
  if (kernel == RowKernel::rms_norm)
    return {{size, size, T}, 4 * (2 * size + T), [=, &backend](const ColdSets& s, int64_t i) { backend.rms_norm(s.array(i, 0), w->data(), kEpsilon, s.array(i, 1), s.array(i, 2), T, C); }};
  if (kernel == RowKernel::layer_norm)
    return {{size, size, T, T}, 4 * (2 * size + 2 * T), [=, &backend](const ColdSets& s, int64_t i) {
              backend.layer_norm(s.array(i, 0), w->data(), w->data(), kEpsilon, s.array(i, 1), s.array(i, 2), s.array(i, 3), T, C);
            }};
  return {{size, size, size, T, T}, 4 * (3 * size + (with_norm ? 2 : 1) * T), [=, &backend](const ColdSets& s, int64_t i) {
            backend.rms_norm_grad(s.array(i, 0), s.array(i, 1), w->data(), s.array(i, 3), s.array(i, 2), dw->data(), with_norm ? s.array(i, 4) : nullptr, T, C, false);
          }};
}

RowCase square_case(RowKernel kernel, CpuBackend& backend, int64_t T, int64_t C, DType dtype, bool with_statistics) {
  const int64_t bytes = T * C * static_cast<int64_t>(dtype_bytes(dtype));
  if (kernel == RowKernel::sum_squares)
    return {{bytes / 4}, bytes, [=, &backend](const ColdSets& s, int64_t i) {
              const FloatSpan span{s.array(i, 0), T * C};
              backend.sum_squares(&span, 1, dtype);
            }, dtype};
  const auto statistics = std::make_shared<std::vector<NormStatistics>>(2);  // image and text
  const auto classes = std::make_shared<std::vector<uint8_t>>(static_cast<size_t>(T));
  for (int64_t t = 0; t < T; ++t) (*classes)[static_cast<size_t>(t)] = t % 3 == 0;
  return {{bytes / 4, T}, bytes + 4 * T + (with_statistics ? T : 0), [=, &backend](const ColdSets& s, int64_t i) {
            backend.grad_norm(s.array(i, 0), dtype, with_statistics ? classes->data() : nullptr, 2, 1.0f, s.array(i, 1), with_statistics ? statistics->data() : nullptr, T, C);
          }, dtype};
}

RowCase routed_case(RowKernel kernel, CpuBackend& backend, int64_t T, int64_t n, int64_t C) {
  const auto rows = std::make_shared<std::vector<int32_t>>(spread_rows(T, n));
  const auto w = std::make_shared<std::vector<float>>(noise(C)), gate = std::make_shared<std::vector<float>>(noise(T));
  if (kernel == RowKernel::gather_rms_norm)
    return {{T * C, n * C, n * C, n}, 4 * (3 * n * C + 2 * n), [=, &backend](const ColdSets& s, int64_t i) {
              backend.gather_rms_norm(s.array(i, 0), rows->data(), w->data(), w->data(), kEpsilon, s.array(i, 1), s.array(i, 2), s.array(i, 3), n, C, nullptr);
            }};
  return {{T * C, n * C}, 4 * (3 * n * C + 3 * n), [=, &backend](const ColdSets& s, int64_t i) {
            backend.gated_scatter(Fusion::interpolate, s.array(i, 1), gate->data(), rows->data(), nullptr, s.array(i, 0), rows->data(), n, C);
          }};
}

RowCase saliency_case(CpuBackend& backend, int64_t keys, int64_t H, int64_t Hkv, int64_t d, int64_t columns) {
  const auto rows = std::make_shared<std::vector<int32_t>>(spread_rows(keys, columns));
  const auto q = std::make_shared<std::vector<float>>(noise(H * d)), lse = std::make_shared<std::vector<float>>(static_cast<size_t>(H), 20.0f);
  return {{keys * Hkv * d, columns}, 4 * (columns * Hkv * d + 2 * columns), [=, &backend](const ColdSets& s, int64_t i) {
            const std::vector<int32_t> cu_k{0, static_cast<int32_t>(keys)}, cu_columns{0, static_cast<int32_t>(columns)};
            const int32_t cu_q[] = {0, 1}, kv_len = cu_k[1], row = 0;
            const ContiguousPages pages(cu_k, Hkv, d, s.array(i, 0), s.array(i, 0));
            const AttentionShape shape{1, cu_q, &kv_len, static_cast<int32_t>(H), static_cast<int32_t>(Hkv), static_cast<int32_t>(d), 0.09f, true, H * d};
            const float* q_row = q->data();
            const float* lse_row = lse->data();
            backend.attention_saliency(shape, {1, &q_row, &lse_row, &row, &row, H * d, 0}, pages.pages(), {cu_columns.data(), rows->data()}, 1.0f, s.array(i, 1));
          }};
}

RowCase row_case(RowKernel kernel, CpuBackend& backend, const Sizes& s) {
  switch (kernel) {
    case RowKernel::rms_norm:
    case RowKernel::layer_norm: return norm_case(kernel, backend, s[0], s[1], false);
    case RowKernel::rms_norm_grad: return norm_case(kernel, backend, s[0], s[1], s[2] != 0);
    case RowKernel::grad_norm: return square_case(kernel, backend, s[0], s[1], kDTypes[std::min<int64_t>(s[2], 2)], s[3] != 0);
    case RowKernel::sum_squares: return square_case(kernel, backend, s[0], s[1], kDTypes[std::min<int64_t>(s[2], 2)], false);
    case RowKernel::gather_rms_norm:
    case RowKernel::gated_scatter: return routed_case(kernel, backend, s[0], s[1], s[2]);
    default: return saliency_case(backend, s[0], s[1], s[2], s[3], s[4]);
  }
}

}  // namespace

std::vector<double> bench_read(CpuBackend& backend, const Sizes& bytes, int64_t repeats, const CancelFlag& flag) {
  const Block block(backend, static_cast<size_t>(bytes[0]));  // the backend's own memory: weights lie on huge pages, so must this
  backend.fill(block.floats(), 1.0f, bytes[0] / 4);
  return repeat(repeats, flag, [&] { read_all(backend, block.floats(), bytes[0], flag); });
}

std::vector<double> bench_rows(RowKernel kernel, CpuBackend& backend, const Sizes& sizes, int64_t repeats, const CancelFlag& flag) {
  const RowCase row = row_case(kernel, backend, sizes);
  const ColdSets sets(backend, row.floats, row.dtype);
  const int64_t calls = std::min(sets.count(), std::max<int64_t>(1, kRepeatBytes / row.bytes));
  const int64_t read_bytes = std::max(row.bytes, 2 * kRepeatBytes), places = kColdBytes / read_bytes + 1;
  const Block to_read(backend, static_cast<size_t>(places * read_bytes));
  backend.fill(to_read.floats(), 1.0f, places * read_bytes / 4);
  std::vector<double> seconds, reading;
  for (int64_t i = 0, set = 0; i < repeats + 1; ++i) {
    if (flag.is_set()) throw Cancelled{};
    reading.push_back(seconds_of([&] { read_all(backend, to_read.floats() + i % places * (read_bytes / 4), read_bytes, flag); }) * static_cast<double>(row.bytes) / static_cast<double>(read_bytes));
    seconds.push_back(seconds_of([&] {
      for (int64_t call = 0; call < calls; ++call, set = (set + 1) % sets.count()) row.call(sets, set);
    }) / static_cast<double>(calls));
  }
  seconds.erase(seconds.begin()), reading.erase(reading.begin());  // the first warms up threads and working memory
  seconds.insert(seconds.end(), reading.begin(), reading.end());
  return seconds;
}

}  // namespace plumbline
