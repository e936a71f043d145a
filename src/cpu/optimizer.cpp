// sum_squares, adamw, first_non_finite: what a training step does to each parameter tensor.
//   m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2,  g = clip * gradient                      (AdamW: 1711.05101, algorithm 2)
//   w = w (1 - lr decay) - lr / (1 - beta1^step) m / (sqrt(v) / sqrt(1 - beta2^step) + epsilon), taken as one difference from w: a factor
//   1 - 1e-8 would round to 1 in f32 and drop the decay
//   in   gradient (sum_squares: f32, f16 or bf16), moments, f32 master weight   out  moments and weight in place; bf16 copy, rounded to nearest even
//   how  corrections in f64 on the host; elements by themselves. sum_squares: f64, 16 fixed lanes per slice of 32 Ki, slices in order:
//        the same bits for any number of threads and any instruction set
//   cost adamw reads 16 bytes and writes 12 (bf16: 14) per element, one pass; bound by memory
#include <atomic>
#include <cmath>
#include <limits>

#include "cpu_backend.h"
#include "tiles.h"

namespace plumbline {
namespace {

struct AdamWFactors {
  float clip, beta1, keep1, beta2, keep2, shrink, rate, inverse_root, epsilon;
};

}  // namespace
}  // namespace plumbline

#define PLUMBLINE_INL "optimizer_inl.h"
#include "foreach_isa.h"

namespace plumbline {

double CpuBackend::sum_squares(const FloatSpan* spans, int64_t count, DType dtype) {
  double total = 0;
  for (int64_t i = 0; i < count; ++i) total += sum_squares_span(spans[i], dtype);
  return total;
}

double CpuBackend::sum_squares_span(const FloatSpan& span, DType dtype) {
  const auto kernel = dtype == DType::f32   ? PLUMBLINE_PICK(isa_, sum_squares_f32)
                      : dtype == DType::f16 ? PLUMBLINE_PICK(isa_, sum_squares_f16)
                                            : PLUMBLINE_PICK(isa_, sum_squares_bf16);
  const Tiles slices = tile_elements(span.size);
  if (slices.count == 0) return 0;
  double* partial = static_cast<double*>(scratch(0, static_cast<size_t>(slices.count) * sizeof(double)));
  parallel(slices.count, [&](int64_t slice, int32_t) {
    const int64_t i = slices.begin(slice);
    partial[slice] = kernel(static_cast<const char*>(span.data) + i * static_cast<int64_t>(dtype_bytes(dtype)), slices.end(slice) - i);
  });
  double sum = 0;
  for (int64_t slice = 0; slice < slices.count; ++slice) sum += partial[slice];
  return sum;
}

void CpuBackend::adamw(const AdamWUpdate& update) {
  const double step = static_cast<double>(update.step);
  const AdamWFactors factors = {
      update.clip_factor,
      static_cast<float>(update.beta1),
      static_cast<float>(1.0 - update.beta1),
      static_cast<float>(update.beta2),
      static_cast<float>(1.0 - update.beta2),
      static_cast<float>(update.learning_rate * update.weight_decay),
      static_cast<float>(update.learning_rate / (1.0 - std::pow(update.beta1, step))),
      static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(update.beta2, step))),
      static_cast<float>(update.epsilon),
  };
  const auto kernel = PLUMBLINE_PICK(isa_, adamw_range);
  const Tiles tiles = Tiles(update.size, kTileFloats / 4);  // seven streams
  parallel(tiles.count, [&](int64_t tile, int32_t) {
    const int64_t i = tiles.begin(tile);
    kernel(factors, update.master + i, update.working ? update.working + i : nullptr, update.gradient + i, update.first + i,
           update.second + i, tiles.end(tile) - i);
  });
}

int64_t CpuBackend::first_non_finite(const void* x, DType dtype, int64_t size) {
  if (dtype != DType::f32 && dtype != DType::bf16) return -1;  // an integer is always finite
  const auto kernel = dtype == DType::f32 ? PLUMBLINE_PICK(isa_, first_non_finite_f32) : PLUMBLINE_PICK(isa_, first_non_finite_bf16);
  constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
  std::atomic<int64_t> first{kNone};
  const Tiles tiles = tile_elements(size);
  parallel(tiles.count, [&](int64_t tile, int32_t) {
    const int64_t i = tiles.begin(tile), count = tiles.end(tile) - i;
    if (i > first.load(std::memory_order_relaxed)) return;
    const int64_t found = kernel(static_cast<const char*>(x) + i * static_cast<int64_t>(dtype_bytes(dtype)), count);
    if (found < 0) return;
    int64_t best = first.load(std::memory_order_relaxed);  // the minimum, whatever the order in which tiles finish
    while (i + found < best && !first.compare_exchange_weak(best, i + found, std::memory_order_relaxed)) {
    }
  });
  const int64_t index = first.load();
  return index == kNone ? -1 : index;
}

}  // namespace plumbline
