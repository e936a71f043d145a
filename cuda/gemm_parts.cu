// gemm: how a large product is cut, on the host: into parts, of which each is split into planes, multiplied by tiles and summed over its slices.
//   cost workspace: planes of 6 bytes for an f32 element, up to 512 MB; partial products of the slices, 8 M N bytes of traffic for each
#include "dtype.cuh"
#include "product.h"

namespace plumbline {
namespace {

// How a product is cut. Parts, one after another, where the planes of the whole would be too large; in each, tiles and slices of K.
constexpr int64_t kMostPlaneBytes = int64_t{512} << 20;
constexpr int64_t kColumns = 128, kDepth = 32;    // of a tile of gemm.cu
constexpr int64_t kWantedBlocks = 264;  // two for each of an H100's 132 multiprocessors
constexpr int64_t kLeastTiles = 4;      // depth of a slice

struct Cut {
  int64_t M, N, K;      // of a part
  int32_t planes_b;     // 0: b as it lies
  int32_t slices;
  int64_t row_size() const { return (K + 7) / 8 * 8; }
  int64_t plane_bytes_a() const { return (kPlanes * M * row_size() * 2 + 255) / 256 * 256; }
  int64_t plane_bytes_b() const { return (planes_b * N * row_size() * 2 + 255) / 256 * 256; }
  int64_t partial_bytes() const { return slices > 1 ? slices * M * N * 4 : 0; }
};

int64_t tile_rows(int64_t M) { return M <= 64 ? 64 : 128; }

Cut cut_of(const Product& p) {
  const bool is_direct = p.b_is_bf16 && p.b_row == 1 && p.b_col % 8 == 0 && p.K % 8 == 0 && is_aligned_16(p.b);
  Cut cut{p.M, p.N, min(p.K, int64_t{1} << 15), is_direct ? 0 : p.b_is_bf16 ? 1 : kPlanes, 1};
  while (cut.plane_bytes_a() + cut.plane_bytes_b() > kMostPlaneBytes && (cut.M > 128 || cut.N > kColumns))
    if (cut.plane_bytes_a() > cut.plane_bytes_b()) cut.M = (cut.M + 255) / 256 * 128;
    else cut.N = (cut.N + 255) / 256 * 128;
  const int64_t tiles = blocks_of(cut.M, tile_rows(cut.M)) * static_cast<int64_t>(blocks_of(cut.N, kColumns));
  cut.slices = static_cast<int32_t>(max(int64_t{1}, min(kWantedBlocks / tiles, (cut.K + kDepth - 1) / kDepth / kLeastTiles)));
  return cut;
}

cudaError_t multiply_part(const Product& p, const Cut& cut, char* workspace, cudaStream_t stream) {
  const int64_t row_size = (p.K + 7) / 8 * 8;
  uint16_t *const a = reinterpret_cast<uint16_t*>(workspace), *const b = reinterpret_cast<uint16_t*>(workspace + cut.plane_bytes_a());
  float* const partial = reinterpret_cast<float*>(workspace + cut.plane_bytes_a() + cut.plane_bytes_b());
  GemmTask task{p, {a, p.M * row_size, row_size}, {b, p.N * row_size, row_size}, cut.slices, partial};
  cudaError_t status = split_planes(p.a, false, p.M, p.K, p.a_row, p.a_col, a, row_size, stream);
  if (cut.planes_b == 0) task.b = {static_cast<const uint16_t*>(p.b), 0, p.b_col};
  else if (status == cudaSuccess) status = split_planes(p.b, p.b_is_bf16, p.N, p.K, p.b_col, p.b_row, b, row_size, stream);
  if (status != cudaSuccess) return status;
  status = start_gemm(task, tile_rows(cut.M) == 64, stream);
  return status == cudaSuccess && cut.slices > 1 ? finish_product(p, task.partial, cut.slices, stream) : status;
}

Product part_of(const Product& p, const Cut& cut, int64_t i, int64_t j, int64_t k) {
  Product part = p;
  part.M = min(cut.M, p.M - i), part.N = min(cut.N, p.N - j), part.K = min(cut.K, p.K - k);
  part.a = p.a + i * p.a_row + k * p.a_col;
  part.b = static_cast<const char*>(p.b) + (k * p.b_row + j * p.b_col) * (p.b_is_bf16 ? 2 : 4);
  part.c_MN = p.c_MN + i * p.c_row + j;
  part.bias_N = p.bias_N && k == 0 ? p.bias_N + j : nullptr;
  part.accumulate = p.accumulate || k > 0;
  return part;
}

}  // namespace

size_t gemm_workspace_bytes(const Product& p) {
  const Cut cut = cut_of(p);
  return static_cast<size_t>(cut.plane_bytes_a() + cut.plane_bytes_b() + cut.partial_bytes());
}

cudaError_t gemm(const Product& p, void* workspace, cudaStream_t stream) {
  const Cut cut = cut_of(p);
  for (int64_t i = 0; i < p.M; i += cut.M)
    for (int64_t j = 0; j < p.N; j += cut.N)
      for (int64_t k = 0; k < p.K; k += cut.K) {
        const cudaError_t status = multiply_part(part_of(p, cut, i, j, k), cut, static_cast<char*>(workspace), stream);
        if (status != cudaSuccess) return status;
      }
  return cudaSuccess;
}

}  // namespace plumbline
