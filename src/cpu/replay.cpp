// select_patches: one step of visual replay: which image tokens, with what weights, and the window where most of them lie.
//        top-K by (score, -index); w_i = rows a_i / sum a, or softmax of a; window = first maximum of W x W counts
//                                                                                      (arXiv 2604.10500, SCF-VR; algorithms 3.2 to 3.4)
//   grad mean preserving: da_i = (rows dw_i - sum_j w_j dw_j) / sum a; softmax: da_i = w_i (dw_i - sum_j w_j dw_j); 0 where the
//        weights were equal because the scores gave none
//   in   saliency (N), used (N), grids of the pictures       out  selected, weight (cu_selected), window (B, 6), used brought up to date
//   how  a heap of the K best keys (score, index) as integers; sums in f64 in block order; summed-area table in int32; one task per
//        sequence: the same bits for any number of threads. NaN is the lowest score, -0 equals 0, ties go to the lower index
//   cost N + K log K log(N / K) compares, one pass over the grid per picture
//   limits: cu_selected as replay_count() says; W >= 1; grids fill the candidates; with rule.grid tokens beyond it are not marked
#include <cmath>
#include <limits>
#include <vector>

#include "score_heap.h"
#include "cpu_backend.h"

namespace plumbline {
namespace {

struct Window {
  int32_t picture = 0, row = 0, column = 0, height = 0, width = 0, count = -1;
};

// Best window of one picture's marks. area: (rows + 1) x (columns + 1), the marks in [r + 1][c + 1] on entry.
void offer_window(int32_t picture, int32_t rows, int32_t columns, int32_t side, int32_t* area, Window& best) {
  const int64_t stride = columns + 1;
  for (int32_t r = 1; r <= rows; ++r)
    for (int32_t c = 1, sum = 0; c <= columns; ++c) {
      sum += area[r * stride + c];
      area[r * stride + c] = sum + area[(r - 1) * stride + c];
    }
  const int32_t tall = std::min(side, rows), broad = std::min(side, columns);
  for (int32_t r = 0; r + tall <= rows; ++r) {
    const int32_t *top = area + r * stride, *bottom = area + (r + tall) * stride;
    for (int32_t c = 0; c + broad <= columns; ++c) {
      const int32_t count = bottom[c + broad] - top[c + broad] - bottom[c] + top[c];
      if (count > best.count) best = {picture, r, c, tall, broad, count};
    }
  }
}

Window best_window(const ReplayRule& rule, const ReplayLayout& layout, int32_t b, const int32_t* selected, int64_t count,
                   std::vector<int32_t>& area) {
  Window best;
  int64_t base = 0;
  for (int32_t p = layout.cu_pictures_B1[b]; p < layout.cu_pictures_B1[b + 1]; ++p) {
    const int32_t own_rows = layout.grid_P2[2 * p], own_columns = layout.grid_P2[2 * p + 1];
    const int32_t rows = rule.grid ? rule.grid : own_rows, columns = rule.grid ? rule.grid : own_columns;
    const int64_t tokens = int64_t{own_rows} * own_columns, cells = int64_t{rows} * columns, stride = columns + 1;
    area.assign(static_cast<size_t>((rows + 1) * stride), 0);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = selected[i] - base;
      if (at >= 0 && at < tokens && at < cells) area[(at / columns + 1) * stride + at % columns + 1] += 1;
    }
    offer_window(p - layout.cu_pictures_B1[b], rows, columns, rule.window, area.data(), best);
    base += tokens;
  }
  return best;
}

// Chosen tokens in block order: best first, or (official) ascending with those of the lowest score at the end.
void choose(const ReplayRule& rule, const float* saliency, const uint8_t* used, int64_t tokens, int64_t count, ScoreHeap& best,
            int32_t* selected) {
  best.start(count);
  for (int64_t i = 0; i < tokens; ++i) {
    if (!used[i])
      best.offer(saliency[i], i);
    else if (rule.reselect_used)
      best.offer(-std::numeric_limits<float>::infinity(), i);
  }
  best.sort();
  for (int64_t i = 0; i < count; ++i) selected[i] = best.index(i);
  if (!rule.topk_order || count == 0) return;
  int64_t above = count - 1;  // of those, scores above the lowest
  while (above > 0 && best.same_score(above - 1, count - 1)) --above;
  std::sort(selected, selected + above);
  std::sort(selected + above, selected + count);
}

double rows_of(const ReplayRule& rule, int64_t count) { return rule.mix ? 1.0 : static_cast<double>(count); }

double sum_of(const float* saliency, const int32_t* selected, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(saliency[selected[i]]);
  return sum;
}

bool is_usable(double sum) { return std::isfinite(sum) && sum > 0; }

void mean_preserving(const ReplayRule& rule, const float* saliency, const int32_t* selected, int64_t count, float* weight) {
  const double rows = rows_of(rule, count), sum = sum_of(saliency, selected, count);
  for (int64_t i = 0; i < count; ++i)
    weight[i] = static_cast<float>(is_usable(sum) ? rows * static_cast<double>(saliency[selected[i]]) / sum : rows / static_cast<double>(count));
}

// used: as it was before this step.
void softmax(const float* saliency, const uint8_t* used, const int32_t* selected, int64_t count, float* weight) {
  float top = -std::numeric_limits<float>::infinity();
  int64_t fresh = 0;
  bool has_nan = false;
  for (int64_t i = 0; i < count; ++i) {
    if (used[selected[i]]) continue;
    ++fresh;
    has_nan = has_nan || std::isnan(saliency[selected[i]]);
    top = std::max(top, saliency[selected[i]]);
  }
  const bool equal = has_nan || !std::isfinite(top);
  const auto raw = [&](int64_t i) {
    if (used[selected[i]]) return 0.0;
    return equal ? 1.0 : std::exp(static_cast<double>(saliency[selected[i]]) - static_cast<double>(top));
  };
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += raw(i);
  for (int64_t i = 0; i < count; ++i) weight[i] = fresh ? static_cast<float>(raw(i) / sum) : 0.0f;
}

double weighted_sum(const float* weight, const float* dweight, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i)
    if (weight[i] != 0.0f) sum += static_cast<double>(weight[i]) * static_cast<double>(dweight[i]);
  return sum;
}

void mean_preserving_grad(const ReplayRule& rule, const float* saliency, const int32_t* selected, const float* weight, const float* dweight,
                          int64_t count, float* dsaliency) {
  const double sum = sum_of(saliency, selected, count), rows = rows_of(rule, count), centre = weighted_sum(weight, dweight, count);
  if (!is_usable(sum)) return;
  for (int64_t i = 0; i < count; ++i)
    dsaliency[selected[i]] += static_cast<float>((rows * static_cast<double>(dweight[i]) - centre) / sum);
}

// A weight of 0 is a used token's, or underflowed. The weights were equal if one of the others belongs to a score that is not finite.
void softmax_grad(const float* saliency, const int32_t* selected, const float* weight, const float* dweight, int64_t count, float* dsaliency) {
  for (int64_t i = 0; i < count; ++i)
    if (weight[i] != 0.0f && !std::isfinite(saliency[selected[i]])) return;
  const double centre = weighted_sum(weight, dweight, count);
  for (int64_t i = 0; i < count; ++i)
    if (weight[i] != 0.0f)
      dsaliency[selected[i]] += static_cast<float>(static_cast<double>(weight[i]) * (static_cast<double>(dweight[i]) - centre));
}

}  // namespace

void CpuBackend::select_patches(const ReplayRule& rule, const ReplayLayout& layout, const float* saliency_N, uint8_t* used_N, int32_t* selected,
                                float* weight, int32_t* window_B6, const ReplayRows* rows) {
  parallel(layout.B, [&](int64_t index, int32_t) {
    const int32_t b = static_cast<int32_t>(index);
    const int64_t first = layout.cu_tokens_B1[b], tokens = layout.cu_tokens_B1[b + 1] - first;
    const int64_t place = layout.cu_selected_B1[b], count = layout.cu_selected_B1[b + 1] - place;
    int32_t* window = window_B6 + index * 6;
    std::fill_n(window, 6, 0);
    if (count <= 0) return;
    ScoreHeap best;
    choose(rule, saliency_N + first, used_N + first, tokens, count, best, selected + place);
    if (rule.weights == ReplayWeights::softmax)
      softmax(saliency_N + first, used_N + first, selected + place, count, weight + place);
    else
      mean_preserving(rule, saliency_N + first, selected + place, count, weight + place);
    for (int64_t i = 0; i < count; ++i) used_N[first + selected[place + i]] = 1;
    std::vector<int32_t> area;
    const Window found = best_window(rule, layout, b, selected + place, count, area);
    if (found.count < 0) return;
    const int32_t values[6] = {found.picture, found.row, found.column, found.height, found.width, found.count};
    std::copy_n(values, 6, window);
  });
  if (rows == nullptr) return;
  std::vector<int32_t> from, cu{0};
  for (int32_t b = 0; b < layout.B; ++b)
    for (int32_t i = layout.cu_selected_B1[b]; i < layout.cu_selected_B1[b + 1]; ++i) {
      from.push_back(rows->row_N[layout.cu_tokens_B1[b] + selected[i]]);
      if (!rule.mix || i + 1 == layout.cu_selected_B1[b + 1]) cu.push_back(i + 1);
    }
  weighted_rows(rows->from, from.data(), weight, cu.data(), rows->out_RC, static_cast<int64_t>(cu.size()) - 1, rows->C);
}

void CpuBackend::select_patches_grad(const ReplayRule& rule, const ReplayLayout& layout, const float* saliency_N, const int32_t* selected,
                                     const float* weight, const float* dweight, float* dsaliency_N) {
  parallel(layout.B, [&](int64_t b, int32_t) {
    const int64_t first = layout.cu_tokens_B1[b], place = layout.cu_selected_B1[b], count = layout.cu_selected_B1[b + 1] - place;
    if (count <= 0) return;
    if (rule.weights == ReplayWeights::softmax)
      softmax_grad(saliency_N + first, selected + place, weight + place, dweight + place, count, dsaliency_N + first);
    else
      mean_preserving_grad(rule, saliency_N + first, selected + place, weight + place, dweight + place, count, dsaliency_N + first);
  });
}

}  // namespace plumbline
