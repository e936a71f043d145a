#pragma once
// 16-bit floats in kernels: types of storage only, arithmetic is f32.
#include "../src/core/dtype.h"
#include "../src/core/error.h"
#include "launch.cuh"

namespace plumbline {

struct f16 { uint16_t bits; };
struct bf16 { uint16_t bits; };

PLUMBLINE_DEVICE float to_float(float x) { return x; }
PLUMBLINE_DEVICE float to_float(f16 x) { return half_bits_to_float(x.bits); }
PLUMBLINE_DEVICE float to_float(bf16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }

template <typename T>
PLUMBLINE_DEVICE T from_float(float x);
template <>
PLUMBLINE_DEVICE float from_float<float>(float x) { return x; }
template <>
PLUMBLINE_DEVICE f16 from_float<f16>(float x) { return {float_to_half_bits(x)}; }
template <>
PLUMBLINE_DEVICE bf16 from_float<bf16>(float x) { return {float_to_bfloat_bits(x)}; }

// As many elements of T as 16 bytes hold.
template <typename T>
struct alignas(16) Packet {
  static constexpr int kSize = 16 / sizeof(T);
  T at[kSize];
};

inline bool is_aligned_16(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// Calls body with a value of the storage type: dispatch(dtype, [&](auto zero) { using T = decltype(zero); ... }).
template <typename Body>
auto dispatch(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::f32: return body(float{});
    case DType::f16: return body(f16{});
    case DType::bf16: return body(bf16{});
    default: fail("ERR_DTYPE", "[CudaBackend] Expected f32, f16 or bf16 but received another type");
  }
}

}  // namespace plumbline
