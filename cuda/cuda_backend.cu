// Memory, stream, errors and host arrays of the CUDA backend; its operations are in the other files.
#include "cuda_backend.h"

#include <cmath>
#include <cstring>

#include "cublas.h"

namespace plumbline {
namespace {

constexpr size_t kAlignment = 256;
constexpr uint64_t kKeptBytes = uint64_t{256} << 20;  // the pool gives back to the driver what is freed beyond this
constexpr size_t kScratchStep = size_t{1} << 20;

size_t round_up(size_t value, size_t to) { return (value + to - 1) / to * to; }

__global__ void fill_kernel(float* data, float value, int64_t size) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < size; i += step) data[i] = value;
}

// The launch or allocation did not happen, and nothing else is harmed.
bool is_harmless(cudaError_t status) {
  return status == cudaErrorMemoryAllocation || status == cudaErrorInvalidConfiguration || status == cudaErrorInvalidValue || status == cudaErrorLaunchOutOfResources;
}

}  // namespace

LaunchRecord& launch_record() {
  static thread_local LaunchRecord record;
  return record;
}

std::atomic<int64_t>& launch_count() {
  static std::atomic<int64_t> count{0};
  return count;
}

CudaBackend::CudaBackend() {
  try {
    open();
  } catch (...) {
    close();
    throw;
  }
}

void CudaBackend::open() {
  check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream");
  keep_freed_memory(kKeptBytes);
  void* memory = nullptr;
  check(cudaMallocHost(&memory, kSegments * kSegmentBytes), "staging memory");
  ring_.host = static_cast<char*>(memory);
  ring_.device = static_cast<char*>(allocate(kSegments * kSegmentBytes + sizeof(int32_t)));
  check(cudaMemsetAsync(counter(), 0, sizeof(int32_t), stream_), "staging memory");
  for (cudaEvent_t& event : ring_.passed) check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "event");
}

CudaBackend::~CudaBackend() { close(); }

// Errors here have nobody to go to: the process may be on its way out.
void CudaBackend::close() {
  if (!stream_) return;
  cudaStreamSynchronize(stream_);
  cublas_.reset();
  if (scratch_) cudaFreeAsync(scratch_, stream_);
  if (ring_.device) cudaFreeAsync(ring_.device, stream_);
  cudaStreamSynchronize(stream_);
  for (cudaEvent_t event : ring_.passed)
    if (event) cudaEventDestroy(event);
  if (ring_.host) cudaFreeHost(ring_.host);
  cudaStreamDestroy(stream_);
}

void CudaBackend::check(cudaError_t status, const char* op) {
  if (is_lost_.load()) {
    const std::lock_guard<std::mutex> lock(lost_mutex_);
    fail("ERR_CUDA", "[" + std::string(op) + "] Expected a working CUDA device but an earlier operation failed for good: " + lost_ + "; start a new process");
  }
  if (status == cudaSuccess) return;
  cudaGetLastError();  // what is not sticky must not meet the next launch
  const LaunchRecord& r = launch_record();
  const auto text = [](unsigned v) { return std::to_string(v); };
  const std::string message = "[" + std::string(op) + "] Expected the device to do its work but CUDA reported '" + cudaGetErrorString(status) + "' (error " +
                              std::to_string(static_cast<int>(status)) + "; last launch: grid " + text(r.grid[0]) + " x " + text(r.grid[1]) + " x " + text(r.grid[2]) + ", block " +
                              text(r.block[0]) + ", " + std::to_string(r.shared_bytes) + " bytes of shared memory)";
  if (!is_harmless(status)) {
    const std::lock_guard<std::mutex> lock(lost_mutex_);
    if (lost_.empty()) lost_ = message;
    is_lost_ = true;
  }
  fail(status == cudaErrorMemoryAllocation ? "ERR_OUT_OF_MEMORY" : "ERR_CUDA", message);
}

void CudaBackend::synchronize() { check(cudaStreamSynchronize(stream_), "synchronize"); }

void* CudaBackend::allocate_or_throw(size_t bytes, const char* what) {
  void* data = nullptr;
  const cudaError_t status = cudaMallocAsync(&data, bytes > 0 ? bytes : 1, stream_);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // it is not sticky: forget it
    fail("ERR_OUT_OF_MEMORY", "[" + std::string(what) + "] Expected " + std::to_string(bytes) + " bytes of device memory but the device has not that much left");
  }
  check(status, what);
  return data;
}

void* CudaBackend::allocate(size_t bytes) { return allocate_or_throw(bytes, "allocate"); }

void* CudaBackend::allocate_zeroed(size_t bytes) {
  void* data = allocate(bytes);
  check(cudaMemsetAsync(data, 0, bytes, stream_), "allocate");
  return data;
}

void CudaBackend::release(void* data, size_t) {
  if (data) cudaFreeAsync(data, stream_);  // called by destructors: must not throw
}

void* CudaBackend::scratch(size_t bytes) {
  if (bytes <= scratch_bytes_) return scratch_;
  release(scratch_, scratch_bytes_);  // in stream order: kernels that use it come first
  scratch_ = nullptr, scratch_bytes_ = 0;
  const size_t wanted = round_up(bytes, kScratchStep);
  scratch_ = allocate_or_throw(wanted, "workspace");
  scratch_bytes_ = wanted;
  return scratch_;
}

void CudaBackend::fill(float* data, float value, int64_t size) {
  if (size <= 0) return;
  if (value == 0.0f && !std::signbit(value)) return check(cudaMemsetAsync(data, 0, static_cast<size_t>(size) * sizeof(float), stream_), "fill");
  check(launch(fill_kernel, dim3(blocks_of(size, 256, 4096)), dim3(256), 0, stream_, data, value, size), "fill");
}

void CudaBackend::upload(void* device, const void* host, size_t bytes) {
  poll();
  if (bytes == 0) return;
  if (bytes <= kSegmentBytes) {
    char* staged = ring_.host + take_staging(bytes, "upload");
    std::memcpy(staged, host, bytes);
    return check(cudaMemcpyAsync(device, staged, bytes, cudaMemcpyHostToDevice, stream_), "upload");
  }
  check(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream_), "upload");
  check(cudaStreamSynchronize(stream_), "upload");  // `host` is the caller's again when this returns
}

void CudaBackend::download(void* host, const void* device, size_t bytes) {
  poll();
  if (bytes == 0) return;
  ++downloads_;
  check(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream_), "download");
  check(cudaStreamSynchronize(stream_), "download");
}

void CudaBackend::copy(void* to, const void* from, size_t bytes) {
  if (bytes > 0) check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_), "copy");
}

size_t CudaBackend::take_staging(size_t bytes, const char* op) {
  if (ring_.at + bytes > kSegmentBytes) {
    check(cudaEventRecord(ring_.passed[ring_.segment], stream_), op);
    ring_.is_used[ring_.segment] = true;
    ring_.segment = (ring_.segment + 1) % kSegments;
    ring_.at = 0;
    if (ring_.is_used[ring_.segment]) check(cudaEventSynchronize(ring_.passed[ring_.segment]), op);
  }
  const size_t offset = static_cast<size_t>(ring_.segment) * kSegmentBytes + ring_.at;
  ring_.at += round_up(bytes, kAlignment);
  return offset;
}

size_t CudaBackend::Upload::add_bytes(const void* host, size_t bytes) {
  if (host == nullptr) return kNull;
  const size_t offset = bytes_;
  parts_.push_back({host, offset, bytes});
  bytes_ += round_up(bytes > 0 ? bytes : 1, 16);
  return offset;
}

size_t CudaBackend::Upload::fill_staging() {
  const size_t offset = backend_.take_staging(bytes_, op_);
  for (const Part& part : parts_) std::memcpy(backend_.ring_.host + offset + part.offset, part.host, part.bytes);
  return offset;
}

void CudaBackend::Upload::copy_from_own() {
  std::vector<char> own(bytes_);
  for (const Part& part : parts_) std::memcpy(own.data() + part.offset, part.host, part.bytes);
  device_ = static_cast<char*>(backend_.allocate_or_throw(bytes_, op_));
  is_own_ = true;
  backend_.check(cudaMemcpyAsync(device_, own.data(), bytes_, cudaMemcpyHostToDevice, backend_.stream_), op_);
  backend_.check(cudaStreamSynchronize(backend_.stream_), op_);  // before the host array goes
}

void CudaBackend::Upload::send() {
  if (bytes_ == 0) return;
  if (bytes_ > kSegmentBytes) return copy_from_own();
  const size_t offset = fill_staging();
  const char* host = backend_.ring_.host + offset;
  device_ = backend_.ring_.device + offset;
  // By the copy engine: a kernel that fetches them instead made a decoding step 3 % slower (H200, 28 layers).
  backend_.check(cudaMemcpyAsync(device_, host, bytes_, cudaMemcpyHostToDevice, backend_.stream_), op_);
}

void CudaBackend::Upload::stage() {
  if (bytes_ == 0) return;
  if (bytes_ > kSegmentBytes) return copy_from_own();
  device_ = backend_.ring_.host + fill_staging();
}

CudaBackend::Upload::~Upload() {
  if (is_own_) backend_.release(device_, bytes_);
}

}  // namespace plumbline
