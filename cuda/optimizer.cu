// adamw, first_non_finite: what a training step does to each parameter tensor, and what loading asks of its values.
//   m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2,  g = clip * gradient                      (AdamW: 1711.05101, algorithm 2)
//   w = w (1 - lr decay) - lr / (1 - beta1^step) m / (sqrt(v) / sqrt(1 - beta2^step) + epsilon), taken as one difference from w: a factor
//   1 - 1e-8 would round to 1 in f32 and drop the decay
//   in   gradient, moments, f32 master weight   out  moments and weight in place; bf16 copy, rounded to nearest even
//   how  corrections in f64 on the host; elements by themselves, with the CPU backend's operations (fused where AVX2 fuses): the same bits
//   cost reads 16 bytes and writes 12 (bf16: 14) per element, one pass, four 16-byte loads in flight in each thread; bound by memory
//   limits: none; unaligned tensors take 4-byte accesses. first_non_finite reads host memory: see backend.h
#include <cmath>
#include <cstring>

#include "cuda_backend.h"
#include "dtype.cuh"
#include "floats.cuh"

namespace plumbline {
namespace {

constexpr int kThreads = 256;

struct AdamWFactors {
  float clip, beta1, keep1, beta2, keep2, shrink, rate, inverse_root, epsilon;
};
struct AdamWTensors {
  float* master;
  uint16_t* working;
  const float* gradient;
  float *first, *second;
  int64_t size;
};

PLUMBLINE_DEVICE void adamw_step(const AdamWFactors& f, float& w, float gradient, float& m, float& v) {
  const float g = gradient * f.clip;
  m = fmaf(f.beta1, m, f.keep1 * g);
  v = fmaf(f.beta2, v, f.keep2 * g * g);
  const float bottom = fmaf(sqrtf(v), f.inverse_root, f.epsilon);
  w = w - fmaf(w, f.shrink, f.rate * m / bottom);
}

template <int kWidth>
struct alignas(2 * kWidth) Halves {
  uint16_t at[kWidth];
};

template <int kWidth>
PLUMBLINE_DEVICE void adamw_run(const AdamWFactors& f, const AdamWTensors& t, int64_t i) {
  Floats<kWidth> w = load<kWidth>(t.master + i), m = load<kWidth>(t.first + i), v = load<kWidth>(t.second + i);
  const Floats<kWidth> gradient = load<kWidth>(t.gradient + i);
  Halves<kWidth> narrow;
#pragma unroll
  for (int k = 0; k < kWidth; ++k) {
    adamw_step(f, w.at[k], gradient.at[k], m.at[k], v.at[k]);
    narrow.at[k] = from_float<bf16>(w.at[k]).bits;
  }
  store(t.master + i, w), store(t.first + i, m), store(t.second + i, v);
  if (t.working) *reinterpret_cast<Halves<kWidth>*>(t.working + i) = narrow;
}

// One run of kWidth elements a thread; the first threads also take the rest.
template <int kWidth>
__global__ void __launch_bounds__(kThreads) adamw_kernel(AdamWFactors factors, AdamWTensors tensors) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, threads = static_cast<int64_t>(gridDim.x) * kThreads, runs = tensors.size / kWidth;
  for (int64_t i = thread; i < runs; i += threads) adamw_run<kWidth>(factors, tensors, i * kWidth);
  if (runs * kWidth + thread < tensors.size) adamw_run<1>(factors, tensors, runs * kWidth + thread);
}

template <typename Bits>
int64_t first_with_exponent(const void* x, Bits exponent, int64_t size) {
  for (int64_t i = 0; i < size; ++i) {
    Bits bits;
    std::memcpy(&bits, static_cast<const char*>(x) + i * static_cast<int64_t>(sizeof(Bits)), sizeof(Bits));
    if ((bits & exponent) == exponent) return i;
  }
  return -1;
}

}  // namespace

void CudaBackend::adamw(const AdamWUpdate& update) {
  poll();
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
  const AdamWTensors tensors = {update.master, update.working, update.gradient, update.first, update.second, update.size};
  const bool is_wide = is_aligned_16(tensors.master) && is_aligned_16(tensors.gradient) && is_aligned_16(tensors.first) && is_aligned_16(tensors.second) &&
                       reinterpret_cast<uintptr_t>(tensors.working) % 8 == 0;
  const dim3 grid(blocks_of(tensors.size, kThreads * (is_wide ? 4 : 1)));
  check(launch(is_wide ? adamw_kernel<4> : adamw_kernel<1>, grid, dim3(kThreads), 0, stream(), factors, tensors), "adamw");
}

// On the host: a checkpoint's values pass through it anyway, and moving them twice would cost more than looking.
int64_t CudaBackend::first_non_finite(const void* x, DType dtype, int64_t size) {
  if (dtype == DType::f32) return first_with_exponent<uint32_t>(x, 0x7f800000u, size);
  if (dtype == DType::bf16) return first_with_exponent<uint16_t>(x, 0x7f80, size);
  return -1;  // an integer is always finite
}

}  // namespace plumbline
