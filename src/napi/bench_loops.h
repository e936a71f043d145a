#pragma once
// Timing loops for `npm run bench` (bind_bench.cpp picks one). Each returns seconds per repeat.
#include <chrono>
#include <functional>
#include <vector>

#include "../cpu/cpu_backend.h"

namespace plumbline {

using Sizes = std::vector<int64_t>;

inline double seconds_of(const std::function<void()>& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

inline std::vector<double> repeat(int64_t repeats, const CancelFlag& flag, const std::function<void()>& body) {
  std::vector<double> seconds;
  for (int64_t i = 0; i < repeats; ++i) {
    if (flag.is_set()) throw Cancelled{};
    seconds.push_back(seconds_of(body));
  }
  return seconds;
}

// Numbers in [-0.5, 0.5) of a linear congruential generator: no denormals, no special values.
inline void fill_noise(float* values, int64_t size) {
  uint32_t state = 1;
  for (int64_t i = 0; i < size; ++i) {
    state = state * 1664525u + 1013904223u;
    values[i] = static_cast<float>(state >> 8) * 0x1p-24f - 0.5f;
  }
}
inline std::vector<float> noise(int64_t size) {
  std::vector<float> values(static_cast<size_t>(size));
  fill_noise(values.data(), size);
  return values;
}

// The reading roof: all threads sum `bytes` of memory.
std::vector<double> bench_read(CpuBackend& backend, const Sizes& bytes, int64_t repeats, const CancelFlag& flag);

// Operations on rows, bound by memory: cold, in turn with reads. Returns seconds of each call, then seconds of reading as many bytes as
// the call must read and write, repeat by repeat.
enum class RowKernel { rms_norm, rms_norm_grad, layer_norm, grad_norm, sum_squares, gather_rms_norm, gated_scatter, attention_saliency };
std::vector<double> bench_rows(RowKernel kernel, CpuBackend& backend, const Sizes& sizes, int64_t repeats, const CancelFlag& flag);

}  // namespace plumbline
