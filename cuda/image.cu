// resize: separable resampling of 8-bit images, the bits of Pillow's Image.resize.   patch_rows: normalised rows for the vision tower.
//   in   interleaved uint8 [height, width, channels]; frames [n, height, width, 3], sides multiples of patch * merge: host
//   out  uint8 [to_height, to_width, channels]: host; f32 rows [pairs * gh * gw, 3 * temporal * patch * patch]: device
//   how  tables of core/taps.h, sums in int32; horizontal pass first, 8-bit result between the passes; a pass that keeps the size is left
//        out. (x / 255 - mean) / std by a table of 256 per channel, built in f64 on the host, in shared memory
//   cost resize: a launch a pass. Across: a thread has one sample of 8 rows, which share its weights. Down: 4 bytes of a row side by side.
//        patch_rows: a thread per pixel reads 3 bytes and writes its 3 * temporal floats, neighbours side by side; bound by the write
//   limits: none
#include "../src/core/taps.h"
#include "image.cuh"

namespace plumbline {
namespace {

constexpr int kThreads = 256, kRows = 8;
constexpr int32_t kRound = 1 << (kPrecisionBits - 1);
constexpr int64_t kMostRows = 65535;  // of grid.y

PLUMBLINE_DEVICE uint8_t to_byte(int32_t sum) {
  const int32_t value = sum >> kPrecisionBits;
  return static_cast<uint8_t>(value < 0 ? 0 : value > 255 ? 255 : value);
}

__global__ void __launch_bounds__(kThreads) resample_across_kernel(const uint8_t* from, int64_t from_row, int64_t height, int32_t channels, Taps taps, uint8_t* to) {
  const int64_t to_row = taps.size * channels, sample = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (sample >= to_row) return;
  const int64_t x = sample / channels;
  const int32_t* weight = taps.weight + x * taps.stride;
  const int32_t count = taps.count[x];
  for (int64_t y = static_cast<int64_t>(blockIdx.y) * kRows; y < height; y += static_cast<int64_t>(gridDim.y) * kRows) {
    const uint8_t* source = from + y * from_row + taps.first[x] * static_cast<int64_t>(channels) + sample % channels;
    int32_t sum[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) sum[r] = kRound;
    for (int32_t k = 0; k < count; ++k, source += channels) {
      const int32_t w = weight[k];
#pragma unroll
      for (int r = 0; r < kRows; ++r)
        if (y + r < height) sum[r] += source[r * from_row] * w;
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r)
      if (y + r < height) to[(y + r) * to_row + sample] = to_byte(sum[r]);
  }
}

template <int kWidth>
struct alignas(kWidth) Bytes {
  uint8_t at[kWidth];
};

template <int kWidth>
__global__ void __launch_bounds__(kThreads) resample_down_kernel(const uint8_t* from, int64_t row, Taps taps, uint8_t* to) {
  const int64_t place = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kWidth;
  if (place >= row) return;
  for (int64_t y = blockIdx.y; y < taps.size; y += gridDim.y) {
    const int32_t* weight = taps.weight + y * taps.stride;
    const uint8_t* source = from + taps.first[y] * row + place;
    int32_t sum[kWidth];
#pragma unroll
    for (int i = 0; i < kWidth; ++i) sum[i] = kRound;
    const int32_t count = taps.count[y];
#pragma unroll 4
    for (int32_t k = 0; k < count; ++k) {
      const Bytes<kWidth> bytes = *reinterpret_cast<const Bytes<kWidth>*>(source + k * row);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) sum[i] += bytes.at[i] * weight[k];
    }
    Bytes<kWidth> out;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) out.at[i] = to_byte(sum[i]);
    *reinterpret_cast<Bytes<kWidth>*>(to + y * row + place) = out;
  }
}

struct Patches {
  const uint8_t* frames;
  const float* table_3_256;
  float* rows;
  int64_t count, gh, gw, height, width, num_frames;
  int32_t patch, merge, temporal;
};

// kRows patch rows a block. Their first frames and corners are worked out once.
__global__ void __launch_bounds__(kThreads) patch_rows_kernel(Patches p) {
  __shared__ float table[3 * 256];
  __shared__ int64_t corner[kRows], frame[kRows];
  for (int i = threadIdx.x; i < 3 * 256; i += kThreads) table[i] = p.table_3_256[i];
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kRows;
  if (threadIdx.x < kRows) {
    const int64_t row = first + threadIdx.x, in_block = int64_t{p.merge} * p.merge, across = p.gw / p.merge, blocks = p.gh / p.merge * across;
    const int64_t block = row / in_block % blocks, inside = row % in_block;
    const int64_t y = (block / across * p.merge + inside / p.merge) * p.patch, x = (block % across * p.merge + inside % p.merge) * p.patch;
    corner[threadIdx.x] = (y * p.width + x) * 3;
    frame[threadIdx.x] = row / in_block / blocks * p.temporal;
  }
  __syncthreads();
  const int32_t plane = p.patch * p.patch;
  const int32_t pixels = static_cast<int32_t>(min(static_cast<int64_t>(kRows), p.count - first)) * plane;
  for (int32_t i = threadIdx.x; i < pixels; i += kThreads) {
    const int32_t row = i / plane, inside = i % plane;
    const int64_t place = corner[row] + (inside / p.patch * p.width + inside % p.patch) * 3;
    float* out = p.rows + (first + row) * (3 * p.temporal * static_cast<int64_t>(plane)) + inside;
    for (int32_t t = 0; t < p.temporal; ++t) {
      const uint8_t* pixel = p.frames + min(frame[row] + t, p.num_frames - 1) * p.height * p.width * 3 + place;
#pragma unroll
      for (int c = 0; c < 3; ++c) out[(c * p.temporal + t) * static_cast<int64_t>(plane)] = table[c * 256 + pixel[c]];
    }
  }
}

// Taps of one axis on the device.
class DeviceTaps {
 public:
  DeviceTaps(CudaBackend& backend, const TapTable& table) : up_(backend, "resize"), table_(up_.add(table.table().data(), static_cast<int64_t>(table.table().size()))), taps_(table.taps) {
    up_.send();
  }
  Taps taps() const {
    const int32_t* data = up_[table_];
    return {taps_.size, taps_.stride, data, data + taps_.size, data + 2 * taps_.size};
  }

 private:
  CudaBackend::Upload up_;
  CudaBackend::Upload::Handle<int32_t> table_;
  Taps taps_;
};

void resize_down(CudaBackend& backend, const uint8_t* from, int64_t row, const Taps& taps, uint8_t* to) {
  const bool is_wide = row % 4 == 0 && reinterpret_cast<uintptr_t>(from) % 4 == 0 && reinterpret_cast<uintptr_t>(to) % 4 == 0;
  const dim3 grid(blocks_of(row, kThreads * (is_wide ? 4 : 1)), blocks_of(taps.size, 1, kMostRows));
  backend.check(launch(is_wide ? resample_down_kernel<4> : resample_down_kernel<1>, grid, dim3(kThreads), 0, backend.stream(), from, row, taps, to), "resize");
}

}  // namespace

void resize_on_device(CudaBackend& backend, const uint8_t* from, int32_t height, int32_t width, int32_t channels, uint8_t* to, int32_t to_height, int32_t to_width, Filter filter) {
  const int64_t from_row = int64_t{width} * channels, to_row = int64_t{to_width} * channels;
  const bool is_tall = height != to_height;
  if (width == to_width && !is_tall) return backend.copy(to, from, static_cast<size_t>(height * from_row));
  const uint8_t* wide = from;
  if (width != to_width) {
    uint8_t* out = is_tall ? static_cast<uint8_t*>(backend.scratch(static_cast<size_t>(height * to_row))) : to;
    const DeviceTaps across(backend, TapTable(width, to_width, filter));
    const dim3 grid(blocks_of(to_row, kThreads), blocks_of(height, kRows, kMostRows));
    backend.check(launch(resample_across_kernel, grid, dim3(kThreads), 0, backend.stream(), from, from_row, static_cast<int64_t>(height), channels, across.taps(), out), "resize");
    wide = out;
  }
  if (!is_tall) return;
  const DeviceTaps down(backend, TapTable(height, to_height, filter));
  resize_down(backend, wide, to_row, down.taps(), to);
}

void patch_rows_on_device(CudaBackend& backend, const uint8_t* frames, int32_t num_frames, int32_t height, int32_t width, int32_t patch, int32_t merge, int32_t temporal, const float* mean_3,
                          const float* std_3, float* rows) {
  float table[3 * 256];
  for (int c = 0; c < 3; ++c)
    for (int value = 0; value < 256; ++value) table[c * 256 + value] = static_cast<float>((value / 255.0 - mean_3[c]) / std_3[c]);
  CudaBackend::Upload up(backend, "patch_rows");
  const auto values = up.add(table, 3 * 256);
  up.send();
  const int64_t gh = height / patch, gw = width / patch, pairs = (num_frames + temporal - 1) / temporal;
  const Patches patches = {frames, up[values], rows, pairs * gh * gw, gh, gw, height, width, num_frames, patch, merge, temporal};
  backend.check(launch(patch_rows_kernel, dim3(blocks_of(patches.count, kRows)), dim3(kThreads), 0, backend.stream(), patches), "patch_rows");
}

void CudaBackend::resize(const uint8_t* from, int32_t height, int32_t width, int32_t channels, uint8_t* to, int32_t to_height, int32_t to_width, Filter filter) {
  poll();
  const size_t from_bytes = static_cast<size_t>(height) * static_cast<size_t>(width) * static_cast<size_t>(channels);
  const size_t to_bytes = static_cast<size_t>(to_height) * static_cast<size_t>(to_width) * static_cast<size_t>(channels);
  const DeviceBytes picture(*this, from_bytes), resized(*this, to_bytes);
  upload(picture.data(), from, from_bytes);
  resize_on_device(*this, picture.data(), height, width, channels, resized.data(), to_height, to_width, filter);
  download(to, resized.data(), to_bytes);
}

void CudaBackend::patch_rows(const uint8_t* frames, int32_t num_frames, int32_t height, int32_t width, int32_t patch, int32_t merge, int32_t temporal, const float* mean_3, const float* std_3,
                             float* rows) {
  poll();
  const size_t bytes = static_cast<size_t>(num_frames) * static_cast<size_t>(height) * static_cast<size_t>(width) * 3;
  const DeviceBytes pictures(*this, bytes);
  upload(pictures.data(), frames, bytes);
  patch_rows_on_device(*this, pictures.data(), num_frames, height, width, patch, merge, temporal, mean_3, std_3, rows);
}

}  // namespace plumbline
