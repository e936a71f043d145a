// attention_grad: backward of attention, recomputed from lse.   p = e^(s - lse), ds = p (dout v^T - rowsum(dout out))
//                 dq = scale ds k, dk += scale ds^T q, dv += p^T dout                                  (arXiv 2205.14135, alg. 4)
//   in   q, pages, out, lse as in attention; dout (T, H d)       out  dq overwritten; dk, dv pages added to
//   how  per kv head of a sequence, tiles of 96 keys in order, each against tiles of 96 query rows in order; f32; no atomics. With too
//        few heads and sequences for the threads, one sweep for dq and one for dk, dv (7 products instead of 5): every sum keeps its
//        order, so that the bits are the same. NaN spreads as in attention
//   cost 10 d flop per (row, key) that meet, or 14
//   limits: those of attention
#include <algorithm>
#include <cmath>
#include <vector>

#include "attention_slice.h"
#include "cpu_backend.h"

#define PLUMBLINE_INL "attention_grad_inl.h"
#include "foreach_isa.h"

namespace plumbline {
namespace {

constexpr double kSplitCost = 7.0 / 5.0;  // two sweeps form the scores and their gradients twice

// Tiles of keys [key_begin, key_end) against rows [row_begin, row_end) of a slice.
struct Task {
  AttentionSlice slice;
  int64_t key_begin, key_end, row_begin, row_end, cost;
  bool want_dq, want_dkv;
};

// Time until the last of `threads` is done when each takes the next task as it becomes free.
int64_t makespan(const std::vector<Task>& tasks, int32_t threads) {
  std::vector<int64_t> busy(threads, 0);
  for (const Task& task : tasks) *std::min_element(busy.begin(), busy.end()) += task.cost;
  return *std::max_element(busy.begin(), busy.end());
}

void split_task(const Task& whole, std::vector<Task>& dq_tasks, std::vector<Task>& dkv_tasks) {
  const AttentionSlice& s = whole.slice;
  for (int64_t row = 0; row < s.rows; row += kGradRowTile) {
    const int64_t end = std::min(s.rows, row + kGradRowTile);
    dq_tasks.push_back({s, 0, s.visible(end - 1), row, end, attention_area(s, row, end), true, false});
  }
  for (int64_t key = 0; key < s.keys; key += kKeyTile) {
    const int64_t end = std::min(s.keys, key + kKeyTile), row = s.first_row(key) / kGradRowTile * kGradRowTile;
    dkv_tasks.push_back({s, key, end, row, s.rows, (s.rows - row) * (end - key), false, true});
  }
}

void costly_first(std::vector<Task>& tasks) {
  std::stable_sort(tasks.begin(), tasks.end(), [](const Task& a, const Task& b) { return a.cost > b.cost; });
}

std::vector<Task> plan_grad(const AttentionShape& shape, const KeyValuePages& pages, int32_t threads) {
  std::vector<Task> whole;
  int64_t total = 0;
  for (int32_t b = 0; b < shape.B; ++b) {
    for (int32_t head = 0; head < shape.Hkv; ++head) {
      const AttentionSlice s = attention_slice(shape, pages, b, head);
      if (s.rows == 0) continue;
      whole.push_back({s, 0, s.keys, 0, s.rows, attention_area(s, 0, s.rows), true, true});
      total += whole.back().cost;
    }
  }
  costly_first(whole);
  if (whole.empty() || makespan(whole, threads) <= kSplitCost * total / threads) return whole;
  std::vector<Task> tasks, dkv_tasks;
  for (const Task& task : whole) split_task(task, tasks, dkv_tasks);
  tasks.insert(tasks.end(), dkv_tasks.begin(), dkv_tasks.end());
  costly_first(tasks);
  return tasks;
}

int64_t task_floats(int64_t d) {
  return (3 * kGradRowTile + 3 * kKeyTile) * tile_stride(d) + 2 * (d + kGradRowTile) * kScoreStride + 2 * kGradRowTile;
}

void zero_rows(const AttentionSlice& s, int64_t begin, int64_t end, float* dq) {
  for (int64_t r = begin; r < end; ++r) {
    AttentionRow row;
    s.describe(r, 1, &row);
    std::fill_n(dq + row.q, s.d, 0.0f);
  }
}

}  // namespace

void CpuBackend::attention_grad(const AttentionShape& shape, const float* q, const KeyValuePages& pages, const float* out_THd,
                                const float* lse_TH, const float* dout_THd, float* dq, float* const* dk, float* const* dv) {
  const auto kernel = PLUMBLINE_PICK(isa_, attention_grad_tile);
  const AttentionGradPointers pointers{q, &pages, out_THd, lse_TH, dout_THd, dq, dk, dv};
  const std::vector<Task> tasks = plan_grad(shape, pages, threads());
  parallel(static_cast<int64_t>(tasks.size()), [&](int64_t index, int32_t thread) {
    const Task& task = tasks[index];
    float* memory = static_cast<float*>(scratch(thread, task_floats(shape.d) * sizeof(float)));
    if (task.want_dq && task.key_begin == task.key_end) zero_rows(task.slice, task.row_begin, task.row_end, dq);
    for (int64_t key = task.key_begin; key < task.key_end; key += kKeyTile) {
      if (cancel_ && cancel_->is_set()) throw Cancelled{};  // a task may take a second
      const int64_t keys = std::min(kKeyTile, task.key_end - key);
      // Rows before the first that sees this key have nothing here, but the first tile writes dq of all.
      const int64_t row = key == 0 ? task.row_begin : std::max(task.row_begin, task.slice.first_row(key) / kGradRowTile * kGradRowTile);
      kernel(task.slice, pointers, key, keys, row, task.row_end, task.want_dq, task.want_dkv, memory);
    }
  });
}

}  // namespace plumbline
