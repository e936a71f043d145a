#pragma once
// resize and patch_rows for pictures that lie on the device already: image.cu.
#include "cuda_backend.h"

namespace plumbline {

class DeviceBytes {  // until the end of the operation
 public:
  DeviceBytes(CudaBackend& backend, size_t bytes) : backend_(backend), bytes_(bytes), data_(backend.allocate(bytes)) {}
  ~DeviceBytes() { backend_.release(data_, bytes_); }
  DeviceBytes(const DeviceBytes&) = delete;
  DeviceBytes& operator=(const DeviceBytes&) = delete;
  uint8_t* data() const { return static_cast<uint8_t*>(data_); }

 private:
  CudaBackend& backend_;
  size_t bytes_;
  void* data_;
};

void resize_on_device(CudaBackend& backend, const uint8_t* from, int32_t height, int32_t width, int32_t channels, uint8_t* to, int32_t to_height, int32_t to_width, Filter filter);
void patch_rows_on_device(CudaBackend& backend, const uint8_t* frames, int32_t num_frames, int32_t height, int32_t width, int32_t patch, int32_t merge, int32_t temporal, const float* mean_3,
                          const float* std_3, float* rows);

}  // namespace plumbline
