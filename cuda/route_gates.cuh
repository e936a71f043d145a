#pragma once
// Gates of candidates: device parts of route_gates, which route_tokens computes in its own launch.
#include "candidates.cuh"
#include "../src/core/backend.h"

namespace plumbline {

// Full relative accuracy on both sides: e^(-|x|) never overflows. NaN stays.
PLUMBLINE_DEVICE float route_sigmoid(float x) {
  const float e = expf(-fabsf(x)), large = 1.0f / (1.0f + e);
  return x < 0.0f ? e * large : large;
}
PLUMBLINE_DEVICE float plain_gate(RouteGate kind, float score) { return kind == RouteGate::raw ? score : route_sigmoid(score); }

// Softmax of one sequence by a block of kRouteThreads; `room`: shared, one float per warp. NaN and +inf spread over the sequence.
PLUMBLINE_DEVICE void softmax_gates(const float* scores, int64_t n, float* gates, float* room) {
  float top = -INFINITY;
  for (int64_t i = threadIdx.x; i < n; i += kRouteThreads) top = fmaxf(top, scores[i]);
  top = block_reduce<kRouteThreads>(top, room, -INFINITY, Maximum{});
  float sum = 0.0f;
  for (int64_t i = threadIdx.x; i < n; i += kRouteThreads) {
    const float e = expf(scores[i] - top);
    gates[i] = e;  // by this thread read again
    sum += e;
  }
  const float inverse = 1.0f / block_sum<kRouteThreads>(sum, room);
  for (int64_t i = threadIdx.x; i < n; i += kRouteThreads) gates[i] *= inverse;
}
PLUMBLINE_DEVICE void gates_of_sequence(RouteGate kind, const float* scores, int64_t n, float* gates, float* room) {
  if (kind == RouteGate::softmax_sequence) return softmax_gates(scores, n, gates, room);
  for (int64_t i = threadIdx.x; i < n; i += kRouteThreads) gates[i] = plain_gate(kind, scores[i]);
}

}  // namespace plumbline
