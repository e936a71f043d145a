#pragma once
// The one place that launches kernels, and the only one that knows whether nvcc or a host compiler reads the .cu files. A host
// compiler gets emulate.h: the threads of a block as fibers, in order, so that logic, bounds and races are checked without a GPU.
//
// What kernels may use: blocks whose size is a multiple of 32; __syncthreads, __syncwarp, __shfl_*_sync, __ballot_sync, __any_sync,
// __all_sync, atomicAdd/Max/Min/CAS on integers, __threadfence; static __shared__ arrays and PLUMBLINE_SHARED; fmaf, rsqrtf, ...; the
// wrappers below and in mma.cuh. Everything is compiled without contraction: where a fused multiply-add is wanted, say fmaf.
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace plumbline {

struct LaunchRecord {  // the last launch of this thread, for error messages
  unsigned grid[3] = {0, 0, 0}, block[3] = {0, 0, 0};
  size_t shared_bytes = 0;
};
LaunchRecord& launch_record();           // cuda_backend.cu
std::atomic<int64_t>& launch_count();    // of the process

}  // namespace plumbline

#ifdef __CUDACC__
#include <cuda_runtime.h>

// Dynamic shared memory of the block, seen as T.
#define PLUMBLINE_SHARED(T, name)                                        \
  extern __shared__ __align__(16) unsigned char plumbline_shared_bytes[]; \
  T* const name = reinterpret_cast<T*>(plumbline_shared_bytes)

#define PLUMBLINE_DEVICE __device__ __forceinline__

namespace plumbline {

constexpr bool kIsEmulated = false;
constexpr size_t kPlainSharedBytes = 48 << 10;  // more must be asked for

template <typename... P>
cudaError_t launch_kernel(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream, P... arguments) {
  if (shared_bytes > kPlainSharedBytes) {
    const cudaError_t status = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (status != cudaSuccess) return status;
  }
  kernel<<<grid, block, shared_bytes, stream>>>(arguments...);
  return cudaGetLastError();  // a launch failure is reported here, an execution failure at the next synchronisation
}

// The device's memory pool holds so many freed bytes for the next allocations. Where there is none, nothing is lost but time.
inline void keep_freed_memory(uint64_t bytes) {
  int device = 0;
  cudaMemPool_t pool;
  if (cudaGetDevice(&device) == cudaSuccess && cudaDeviceGetDefaultMemPool(&pool, device) == cudaSuccess) cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &bytes);
  cudaGetLastError();
}

PLUMBLINE_DEVICE float half_bits_to_float(uint16_t bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}
PLUMBLINE_DEVICE uint16_t float_to_half_bits(float value) {
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}
PLUMBLINE_DEVICE uint16_t float_to_bfloat_bits(float value) {
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}
// Two values rounded into one word, the first in the low half.
PLUMBLINE_DEVICE uint32_t pack_half(float low, float high) {
  uint32_t bits;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}
PLUMBLINE_DEVICE uint32_t pack_bfloat(float low, float high) {
  uint32_t bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}
// 2^x, off by at most 2 units in the last place; results below 2^-126 are 0.
PLUMBLINE_DEVICE float exp2_approximate(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// One word that blocks of a launch hand to each other, past the caches that are not shared. No order with other memory is implied.
PLUMBLINE_DEVICE uint64_t load_relaxed(const uint64_t* word) {
  unsigned long long value;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(__cvta_generic_to_global(word)) : "memory");
  return value;
}
PLUMBLINE_DEVICE void store_relaxed(uint64_t* word, uint64_t value) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(__cvta_generic_to_global(word)), "l"(static_cast<unsigned long long>(value)) : "memory");
}
// One 16-byte store to global memory, where the compiler would make four of the members of a uint4.
PLUMBLINE_DEVICE void store_16(void* global, uint4 value) {
  asm volatile("st.global.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(global), "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w) : "memory");
}

// One store of 16 bytes. Said in PTX: nvcc takes a plain one apart into four where exponentials stand between the elements.
PLUMBLINE_DEVICE void store_float4(float* global, float4 value) {
  asm volatile("st.global.v4.f32 [%0], {%1,%2,%3,%4};" ::"l"(global), "f"(value.x), "f"(value.y), "f"(value.z), "f"(value.w) : "memory");
}

// 16 bytes from global to shared memory without registers; zeros when not valid. Visible after cp_async_wait and a barrier.
PLUMBLINE_DEVICE void cp_async_16(void* shared, const void* global, bool valid) {
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
}
PLUMBLINE_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
PLUMBLINE_DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Four 8 x 8 matrices of 16-bit elements; lane i gives the address (16-byte aligned) of row i % 8 of matrix i / 8.
PLUMBLINE_DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* shared) {
  const uint32_t from = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(from) : "memory");
}
PLUMBLINE_DEVICE void ldmatrix_x4_transposed(uint32_t (&r)[4], const void* shared) {
  const uint32_t from = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(from) : "memory");
}
// d[16, 8] += a[16, 16] b[16, 8] on the tensor cores, sums in f32. Fragments as PTX's mma.m16n8k16 has them.
PLUMBLINE_DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
PLUMBLINE_DEVICE void mma_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// d[16, 8] += a[16, 8] b[8, 8] in f64. Fragments as PTX's mma.m16n8k8 has them: lane 4 g + t holds a (g, t), (g + 8, t), (g, t + 4),
// (g + 8, t + 4), b (t, g), (t + 4, g), d (g, 2 t), (g, 2 t + 1), (g + 8, 2 t), (g + 8, 2 t + 1).
PLUMBLINE_DEVICE void mma_f64(double (&d)[4], const double (&a)[4], double b0, double b1) {
#if __CUDA_ARCH__ >= 900
  asm("mma.sync.aligned.m16n8k8.row.col.f64.f64.f64.f64 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+d"(d[0]), "+d"(d[1]), "+d"(d[2]), "+d"(d[3]) : "d"(a[0]), "d"(a[1]), "d"(a[2]), "d"(a[3]), "d"(b0), "d"(b1));
#else
  const auto add = [](double& x, double& y, double left, double right) {
    asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0,%1}, {%2}, {%3}, {%0,%1};" : "+d"(x), "+d"(y) : "d"(left), "d"(right));
  };
  add(d[0], d[1], a[0], b0), add(d[0], d[1], a[2], b1);
  add(d[2], d[3], a[1], b0), add(d[2], d[3], a[3], b1);
#endif
}

}  // namespace plumbline
#else
#include "emulate.h"
#endif

namespace plumbline {

// Starts kernel(arguments...) on the stream. An empty grid is legal and starts nothing.
template <typename... P, typename... A>
cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream, A... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
  LaunchRecord& record = launch_record();
  const unsigned g[3] = {grid.x, grid.y, grid.z}, b[3] = {block.x, block.y, block.z};
  for (int i = 0; i < 3; ++i) record.grid[i] = g[i], record.block[i] = b[i];
  record.shared_bytes = shared_bytes;
  launch_count().fetch_add(1, std::memory_order_relaxed);
  return launch_kernel<P...>(kernel, grid, block, shared_bytes, stream, static_cast<P>(arguments)...);
}

constexpr unsigned kWarp = 32;
constexpr unsigned kFullMask = 0xffffffffu;

// What a block may have on every architecture from sm_80 (sm_86, 89 and 120: 99 KiB), less room for static arrays of a kernel.
constexpr size_t kMostShared = size_t{92} << 10;

// Blocks of `per_block` that cover `count`; what a grid's x axis takes at most.
inline unsigned blocks_of(int64_t count, int64_t per_block, int64_t most = 0x7fffffff) {
  const int64_t blocks = (count + per_block - 1) / per_block;
  return static_cast<unsigned>(blocks < most ? blocks : most);
}

}  // namespace plumbline
