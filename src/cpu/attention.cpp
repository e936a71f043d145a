// attention: softmax attention over paged keys and values, ragged.   out = softmax(scale q k^T + mask) v   (arXiv 2205.14135, alg. 1)
//   in   q rows (strided), k and v in pages, f32       out  out (T, H d), lse (T, H): natural log-sum-exp of the scaled scores
//   how  online softmax over tiles of 96 keys, f32; the lanes of a sum are added last; tasks and their parts are cut by shape
//        alone, so the bits do not depend on the number of threads nor on what else is in the batch. A row without keys gives 0 and
//        lse -inf. A NaN or infinite value row reaches every row that sees it and may reach the 11 virtual rows before (0 x NaN)
//   cost 4 d flop per (row, key) that meet, other groups of rows and keys are skipped; few rows: one pass over k and v, bound by memory
//   limits: checked by the caller: group = H / Hkv exact, page_rows >= 1, d contiguous floats per row
#include <cmath>
#include <vector>

#include "attention_slice.h"
#include "cpu_backend.h"

#define PLUMBLINE_INL "attention_inl.h"
#include "foreach_isa.h"

namespace plumbline {
namespace {

// Virtual rows [begin, begin + count) of a slice; or, with `state` >= 0, all its (few) rows and the keys [begin, begin + count).
struct Task {
  int32_t sequence, kv_head;
  int64_t begin, count, state;
  bool alone;  // its state is the only one of its slice
};

// A slice of few rows and many keys: the states of its tasks lie side by side and are joined when all are done.
struct Few {
  int32_t sequence, kv_head;
  int64_t first_state, states;
};

struct Plan {
  std::vector<Task> tasks;
  std::vector<Few> few;
  int64_t states = 0;
};

Plan plan_attention(const AttentionShape& shape, const KeyValuePages& pages) {
  Plan plan;
  for (int32_t b = 0; b < shape.B; ++b) {
    for (int32_t head = 0; head < shape.Hkv; ++head) {
      const AttentionSlice slice = attention_slice(shape, pages, b, head);
      if (slice.rows == 0) continue;
      if (slice.rows > kFewRows) {
        // Last rows first: when causal they cost most, and the small tasks then fill the gaps at the end.
        for (int64_t begin = (slice.rows - 1) / kRowTile * kRowTile; begin >= 0; begin -= kRowTile)
          plan.tasks.push_back({b, head, begin, std::min(kRowTile, slice.rows - begin), -1, true});
        continue;
      }
      const int64_t first = plan.states;
      for (int64_t key = 0; key == 0 || key < slice.keys; key += kFewChunk)
        plan.tasks.push_back({b, head, key, std::min(kFewChunk, slice.keys - key), plan.states++, slice.keys <= kFewChunk});
      if (slice.keys > kFewChunk) plan.few.push_back({b, head, first, plan.states - first});
    }
  }
  return plan;
}

int64_t few_state_floats(int64_t d) { return kFewRows * (1 + kMaxLanes + tile_stride(d)); }

int64_t task_floats(int64_t d) {
  const int64_t stride = tile_stride(d);
  const int64_t rows = (2 * kRowTile + kKeyTile) * stride + (kRowTile + d) * kScoreStride + kRowTile * (1 + kMaxLanes);
  return std::max(rows, kFewRows * (stride + kFewStride));
}

}  // namespace

void CpuBackend::attention(const AttentionShape& shape, const float* q, const KeyValuePages& pages, float* out_THd, float* lse_TH) {
  const auto rows_kernel = PLUMBLINE_PICK(isa_, attention_rows);
  const auto few_kernel = PLUMBLINE_PICK(isa_, attention_few);
  const auto few_finish = PLUMBLINE_PICK(isa_, attention_few_finish);
  const Plan plan = plan_attention(shape, pages);
  const int64_t own = task_floats(shape.d), state_floats = few_state_floats(shape.d);
  // The scratch block behind those of the threads holds the states of all tasks.
  float* states = static_cast<float*>(scratch(threads(), static_cast<size_t>(plan.states * state_floats) * sizeof(float)));
  parallel(static_cast<int64_t>(plan.tasks.size()), [&](int64_t index, int32_t thread) {
    const Task& task = plan.tasks[index];
    const AttentionSlice slice = attention_slice(shape, pages, task.sequence, task.kv_head);
    float* memory = static_cast<float*>(scratch(thread, own * sizeof(float)));
    if (task.state < 0) return rows_kernel(slice, pages, q, task.begin, task.count, out_THd, lse_TH, memory);
    float* state = states + task.state * state_floats;
    few_kernel(slice, pages, q, task.begin, task.begin + task.count, state, memory);
    if (task.alone) few_finish(slice, state, 1, state_floats, out_THd, lse_TH);
  });
  for (const Few& few : plan.few)
    few_finish(attention_slice(shape, pages, few.sequence, few.kv_head), states + few.first_state * state_floats, few.states, state_floats,
               out_THd, lse_TH);
}

}  // namespace plumbline
