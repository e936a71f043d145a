// Gradient dynamics: the norm of what every row receives at every layer (algorithms, section 7). The norms come out of the backward pass
// of each layer's first RMS norm, which writes that gradient anyway, stay on the device, and are fetched once per sweep. Where passes
// compute rows again (presets that look ahead), the gradients of a row are summed first: D floats per row and level.
#include <algorithm>

#include "../core/error.h"
#include "session_impl.h"

namespace plumbline {

void Session::Impl::start_profile() {
  profile = std::make_unique<Profile>();
  std::map<int32_t, int32_t> length;  // rows of each sequence; its first row in the profile afterwards
  for (const auto& pass : passes)
    for (size_t b = 0; b < pass->input.sequences.size(); ++b)
      length[pass->input.sequences[b]] = std::max(length[pass->input.sequences[b]], pass->rows.kv_len[b]);
  for (auto& [sequence, rows] : length) {
    if (rows > 0) profile->rows.push_back(rows);
    const int32_t first = static_cast<int32_t>(profile->count);
    profile->count += rows;
    rows = first;
    require(profile->count < (int64_t{1} << 31), "ERR_RANGE", "[backward] Expected fewer than 2^31 rows to profile in one tape");
  }
  for (const auto& pass : passes) {
    pass->profile_first = profile->columns;
    profile->columns += pass->rows.T;
    for (size_t b = 0; b < pass->input.sequences.size(); ++b)
      for (int32_t row = 0; row < pass->rows.cu_seqlens[b + 1] - pass->rows.cu_seqlens[b]; ++row)
        pass->profile_rows.push_back(length.at(pass->input.sequences[b]) + pass->rows.first_row[b] + row);
  }
  const int64_t levels = model->spec.text.layers + 1;
  const bool again = profile->columns > profile->count;
  profile->norms = pool.take(levels * (again ? profile->count : profile->columns));
  if (again) profile->sums = zeros(levels * profile->count * model->spec.text.hidden);
}

float* Session::Impl::profile_norms(const Pass& pass, int64_t level) {
  return profile && !profile->sums ? profile->norms->floats() + level * profile->columns + pass.profile_first : nullptr;
}

void Session::Impl::profile_sum(const Pass& pass, int64_t level, const Buffer& dx) {
  if (!profile || !profile->sums) return;
  const int64_t D = model->spec.text.hidden;
  model->backend->add_rows(dx->floats(), nullptr, profile->sums->floats() + level * profile->count * D, pass.profile_rows.data(), pass.rows.T, D);
}

void Session::Impl::finish_profile() {
  const int64_t levels = model->spec.text.layers + 1, count = profile->count, columns = profile->sums ? count : profile->columns;
  if (profile->sums) model->backend->grad_norm(profile->sums->floats(), DType::f32, nullptr, 1, 1.0f, profile->norms->floats(), nullptr, levels * count, model->spec.text.hidden);
  std::vector<float> fetched(static_cast<size_t>(levels * columns));
  model->backend->download(fetched.data(), profile->norms->data(), fetched.size() * sizeof(float));
  gradient_norms.levels = levels;
  gradient_norms.rows = std::move(profile->rows);
  if (profile->sums) {
    gradient_norms.norms = std::move(fetched);
    return;
  }
  gradient_norms.norms.resize(fetched.size());
  for (const auto& pass : passes)
    for (int64_t level = 0; level < levels; ++level)
      for (int64_t t = 0; t < pass->rows.T; ++t)
        gradient_norms.norms[static_cast<size_t>(level * count + pass->profile_rows[static_cast<size_t>(t)])] =
            fetched[static_cast<size_t>(level * columns + pass->profile_first + t)];
}

const GradientNorms& Session::gradient_norms() const {
  require(impl_->options.profile, "ERR_ARGUMENT", "[gradientNorms] Expected a session with option profile");
  require(impl_->gradient_norms.levels > 0, "ERR_ARGUMENT", "[gradientNorms] Expected a backward() that was completed since the last reset()");
  return impl_->gradient_norms;
}

}  // namespace plumbline
