// attention: softmax attention over paged keys and values, ragged, f32.   out = softmax(scale q k^T + mask) v   (arXiv 2205.14135, alg. 1)
//   in   q rows (strided), k and v in pages           out  out (T, H d), lse (T, H): natural log-sum-exp of the scaled scores
//   how  online softmax over tiles of keys, FFMA. Slices of few virtual rows, and long keys under middling ones, are cut along the
//        keys; attention_merge_kernel joins the parts in order. What is cut depends on the sequence alone, so its bits do not depend on
//        the batch. A row without keys gives 0 and lse -inf; scores that are all -inf give NaN and -inf. A NaN or infinite value row
//        may reach rows of its tile that do not see it (0 x NaN)
//   cost 128 threads per 64 virtual rows (16 where a slice has no more; half at d > 128), 32 keys at a time, the next keys on their way
//        by cp.async; 79 KB of shared memory at d = 128. 4 d flop per (row, key) that meet: bound by FFMA; 16 rows: one pass over k
//        and v, bound by memory: floor 8 d bytes per key
//   limits: d <= 256; checked by the caller: group = H / Hkv exact, page_rows >= 1, d contiguous floats per row
#include "attention_paged.h"
#include "attention_plan.h"

namespace plumbline {
namespace {

template <int kD, int kM, int kN>
struct Tiles {
  static constexpr int kRows = 16 * kM, kKeys = 8 * kN, kStride = kD + 4, kWeightStride = kKeys + 8;
  static constexpr size_t kBytes = ((kRows + 2 * kKeys) * kStride + kRows * kWeightStride) * sizeof(float);
};

// Scores of this thread's rows become weights e^(s - peak) in shared memory; peak, sum and what was gathered are brought up to date.
template <int kD, int kM, int kN>
PLUMBLINE_DEVICE void softmax_rows(float (&s)[kM][kN], const int (&visible)[kM], int key, float* weights, float (&peak)[kM], float (&sum)[kM],
                                   float (&gathered)[kM][kD / 32][4]) {
  const int tx = threadIdx.x % 8, ty = threadIdx.x / 8;
#pragma unroll
  for (int i = 0; i < kM; ++i) {
    float best = -INFINITY;
#pragma unroll
    for (int j = 0; j < kN; ++j) {
      if (key + tx + 8 * j >= visible[i]) s[i][j] = -INFINITY;
      best = fmaxf(best, s[i][j]);
    }
    for (int bits = 4; bits > 0; bits /= 2) best = fmaxf(best, __shfl_xor_sync(kFullMask, best, bits));
    const float top = fmaxf(best, peak[i]);
    const float base = top == -INFINITY ? 0.0f : top;  // all scores -inf so far: the weights must be 0, not NaN
    const float factor = expf(peak[i] - base);
    float total = 0.0f;
#pragma unroll
    for (int j = 0; j < kN; ++j) {
      const float weight = expf(s[i][j] - base);
      weights[(ty + 16 * i) * (8 * kN + 8) + tx + 8 * j] = weight;
      total += weight;
    }
    for (int bits = 4; bits > 0; bits /= 2) total += __shfl_xor_sync(kFullMask, total, bits);
    peak[i] = top;
    sum[i] = fmaf(sum[i], factor, total);
#pragma unroll
    for (int j = 0; j < kD / 32; ++j)
#pragma unroll
      for (int n = 0; n < 4; ++n) gathered[i][j][n] *= factor;
  }
}

// Final rows, or a part's state.
template <int kD, int kM>
PLUMBLINE_DEVICE void write_rows(const PagedAttention& p, const RowTable<16 * kM>& row, float* state, float (&gathered)[kM][kD / 32][4], const float (&peak)[kM],
                                 const float (&sum)[kM], float* out, float* lse) {
  const int tx = threadIdx.x % 8, ty = threadIdx.x / 8;
#pragma unroll
  for (int i = 0; i < kM; ++i) {
    const int m = ty + 16 * i;
    if (row.head[m] < 0) continue;
    float* to = state ? state + m * p.d : out + row.head[m] * p.d;
    const float inverse = state ? 1.0f : row.visible[m] > 0 ? 1.0f / sum[i] : 0.0f;
#pragma unroll
    for (int j = 0; j < kD / 32; ++j) write4<false>(to, gathered[i][j], inverse, 4 * tx + 32 * j, p.d, p.is_vector);
    if (tx > 0) continue;
    if (state) {
      state[16 * kM * p.d + m] = peak[i];
      state[16 * kM * (p.d + 1) + m] = sum[i];
    } else {
      lse[row.head[m]] = row.visible[m] > 0 ? peak[i] + logf(sum[i]) : -INFINITY;
    }
  }
}

template <int kD, int kM, int kN>
__global__ void __launch_bounds__(kTileThreads) attention_kernel(PagedAttention p, const AttentionWork* works, float* states, float* out, float* lse) {
  using Tile = Tiles<kD, kM, kN>;
  constexpr int kRows = Tile::kRows, kKeys = Tile::kKeys, kStride = Tile::kStride;
  PLUMBLINE_SHARED(float, q_tile);
  float* k_tile = q_tile + kRows * kStride;
  float* v_tile = k_tile + kKeys * kStride;
  float* weights = v_tile + kKeys * kStride;
  __shared__ RowTable<kRows> row;
  const AttentionWork work = works[blockIdx.x / p.Hkv];
  const Slice slice = slice_of(p, work.sequence, static_cast<int>(blockIdx.x % p.Hkv));
  const int first_page = p.page_start_B1[work.sequence];
  const int64_t begin = static_cast<int64_t>(work.tile) * kRows, last = begin + kRows < slice.rows ? begin + kRows - 1 : slice.rows - 1;
  const int visible_end = slice.visible(last), key_end = work.key_end < visible_end ? work.key_end : visible_end;
  row.describe(slice, begin, p.H, p.d, p.q_row_stride);
  __syncthreads();
  load_rows<kD, kRows>(q_tile, p.q, row.q, 1, p.d, p.is_vector);
  load_keys<kD, kKeys>(k_tile, p, p.k, slice, first_page, work.key_begin, key_end);
  cp_async_commit();
  float gathered[kM][kD / 32][4] = {}, peak[kM], sum[kM];
  int visible[kM];
#pragma unroll
  for (int i = 0; i < kM; ++i) peak[i] = -INFINITY, sum[i] = 0.0f, visible[i] = row.visible[threadIdx.x / 8 + 16 * i];
  for (int key = work.key_begin; key < key_end; key += kKeys) {
    load_keys<kD, kKeys>(v_tile, p, p.v, slice, first_page, key, key_end);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    float s[kM][kN];
    score_product<kD>(q_tile, k_tile, p.d, s);
    __syncthreads();
    if (key + kKeys < key_end) load_keys<kD, kKeys>(k_tile, p, p.k, slice, first_page, key + kKeys, key_end);
    cp_async_commit();
#pragma unroll
    for (int i = 0; i < kM; ++i)
#pragma unroll
      for (int j = 0; j < kN; ++j) s[i][j] *= p.scale;
    softmax_rows<kD>(s, visible, key, weights, peak, sum, gathered);
    cp_async_wait<1>();
    __syncthreads();
    row_product<kD, kM, kKeys>(weights, v_tile, gathered);
    __syncthreads();
  }
  cp_async_wait<0>();
  const int64_t state_floats = static_cast<int64_t>(kRows) * (p.d + 2);
  write_rows<kD, kM>(p, row, work.state < 0 ? nullptr : states + work.state + slice.kv_head * state_floats, gathered, peak, sum, out, lse);
}

// Joins the parts of a tile in order. A warp per row.
template <int kRows>
__global__ void __launch_bounds__(kTileThreads) attention_merge_kernel(PagedAttention p, const AttentionMerge* merges, const float* states, float* out, float* lse) {
  __shared__ RowTable<kRows> row;
  const AttentionMerge merge = merges[blockIdx.x / p.Hkv];
  const Slice slice = slice_of(p, merge.sequence, static_cast<int>(blockIdx.x % p.Hkv));
  row.describe(slice, static_cast<int64_t>(merge.tile) * kRows, p.H, p.d, p.q_row_stride);
  __syncthreads();
  const int64_t state_floats = static_cast<int64_t>(kRows) * (p.d + 2);
  const int lane = threadIdx.x % 32;
  for (int m = threadIdx.x / 32; m < kRows; m += kTileThreads / 32) {
    if (row.head[m] < 0) continue;
    const auto part = [&](int i) { return states + merge.state + (static_cast<int64_t>(i) * p.Hkv + slice.kv_head) * state_floats; };
    const int peak_at = kRows * p.d + m, sum_at = peak_at + kRows;
    float top = -INFINITY, sum = 0.0f;
    for (int i = 0; i < merge.parts; ++i) top = fmaxf(top, part(i)[peak_at]);
    const float base = top == -INFINITY ? 0.0f : top;
    for (int i = 0; i < merge.parts; ++i) sum = fmaf(expf(part(i)[peak_at] - base), part(i)[sum_at], sum);
    const float inverse = row.visible[m] > 0 ? 1.0f / sum : 0.0f;
    for (int c = lane; c < p.d; c += 32) {
      float joined = 0.0f;
      for (int i = 0; i < merge.parts; ++i) joined = fmaf(expf(part(i)[peak_at] - base), part(i)[m * p.d + c], joined);
      out[row.head[m] * p.d + c] = joined * inverse;
    }
    if (lane == 0) lse[row.head[m]] = row.visible[m] > 0 ? top + logf(sum) : -INFINITY;
  }
}

}  // namespace

void CudaBackend::attention(const AttentionShape& shape, const float* q, const KeyValuePages& pages, float* out_THd, float* lse_TH) {
  poll();
  require_head_size("attention", shape.d);
  const AttentionPlan plan = plan_attention(shape);
  const AttentionTiles &few = plan.few, &many = plan.many;
  PagedUpload paged(*this, "attention", shape, q, pages);
  paged.add_rows(out_THd);
  const auto handle = [&](const auto& list) { return paged.upload.add(list.data(), static_cast<int64_t>(list.size())); };
  const auto few_works = handle(few.works), many_works = handle(many.works);
  const auto few_merges = handle(few.merges), many_merges = handle(many.merges);
  paged.upload.send();
  float* state = static_cast<float*>(scratch(static_cast<size_t>(plan.states) * sizeof(float)));
  const PagedAttention arguments = paged.arguments();
  const auto grid = [&](const auto& list) { return dim3(blocks_of(static_cast<int64_t>(list.size()) * shape.Hkv, 1)); };
  for_head_size(shape.d, [&](auto size) {
    constexpr int kD = decltype(size)::value, kM = kD <= 128 ? 4 : 2, kN = kD <= 128 ? 4 : 2;
    check(launch(attention_kernel<kD, 1, kN>, grid(few.works), dim3(kTileThreads), Tiles<kD, 1, kN>::kBytes, stream(), arguments, paged.upload[few_works], state, out_THd, lse_TH), "attention");
    check(launch(attention_kernel<kD, kM, kN>, grid(many.works), dim3(kTileThreads), Tiles<kD, kM, kN>::kBytes, stream(), arguments, paged.upload[many_works], state, out_THd, lse_TH), "attention");
  });
  check(launch(attention_merge_kernel<kFewRows>, grid(few.merges), dim3(kTileThreads), 0, stream(), arguments, paged.upload[few_merges], state, out_THd, lse_TH), "attention");
  const auto merge = shape.d <= 128 ? attention_merge_kernel<64> : attention_merge_kernel<32>;
  check(launch(merge, grid(many.merges), dim3(kTileThreads), 0, stream(), arguments, paged.upload[many_merges], state, out_THd, lse_TH), "attention");
}

}  // namespace plumbline
