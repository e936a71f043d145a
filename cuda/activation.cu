// activate, swiglu: element-wise.   silu = x s(x), quick_gelu = x s(1.702 x), erf_gelu = x Phi(x), swiglu = silu(gate) up,
//        relu = max(x, 0)
//   in   x, f32, any size; swiglu gate_up (T, 2I)   out  same size; (T, I)
//   how  each element by itself. Within 6e-7 relative of the exact value (absolute 1e-7 where the function crosses 0). NaN stays
//        NaN; silu(-1e4) = -0; -inf gives NaN, as -inf * 0 does; relu's gradient passes wherever x <= 0 is false
//   cost blocks of 256 threads, 16 bytes an access. 8 bytes an element (gradient 12), swiglu 12 (gradient 20): bound by memory, the
//        exponential (8 instructions) hides behind it
//   limits: none; what is not aligned takes 4-byte accesses. y may be x, dx may be dy
#include "cuda_backend.h"
#include "dtype.cuh"
#include "floats.cuh"

namespace plumbline {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 132 * 32;  // four rounds of full multiprocessors of an H100; more elements go round in a loop

// sigmoid(x) and 1 - sigmoid(x), both to full relative accuracy: e = exp(-|x|) never overflows.
struct Sigmoid {
  float yes, no;
};
PLUMBLINE_DEVICE Sigmoid sigmoid(float x) {
  const float e = expf(-fabsf(x)), large = 1.0f / (1.0f + e), small = e * large;
  return x < 0 ? Sigmoid{small, large} : Sigmoid{large, small};
}

// Phi(x) = erfc(-x / sqrt 2) / 2 and exp(-x^2 / 2). erfc(z) = t exp(-z^2) P(t) with t = 1/(1 + 0.35 z), P of degree 9 fitted at
// Chebyshev nodes for z in [0, 9.6]: relative error 1.1e-8 before rounding, 2.8e-7 in f32. As the CPU backend has it.
struct Normal {
  float below, bell;
};
PLUMBLINE_DEVICE Normal normal(float x) {
  const float bell = expf(-0.5f * x * x), t = 1.0f / fmaf(fabsf(x), 0.35f * 0.70710678f, 1.0f);
  float p = 0.0352905668f;
  p = fmaf(p, t, -0.141869981f);
  p = fmaf(p, t, 0.140899997f);
  p = fmaf(p, t, 0.0270823999f);
  p = fmaf(p, t, 0.0407714648f);
  p = fmaf(p, t, 0.171297966f);
  p = fmaf(p, t, 0.142277196f);
  p = fmaf(p, t, 0.189857318f);
  p = fmaf(p, t, 0.196896441f);
  p = fmaf(p, t, 0.197496635f);
  const float tail = 0.5f * t * p * bell;
  return {x < 0 ? tail : 1.0f - tail, bell};
}

// In each slope the factor that vanishes for a huge |x| comes before x: 0 * x, never inf * 0.
struct Silu {
  static PLUMBLINE_DEVICE float value(float x) { return x * sigmoid(x).yes; }
  static PLUMBLINE_DEVICE float gradient(float x, float dy) {
    const Sigmoid s = sigmoid(x);
    return dy * fmaf(s.yes * s.no, x, s.yes);
  }
};
struct QuickGelu {
  static PLUMBLINE_DEVICE float value(float x) { return x * sigmoid(1.702f * x).yes; }
  static PLUMBLINE_DEVICE float gradient(float x, float dy) {
    const Sigmoid s = sigmoid(1.702f * x);
    return dy * fmaf(s.yes * s.no * 1.702f, x, s.yes);
  }
};
struct ErfGelu {
  static PLUMBLINE_DEVICE float value(float x) { return x * normal(x).below; }
  static PLUMBLINE_DEVICE float gradient(float x, float dy) {
    const Normal n = normal(x);
    return dy * fmaf(n.bell * 0.398942280f, x, n.below);  // 1/sqrt(2 pi)
  }
};
struct Relu {  // a choice, not a product: inf * 0 is NaN
  static PLUMBLINE_DEVICE float value(float x) { return x <= 0.0f ? 0.0f : x; }
  static PLUMBLINE_DEVICE float gradient(float x, float dy) { return x <= 0.0f ? 0.0f : dy; }
};

// y = F(x), or with a gradient dy: y = dy F'(x). The last size % 4 elements go to the first threads.
template <typename F, bool kGradient, int kWidth>
__global__ void __launch_bounds__(kThreads) activate_kernel(const float* x, const float* dy, float* y, int64_t size) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, threads = static_cast<int64_t>(gridDim.x) * kThreads, packets = size / kWidth;
  for (int64_t i = thread; i < packets; i += threads) {
    Floats<kWidth> in = load<kWidth>(x + i * kWidth), up = kGradient ? load<kWidth>(dy + i * kWidth) : in;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) in.at[k] = kGradient ? F::gradient(in.at[k], up.at[k]) : F::value(in.at[k]);
    store<kWidth>(y + i * kWidth, in);
  }
  const int64_t i = packets * kWidth + thread;
  if (i < size) y[i] = kGradient ? F::gradient(x[i], dy[i]) : F::value(x[i]);
}

// Block (column block, row): grid.y walks over the rows.
template <int kWidth>
__global__ void __launch_bounds__(kThreads) swiglu_kernel(const float* gate_up_T2I, float* out_TI, int64_t T, int64_t I) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kWidth;
  if (i >= I) return;
  for (int64_t t = blockIdx.y; t < T; t += gridDim.y) {
    Floats<kWidth> gate = load<kWidth>(gate_up_T2I + 2 * t * I + i);
    const Floats<kWidth> up = load<kWidth>(gate_up_T2I + (2 * t + 1) * I + i);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) gate.at[k] = Silu::value(gate.at[k]) * up.at[k];
    store<kWidth>(out_TI + t * I + i, gate);
  }
}

template <int kWidth>
__global__ void __launch_bounds__(kThreads) swiglu_grad_kernel(const float* gate_up_T2I, const float* dout_TI, float* dgate_up_T2I, int64_t T, int64_t I) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kWidth;
  if (i >= I) return;
  for (int64_t t = blockIdx.y; t < T; t += gridDim.y) {
    Floats<kWidth> gate = load<kWidth>(gate_up_T2I + 2 * t * I + i), up = load<kWidth>(gate_up_T2I + (2 * t + 1) * I + i);
    const Floats<kWidth> dout = load<kWidth>(dout_TI + t * I + i);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      const Sigmoid s = sigmoid(gate.at[k]);
      const float dgate = dout.at[k] * up.at[k] * fmaf(s.yes * s.no, gate.at[k], s.yes);
      up.at[k] = dout.at[k] * (gate.at[k] * s.yes);
      gate.at[k] = dgate;
    }
    store<kWidth>(dgate_up_T2I + 2 * t * I + i, gate);
    store<kWidth>(dgate_up_T2I + (2 * t + 1) * I + i, up);
  }
}

dim3 grid_of(int64_t T, int64_t I, int kWidth) {
  const unsigned columns = blocks_of(I, int64_t{kThreads} * kWidth);
  return dim3(columns, blocks_of(T, 1, std::max<int64_t>(1, std::min<int64_t>(65535, 4 * kMostBlocks / std::max(columns, 1u)))));
}

template <bool kGradient>
cudaError_t launch_activate(Activation kind, const float* x, const float* dy, float* y, int64_t size, cudaStream_t stream) {
  const bool is_aligned = is_aligned_16(x) && is_aligned_16(dy) && is_aligned_16(y);
  const dim3 grid(blocks_of(size, is_aligned ? 4 * kThreads : kThreads, 4 * kMostBlocks));
  const auto start = [&](auto f) {
    using F = decltype(f);
    return is_aligned ? launch(activate_kernel<F, kGradient, 4>, grid, dim3(kThreads), 0, stream, x, dy, y, size)
                      : launch(activate_kernel<F, kGradient, 1>, grid, dim3(kThreads), 0, stream, x, dy, y, size);
  };
  switch (kind) {
    case Activation::quick_gelu: return start(QuickGelu{});
    case Activation::erf_gelu: return start(ErfGelu{});
    case Activation::silu: return start(Silu{});
    case Activation::relu: return start(Relu{});
  }
  return cudaErrorInvalidConfiguration;
}

}  // namespace

void CudaBackend::swiglu(const float* gate_up_T2I, float* out_TI, int64_t T, int64_t I) {
  poll();
  const bool is_wide = I % 4 == 0 && is_aligned_16(gate_up_T2I) && is_aligned_16(out_TI);
  check(launch(is_wide ? swiglu_kernel<4> : swiglu_kernel<1>, grid_of(T, I, is_wide ? 4 : 1), dim3(kThreads), 0, stream(), gate_up_T2I, out_TI, T, I), "swiglu");
}

void CudaBackend::swiglu_grad(const float* gate_up_T2I, const float* dout_TI, float* dgate_up_T2I, int64_t T, int64_t I) {
  poll();
  const bool is_wide = I % 4 == 0 && is_aligned_16(gate_up_T2I) && is_aligned_16(dout_TI) && is_aligned_16(dgate_up_T2I);
  check(launch(is_wide ? swiglu_grad_kernel<4> : swiglu_grad_kernel<1>, grid_of(T, I, is_wide ? 4 : 1), dim3(kThreads), 0, stream(), gate_up_T2I, dout_TI, dgate_up_T2I, T, I), "swiglu_grad");
}

void CudaBackend::activate(Activation kind, const float* x, float* y, int64_t size) {
  poll();
  check(launch_activate<false>(kind, x, nullptr, y, size, stream()), "activate");
}

void CudaBackend::activate_grad(Activation kind, const float* x, const float* dy, float* dx, int64_t size) {
  poll();
  check(launch_activate<true>(kind, x, dy, dx, size, stream()), "activate_grad");
}

}  // namespace plumbline
