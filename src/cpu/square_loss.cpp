// square_loss: mean squared difference of paired rows.   loss_r = 1/C sum_c (a - b)^2,  da = 2 scale (a - b) / C  (arXiv 2604.10500, L_SR)
//   in   a, b (R, C) f32       out  loss (R); da added to, db overwritten with the negative
//   how  f64 sums in the order of c, one row a task; deterministic. NaN and inf spread within their row
//   cost a handful of rows a step: one read of a and b
#include "cpu_backend.h"

namespace plumbline {

void CpuBackend::square_loss(const float* a_RC, const float* b_RC, float* loss_R, int64_t R, int64_t C) {
  parallel(R, [&](int64_t r, int32_t) {
    double sum = 0;
    for (int64_t c = r * C; c < (r + 1) * C; ++c) sum += (static_cast<double>(a_RC[c]) - b_RC[c]) * (static_cast<double>(a_RC[c]) - b_RC[c]);
    loss_R[r] = static_cast<float>(sum / static_cast<double>(C));
  });
}

void CpuBackend::square_loss_grad(const float* a_RC, const float* b_RC, const float* scale_R, float* da_RC, float* db_RC, int64_t R, int64_t C) {
  parallel(R, [&](int64_t r, int32_t) {
    const float factor = 2.0f * scale_R[r] / static_cast<float>(C);
    for (int64_t c = r * C; c < (r + 1) * C; ++c) {
      const float part = factor * (a_RC[c] - b_RC[c]);
      da_RC[c] += part;
      if (db_RC) db_RC[c] = -part;
    }
  });
}

}  // namespace plumbline
