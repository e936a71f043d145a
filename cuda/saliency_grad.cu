// attention_saliency_grad: what the saliency's gradient sends into the last rows' queries and all their keys, of one layer.
//        dA_i = scale da[i] at the columns, 0 elsewhere; dS_j = A_j (dA_j - sum_i A_i dA_i); dq += sum_j dS_j k_j, dk_j += dS_j q, both
//        times shape.scale                                                                   (arXiv 2604.10500, SCF-VR; algorithms 3.1)
//   in   q rows (strided), k in pages, lse (T, H), columns: key rows; f32        out  dq, dk pages: added to
//   how  f32, the sum over columns in f64; columns that name one key are added in order (a chain that the host lays out); a block's dq
//        warp by warp, then the blocks' in order. NaN spreads as in the formula
//   cost 3 launches for all sequences: sums over columns | keys: dS, dk, dq of up to 256 keys | dq. 128 threads, a grid of pieces x kv heads;
//        floor: all keys read, dk read and written, Hkv * d * 12 bytes per key, and the columns' keys once more
//   limits: columns < kv_len; five rows of d floats fit shared memory (d <= 11,000)
#include "saliency.cuh"

namespace plumbline {
namespace {

struct GradCall {
  SaliencyHeads heads;
  PageView k;
  float* const* dk;
  const KeyPlace *column_place, *key_place;
  const float *q, *lse_TH, *dsaliency_N;
  const int32_t *last_B, *kv_len_B, *cu_columns_B1, *columns_N;
  const int32_t *first_piece_B1;              // pieces of columns of sequence b
  const int32_t *key_base_B, *column_of, *next_N;  // column_of[key_base[b] + key]: its first column or -1; next_N: another one of that key
  int64_t q_row_stride;
  int32_t column_keys, keys, H, Hkv;
  float scale, column_scale;
  double* weighted;  // [pieces of columns, H]: sum of A da
  float* dq_partial; // [pieces of keys, H, d]
};

// Sum over a piece of columns of A_i da_i, for each head of a kv head.
template <bool kVector>
__global__ void __launch_bounds__(kSaliencyThreads) saliency_columns_kernel(GradCall c) {
  PLUMBLINE_SHARED(float, q);
  __shared__ const float* row[kMostKeys];
  __shared__ float da[kMostKeys];
  __shared__ double room[kSaliencyWarps];
  const SaliencyHeads& s = c.heads;
  const int kv_head = blockIdx.x % c.Hkv, piece = blockIdx.x / c.Hkv, lane = threadIdx.x % 32, warp = threadIdx.x / 32, slabs = s.padded / kSlab;
  const KeyPlace at = c.column_place[piece];
  const int begin = c.cu_columns_B1[at.sequence] + at.begin, count = min(c.column_keys, c.cu_columns_B1[at.sequence + 1] - begin);
  for (int i = threadIdx.x; i < c.column_keys; i += kSaliencyThreads) {
    row[i] = i < count ? c.k.row(at.sequence, c.columns_N[begin + i], kv_head) : nullptr;
    da[i] = i < count ? c.dsaliency_N[begin + i] : 0.0f;
  }
  const int64_t last = c.last_B[at.sequence];
  for (int first = 0; first < s.group; first += s.at_once) {
    const int heads = min(s.at_once, s.group - first), head = kv_head * s.group + first;
    __syncthreads();
    load_queries<kVector>(c.q + last * c.q_row_stride + static_cast<int64_t>(head) * s.d, heads, s.d, s.padded, c.scale, q);
    __syncthreads();
    double own = 0;  // lane h keeps the sum of head h: at_once <= 32
    for (int step = warp * kWarpKeys; step < count; step += kStepKeys) {
      KeyRows<kVector> keys;
#pragma unroll
      for (int n = 0; n < 4; ++n) keys.row[n] = row[step + n * 4 + lane / 8];
      if (slabs == 1) keys.load(0, s.d);
      const int mine = step + lane % 4 * 4 + lane / 8;  // each key in two lanes
      for (int h = 0; h < heads; ++h) {
        const float p = expf(score_row(q + h * s.padded, keys, s.d, slabs) - c.lse_TH[last * c.H + head + h]);
        const double sum = warp_sum(mine < count && lane % 8 < 4 ? static_cast<double>(p) * static_cast<double>(da[mine]) : 0.0);
        if (lane == h) own += sum;
      }
    }
    for (int h = 0; h < heads; ++h) {
      const double sum = __shfl_sync(kFullMask, own, h);
      if (lane == 0) room[warp] = sum;
      __syncthreads();
      if (threadIdx.x == 0) c.weighted[static_cast<int64_t>(piece) * c.H + head + h] = room[0] + room[1] + room[2] + room[3];
      __syncthreads();
    }
  }
}

// dS of a warp's 16 keys for `heads` heads, [head][8 lanes' row group][row].
template <bool kVector>
PLUMBLINE_DEVICE void score_gradients(const GradCall& c, KeyRows<kVector>& keys, const float* q, const float* lse, const float* delta, int heads, float dA,
                                      bool is_key, float* ds) {
  const int lane = threadIdx.x % 32;
  for (int h = 0; h < heads; ++h) {
    const float p = expf(score_row(q + h * c.heads.padded, keys, c.heads.d, c.heads.padded / kSlab) - lse[h]);
    if (lane % 8 < 4) ds[h * kWarpKeys + lane / 8 * 4 + lane % 4] = is_key ? p * (dA - delta[h]) : 0.0f;
  }
  __syncwarp();
}

// One turn (32 floats of a slab) of a warp's keys: dk rows, and dq of the warp. Four sums over the four groups of lanes in three exchanges.
template <bool kVector>
PLUMBLINE_DEVICE void add_turn(const GradCall& c, const float4 (&x)[4], float* const (&dk)[4], int column, int heads, const float* q, const float* ds, float* dq) {
  const int lane = threadIdx.x % 32, group = lane / 8, d = c.heads.d;
  const bool odd = group & 1, upper = group & 2;
  float4 sum[4] = {};
  for (int h = 0; h < heads; ++h) {
    const float4 own = *reinterpret_cast<const float4*>(q + h * c.heads.padded + column);
    const float4 w4 = *reinterpret_cast<const float4*>(ds + h * kWarpKeys + group * 4);
    const float w[4] = {w4.x, w4.y, w4.z, w4.w};
    float part[4] = {};
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      sum[n].x = fmaf(w[n], own.x, sum[n].x), sum[n].y = fmaf(w[n], own.y, sum[n].y), sum[n].z = fmaf(w[n], own.z, sum[n].z), sum[n].w = fmaf(w[n], own.w, sum[n].w);
      part[0] = fmaf(w[n], x[n].x, part[0]), part[1] = fmaf(w[n], x[n].y, part[1]), part[2] = fmaf(w[n], x[n].z, part[2]), part[3] = fmaf(w[n], x[n].w, part[3]);
    }
    float low = odd ? part[1] : part[0], high = odd ? part[3] : part[2];
    low += __shfl_xor_sync(kFullMask, odd ? part[0] : part[1], 8);
    high += __shfl_xor_sync(kFullMask, odd ? part[2] : part[3], 8);
    const float total = (upper ? high : low) + __shfl_xor_sync(kFullMask, upper ? low : high, 16);
    dq[h * c.heads.padded + column + group] += total;
  }
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    if (dk[n] == nullptr || column >= d) continue;
    float* to = dk[n] + column;
    if (kVector) {
      float4 old = *reinterpret_cast<float4*>(to);
      old.x += sum[n].x, old.y += sum[n].y, old.z += sum[n].z, old.w += sum[n].w;
      *reinterpret_cast<float4*>(to) = old;
    } else {
      const float value[4] = {sum[n].x, sum[n].y, sum[n].z, sum[n].w};
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (column + j < d) to[j] += value[j];
    }
  }
}

template <bool kVector>
__global__ void __launch_bounds__(kSaliencyThreads) saliency_keys_kernel(GradCall c) {
  PLUMBLINE_SHARED(float, q);  // [at_once, padded], dq [warps, at_once, padded], dS [warps, at_once, kWarpKeys]
  __shared__ float* row[2][kMostKeys];  // of k, of dk
  __shared__ float dA[kMostKeys], lse[32], delta[32];
  const SaliencyHeads& s = c.heads;
  const int kv_head = blockIdx.x % c.Hkv, piece = blockIdx.x / c.Hkv, lane = threadIdx.x % 32, warp = threadIdx.x / 32, slabs = s.padded / kSlab;
  const KeyPlace at = c.key_place[piece];
  const int count = min(c.keys, c.kv_len_B[at.sequence] - at.begin), tile = s.at_once * s.padded;
  const int64_t last = c.last_B[at.sequence];
  float *dq = q + tile, *own_dq = dq + warp * tile, *ds = dq + kSaliencyWarps * tile + warp * s.at_once * kWarpKeys;
  for (int i = threadIdx.x; i < c.keys; i += kSaliencyThreads) {
    PageView dk = c.k;
    dk.page = c.dk;
    row[0][i] = i < count ? c.k.row(at.sequence, at.begin + i, kv_head) : nullptr;
    row[1][i] = i < count ? dk.row(at.sequence, at.begin + i, kv_head) : nullptr;
    float sum = 0;
    if (i < count)
      for (int n = c.column_of[c.key_base_B[at.sequence] + at.begin + i]; n >= 0; n = c.next_N[n]) sum += c.column_scale * c.dsaliency_N[n];
    dA[i] = sum;
  }
  for (int first = 0; first < s.group; first += s.at_once) {
    const int heads = min(s.at_once, s.group - first), head = kv_head * s.group + first;
    __syncthreads();
    load_queries<kVector>(c.q + last * c.q_row_stride + static_cast<int64_t>(head) * s.d, heads, s.d, s.padded, c.scale, q);
    for (int i = threadIdx.x; i < kSaliencyWarps * tile; i += kSaliencyThreads) dq[i] = 0;
    if (static_cast<int>(threadIdx.x) < heads) {
      double sum = 0;
      for (int p = c.first_piece_B1[at.sequence]; p < c.first_piece_B1[at.sequence + 1]; ++p) sum += c.weighted[static_cast<int64_t>(p) * c.H + head + threadIdx.x];
      delta[threadIdx.x] = static_cast<float>(static_cast<double>(c.column_scale) * sum);
      lse[threadIdx.x] = c.lse_TH[last * c.H + head + threadIdx.x];
    }
    __syncthreads();
    for (int step = warp * kWarpKeys; step < count; step += kStepKeys) {
      KeyRows<kVector> keys;
      float* dk[4];
#pragma unroll
      for (int n = 0; n < 4; ++n) keys.row[n] = row[0][step + n * 4 + lane / 8], dk[n] = row[1][step + n * 4 + lane / 8];
      if (slabs == 1) keys.load(0, s.d);
      const int mine = step + lane % 4 * 4 + lane / 8;
      score_gradients(c, keys, q, lse, delta, heads, dA[mine], mine < count, ds);
      for (int slab = 0; slab < slabs; ++slab) {
        if (slabs > 1) keys.load(slab, s.d);
#pragma unroll
        for (int turn = 0; turn < 4; ++turn) {
          const float4 x[4] = {keys.x[0][turn], keys.x[1][turn], keys.x[2][turn], keys.x[3][turn]};
          add_turn<kVector>(c, x, dk, slab * kSlab + turn * 32 + lane % 8 * 4, heads, q, ds, own_dq);
        }
      }
      __syncwarp();  // dS is written again
    }
    __syncthreads();
    float* to = c.dq_partial + (static_cast<int64_t>(piece) * c.H + head) * s.d;
    for (int i = threadIdx.x; i < heads * s.d; i += kSaliencyThreads) {
      const float* from = dq + i / s.d * s.padded + i % s.d;
      to[i] = from[0] + from[tile] + from[2 * tile] + from[3 * tile];
    }
  }
}

// dq of the sequences with work: sequence_W of them, pieces [first_W, first_W + pieces_W).
__global__ void saliency_queries_kernel(const float* partial, const int32_t* last_W, const int32_t* first_W, int64_t row_stride, int64_t row_floats, float scale,
                                        int64_t total, float* dq) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += step) {
    const int64_t w = i / row_floats, j = i % row_floats;
    float sum = 0;
#pragma unroll 8
    for (int64_t p = first_W[w]; p < first_W[w + 1]; ++p) sum += partial[p * row_floats + j];
    dq[last_W[w] * row_stride + j] += scale * sum;
  }
}

// Where columns lie among a sequence's keys.
struct ColumnMap {
  std::vector<int32_t> base, of, next;
  ColumnMap(const AttentionShape& shape, const SaliencyColumns& columns, const std::vector<bool>& works)
      : base(static_cast<size_t>(shape.B)), next(static_cast<size_t>(columns.cu_columns_B1[shape.B]), -1) {
    for (int32_t b = 0; b < shape.B; ++b) {
      base[b] = static_cast<int32_t>(of.size());
      if (!works[b]) continue;
      of.resize(of.size() + static_cast<size_t>(shape.kv_len_B[b]), -1);
      for (int32_t i = columns.cu_columns_B1[b + 1] - 1; i >= columns.cu_columns_B1[b]; --i) {
        int32_t& first = of[base[b] + columns.columns_N[i]];
        next[i] = first;
        first = i;
      }
    }
  }
};

// First piece of each sequence, and their number behind the last.
std::vector<int32_t> first_pieces(const std::vector<KeyPlace>& places, int32_t B) {
  std::vector<int32_t> first(static_cast<size_t>(B) + 1, 0);
  for (const KeyPlace& place : places) ++first[place.sequence + 1];
  for (int32_t b = 0; b < B; ++b) first[b + 1] += first[b];
  return first;
}

}  // namespace

void CudaBackend::attention_saliency_grad(const AttentionShape& shape, const float* q, const KeyValuePages& pages, const float* lse_TH,
                                          const SaliencyColumns& columns, float scale, const float* dsaliency_N, float* dq, float* const* dk) {
  poll();
  const int32_t B = shape.B;
  const SaliencyHeads heads = saliency_heads(shape, 1 + kSaliencyWarps);
  std::vector<bool> works(static_cast<size_t>(B));
  std::vector<int32_t> last(static_cast<size_t>(B)), last_W, first_W{0};
  for (int32_t b = 0; b < B; ++b) {
    works[b] = shape.cu_q_B1[b + 1] > shape.cu_q_B1[b] && columns.cu_columns_B1[b + 1] > columns.cu_columns_B1[b];
    last[b] = shape.cu_q_B1[b + 1] - 1;
  }
  int32_t column_keys = 0, keys = 0;
  const auto column_places = cut_keys(B, shape.Hkv, [&](int32_t b) { return works[b] ? columns.cu_columns_B1[b + 1] - columns.cu_columns_B1[b] : 0; }, &column_keys);
  const auto key_places = cut_keys(B, shape.Hkv, [&](int32_t b) { return works[b] ? shape.kv_len_B[b] : 0; }, &keys);
  if (column_places.empty()) return;
  const std::vector<int32_t> first_piece = first_pieces(column_places, B), first_keys = first_pieces(key_places, B);
  for (int32_t b = 0; b < B; ++b)
    if (works[b]) last_W.push_back(last[b]), first_W.push_back(first_keys[b + 1]);
  const ColumnMap map(shape, columns, works);

  Upload up(*this, "attention_saliency_grad");
  const int64_t page_count = pages.page_start_B1[B];
  const auto page = up.add(pages.k, page_count), dk_page = up.add(dk, page_count);
  const auto page_start = up.add(pages.page_start_B1, B + 1), last_B = up.add(last.data(), B), kv_len = up.add(shape.kv_len_B, B);
  const auto cu = up.add(columns.cu_columns_B1, B + 1), column = up.add(columns.columns_N, columns.cu_columns_B1[B]);
  const auto column_place = up.add(column_places.data(), static_cast<int64_t>(column_places.size())), key_place = up.add(key_places.data(), static_cast<int64_t>(key_places.size()));
  const auto piece = up.add(first_piece.data(), B + 1), base = up.add(map.base.data(), B), of = up.add(map.of.data(), static_cast<int64_t>(map.of.size()));
  const auto next = up.add(map.next.data(), static_cast<int64_t>(map.next.size()));
  const auto work_last = up.add(last_W.data(), static_cast<int64_t>(last_W.size())), work_first = up.add(first_W.data(), static_cast<int64_t>(first_W.size()));
  up.send();
  const int64_t row_floats = int64_t{shape.H} * shape.d, sums = static_cast<int64_t>(column_places.size()) * shape.H;
  double* weighted = static_cast<double*>(scratch(static_cast<size_t>(sums) * sizeof(double) + key_places.size() * static_cast<size_t>(row_floats) * sizeof(float)));
  float* dq_partial = reinterpret_cast<float*>(weighted + sums);
  const GradCall call{heads, {up[page], up[page_start], pages.head_stride, pages.row_stride, pages.page_rows}, up[dk_page], up[column_place], up[key_place], q, lse_TH, dsaliency_N,
                      up[last_B], up[kv_len], up[cu], up[column], up[piece], up[base], up[of], up[next], shape.q_row_stride, column_keys, keys, shape.H, shape.Hkv,
                      shape.scale, scale, weighted, dq_partial};
  const bool is_vector = has_vector_rows(pages, pages.k, B, shape.d, 0) && has_vector_rows(pages, dk, B, shape.d, 0) && shape.q_row_stride % 4 == 0 && is_aligned_16(q);
  const size_t q_bytes = static_cast<size_t>(heads.at_once) * static_cast<size_t>(heads.padded) * sizeof(float);
  const size_t ds_bytes = size_t{kSaliencyWarps} * static_cast<size_t>(heads.at_once) * kWarpKeys * sizeof(float);
  const auto blocks = [&](const std::vector<KeyPlace>& places) { return dim3(static_cast<unsigned>(places.size() * static_cast<size_t>(shape.Hkv))); };
  const char* op = "attention_saliency_grad";
  check(launch(is_vector ? saliency_columns_kernel<true> : saliency_columns_kernel<false>, blocks(column_places), dim3(kSaliencyThreads), q_bytes, stream(), call), op);
  check(launch(is_vector ? saliency_keys_kernel<true> : saliency_keys_kernel<false>, blocks(key_places), dim3(kSaliencyThreads), q_bytes * (1 + kSaliencyWarps) + ds_bytes,
               stream(), call),
        op);
  const int64_t total = static_cast<int64_t>(last_W.size()) * row_floats;
  check(launch(saliency_queries_kernel, dim3(blocks_of(total, 256)), dim3(256), 0, stream(), dq_partial, up[work_last], up[work_first], shape.q_row_stride, row_floats, shape.scale,
               total, dq),
        op);
}

}  // namespace plumbline
