// route_gates: how much of a second pass each candidate takes in.   sigmoid(s) | s | softmax of s over the sequence   (algorithms 4.4)
//   grad sigmoid: g (1 - g) dg; softmax: g (dg - sum_j g_j dg_j)
//   in   scores or gates, dgates (T), cu (B + 1), f32        out  gates or dscores (T)
//   how  element by element; softmax by one block per sequence in a fixed order, its gradient with the sum in f64. NaN and +inf spread
//        over the sequence
//   cost block 256; 8 bytes per candidate (grad 12), bound by memory; softmax reads a sequence three times, from L2 after the first
//   limits: any T < 2^31
#include "cuda_backend.h"
#include "route_gates.cuh"

namespace plumbline {
namespace {

__global__ void __launch_bounds__(kRouteThreads) sigmoid_gates_kernel(const float* scores, float* gates, int64_t T) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kRouteThreads + threadIdx.x;
  if (i < T) gates[i] = route_sigmoid(scores[i]);
}

__global__ void __launch_bounds__(kRouteThreads) sigmoid_gates_grad_kernel(const float* gates, const float* dgates, float* dscores, int64_t T) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kRouteThreads + threadIdx.x;
  if (i < T) dscores[i] = dgates[i] * (gates[i] * (1.0f - gates[i]));
}

__global__ void __launch_bounds__(kRouteThreads) softmax_gates_kernel(const int32_t* cu, const float* scores, float* gates) {
  __shared__ float room[kRouteThreads / 32];
  const int64_t first = cu[blockIdx.x];
  softmax_gates(scores + first, cu[blockIdx.x + 1] - first, gates + first, room);
}

__global__ void __launch_bounds__(kRouteThreads) softmax_gates_grad_kernel(const int32_t* cu, const float* gates, const float* dgates, float* dscores) {
  __shared__ double room[kRouteThreads / 32];
  const int64_t first = cu[blockIdx.x], end = cu[blockIdx.x + 1];
  double sum = 0;
  for (int64_t i = first + threadIdx.x; i < end; i += kRouteThreads) sum += static_cast<double>(gates[i]) * static_cast<double>(dgates[i]);
  sum = block_sum<kRouteThreads>(sum, room);
  for (int64_t i = first + threadIdx.x; i < end; i += kRouteThreads) dscores[i] = static_cast<float>(static_cast<double>(gates[i]) * (static_cast<double>(dgates[i]) - sum));
}

}  // namespace

void CudaBackend::route_gates(RouteGate kind, int32_t B, const int32_t* cu_B1, const float* scores_T, float* gates_T) {
  poll();
  const int64_t T = cu_B1[B];
  if (T == 0) return;
  if (kind == RouteGate::raw) return copy(gates_T, scores_T, static_cast<size_t>(T) * sizeof(float));
  if (kind == RouteGate::sigmoid)
    return check(launch(sigmoid_gates_kernel, dim3(blocks_of(T, kRouteThreads)), dim3(kRouteThreads), 0, stream_, scores_T, gates_T, T), "route_gates");
  Upload up(*this, "route_gates");
  const auto cu = up.add(cu_B1, int64_t{B} + 1);
  up.send();
  check(launch(softmax_gates_kernel, dim3(static_cast<unsigned>(B)), dim3(kRouteThreads), 0, stream_, up[cu], scores_T, gates_T), "route_gates");
}

void CudaBackend::route_gates_grad(RouteGate kind, int32_t B, const int32_t* cu_B1, const float* gates_T, const float* dgates_T, float* dscores_T) {
  poll();
  const int64_t T = cu_B1[B];
  if (T == 0) return;
  if (kind == RouteGate::raw) return copy(dscores_T, dgates_T, static_cast<size_t>(T) * sizeof(float));
  if (kind == RouteGate::sigmoid)
    return check(launch(sigmoid_gates_grad_kernel, dim3(blocks_of(T, kRouteThreads)), dim3(kRouteThreads), 0, stream_, gates_T, dgates_T, dscores_T, T), "route_gates_grad");
  Upload up(*this, "route_gates_grad");
  const auto cu = up.add(cu_B1, int64_t{B} + 1);
  up.send();
  check(launch(softmax_gates_grad_kernel, dim3(static_cast<unsigned>(B)), dim3(kRouteThreads), 0, stream_, up[cu], gates_T, dgates_T, dscores_T), "route_gates_grad");
}

}  // namespace plumbline
