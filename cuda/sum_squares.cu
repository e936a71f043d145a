// sum_squares: squared L2 norm of a list of tensors, for clipping by the global norm.   sum over spans, sum over i of x[i]^2
//   in   spans of f32, f16 or bf16, any length and alignment; their table is uploaded, cut into chunks    out  one f64 on the host
//   how  squares of f32 values are exact in f64, sums in f64: chunks over fixed lanes, then the chunks in a fixed order. NaN and inf spread
//   cost one read of the tensors; a block of 256 threads per chunk of 64 Ki elements, then one block; two launches and one download for the
//        whole list; bound by memory (with few f64 units, as on sm_86, 89 and 120, by those)
#include "cuda_backend.h"
#include "reduce.cuh"
#include "row_squares.cuh"

namespace plumbline {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kChunk = 64 << 10;

template <typename T>
__global__ void __launch_bounds__(kThreads) chunk_squares_kernel(const FloatSpan* chunks_N, double* sums_N) {
  __shared__ double room[kThreads / 32];
  const FloatSpan chunk = chunks_N[blockIdx.x];
  const double sum = block_sum<kThreads>(lane_squares<kThreads, 4>(static_cast<const T*>(chunk.data), chunk.size, threadIdx.x, SquareF64{}), room);
  if (threadIdx.x == 0) sums_N[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kThreads) add_chunks_kernel(const double* sums_N, int64_t count, double* total) {
  __shared__ double room[kThreads / 32];
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += sums_N[i];
  sum = block_sum<kThreads>(sum, room);
  if (threadIdx.x == 0) *total = sum;
}

std::vector<FloatSpan> cut_spans(const FloatSpan* spans, int64_t count, size_t element_bytes) {
  std::vector<FloatSpan> chunks;
  for (int64_t i = 0; i < count; ++i)
    for (int64_t at = 0; at < spans[i].size; at += kChunk)
      chunks.push_back({static_cast<const char*>(spans[i].data) + static_cast<size_t>(at) * element_bytes, std::min(spans[i].size - at, kChunk)});
  return chunks;
}

}  // namespace

double CudaBackend::sum_squares(const FloatSpan* spans, int64_t count, DType dtype) {
  poll();
  return dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    const std::vector<FloatSpan> chunks = cut_spans(spans, count, sizeof(T));
    const int64_t N = static_cast<int64_t>(chunks.size());
    if (N == 0) return 0.0;
    Upload up(*this, "sum_squares");
    const auto table = up.add(chunks.data(), N);
    up.send();
    double* sums = static_cast<double*>(scratch(static_cast<size_t>(N + 1) * sizeof(double)));
    check(launch(chunk_squares_kernel<T>, dim3(static_cast<unsigned>(N)), dim3(kThreads), 0, stream(), up[table], sums + 1), "sum_squares");
    check(launch(add_chunks_kernel, dim3(1), dim3(kThreads), 0, stream(), static_cast<const double*>(sums + 1), N, sums), "sum_squares");
    double total = 0;
    download(&total, sums, sizeof(total));
    return total;
  });
}

}  // namespace plumbline
