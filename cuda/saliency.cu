// attention_saliency: the attention that the last row of each sequence pays to some of its keys, summed over layers and heads.
//        a[i] += scale sum_l sum_h e^(s_lhi - lse_lh)                                        (arXiv 2604.10500, SCF-VR; algorithms 3.1)
//   in   q rows and lse per layer, k in pages (all layers above one another), columns: key rows; f32        out  saliency (N): added to
//   how  f32; a block sums the heads of one kv head of one layer for up to 256 columns, in order; then each column's sums are added,
//        layers and kv heads ascending in eight equal parts, and the parts in order. A column's bits depend on neither its neighbours nor
//        the batch. NaN spreads as in the formula
//   cost 2 launches for all layers and sequences. 128 threads, a grid of pieces x kv heads x layers; 16-byte loads; each key row is read
//        once: floor layers * Hkv * d * 4 bytes per column, beside it the sums (1 / d of that, written and read) and a row of q per piece
//   limits: columns < kv_len; one head's row of q fits shared memory (d <= 57,000)
#include "saliency.cuh"

namespace plumbline {
namespace {

struct PartialCall {
  SaliencyHeads heads;
  PageView pages;
  const KeyPlace* place;
  const float* const* q_L;
  const float* const* lse_L;
  const int32_t *q_row_B, *lse_row_B, *cu_columns_B1, *columns_N;
  int64_t q_row_stride, layer_stride;
  int32_t pieces, keys, Hkv;
  float scale;
  float* partial;  // [layers * Hkv * cuts, pieces, keys]
};

template <bool kVector>
__global__ void __launch_bounds__(kSaliencyThreads) saliency_partial_kernel(PartialCall c) {
  PLUMBLINE_SHARED(float, q);  // [at_once, padded], then lse [at_once]
  __shared__ const float* row[kMostKeys];
  const SaliencyHeads& s = c.heads;
  const int piece = blockIdx.x % c.pieces, plane = blockIdx.x / c.pieces, slice = plane % (c.Hkv * s.cuts), layer = plane / (c.Hkv * s.cuts);
  const KeyPlace at = c.place[piece];
  const int kv_head = slice / s.cuts, first = slice % s.cuts * s.at_once, heads = min(s.at_once, s.group - first);
  const int begin = c.cu_columns_B1[at.sequence] + at.begin, count = min(c.keys, c.cu_columns_B1[at.sequence + 1] - begin);
  const int64_t head = static_cast<int64_t>(kv_head) * s.group + first;
  float* lse = q + s.at_once * s.padded;

  for (int i = threadIdx.x; i < c.keys; i += kSaliencyThreads)
    row[i] = i < count ? c.pages.row(at.sequence, c.columns_N[begin + i], kv_head) + layer * c.layer_stride : nullptr;
  load_queries<kVector>(c.q_L[layer] + c.q_row_B[at.sequence] * c.q_row_stride + head * s.d, heads, s.d, s.padded, c.scale, q);
  if (static_cast<int>(threadIdx.x) < heads)
    lse[threadIdx.x] = c.lse_L[layer][c.lse_row_B[at.sequence] * (static_cast<int64_t>(c.Hkv) * s.group) + head + threadIdx.x];
  __syncthreads();

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, r = lane % 8, slabs = s.padded / kSlab;
  float* partial = c.partial + (static_cast<int64_t>(plane) * c.pieces + piece) * c.keys;
  for (int step = warp * kWarpKeys; step < count; step += kStepKeys) {
    KeyRows<kVector> keys;
#pragma unroll
    for (int n = 0; n < 4; ++n) keys.row[n] = row[step + n * 4 + lane / 8];
    if (slabs == 1) keys.load(0, s.d);
    float sum = 0;
    for (int h = 0; h < heads; ++h) sum += expf(score_row(q + h * s.padded, keys, s.d, slabs) - lse[h]);
    if (r < 4) partial[step + r * 4 + lane / 8] = sum;  // behind `count` nobody reads it
  }
}

constexpr int kColumns = 32, kParts = 8;

__global__ void __launch_bounds__(kColumns* kParts) saliency_sum_kernel(const float* partial, const KeyPlace* place, const int32_t* cu_columns_B1, int planes,
                                                                        int pieces, int keys, float scale, float* saliency_N) {
  __shared__ float room[kParts][kColumns];
  const int groups = keys / kColumns, piece = blockIdx.x / groups, i = blockIdx.x % groups * kColumns + threadIdx.x % kColumns, part = threadIdx.x / kColumns;
  const KeyPlace at = place[piece];
  const int begin = cu_columns_B1[at.sequence] + at.begin, count = min(keys, cu_columns_B1[at.sequence + 1] - begin);
  float sum = 0;
  if (i < count) {
    const int end = static_cast<int>(static_cast<int64_t>(planes) * (part + 1) / kParts);
    const int64_t step = static_cast<int64_t>(pieces) * keys;
#pragma unroll 8
    for (int p = static_cast<int>(static_cast<int64_t>(planes) * part / kParts); p < end; ++p) sum += partial[p * step + static_cast<int64_t>(piece) * keys + i];
  }
  room[part][threadIdx.x % kColumns] = sum;
  __syncthreads();
  if (part != 0 || i >= count) return;
#pragma unroll
  for (int p = 1; p < kParts; ++p) sum += room[p][i % kColumns];
  saliency_N[begin + i] += scale * sum;
}

}  // namespace

void CudaBackend::attention_saliency(const AttentionShape& shape, const LastQueries& queries, const KeyValuePages& pages, const SaliencyColumns& columns,
                                     float scale, float* saliency_N) {
  poll();
  const SaliencyHeads heads = saliency_heads(shape, 1);
  const int32_t planes = queries.layers * shape.Hkv * heads.cuts;
  int32_t keys = 0;
  const auto rows_of = [&](int32_t b) { return queries.q_row_B[b] < 0 ? 0 : columns.cu_columns_B1[b + 1] - columns.cu_columns_B1[b]; };
  const std::vector<KeyPlace> places = cut_keys(shape.B, planes, rows_of, &keys);
  const int32_t pieces = static_cast<int32_t>(places.size());
  if (pieces == 0 || planes == 0) return;

  Upload up(*this, "attention_saliency");
  const auto place = up.add(places.data(), pieces);
  const auto page = up.add(pages.k, pages.page_start_B1[shape.B]);
  const auto page_start = up.add(pages.page_start_B1, shape.B + 1);
  const auto q_L = up.add(queries.q_L, queries.layers);
  const auto lse_L = up.add(queries.lse_L, queries.layers);
  const auto q_row = up.add(queries.q_row_B, shape.B), lse_row = up.add(queries.lse_row_B, shape.B), cu = up.add(columns.cu_columns_B1, shape.B + 1);
  const auto column = up.add(columns.columns_N, columns.cu_columns_B1[shape.B]);
  up.send();
  float* partial = static_cast<float*>(scratch(static_cast<size_t>(planes) * static_cast<size_t>(pieces) * static_cast<size_t>(keys) * sizeof(float)));
  const PartialCall call{heads, {up[page], up[page_start], pages.head_stride, pages.row_stride, pages.page_rows}, up[place], up[q_L], up[lse_L], up[q_row],
                         up[lse_row], up[cu], up[column], queries.q_row_stride, queries.page_layer_stride, pieces, keys, shape.Hkv, shape.scale, partial};
  bool is_vector = has_vector_rows(pages, pages.k, shape.B, shape.d, queries.page_layer_stride) && queries.q_row_stride % 4 == 0;
  for (int32_t layer = 0; layer < queries.layers; ++layer) is_vector = is_vector && is_aligned_16(queries.q_L[layer]);
  const size_t shared = static_cast<size_t>(heads.at_once) * static_cast<size_t>(heads.padded + 1) * sizeof(float);
  check(launch(is_vector ? saliency_partial_kernel<true> : saliency_partial_kernel<false>, dim3(static_cast<unsigned>(int64_t{planes} * pieces)),
               dim3(kSaliencyThreads), shared, stream(), call),
        "attention_saliency");
  check(launch(saliency_sum_kernel, dim3(static_cast<unsigned>(pieces * (keys / kColumns))), dim3(kColumns * kParts), 0, stream(), partial, up[place], up[cu],
               planes, pieces, keys, scale, saliency_N),
        "attention_saliency");
}

}  // namespace plumbline
