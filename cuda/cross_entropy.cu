// cross_entropy: loss and gradient of one target per row.   loss = logsumexp(x) - x[target], dx = (softmax(x) - onehot) scale
//   in   logits (R, V) f32, targets (R, host) in 0..V-1 or -100 (ignored)   out  loss (R), argmax (R, host), gradient (R, V), which may be logits
//   how  a row is cut into chunks of 8,192, one block each, kept in registers: its maximum, then the sum of exp(x - maximum) in f32; the
//        chunks of a row are put together in f64, in a fixed order. argmax: lowest index of the largest number, 0 when there is none; NaN or
//        +inf in a row: its loss and gradient are NaN
//   cost two launches. 4 bytes an element for the loss, 8 more for the gradient, which starts with the rows that were read last and
//        lie in the L2 cache still; bound by memory: 8 accesses of 16 bytes in flight in each of 256 threads
//   limits: none; V % 4 != 0 or unaligned logits take 4-byte accesses
#include <cmath>

#include "cuda_backend.h"
#include "dtype.cuh"
#include "floats.cuh"
#include "reduce.cuh"

namespace plumbline {
namespace {

constexpr int kThreads = 256, kValues = 32, kChunk = kThreads * kValues;
constexpr int32_t kIgnored = -100;

struct ChunkSum {
  uint64_t best;  // key of its largest number, 0: none
  float sum;      // of exp(x - that number), or of exp(x) without one
};

struct LossRows {
  const float* logits_RV;
  const int32_t* targets_R;
  float scale;
  float* loss_R;
  int32_t* argmax_R;
  float* dlogits_RV;
  ChunkSum* chunks;  // (R, chunks_per_row)
  int64_t R, V, chunks_per_row;
};

// Ascending with the number; of equal ones (-0 and 0 are) the one of the lowest index is the largest. 0 is below all keys.
PLUMBLINE_DEVICE uint64_t key_of(float x, uint32_t index) {
  const uint32_t bits = __float_as_uint(x + 0.0f);
  return static_cast<uint64_t>(bits & 0x80000000u ? ~bits : bits | 0x80000000u) << 32 | (0xffffffffu - index);
}
PLUMBLINE_DEVICE float number_of(uint64_t key) {  // -inf for none
  const uint32_t high = static_cast<uint32_t>(key >> 32);
  return key == 0 ? __uint_as_float(0xff800000u) : __uint_as_float(high & 0x80000000u ? high & 0x7fffffffu : ~high);
}
PLUMBLINE_DEVICE int32_t index_of(uint64_t key) { return key == 0 ? 0 : static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(key)); }
// What is subtracted before the exponential: exp(-inf - 0) is 0 and not NaN.
PLUMBLINE_DEVICE float shift_of(uint64_t key) {
  const float number = number_of(key);
  return number == __uint_as_float(0xff800000u) ? 0.0f : number;
}

struct Largest {
  PLUMBLINE_DEVICE uint64_t operator()(uint64_t a, uint64_t b) const { return a > b ? a : b; }
};

// A thread's kValues elements of a chunk of `size`: (p * kThreads + thread) * kWidth + k. The rest is -inf.
template <int kWidth>
struct Chunk {
  float at[kValues];
  static PLUMBLINE_DEVICE int place(int i) { return (i / kWidth * kThreads + static_cast<int>(threadIdx.x)) * kWidth + i % kWidth; }
  PLUMBLINE_DEVICE Chunk(const float* x, int size) {
#pragma unroll
    for (int i = 0; i < kValues; i += kWidth) {
      Floats<kWidth> run;
      for (int k = 0; k < kWidth; ++k) run.at[k] = __uint_as_float(0xff800000u);
      if (place(i) < size) run = load<kWidth>(x + place(i));
#pragma unroll
      for (int k = 0; k < kWidth; ++k) at[i + k] = run.at[k];
    }
  }
};

template <int kWidth>
__global__ void __launch_bounds__(kThreads) chunk_sums_kernel(LossRows rows) {
  __shared__ uint64_t key_room[kThreads / 32];
  __shared__ float sum_room[kThreads / 32];
  const int64_t row = blockIdx.x / rows.chunks_per_row, start = blockIdx.x % rows.chunks_per_row * kChunk;
  const int size = static_cast<int>(min(rows.V - start, static_cast<int64_t>(kChunk)));
  const Chunk<kWidth> chunk(rows.logits_RV + row * rows.V + start, size);
  float best = __uint_as_float(0xff800000u);
  int index = -1;
#pragma unroll
  for (int i = 0; i < kValues; ++i)
    if (chunk.at[i] > best || (index < 0 && chunk.at[i] == best && chunk.place(i) < size)) best = chunk.at[i], index = chunk.place(i);
  const uint64_t mine = index < 0 ? 0 : key_of(best, static_cast<uint32_t>(start + index));
  const uint64_t key = block_reduce<kThreads>(mine, key_room, uint64_t{0}, Largest{});
  const float shift = shift_of(key);
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kValues; ++i) sum += expf(chunk.at[i] - shift);  // beyond the row: exp(-inf - shift) = 0
  sum = block_sum<kThreads>(sum, sum_room);
  if (threadIdx.x == 0) rows.chunks[blockIdx.x] = ChunkSum{key, sum};
}

struct RowSum {
  uint64_t best;
  double sum;
};
PLUMBLINE_DEVICE RowSum row_sum(const LossRows& rows, int64_t row) {  // by a whole warp, the same in every lane
  const ChunkSum* chunks = rows.chunks + row * rows.chunks_per_row;
  const int lane = threadIdx.x % 32;
  uint64_t best = 0;
  for (int64_t i = lane; i < rows.chunks_per_row; i += 32) best = Largest{}(best, chunks[i].best);
  best = warp_reduce(best, Largest{});
  double sum = 0;
  for (int64_t i = lane; i < rows.chunks_per_row; i += 32) sum += static_cast<double>(chunks[i].sum) * static_cast<double>(expf(shift_of(chunks[i].best) - shift_of(best)));
  return {best, warp_sum(sum)};
}

PLUMBLINE_DEVICE float loss_of(const RowSum& row, float at_target) {
  return static_cast<float>(log(row.sum) + (static_cast<double>(number_of(row.best)) - static_cast<double>(at_target)));
}

// One warp a row.
__global__ void __launch_bounds__(32) loss_kernel(LossRows rows) {
  const int64_t row = blockIdx.x;
  const RowSum sum = row_sum(rows, row);
  if (threadIdx.x > 0) return;
  const int32_t target = rows.targets_R[row];
  rows.argmax_R[row] = index_of(sum.best);
  rows.loss_R[row] = target == kIgnored ? 0.0f : loss_of(sum, rows.logits_RV[row * rows.V + target]);
}

// Each block reads its chunk before it writes it, and nobody else's: logits and gradient may be the same memory.
template <int kWidth>
__global__ void __launch_bounds__(kThreads) loss_grad_kernel(LossRows rows) {
  const int64_t block = gridDim.x - 1 - blockIdx.x, row = block / rows.chunks_per_row, start = block % rows.chunks_per_row * kChunk;
  const int size = static_cast<int>(min(rows.V - start, static_cast<int64_t>(kChunk)));
  Chunk<kWidth> chunk(rows.logits_RV + row * rows.V + start, size);
  const RowSum sum = row_sum(rows, row);
  const int32_t target = rows.targets_R[row];
  if (start == 0 && threadIdx.x == 0) {
    rows.argmax_R[row] = index_of(sum.best);
    if (target == kIgnored) rows.loss_R[row] = 0;
  }
  const float shift = shift_of(sum.best), factor = static_cast<float>(rows.scale / sum.sum);
  const int64_t in_chunk = target - start;  // the target's place, if it is in here
  float at_target = 0, power_at_target = 0;
  bool has_target = false;
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    const float x = chunk.at[i], power = expf(x - shift);
    chunk.at[i] = target == kIgnored ? 0.0f : power * factor;
    if (chunk.place(i) == in_chunk) at_target = x, power_at_target = power, has_target = true;
  }
  float* out = rows.dlogits_RV + row * rows.V + start;
#pragma unroll
  for (int i = 0; i < kValues; i += kWidth) {
    Floats<kWidth> run;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) run.at[k] = chunk.at[i + k];
    if (chunk.place(i) < size) store(out + chunk.place(i), run);
  }
  if (!has_target) return;
  rows.loss_R[row] = loss_of(sum, at_target);
  out[in_chunk] = static_cast<float>((static_cast<double>(power_at_target) - sum.sum) / sum.sum * static_cast<double>(rows.scale));
}

template <int kWidth>
cudaError_t launch_rows(const LossRows& rows, cudaStream_t stream) {
  const dim3 grid(blocks_of(rows.R * rows.chunks_per_row, 1));
  const cudaError_t status = launch(chunk_sums_kernel<kWidth>, grid, dim3(kThreads), 0, stream, rows);
  if (status != cudaSuccess) return status;
  if (rows.dlogits_RV) return launch(loss_grad_kernel<kWidth>, grid, dim3(kThreads), 0, stream, rows);
  return launch(loss_kernel, dim3(blocks_of(rows.R, 1)), dim3(32), 0, stream, rows);
}

}  // namespace

void CudaBackend::cross_entropy(const float* logits_RV, const int32_t* targets_R, float scale, float* loss_R, int32_t* argmax_R, float* dlogits_RV, int64_t R, int64_t V) {
  poll();
  if (R == 0) return;
  const int64_t chunks_per_row = (V + kChunk - 1) / kChunk;
  const size_t chunk_bytes = static_cast<size_t>(R * chunks_per_row) * sizeof(ChunkSum);
  char* memory = static_cast<char*>(scratch(chunk_bytes + static_cast<size_t>(R) * sizeof(int32_t)));
  int32_t* argmax = reinterpret_cast<int32_t*>(memory + chunk_bytes);
  Upload up(*this, "cross_entropy");
  const auto targets = up.add(targets_R, R);
  up.send();
  const LossRows rows = {logits_RV, up[targets], scale, loss_R, argmax, dlogits_RV, reinterpret_cast<ChunkSum*>(memory), R, V, chunks_per_row};
  const bool is_wide = V % 4 == 0 && is_aligned_16(logits_RV) && is_aligned_16(dlogits_RV);
  check(is_wide ? launch_rows<4>(rows, stream()) : launch_rows<1>(rows, stream()), "cross_entropy");
  download(argmax_R, argmax, static_cast<size_t>(R) * sizeof(int32_t));
}

}  // namespace plumbline
