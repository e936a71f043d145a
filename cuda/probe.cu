// probe_cuda, make_cuda_backend: whether there is a device that works. The status code is believed, not the device count: without a
// driver the count is not even written.
#include "cuda_backend.h"

namespace plumbline {
namespace {

constexpr int kThreads = 256;

__global__ void probe_kernel(int* sum) { atomicAdd(sum, static_cast<int>(threadIdx.x) + 1); }

std::string version_text(int32_t version) { return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10); }

std::string explain(cudaError_t status, const CudaDevice& device) {
  const std::string said = "CUDA says '" + std::string(cudaGetErrorString(status)) + "'";
  if (device.driver_version == 0) return "no NVIDIA driver was found (" + said + "): install the driver of your GPU, or use device 'cpu'";
  if (status == cudaErrorNoDevice) return "the driver finds no device (" + said + "): check nvidia-smi and CUDA_VISIBLE_DEVICES, or use device 'cpu'";
  if (status == cudaErrorInsufficientDriver || status == cudaErrorUnsupportedPtxVersion)
    return "the driver is for CUDA " + version_text(device.driver_version) + " and this build needs " + version_text(device.runtime_version) + " (" + said + "): update the driver";
  if (status == cudaErrorNoKernelImageForDevice)
    return "this build has no code for compute capability " + std::to_string(device.major) + "." + std::to_string(device.minor) + ", 8.0 is the least: use device 'cpu'";
  return "the device does not run a kernel (" + said + "): check nvidia-smi, or use device 'cpu'";
}

cudaError_t run_probe(bool* is_right) {
  int* sum = nullptr;
  int got = 0;
  cudaStream_t stream = nullptr;
  cudaError_t status = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  if (status != cudaSuccess) return status;
  status = cudaMallocAsync(reinterpret_cast<void**>(&sum), sizeof(int), stream);  // as the backend does: a device without pools is of no use to it
  if (status == cudaSuccess) status = cudaMemsetAsync(sum, 0, sizeof(int), stream);
  if (status == cudaSuccess) status = launch(probe_kernel, dim3(1), dim3(kThreads), 0, stream, sum);
  if (status == cudaSuccess) status = cudaMemcpyAsync(&got, sum, sizeof(int), cudaMemcpyDeviceToHost, stream);
  if (status == cudaSuccess) status = cudaStreamSynchronize(stream);
  if (sum) cudaFreeAsync(sum, stream);
  const cudaError_t destroyed = cudaStreamDestroy(stream);
  *is_right = got == kThreads * (kThreads + 1) / 2;
  return status == cudaSuccess ? destroyed : status;
}

cudaError_t describe(CudaDevice& device) {
  int count = 0, number = 0;
  cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaSuccess && count == 0) status = cudaErrorNoDevice;
  if (status == cudaSuccess) status = cudaGetDevice(&number);
  cudaDeviceProp properties;
  if (status == cudaSuccess) status = cudaGetDeviceProperties(&properties, number);
  if (status != cudaSuccess) return status;
  device.name = properties.name;
  device.major = properties.major, device.minor = properties.minor;
  device.multiprocessors = properties.multiProcessorCount;
  size_t free_bytes = 0, total_bytes = 0;
  status = cudaMemGetInfo(&free_bytes, &total_bytes);
  device.free_bytes = static_cast<int64_t>(free_bytes), device.memory_bytes = static_cast<int64_t>(total_bytes);
  return status;
}

}  // namespace

bool has_cuda_code() { return true; }

CudaDevice probe_cuda() {
  CudaDevice device;
  device.is_built = true;
  if (cudaDriverGetVersion(&device.driver_version) != cudaSuccess) device.driver_version = 0;
  if (cudaRuntimeGetVersion(&device.runtime_version) != cudaSuccess) device.runtime_version = 0;
  bool is_right = false;
  cudaError_t status = describe(device);
  if (status == cudaSuccess) status = run_probe(&is_right);
  cudaGetLastError();
  device.is_usable = status == cudaSuccess && is_right;
  if (status != cudaSuccess) device.reason = explain(status, device);
  else if (!is_right) device.reason = "a test kernel gave a wrong sum: the device or its driver is damaged; use device 'cpu'";
  return device;
}

std::shared_ptr<Backend> make_cuda_backend() {
  const CudaDevice device = probe_cuda();
  require(device.is_usable, "ERR_BACKEND_UNAVAILABLE", "[CudaBackend] Expected a usable CUDA device but " + device.reason);
  return std::make_shared<CudaBackend>();
}

DeviceCounters cuda_counters(const Backend& backend) { return static_cast<const CudaBackend&>(backend).counters(); }

}  // namespace plumbline
