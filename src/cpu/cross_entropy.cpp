// cross_entropy: loss and gradient of one target per row.   loss = logsumexp(x) - x[target], dx = (softmax(x) - onehot) scale
//   in   logits (R, V) f32, targets (R) in 0..V-1 or -100 (ignored)      out  loss (R), argmax (R), gradient (R, V), which may be logits
//   how  blocks of 2,048: maximum, then sum of exp(x - maximum) in f32 lanes, blocks added in f64; rows in parallel, each alone.
//        argmax: lowest index of the largest number, 0 when there is none; NaN or +inf in a row: its loss and gradient are NaN
//   cost one read for the loss, one read and write for the gradient
#include <cmath>

#include "cpu_backend.h"
#include "tiles.h"

namespace plumbline {
namespace {

struct RowMax {
  float value;
  int32_t index;
};
struct RowSum {
  RowMax max;
  double sum;  // of exp(x - shift)
  float shift;
};

constexpr int32_t kIgnored = -100;

}  // namespace
}  // namespace plumbline

#define PLUMBLINE_INL "cross_entropy_inl.h"
#include "foreach_isa.h"

namespace plumbline {

void CpuBackend::cross_entropy(const float* logits_RV, const int32_t* targets_R, float scale, float* loss_R, int32_t* argmax_R,
                               float* dlogits_RV, int64_t R, int64_t V) {
  const auto max_kernel = PLUMBLINE_PICK(isa_, row_max);
  const auto sum_kernel = PLUMBLINE_PICK(isa_, row_sum);
  const auto softmax_kernel = PLUMBLINE_PICK(isa_, row_softmax);
  const auto exp_kernel = PLUMBLINE_PICK(isa_, row_exp);
  const auto do_row = [&](int64_t r) {
    const float* row = logits_RV + r * V;
    float* gradient = dlogits_RV ? dlogits_RV + r * V : nullptr;
    const int32_t target = targets_R[r];
    if (target == kIgnored) {
      argmax_R[r] = max_kernel(row, V).index;
      loss_R[r] = 0.0f;
      if (gradient) std::fill_n(gradient, V, 0.0f);
      return;
    }
    const auto [max, sum, shift] = sum_kernel(row, V);
    argmax_R[r] = max.index;
    loss_R[r] = static_cast<float>(std::log(sum) + (static_cast<double>(max.value) - static_cast<double>(row[target])));
    if (!gradient) return;
    const double at_target = exp_kernel(row[target], shift);  // read before the gradient overwrites the row
    softmax_kernel(row, shift, static_cast<float>(scale / sum), gradient, V);
    gradient[target] = static_cast<float>((at_target - sum) / sum * scale);
  };
  const Tiles tiles = tile_rows(R, V);
  parallel(tiles.count, [&](int64_t tile, int32_t) {
    for (int64_t r = tiles.begin(tile); r < tiles.end(tile); ++r) do_row(r);
  });
}

}  // namespace plumbline
