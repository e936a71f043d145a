// Kernels of routing.cpp.
#include "sigmoid_inl.h"

static void sigmoid_range(const float* x, float* y, int64_t size) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) store(y + i, sigmoid(load(x + i)).yes);
  if (i < size) store_partial(y + i, sigmoid(load_partial(x + i, size - i, 0.0f)).yes, size - i);
}

static void sigmoid_grad_range(const float* gate, const float* dgate, float* dx, int64_t size) {
  for (int64_t i = 0; i < size; ++i) dx[i] = dgate[i] * (gate[i] * (1.0f - gate[i]));
}

// y = e^(x - max) / sum. NaN and +inf spread over the sequence, as in the formula.
static void softmax_range(const float* x, float* y, int64_t size) {
  float top = -__builtin_inff();
  for (int64_t i = 0; i < size; ++i) top = x[i] > top || x[i] != x[i] ? x[i] : top;
  const vec base = splat(top);
  vec total = {};
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    const vec e = exp_nonpositive(load(x + i) - base);
    store(y + i, e);
    total += e;
  }
  if (i < size) {
    const vec e = exp_nonpositive(load_partial(x + i, size - i, -__builtin_inff()) - base);
    store_partial(y + i, e, size - i);
    total += e;
  }
  const float inverse = 1.0f / sum_lanes(total);
  for (i = 0; i < size; ++i) y[i] *= inverse;
}

// dx = y (dy - sum_j y_j dy_j), the sum in f64.
static void softmax_grad_range(const float* y, const float* dy, float* dx, int64_t size) {
  double sum = 0;
  for (int64_t i = 0; i < size; ++i) sum += (double)y[i] * (double)dy[i];
  for (int64_t i = 0; i < size; ++i) dx[i] = (float)((double)y[i] * ((double)dy[i] - sum));
}
