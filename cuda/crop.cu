// crop_patches: a box of a picture at the tower's size, as normalised patch rows.
//        bilinear of the cut box (no pixel outside it takes part), then patch_rows of one frame       (algorithms 3.5)
//   in   uint8 [height, width, 3], box: host        out  f32 rows [gh * gw, 3 * temporal * patch * patch]: device; uint8 pixels [to_height, to_width, 3]: host
//   how  the bits of the CPU backend: resize, or (truncated) the f32 products and fused multiply-adds of src/cpu/crop.cpp, with its tables
//   cost the box goes to the device, not the picture; truncated: 1 launch, a thread per pixel, 12 bytes gathered and 3 written, and that of
//        resize and patch_rows
//   limits: 0 <= x1 < x2 <= width, the same for y; to_height and to_width multiples of patch * merge
#include <cstring>
#include <vector>

#include "../src/core/crop_axis.h"
#include "cuda_backend.h"
#include "image.cuh"

namespace plumbline {
namespace {

constexpr int kThreads = 256;

// A sum of weights may pass 1 by a rounding: 255.00002 still truncates to 255.
__global__ void __launch_bounds__(kThreads) truncated_crop_kernel(const uint8_t* box, int64_t row_bytes, const Neighbours* across, const Neighbours* down, const float* value_256,
                                                                  int32_t to_width, int64_t pixels, uint8_t* to) {
  const int64_t pixel = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (pixel >= pixels) return;
  const Neighbours x = across[pixel % to_width], y = down[pixel / to_width];
  const uint8_t *top = box + y.low * row_bytes, *bottom = box + y.high * row_bytes;
  for (int c = 0; c < 3; ++c) {
    const float a = value_256[top[x.low * 3 + c]], b = value_256[top[x.high * 3 + c]], d = value_256[bottom[x.low * 3 + c]], e = value_256[bottom[x.high * 3 + c]];
    const float above = fmaf(a, y.low_weight * x.low_weight, b * (y.low_weight * x.high_weight));
    const float sum = fmaf(e, y.high_weight * x.high_weight, fmaf(d, y.high_weight * x.low_weight, above));
    to[pixel * 3 + c] = static_cast<uint8_t>(static_cast<int>(sum * 255.0f));
  }
}

}  // namespace

void CudaBackend::crop_patches(const CropPatches& crop, float* rows, uint8_t* pixels) {
  poll();
  const int32_t high = crop.y2 - crop.y1, wide = crop.x2 - crop.x1;
  const size_t row_bytes = static_cast<size_t>(wide) * 3, box_bytes = static_cast<size_t>(high) * row_bytes;
  const size_t out_bytes = static_cast<size_t>(crop.to_height) * static_cast<size_t>(crop.to_width) * 3;
  std::vector<uint8_t> cut(box_bytes);
  for (int32_t y = 0; y < high; ++y) std::memcpy(cut.data() + static_cast<size_t>(y) * row_bytes, crop.image + (int64_t{crop.y1 + y} * crop.width + crop.x1) * 3, row_bytes);
  const DeviceBytes box(*this, box_bytes), out(*this, out_bytes);
  upload(box.data(), cut.data(), box_bytes);
  if (crop.truncated) {
    const std::vector<float> value = crop_values(cut.data(), box_bytes);
    const std::vector<Neighbours> across = crop_axis(wide, crop.to_width), down = crop_axis(high, crop.to_height);
    Upload up(*this, "crop_patches");
    const auto values = up.add(value.data(), 256);
    const auto columns = up.add(across.data(), crop.to_width), lines = up.add(down.data(), crop.to_height);
    up.send();
    const int64_t count = int64_t{crop.to_height} * crop.to_width;
    check(launch(truncated_crop_kernel, dim3(blocks_of(count, kThreads)), dim3(kThreads), 0, stream(), box.data(), static_cast<int64_t>(row_bytes), up[columns], up[lines], up[values],
                 crop.to_width, count, out.data()),
          "crop_patches");
  } else {
    resize_on_device(*this, box.data(), high, wide, 3, out.data(), crop.to_height, crop.to_width, Filter::bilinear);
  }
  patch_rows_on_device(*this, out.data(), 1, crop.to_height, crop.to_width, crop.patch, crop.merge, crop.temporal, crop.mean_3, crop.std_3, rows);
  if (pixels) download(pixels, out.data(), out_bytes);
}

}  // namespace plumbline
