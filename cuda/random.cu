// fill_normal: standard normal numbers by index.   n(key, i): Box-Muller on splitmix64 of a counter
//   out  x (size), f32                         how  double, rounded once; element i depends on (key, i) alone. The integers are those of the CPU
//        backend; log, sine and cosine are within 2 units of the last place of f64 in both, so that an f32 differs by one unit at most, and
//        hardly ever
//   cost a thread makes two neighbours, which share a radius and an angle; bound by f64 arithmetic. Weights are drawn once in a model's life
//   limits: none
#include "../src/core/mix.h"
#include "cuda_backend.h"

namespace plumbline {
namespace {

constexpr int kThreads = 256;

// Pair p of the sequence: its numbers 2 p and 2 p + 1; x holds those of first .. first + size.
__global__ void __launch_bounds__(kThreads) fill_normal_kernel(float* x, int64_t size, int64_t first, uint64_t key, float scale) {
  const int64_t pair = (first >> 1) + static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, even = 2 * pair - first;
  if (even >= size) return;
  const uint64_t bits = mix(key ^ mix(static_cast<uint64_t>(pair)));
  const double u = (static_cast<double>(bits >> 32) + 0.5) / 4294967296.0, v = static_cast<double>(bits & 0xffffffffu) / 4294967296.0;
  const double radius = sqrt(-2.0 * log(u)), angle = 6.283185307179586 * v;
  if (even >= 0) x[even] = scale * static_cast<float>(radius * cos(angle));
  if (even + 1 < size) x[even + 1] = scale * static_cast<float>(radius * sin(angle));
}

}  // namespace

void CudaBackend::fill_normal(float* x, int64_t size, int64_t first, uint64_t key, float scale) {
  poll();
  if (size <= 0) return;
  const int64_t pairs = ((first + size - 1) >> 1) - (first >> 1) + 1;
  check(launch(fill_normal_kernel, dim3(blocks_of(pairs, kThreads)), dim3(kThreads), 0, stream(), x, size, first, mix(key), scale), "fill_normal");
}

}  // namespace plumbline
