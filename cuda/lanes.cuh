#pragma once
// Some floats side by side that one instruction loads: four (16 bytes), or one where rows are not aligned.
#include "dtype.cuh"

namespace plumbline {

template <int kWidth>
struct alignas(4 * kWidth) Lanes {
  static constexpr int kSize = kWidth;
  float at[kWidth];
};

template <int kWidth, typename Op>
PLUMBLINE_DEVICE Lanes<kWidth> lanewise(const Op& op) {
  Lanes<kWidth> result;
  #pragma unroll
  for (int k = 0; k < kWidth; ++k) result.at[k] = op(k);
  return result;
}

// Whether rows of C floats at all these places can be read 16 bytes at a time.
template <typename... P>
bool fits_four(int64_t C, const P*... rows) {
  bool fits = C % 4 == 0;
  for (const void* pointer : {static_cast<const void*>(rows)...}) fits = fits && is_aligned_16(pointer);
  return fits;
}


}  // namespace plumbline
