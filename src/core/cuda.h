#pragma once
// The CUDA backend as the rest of the addon knows it: cuda/cuda_backend.cu, or src/no_cuda.cpp where no CUDA compiler was there.
#include <cstdint>
#include <memory>
#include <string>

#include "backend.h"

namespace plumbline {

struct CudaDevice {
  bool is_built = false;     // the addon holds CUDA code
  bool is_usable = false;    // a probe kernel returned the right sum
  std::string reason;        // why it is not usable, and the remedy
  std::string name;          // of the device
  int32_t major = 0, minor = 0, multiprocessors = 0;
  int32_t driver_version = 0, runtime_version = 0;  // 13000: 13.0; 0: none
  int64_t memory_bytes = 0, free_bytes = 0;
};

struct DeviceCounters {      // of the process since a backend was made
  int64_t launches = 0, downloads = 0;  // kernels started; copies to the host, each of which waits for the device
};

bool has_cuda_code();                           // asks no device
CudaDevice probe_cuda();                       // never throws
std::shared_ptr<Backend> make_cuda_backend();  // throws ERR_BACKEND_UNAVAILABLE with the reason
DeviceCounters cuda_counters(const Backend& backend);  // of one that make_cuda_backend gave

}  // namespace plumbline
