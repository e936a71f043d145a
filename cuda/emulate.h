#pragma once
// CUDA for a host compiler, in tests only: launch.cuh includes this when nvcc does not read it. The blocks of a launch run one after
// another; the threads of a block are fibers of one OS thread that change places at barriers and warp collectives. AddressSanitizer
// sees every access; ThreadSanitizer sees each fiber as a thread and, within a block, only __syncthreads and __syncwarp as order (shuffles and votes make none). It checks the logic of
// the source: nothing here says how fast a GPU is, nor what nvcc makes of it.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <algorithm>
#include <functional>
#include <memory>
#include <vector>

#include "../src/core/dtype.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __shared__ static
#define __constant__ static const
#define __align__(n) alignas(n)
#define PLUMBLINE_DEVICE inline

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) double2 { double x, y; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// The runtime, as far as cuda_backend.cu uses it: device memory is host memory, and everything is done when the call returns.
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorMemoryAllocation = 2, cudaErrorInvalidConfiguration = 9, cudaErrorLaunchOutOfResources = 701, cudaErrorUnknown = 999 };
using cudaStream_t = void*;
using cudaEvent_t = void*;
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };

namespace plumbline {

constexpr bool kIsEmulated = true;
constexpr size_t kPlainSharedBytes = 48 << 10;

namespace emulation {

constexpr size_t kSharedBytes = 99 << 10;  // what every architecture from sm_80 has; static arrays come on top here

struct Slot { uint32_t word[8]; };          // what a lane shows to its warp
struct Barrier {
  unsigned arrived = 0;
  uint64_t generation = 0;
  char order[2] = {};                       // addresses that stand for the order which it makes, in turns
};
struct Warp {
  Barrier barrier;
  Slot slots[2][32];
};
struct Thread {
  dim3 index;
  unsigned number = 0, lane = 0;
  uint64_t collectives = 0;                 // which of the two slot tables is next
};

// The thread that runs, its block and its grid.
Thread& thread();
dim3& block_index();
dim3& block_size();
dim3& grid_size();
void* shared_memory();

void sync_block();
void sync_warp(unsigned mask);
// Shows `mine` to the lanes of `mask`; all of them come here before anyone goes on. Valid until the collective after the next.
const Slot* exchange(unsigned mask, const Slot& mine);
// Runs the body for every thread of every block.
cudaError_t run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body);

template <typename T>
Slot pack(const T& value) {
  static_assert(sizeof(T) <= sizeof(Slot), "too large for a warp collective");
  Slot slot{};
  std::memcpy(slot.word, &value, sizeof(T));
  return slot;
}
template <typename T>
T unpack(const Slot& slot) {
  T value;
  std::memcpy(&value, slot.word, sizeof(T));
  return value;
}
template <typename T>
T from_lane(unsigned mask, const T& mine, unsigned lane) {
  const Slot* slots = exchange(mask, pack(mine));
  return (mask >> (lane & 31u)) & 1u ? unpack<T>(slots[lane & 31u]) : mine;
}

}  // namespace emulation

template <typename... P>
cudaError_t launch_kernel(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t, P... arguments) {
  return emulation::run(grid, block, shared_bytes, [&] { kernel(arguments...); });
}

inline float half_bits_to_float(uint16_t bits) { return half_to_float(bits); }
inline uint16_t float_to_half_bits(float value) { return float_to_half(value); }
inline uint16_t float_to_bfloat_bits(float value) { return float_to_bf16(value); }

inline uint32_t pack_half(float low, float high) { return float_to_half(low) | static_cast<uint32_t>(float_to_half(high)) << 16; }
inline uint32_t pack_bfloat(float low, float high) { return float_to_bf16(low) | static_cast<uint32_t>(float_to_bf16(high)) << 16; }
inline float exp2_approximate(float x) { return x < -126.0f ? 0.0f : std::exp2(x); }
inline uint64_t load_relaxed(const uint64_t* word) { return __atomic_load_n(word, __ATOMIC_RELAXED); }
inline void store_relaxed(uint64_t* word, uint64_t value) { __atomic_store_n(word, value, __ATOMIC_RELAXED); }
inline void store_16(void* global, uint4 value) { std::memcpy(global, &value, 16); }

inline void store_float4(float* global, float4 value) { *reinterpret_cast<float4*>(global) = value; }

inline void cp_async_16(void* shared, const void* global, bool valid) {
  if (valid) std::memcpy(shared, global, 16);
  else std::memset(shared, 0, 16);
}
inline void cp_async_commit() {}
template <int kPending>
void cp_async_wait() {}

inline void ldmatrix_x4(uint32_t (&r)[4], const void* shared) {
  const emulation::Slot* slots = emulation::exchange(0xffffffffu, emulation::pack(shared));
  const unsigned lane = emulation::thread().lane;
  for (unsigned m = 0; m < 4; ++m) std::memcpy(&r[m], emulation::unpack<const char*>(slots[8 * m + lane / 4]) + lane % 4 * 4, 4);
}
inline void ldmatrix_x4_transposed(uint32_t (&r)[4], const void* shared) {
  const emulation::Slot* slots = emulation::exchange(0xffffffffu, emulation::pack(shared));
  const unsigned lane = emulation::thread().lane;
  for (unsigned m = 0; m < 4; ++m)
    for (unsigned i = 0; i < 2; ++i)
      std::memcpy(reinterpret_cast<char*>(&r[m]) + 2 * i, emulation::unpack<const char*>(slots[8 * m + lane % 4 * 2 + i]) + lane / 4 * 2, 2);
}

namespace emulation {
template <typename ToFloat>
void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, ToFloat to_float) {
  Slot mine{{a[0], a[1], a[2], a[3], b0, b1, 0, 0}};
  const Slot* slots = exchange(0xffffffffu, mine);
  const unsigned lane = thread().lane, group = lane / 4, pair = lane % 4;
  const auto half = [&](uint32_t word, unsigned i) { return static_cast<double>(to_float(static_cast<uint16_t>(word >> (16 * i)))); };
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = group + 8 * (i / 2), column = pair * 2 + i % 2;
    double sum = static_cast<double>(d[i]);
    for (unsigned k = 0; k < 16; ++k)
      sum += half(slots[row % 8 * 4 + k % 8 / 2].word[row / 8 + 2 * (k / 8)], k % 2) * half(slots[column * 4 + k % 8 / 2].word[4 + k / 8], k % 2);
    d[i] = static_cast<float>(sum);
  }
}
}  // namespace emulation
inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { emulation::mma(d, a, b0, b1, bf16_to_float); }
inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { emulation::mma(d, a, b0, b1, half_to_float); }

inline void mma_f64(double (&d)[4], const double (&a)[4], double b0, double b1) {
  struct Left { double at[4]; };
  struct Right { double at[2]; };
  const unsigned lane = emulation::thread().lane;
  Left left[4];  // read before the second collective: after it a lane that runs ahead writes over the slots
  const emulation::Slot* slots = emulation::exchange(0xffffffffu, emulation::pack(Left{{a[0], a[1], a[2], a[3]}}));
  for (unsigned k = 0; k < 4; ++k) left[k] = emulation::unpack<Left>(slots[lane / 4 * 4 + k]);
  slots = emulation::exchange(0xffffffffu, emulation::pack(Right{{b0, b1}}));
  for (unsigned i = 0; i < 4; ++i)
    for (unsigned k = 0; k < 8; ++k)
      d[i] = std::fma(left[k % 4].at[i / 2 + k / 4 * 2], emulation::unpack<Right>(slots[(lane % 4 * 2 + i % 2) * 4 + k % 4]).at[k / 4], d[i]);
}

using std::max;
using std::min;

}  // namespace plumbline

#define threadIdx (plumbline::emulation::thread().index)
#define blockIdx (plumbline::emulation::block_index())
#define blockDim (plumbline::emulation::block_size())
#define gridDim (plumbline::emulation::grid_size())
#define PLUMBLINE_SHARED(T, name) T* const name = static_cast<T*>(plumbline::emulation::shared_memory())

inline void __syncthreads() { plumbline::emulation::sync_block(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { plumbline::emulation::sync_warp(mask); }
inline void __threadfence() {}
inline void __threadfence_block() {}
template <typename T>
T __shfl_sync(unsigned mask, T value, int lane) { return plumbline::emulation::from_lane(mask, value, static_cast<unsigned>(lane)); }
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits) { return plumbline::emulation::from_lane(mask, value, plumbline::emulation::thread().lane ^ static_cast<unsigned>(bits)); }
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned by) {
  const unsigned lane = plumbline::emulation::thread().lane;
  return plumbline::emulation::from_lane(mask, value, lane >= by ? lane - by : lane);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned by) {
  const unsigned lane = plumbline::emulation::thread().lane;
  return plumbline::emulation::from_lane(mask, value, lane + by < 32 ? lane + by : lane);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const plumbline::emulation::Slot* slots = plumbline::emulation::exchange(mask, plumbline::emulation::pack(predicate != 0 ? 1u : 0u));
  unsigned bits = 0;
  for (unsigned lane = 0; lane < 32; ++lane)
    if ((mask >> lane) & 1u) bits |= slots[lane].word[0] << lane;
  return bits;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }

template <typename T>
T atomicAdd(T* address, T value) { return __atomic_fetch_add(address, value, __ATOMIC_SEQ_CST); }
template <typename T>
T atomicMax(T* address, T value) {
  T old = __atomic_load_n(address, __ATOMIC_SEQ_CST);
  while (old < value && !__atomic_compare_exchange_n(address, &old, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {}
  return old;
}
template <typename T>
T atomicMin(T* address, T value) {
  T old = __atomic_load_n(address, __ATOMIC_SEQ_CST);
  while (value < old && !__atomic_compare_exchange_n(address, &old, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {}
  return old;
}
template <typename T>
T atomicCAS(T* address, T expected, T value) {
  __atomic_compare_exchange_n(address, &expected, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
  return expected;
}
template <typename T>
T atomicExch(T* address, T value) { return __atomic_exchange_n(address, value, __ATOMIC_SEQ_CST); }

template <typename T>
T __ldg(const T* address) { return *address; }
inline uint32_t __float_as_uint(float value) { uint32_t bits; std::memcpy(&bits, &value, 4); return bits; }
inline float __uint_as_float(uint32_t bits) { float value; std::memcpy(&value, &bits, 4); return value; }
inline int __float_as_int(float value) { return static_cast<int>(__float_as_uint(value)); }
inline float __int_as_float(int bits) { return __uint_as_float(static_cast<uint32_t>(bits)); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __clz(int bits) { return bits ? __builtin_clz(static_cast<unsigned>(bits)) : 32; }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32); }

inline const char* cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "no error" : error == cudaErrorMemoryAllocation ? "out of memory" : "emulated launch failed"; }
namespace plumbline {
inline void keep_freed_memory(uint64_t) {}
}  // namespace plumbline
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  static char token;  // a stream that is there: the destructor of the backend looks for one
  *stream = &token;
  return cudaSuccess;
}
inline cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { *event = nullptr; return cudaSuccess; }
inline cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
inline cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
inline cudaError_t cudaMallocAsync(void** data, size_t bytes, cudaStream_t) {
  *data = bytes > (size_t{1} << 40) ? nullptr : std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  return *data ? cudaSuccess : cudaErrorMemoryAllocation;
}
inline cudaError_t cudaFreeAsync(void* data, cudaStream_t) { std::free(data); return cudaSuccess; }
inline cudaError_t cudaMallocHost(void** data, size_t bytes) { *data = std::malloc(bytes); return *data ? cudaSuccess : cudaErrorMemoryAllocation; }
inline cudaError_t cudaFreeHost(void* data) { std::free(data); return cudaSuccess; }
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) { std::memcpy(to, from, bytes); return cudaSuccess; }
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) { std::memset(to, value, bytes); return cudaSuccess; }
constexpr unsigned cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2;
