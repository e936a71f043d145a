// select_patches: one step of visual replay for all sequences in one launch: which image tokens, with what weights, the window where most
// of them lie, and their rows.   top-K by (score, -index); w_i = rows a_i / sum a, or softmax of a; window = first maximum of W x W counts;
//        out_i = w_i from[row_i], or their sum                                            (arXiv 2604.10500, SCF-VR; algorithms 3.2 to 3.4)
//   in   saliency (N) f32; used (N), grids, row lists: host        out  selected, window (B, 6), used: host; weight, rows (R, C): device
//   how  keys and counts are integers; sums in f64: of scores in block order, of softmax by a warp in a fixed tree. NaN is the lowest score, -0 equals 0, ties go to
//        the lower index. Blocks that share a sequence's gather all select (the same), so that none waits for another
//   cost 1 launch, 1 download. (parts + 1) blocks a sequence, the last one for the window; 256 threads, or a warp where no sequence has more than
//        64 candidates. Bound by latency: about 10 barriers up to 256 candidates, 5 a digit above; the gather by memory, 2 K C * 4 bytes
//   limits: cu_selected as replay_count() says; W >= 1; grids fill the candidates; with rule.grid tokens beyond it are not marked
#include <algorithm>
#include <vector>

#include "cuda_backend.h"
#include "replay_window.cuh"
#include "weighted_rows.cuh"

namespace plumbline {
namespace {

static_assert(kMostShared + sizeof(Selection<256, 256>) <= (size_t{99} << 10), "keys and tables beside the static arrays");
constexpr int32_t kMostKept = 4096;       // keys that are made once: 32 KiB

struct SelectCall {
  ReplayRule rule;
  const int32_t *cu_tokens_B1, *cu_pictures_B1, *grid_P2, *cu_selected_B1;
  const float* saliency_N;
  const uint8_t* used_N;
  int32_t *selected, *window_B6;
  float* weight;
  ReplayRows rows;    // device lists; from is null without
  int32_t parts;
  size_t keys, area, bytes;  // room for sorted keys and for the table; all that a block needs, kept keys last
  bool keeps;
  char* memory;       // of all blocks; null: shared
};

// What turns scores into weights; in every lane.
struct Weigher {
  const Candidates& candidates;
  double rows, sum = 0;
  float top = 0;
  int fresh = 0;
  bool is_softmax, is_equal = false;
  PLUMBLINE_DEVICE Weigher(const ReplayRule& rule, const Candidates& from, const SortKey* sorted, int count)
      : candidates(from), rows(rule.mix ? 1.0 : static_cast<double>(count)), is_softmax(rule.weights == ReplayWeights::softmax) {
    top = -__uint_as_float(0x7f800000u);
    const int lane = threadIdx.x % 32;
    if (is_softmax) {
      bool has_nan = false;
      for (int i = lane; i < count; i += 32) {
        const int at = key_index(sorted[i]);
        if (candidates.used[at]) continue;
        ++fresh;
        has_nan = has_nan || candidates.saliency[at] != candidates.saliency[at];
        top = fmaxf(top, candidates.saliency[at]);
      }
      fresh = warp_sum(fresh);
      top = warp_reduce(top, Maximum{});
      is_equal = __any_sync(kFullMask, has_nan) || !(fabsf(top) <= 3.402823466e38f);
      for (int i = lane; i < count; i += 32) sum += raw(key_index(sorted[i]));
      sum = warp_sum(sum);
    } else {  // in block order: the same bits as the CPU, even where large scores cancel
#pragma unroll 8
      for (int i = 0; i < count; ++i) sum += static_cast<double>(candidates.saliency[key_index(sorted[i])]);
      is_equal = !(sum > 0 && sum <= 1.7976931348623157e308);
    }
  }
  PLUMBLINE_DEVICE double raw(int at) const {
    if (!is_softmax) return static_cast<double>(candidates.saliency[at]);
    if (candidates.used[at]) return 0.0;
    return is_equal ? 1.0 : exp(static_cast<double>(candidates.saliency[at]) - static_cast<double>(top));
  }
  PLUMBLINE_DEVICE float weight(int at, int count) const {
    if (is_softmax) return fresh ? static_cast<float>(raw(at) / sum) : 0.0f;
    return static_cast<float>(is_equal ? rows / static_cast<double>(count) : rows * raw(at) / sum);
  }
};

struct Chosen {
  float weight;
  int32_t index;
};

// This block's share of the sequence's rows.
template <int kThreads, bool kVector>
PLUMBLINE_DEVICE void gather(const SelectCall& c, const Chosen* chosen, int b, int part, int count) {
  const int64_t C = c.rows.C, chunks = (C + RowChunk<kVector>::kFloats - 1) / RowChunk<kVector>::kFloats, units = (c.rule.mix ? 1 : count) * chunks;
  const int32_t* row_of = c.rows.row_N + c.cu_tokens_B1[b];
  const auto term = [&](int64_t i) { return RowTerm{chosen[i].weight, row_of[chosen[i].index]}; };
  for (int64_t unit = static_cast<int64_t>(part) * (kThreads / 32) + threadIdx.x / 32; unit < units; unit += static_cast<int64_t>(c.parts) * (kThreads / 32)) {
    const int64_t i = unit / chunks, column = unit % chunks * RowChunk<kVector>::kFloats;
    weigh_chunk<kVector>(c.rows.from, C, column, i, c.rule.mix ? count : i + 1, term, c.rows.out_RC + (c.rows.cu_rows_B1[b] + i) * C);
  }
}

template <int kThreads, int kSmall>
__global__ void __launch_bounds__(kThreads) select_patches_kernel(SelectCall c, bool is_vector) {
  PLUMBLINE_SHARED(char, shared);
  __shared__ Selection<kThreads, kSmall> selection;
  const int b = blockIdx.x / (c.parts + 1), part = blockIdx.x % (c.parts + 1);
  const int first = c.cu_tokens_B1[b], place = c.cu_selected_B1[b], count = c.cu_selected_B1[b + 1] - place;
  char* memory = c.memory ? c.memory + blockIdx.x * c.bytes : shared;
  SortKey* sorted = reinterpret_cast<SortKey*>(memory);
  if (part == c.parts && threadIdx.x < 6) c.window_B6[b * 6 + threadIdx.x] = 0;
  if (count <= 0) return;
  const Candidates candidates{c.saliency_N + first, c.used_N + first, c.cu_tokens_B1[b + 1] - first, c.rule.reselect_used,
                              c.keeps ? reinterpret_cast<SortKey*>(memory + c.keys * sizeof(SortKey) + c.area) : nullptr};
  selection.choose(candidates, count, sorted);
  if (part == c.parts) {
    const int picture = c.cu_pictures_B1[b];
    best_window<kThreads>(c.rule, c.grid_P2 + 2 * picture, c.cu_pictures_B1[b + 1] - picture, sorted, count, reinterpret_cast<int*>(sorted + c.keys), selection.maxima, c.window_B6 + b * 6);
    return;
  }
  if (c.rule.topk_order) selection.order_by_index(count, sorted);
  const Weigher weigher(c.rule, candidates, sorted, count);
  __syncthreads();
  Chosen* chosen = reinterpret_cast<Chosen*>(sorted);  // in the keys' place
  for (int i = threadIdx.x; i < count; i += kThreads) {
    const int at = key_index(sorted[i]);
    const float weight = weigher.weight(at, count);
    chosen[i] = {weight, at};
    if (part == 0) c.selected[place + i] = at, c.weight[place + i] = weight;
  }
  __syncthreads();
  if (c.rows.from == nullptr) return;
  if (is_vector) gather<kThreads, true>(c, chosen, b, part, count);
  else gather<kThreads, false>(c, chosen, b, part, count);
}

// Largest counts of a batch.
struct Largest {
  int32_t tokens = 0, selected = 0;
  int64_t area = 0;
  Largest(const ReplayRule& rule, const ReplayLayout& layout) {
    for (int32_t b = 0; b < layout.B; ++b) {
      tokens = std::max(tokens, layout.cu_tokens_B1[b + 1] - layout.cu_tokens_B1[b]);
      selected = std::max(selected, layout.cu_selected_B1[b + 1] - layout.cu_selected_B1[b]);
    }
    for (int32_t p = layout.cu_pictures_B1[0]; p < layout.cu_pictures_B1[layout.B]; ++p)
      area = std::max(area, WindowGrid(layout.grid_P2[2 * p], layout.grid_P2[2 * p + 1], rule.grid).floats());
  }
  size_t keys() const {  // sorting in place takes a power of two
    size_t room = 1;
    while (room < static_cast<size_t>(selected)) room *= 2;
    return room;
  }
};

}  // namespace

void CudaBackend::select_patches(const ReplayRule& rule, const ReplayLayout& layout, const float* saliency_N, uint8_t* used_N, int32_t* selected,
                                 float* weight, int32_t* window_B6, const ReplayRows* rows) {
  poll();
  const int32_t B = layout.B, total = B > 0 ? layout.cu_selected_B1[B] : 0;
  std::fill_n(window_B6, int64_t{B} * 6, 0);
  if (total == 0) return;
  const Largest largest(rule, layout);
  const int64_t N = layout.cu_tokens_B1[B];
  const bool is_small = largest.tokens <= 64, is_vector = rows && rows->C % 4 == 0 && is_aligned_16(rows->from) && is_aligned_16(rows->out_RC);
  const int threads = is_small ? 32 : 256;
  int64_t parts = 1;
  if (rows) {
    const int64_t floats = is_vector ? RowChunk<true>::kFloats : RowChunk<false>::kFloats, units = (rule.mix ? 1 : largest.selected) * ((rows->C + floats - 1) / floats);
    parts = std::max<int64_t>(1, std::min((units * 16 + threads - 1) / threads, (264 * 256 / threads) / int64_t{B}));  // two units a warp
  }
  const bool keeps = largest.tokens > 256 && largest.tokens <= kMostKept;
  const size_t keys = largest.keys(), area = (static_cast<size_t>(largest.area) * sizeof(int) + 15) / 16 * 16;
  const size_t bytes = (keys * sizeof(SortKey) + area + (keeps ? static_cast<size_t>(largest.tokens) * sizeof(SortKey) : 0) + 15) / 16 * 16;
  const bool is_shared = bytes <= kMostShared;
  const size_t results = static_cast<size_t>(total) + static_cast<size_t>(B) * 6, result_bytes = (results * sizeof(int32_t) + 255) / 256 * 256;

  Upload up(*this, "select_patches");
  const auto tokens = up.add(layout.cu_tokens_B1, B + 1), pictures = up.add(layout.cu_pictures_B1, B + 1), places = up.add(layout.cu_selected_B1, B + 1);
  const auto grid = up.add(layout.grid_P2, 2 * int64_t{layout.cu_pictures_B1[B]});
  const auto used = up.add(used_N, N);
  const auto row = up.add(rows ? rows->row_N : nullptr, N), cu_rows = up.add(rows ? rows->cu_rows_B1 : nullptr, B + 1);
  up.send();
  const int64_t blocks = B * (parts + 1);
  int32_t* result = static_cast<int32_t*>(scratch(result_bytes + (is_shared ? 0 : static_cast<size_t>(blocks) * bytes)));
  SelectCall call{rule, up[tokens], up[pictures], up[grid], up[places], saliency_N, up[used], result, result + total, weight, {}, static_cast<int32_t>(parts), keys, area, bytes, keeps,
                  is_shared ? nullptr : reinterpret_cast<char*>(result) + result_bytes};
  if (rows) call.rows = {rows->from, up[row], up[cu_rows], rows->out_RC, rows->C};
  check(launch(is_small ? select_patches_kernel<32, 64> : select_patches_kernel<256, 256>, dim3(static_cast<unsigned>(blocks)), dim3(static_cast<unsigned>(threads)), is_shared ? bytes : 0, stream(),
               call, is_vector),
        "select_patches");
  std::vector<int32_t> host(results);
  download(host.data(), result, results * sizeof(int32_t));
  std::copy_n(host.data(), total, selected);
  std::copy_n(host.data() + total, int64_t{B} * 6, window_B6);
  for (int32_t b = 0; b < B; ++b)
    for (int32_t i = layout.cu_selected_B1[b]; i < layout.cu_selected_B1[b + 1]; ++i) used_N[layout.cu_tokens_B1[b] + selected[i]] = 1;
}

}  // namespace plumbline
