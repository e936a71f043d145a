// Row kernels of rows.cpp.
static void widen_row(const uint16_t* from, float* to, int64_t size) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) store(to + i, load_bf16(from + i));
  for (; i < size; ++i) to[i] = bf16_to_float(from[i]);
}

static void add_row(const float* from, float* to, int64_t size) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) store(to + i, load(to + i) + load(from + i));
  for (; i < size; ++i) to[i] += from[i];
}

// to += weight from
static void weigh_row(float weight, const float* from, float* to, int64_t size) {
  const vec w = splat(weight);
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) store(to + i, fma(w, load(from + i), load(to + i)));
  if (i < size) store_partial(to + i, fma(w, load_partial(from + i, size - i, 0.0f), load_partial(to + i, size - i, 0.0f)), size - i);
}

#include "dot_inl.h"
