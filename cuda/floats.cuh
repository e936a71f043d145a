#pragma once
// Runs of f32 side by side, moved in one access of 4, 8 or 16 bytes.
#include "launch.cuh"

namespace plumbline {

template <int kWidth>
struct alignas(4 * kWidth) Floats {
  float at[kWidth];
};
template <int kWidth>
PLUMBLINE_DEVICE Floats<kWidth> load(const float* from) { return *reinterpret_cast<const Floats<kWidth>*>(from); }
template <int kWidth>
PLUMBLINE_DEVICE void store(float* to, const Floats<kWidth>& values) { *reinterpret_cast<Floats<kWidth>*>(to) = values; }

template <>
PLUMBLINE_DEVICE void store<4>(float* to, const Floats<4>& values) { store_float4(to, make_float4(values.at[0], values.at[1], values.at[2], values.at[3])); }

}  // namespace plumbline
