// Element kernels of activation.cpp.

#include "sigmoid_inl.h"

// Phi(x) = erfc(-x / sqrt 2) / 2 and exp(-x^2 / 2). erfc(z) = t exp(-z^2) P(t) with t = 1/(1 + 0.35 z), P of degree 9 fitted at
// Chebyshev nodes for z in [0, 9.6]: relative error 1.1e-8 before rounding, 2.8e-7 in f32; exp(-z^2) is 0 beyond.
struct Normal {
  vec below, bell;
};
PLUMBLINE_INLINE Normal normal(vec x) {
  const vec size = (vec)((ivec)x & splat_int(INT32_MAX));
  const vec bell = exp_nonpositive(-0.5f * x * x);
  const vec t = 1.0f / fma(size, splat(0.35f * 0.70710678f), splat(1.0f));
  vec p = splat(0.0352905668f);
  p = fma(p, t, splat(-0.141869981f));
  p = fma(p, t, splat(0.140899997f));
  p = fma(p, t, splat(0.0270823999f));
  p = fma(p, t, splat(0.0407714648f));
  p = fma(p, t, splat(0.171297966f));
  p = fma(p, t, splat(0.142277196f));
  p = fma(p, t, splat(0.189857318f));
  p = fma(p, t, splat(0.196896441f));
  p = fma(p, t, splat(0.197496635f));
  const vec tail = 0.5f * t * p * bell;
  return {(ivec)x < 0 ? tail : 1.0f - tail, bell};
}

// In each slope the factor that vanishes for a huge |x| comes before x: 0 * x, never inf * 0.
struct Silu {
  static inline __attribute__((always_inline)) vec value(vec x) { return x * sigmoid(x).yes; }
  static inline __attribute__((always_inline)) vec slope(vec x) {
    const Sigmoid s = sigmoid(x);
    return fma(s.yes * s.no, x, s.yes);
  }
};
struct QuickGelu {
  static inline __attribute__((always_inline)) vec value(vec x) { return x * sigmoid(1.702f * x).yes; }
  static inline __attribute__((always_inline)) vec slope(vec x) {
    const Sigmoid s = sigmoid(1.702f * x);
    return fma(s.yes * s.no * 1.702f, x, s.yes);
  }
};
struct ErfGelu {
  static inline __attribute__((always_inline)) vec value(vec x) { return x * normal(x).below; }
  static inline __attribute__((always_inline)) vec slope(vec x) {
    const Normal n = normal(x);
    return fma(n.bell * 0.398942280f, x, n.below);  // 1/sqrt(2 pi)
  }
};

// NaN stays; the gradient passes wherever x <= 0 is false, as in PyTorch.
struct Relu {
  static inline __attribute__((always_inline)) vec value(vec x) { return x <= 0.0f ? vec{} : x; }
};

template <typename F>
static void map_values(const float* x, float* y, int64_t size) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) store(y + i, F::value(load(x + i)));
  if (i < size) store_partial(y + i, F::value(load_partial(x + i, size - i, 0.0f)), size - i);
}
template <typename F>
static void map_slopes(const float* x, const float* dy, float* dx, int64_t size) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) store(dx + i, load(dy + i) * F::slope(load(x + i)));
  if (i == size) return;
  const int64_t n = size - i;
  store_partial(dx + i, load_partial(dy + i, n, 0.0f) * F::slope(load_partial(x + i, n, 0.0f)), n);
}

static void relu_slopes(const float* x, const float* dy, float* dx, int64_t size) {  // a choice, not a product: inf * 0 is NaN
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) store(dx + i, load(x + i) <= 0.0f ? vec{} : load(dy + i));
  for (; i < size; ++i) dx[i] = x[i] <= 0.0f ? 0.0f : dy[i];
}

static void activate_range(Activation kind, const float* x, float* y, int64_t size) {
  switch (kind) {
    case Activation::quick_gelu: return map_values<QuickGelu>(x, y, size);
    case Activation::erf_gelu: return map_values<ErfGelu>(x, y, size);
    case Activation::silu: return map_values<Silu>(x, y, size);
    case Activation::relu: return map_values<Relu>(x, y, size);
  }
}
static void activate_grad_range(Activation kind, const float* x, const float* dy, float* dx, int64_t size) {
  switch (kind) {
    case Activation::quick_gelu: return map_slopes<QuickGelu>(x, dy, dx, size);
    case Activation::erf_gelu: return map_slopes<ErfGelu>(x, dy, dx, size);
    case Activation::silu: return map_slopes<Silu>(x, dy, dx, size);
    case Activation::relu: return relu_slopes(x, dy, dx, size);
  }
}

static void swiglu_rows(const float* gate_up, float* out, int64_t rows, int64_t I) {
  for (int64_t t = 0; t < rows; ++t, gate_up += 2 * I, out += I) {
    const float *gate = gate_up, *up = gate_up + I;
    int64_t i = 0;
    for (; i + kLanes <= I; i += kLanes) store(out + i, Silu::value(load(gate + i)) * load(up + i));
    if (i < I) store_partial(out + i, Silu::value(load_partial(gate + i, I - i, 0.0f)) * load_partial(up + i, I - i, 0.0f), I - i);
  }
}

struct GateUp {
  vec gate, up;
};
PLUMBLINE_INLINE GateUp swiglu_slopes(vec gate, vec up, vec dout) {
  const Sigmoid s = sigmoid(gate);
  return {dout * up * fma(s.yes * s.no, gate, s.yes), dout * (gate * s.yes)};
}
static void swiglu_grad_rows(const float* gate_up, const float* dout, float* dgate_up, int64_t rows, int64_t I) {
  for (int64_t t = 0; t < rows; ++t, gate_up += 2 * I, dgate_up += 2 * I, dout += I) {
    int64_t i = 0;
    for (; i + kLanes <= I; i += kLanes) {
      const GateUp d = swiglu_slopes(load(gate_up + i), load(gate_up + I + i), load(dout + i));
      store(dgate_up + i, d.gate);
      store(dgate_up + I + i, d.up);
    }
    if (i == I) continue;
    const int64_t n = I - i;
    const vec gate = load_partial(gate_up + i, n, 0.0f), up = load_partial(gate_up + I + i, n, 0.0f);
    const GateUp d = swiglu_slopes(gate, up, load_partial(dout + i, n, 0.0f));
    store_partial(dgate_up + i, d.gate, n);
    store_partial(dgate_up + I + i, d.up, n);
  }
}

