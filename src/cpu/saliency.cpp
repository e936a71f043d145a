// attention_saliency: the attention that the last row of each sequence pays to some of its keys, summed over the heads.
//        a[i] += scale sum_h e^(s_hi - lse_h)                                                (arXiv 2604.10500, SCF-VR; algorithms 3.1)
//   grad dA_i = scale da[i] at the columns, 0 elsewhere; dS_j = A_j (dA_j - sum_i A_i dA_i); dq += sum_j dS_j k_j, dk_j += dS_j q, both
//        times shape.scale, over all keys
//   in   q rows (strided), k in pages, lse (T, H), columns: key rows; f32        out  saliency (N), dq, dk pages: added to
//   how  f32; heads ascending in one sum per column, which then meets `a` once; a column's bits depend neither on threads nor on the
//        other columns. grad: dq by chunks of kGradChunk keys, added in order. NaN spreads as in the formula
//   cost each key row of a column is read once for its whole group of heads; bound by memory. grad: all keys once (columns twice),
//        dk read and written
//   limits: columns < kv_len; those of attention
#include <vector>

#include "attention_slice.h"
#include "cpu_backend.h"

namespace plumbline {
// Rows fetched early, across the ends of calls: four rows read side by side are no stream for the hardware. Keys from memory: 1.3 to
// 1.9 x faster (Zen 3, d = 128).
constexpr int64_t kAhead = 8;
}  // namespace plumbline

#define PLUMBLINE_INL "saliency_inl.h"
#include "foreach_isa.h"

namespace plumbline {
namespace {

constexpr int64_t kGradChunk = 1024;  // keys whose dq is summed by one task

// The last query row of a sequence.
struct LastRow {
  int64_t d, group, heads, stride;
  const float* q;
  const float* lse;
  LastRow(const AttentionShape& shape, const float* q_row, const float* lse_row)
      : d(shape.d), group(shape.H / shape.Hkv), heads(shape.Hkv), stride(tile_stride(shape.d)), q(q_row), lse(lse_row) {}
  LastRow(const AttentionShape& shape, int32_t sequence, const float* q_rows, const float* lse_TH)
      : LastRow(shape, q_rows + (shape.cu_q_B1[sequence + 1] - 1) * shape.q_row_stride, lse_TH + (shape.cu_q_B1[sequence + 1] - 1) * int64_t{shape.H}) {}
};

bool has_work(const AttentionShape& shape, const SaliencyColumns& columns, int32_t b) {
  return shape.cu_q_B1[b + 1] > shape.cu_q_B1[b] && columns.cu_columns_B1[b + 1] > columns.cu_columns_B1[b];
}

// Offset of kv head 0 of a key row from the pages of its sequence.
template <typename Float>
Float* key_row(const KeyValuePages& pages, float* const* data, int32_t sequence, int64_t row) {
  return data[pages.page_start_B1[sequence] + row / pages.page_rows] + row % pages.page_rows * pages.row_stride;
}

// Up to kFewKeys key rows of one kv head: those of a list, or `begin` and the next ones; and the first of those that come after them.
struct KeyRows {
  int64_t count, next_count;
  const float* row[kFewKeys + 3];
  const float* next[kAhead];
  KeyRows(const KeyValuePages& pages, int32_t sequence, int64_t kv_head, const int32_t* list, int64_t begin, int64_t end, int64_t offset = 0)
      : count(std::min(kFewKeys, end - begin)), next_count(std::min(kAhead, end - begin - count)) {
    const auto at = [&](int64_t n) { return key_row<const float>(pages, pages.k, sequence, list ? list[n] : n) + offset + kv_head * pages.head_stride; };
    for (int64_t n = 0; n < count; ++n) row[n] = at(begin + n);
    for (int64_t n = 0; n < next_count; ++n) next[n] = at(begin + count + n);
  }
  void move(int64_t floats) {
    for (int64_t n = 0; n < count; ++n) row[n] += floats;
  }
  void expect(int64_t floats) {  // the same rows, so far away, come next
    next_count = std::min(kAhead, count);
    for (int64_t n = 0; n < next_count; ++n) next[n] = row[n] + floats;
  }
};

// Columns [begin, end) of a sequence, or key rows of one of its kv heads.
struct Chunk {
  int32_t sequence, kv_head;
  int64_t begin, end;
};

// Of the backward pass. dweight: dA of every key of a sequence, at dense_at[b]; delta: sum_i A_i dA_i, at [b, head].
struct GradPlan {
  std::vector<Chunk> slices, chunks;   // whole kv heads; their keys in chunks, those of a slice from first_chunk[slice] on
  std::vector<int64_t> first_chunk, dense_at;
  int64_t dense_floats = 0;
  GradPlan(const AttentionShape& shape, const SaliencyColumns& columns) : dense_at(static_cast<size_t>(shape.B)) {
    for (int32_t b = 0; b < shape.B; ++b) {
      if (!has_work(shape, columns, b)) continue;
      dense_at[b] = dense_floats;
      dense_floats += round_up(shape.kv_len_B[b], kFewKeys);
      for (int32_t head = 0; head < shape.Hkv; ++head) {
        slices.push_back({b, head, columns.cu_columns_B1[b], columns.cu_columns_B1[b + 1]});
        first_chunk.push_back(static_cast<int64_t>(chunks.size()));
        for (int64_t key = 0; key < shape.kv_len_B[b]; key += kGradChunk)
          chunks.push_back({b, head, key, std::min<int64_t>(shape.kv_len_B[b], key + kGradChunk)});
      }
    }
    first_chunk.push_back(static_cast<int64_t>(chunks.size()));
  }
};

int64_t queries_floats(const AttentionShape& shape) { return shape.H / shape.Hkv * (tile_stride(shape.d) + kFewStride); }

// What the tasks of the backward pass share.
struct GradMemory {
  const AttentionShape& shape;
  const KeyValuePages& pages;
  const GradPlan& plan;
  float *dweight, *delta, *partial;  // partial: dq of each chunk, [group] rows of tile_stride(d)
  int64_t group, stride, dq_floats;
  static int64_t delta_floats(const AttentionShape& shape) { return round_up(int64_t{shape.B} * shape.H, kMaxLanes); }
  static int64_t chunk_floats(const AttentionShape& shape) { return shape.H / shape.Hkv * tile_stride(shape.d); }
  static int64_t floats(const AttentionShape& shape, const GradPlan& plan) {
    return plan.dense_floats + delta_floats(shape) + static_cast<int64_t>(plan.chunks.size()) * chunk_floats(shape);
  }
  GradMemory(const AttentionShape& s, const KeyValuePages& p, const GradPlan& g, float* data)
      : shape(s), pages(p), plan(g), dweight(data), delta(data + g.dense_floats), partial(delta + delta_floats(s)), group(s.H / s.Hkv),
        stride(tile_stride(s.d)), dq_floats(chunk_floats(s)) {
    std::fill_n(dweight, g.dense_floats, 0.0f);
  }
};

// dA of the columns, for all heads alike.
void spread_columns(const Chunk& slice, const int32_t* columns, const float* dsaliency, float scale, float* dweight) {
  for (int64_t i = slice.begin; i < slice.end; ++i) dweight[columns[i]] += scale * dsaliency[i];
}

// dq += scale times the chunks' sums, first chunk first.
void finish_queries(const GradMemory& m, void (*add)(const float*, float, int64_t, float*), float* dq) {
  for (size_t index = 0; index < m.plan.slices.size(); ++index) {
    const Chunk& slice = m.plan.slices[index];
    float* sum = m.partial + m.plan.first_chunk[index] * m.dq_floats;
    for (int64_t c = m.plan.first_chunk[index] + 1; c < m.plan.first_chunk[index + 1]; ++c) add(m.partial + c * m.dq_floats, 1.0f, m.dq_floats, sum);
    float* to = dq + (m.shape.cu_q_B1[slice.sequence + 1] - 1) * m.shape.q_row_stride + slice.kv_head * m.group * m.shape.d;
    for (int64_t n = 0; n < m.group; ++n) add(sum + n * m.stride, m.shape.scale, m.shape.d, to + n * m.shape.d);
  }
}

}  // namespace

void CpuBackend::attention_saliency(const AttentionShape& shape, const LastQueries& queries, const KeyValuePages& pages, const SaliencyColumns& columns,
                                    float scale, float* saliency_N) {
  const auto load = PLUMBLINE_PICK(isa_, load_queries);
  const auto probabilities = PLUMBLINE_PICK(isa_, key_probabilities);
  const auto add = PLUMBLINE_PICK(isa_, add_heads);
  std::vector<Chunk> chunks;
  for (int32_t b = 0; b < shape.B; ++b)
    if (queries.q_row_B[b] >= 0)
      for (int64_t i = columns.cu_columns_B1[b], end = columns.cu_columns_B1[b + 1]; i < end; i += kFewKeys)
        chunks.push_back({b, 0, i, std::min(end, i + kFewKeys)});
  parallel(static_cast<int64_t>(chunks.size()), [&](int64_t index, int32_t thread) {
    const Chunk& chunk = chunks[index];
    const int64_t b = chunk.sequence;
    for (int32_t layer = 0; layer < queries.layers; ++layer) {
      const LastRow last(shape, queries.q_L[layer] + queries.q_row_B[b] * queries.q_row_stride, queries.lse_L[layer] + queries.lse_row_B[b] * int64_t{shape.H});
      float* q_tile = static_cast<float*>(scratch(thread, (queries_floats(shape) + kFewStride) * sizeof(float)));
      float* probability = q_tile + last.group * last.stride;
      float* sum = probability + last.group * kFewStride;
      std::fill_n(sum, kFewStride, 0.0f);
      KeyRows keys(pages, chunk.sequence, 0, columns.columns_N, chunk.begin, chunk.end, layer * queries.page_layer_stride);
      for (int64_t head = 0; head < last.heads; ++head, keys.move(pages.head_stride)) {
        keys.expect(head + 1 < last.heads ? pages.head_stride : queries.page_layer_stride - head * pages.head_stride);
        if (layer + 1 == queries.layers && head + 1 == last.heads) keys.next_count = 0;
        load(last.q + head * last.group * last.d, last.group, last.d, shape.scale, q_tile);
        probabilities(q_tile, last.group, last.d, keys.row, keys.count, last.lse + head * last.group, probability, keys.next, keys.next_count);
        add(probability, last.group, keys.count, sum);
      }
      PLUMBLINE_PICK(isa_, add_scaled)(sum, scale, keys.count, saliency_N + chunk.begin);
    }
  });
}

void CpuBackend::attention_saliency_grad(const AttentionShape& shape, const float* q, const KeyValuePages& pages, const float* lse_TH,
                                         const SaliencyColumns& columns, float scale, const float* dsaliency_N, float* dq, float* const* dk) {
  const auto load = PLUMBLINE_PICK(isa_, load_queries);
  const auto probabilities = PLUMBLINE_PICK(isa_, key_probabilities);
  const GradPlan plan(shape, columns);
  GradMemory m(shape, pages, plan, static_cast<float*>(scratch(threads(), static_cast<size_t>(GradMemory::floats(shape, plan)) * sizeof(float))));
  const auto queries = [&](const LastRow& last, int64_t kv_head, int32_t thread) {
    float* tile = static_cast<float*>(scratch(thread, static_cast<size_t>(queries_floats(shape)) * sizeof(float)));
    load(last.q + kv_head * m.group * last.d, m.group, last.d, shape.scale, tile);
    return tile;
  };

  parallel(static_cast<int64_t>(plan.slices.size()), [&](int64_t index, int32_t thread) {
    const Chunk& slice = plan.slices[index];
    const LastRow last(shape, slice.sequence, q, lse_TH);
    const int64_t head = slice.kv_head * m.group;
    float* q_tile = queries(last, slice.kv_head, thread);
    float* probability = q_tile + m.dq_floats;
    std::vector<double> sum(static_cast<size_t>(m.group), 0.0);
    for (int64_t i = slice.begin; i < slice.end; i += kFewKeys) {
      KeyRows keys(pages, slice.sequence, slice.kv_head, columns.columns_N, i, slice.end);
      probabilities(q_tile, m.group, last.d, keys.row, keys.count, last.lse + head, probability, keys.next, keys.next_count);
      PLUMBLINE_PICK(isa_, add_weighted_columns)(probability, m.group, keys.count, dsaliency_N + i, sum.data());
    }
    for (int64_t n = 0; n < m.group; ++n) m.delta[slice.sequence * shape.H + head + n] = static_cast<float>(static_cast<double>(scale) * sum[n]);
    if (head == 0) spread_columns(slice, columns.columns_N, dsaliency_N, scale, m.dweight + plan.dense_at[slice.sequence]);
  });

  parallel(static_cast<int64_t>(plan.chunks.size()), [&](int64_t index, int32_t thread) {
    const Chunk& chunk = plan.chunks[index];
    const LastRow last(shape, chunk.sequence, q, lse_TH);
    const int64_t head = chunk.kv_head * m.group;
    float* q_tile = queries(last, chunk.kv_head, thread);
    float *probability = q_tile + m.dq_floats, *own_dq = m.partial + index * m.dq_floats;
    std::fill_n(own_dq, m.dq_floats, 0.0f);
    for (int64_t key = chunk.begin; key < chunk.end; key += kFewKeys) {
      KeyRows keys(pages, chunk.sequence, chunk.kv_head, nullptr, key, chunk.end);
      probabilities(q_tile, m.group, last.d, keys.row, keys.count, last.lse + head, probability, keys.next, keys.next_count);
      const float* dweight = m.dweight + plan.dense_at[chunk.sequence] + key;
      PLUMBLINE_PICK(isa_, score_gradients)(probability, m.group, keys.count, dweight, m.delta + chunk.sequence * shape.H + head);
      float* row[kFewKeys];
      for (int64_t n = 0; n < keys.count; ++n) row[n] = key_row<float>(pages, dk, chunk.sequence, key + n) + chunk.kv_head * pages.head_stride;
      PLUMBLINE_PICK(isa_, add_key_gradients)(probability, q_tile, m.group, last.d, row, keys.count);
      PLUMBLINE_PICK(isa_, add_query_gradients)(probability, m.group, keys.row, keys.count, last.d, own_dq);
    }
  });
  finish_queries(m, PLUMBLINE_PICK(isa_, add_scaled), dq);
}

}  // namespace plumbline
