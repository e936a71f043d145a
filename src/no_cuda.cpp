// Linked in place of cuda/ where there is no CUDA compiler.
#include "core/cuda.h"
#include "core/error.h"

namespace plumbline {
namespace {

constexpr const char* kReason = "this build has no CUDA code: install the CUDA toolkit 12.8 or newer (nvcc on the PATH), then npm run build";

}  // namespace

bool has_cuda_code() { return false; }

CudaDevice probe_cuda() {
  CudaDevice device;
  device.reason = kReason;
  return device;
}

std::shared_ptr<Backend> make_cuda_backend() { fail("ERR_BACKEND_UNAVAILABLE", std::string("[CudaBackend] Expected a usable CUDA device but ") + kReason); }

DeviceCounters cuda_counters(const Backend&) { return {}; }

}  // namespace plumbline
