#include "harness.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace plumbline_bench {
namespace {

constexpr size_t kFlushBytes = size_t{512} << 20;  // several times any L2
constexpr size_t kCopyBytes = size_t{1} << 30;

std::string escaped(const std::string& text) {
  std::string out;
  for (char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out;
}

// Fills the caches with lines that need no writing back: after a memset alone, the timed call would pay for writing an L2 of them to memory.
__global__ void read_kernel(const uint4* data, int64_t size, unsigned* seen) {
  unsigned bits = 0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < size; i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const uint4 v = data[i];
    bits |= v.x | v.y | v.z | v.w;
  }
  if (bits != 0) *seen = bits;  // never, all is 0: but the loads stay
}

}  // namespace

std::vector<float> noise(size_t size, uint64_t seed, float scale) {
  std::vector<float> values(size);
  uint64_t state = seed * 0x9e3779b97f4a7c15ull + 0x1234567ull;
  const auto next = [&] {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return static_cast<double>(state >> 11) * 0x1p-53;
  };
  for (float& value : values) value = scale * static_cast<float>(next() + next() + next() + next() - 2.0) * 1.7320508f;
  return values;
}

Harness::Harness(Options options) : options_(std::move(options)) {
  check(cudaEventCreate(&start_));
  check(cudaEventCreate(&stop_));
  if (options_.check_only) return;
  check(cudaMalloc(&flush_, kFlushBytes));
  check(cudaMemsetAsync(flush_, 0, kFlushBytes, stream()));
  measure_roof();
}

double Harness::seconds(const std::function<void()>& run) {
  if (flush_)
    check(plumbline::launch(read_kernel, dim3(1056), dim3(256), 0, stream(), static_cast<const uint4*>(flush_), static_cast<int64_t>(kFlushBytes / sizeof(uint4)), static_cast<unsigned*>(flush_)));
  check(cudaEventRecord(start_, stream()));
  run();
  check(cudaEventRecord(stop_, stream()));
  check(cudaEventSynchronize(stop_));
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, start_, stop_));
  return static_cast<double>(milliseconds) * 1e-3;
}

void Harness::measure_roof() {
  void *from = nullptr, *to = nullptr;
  check(cudaMalloc(&from, kCopyBytes));
  check(cudaMalloc(&to, kCopyBytes));
  check(cudaMemsetAsync(from, 1, kCopyBytes, stream()));
  std::vector<double> times;
  for (int i = 0; i < 20; ++i) times.push_back(seconds([&] { check(cudaMemcpyAsync(to, from, kCopyBytes, cudaMemcpyDeviceToDevice, stream())); }));
  std::sort(times.begin(), times.end());
  copy_bytes_per_second_ = 2.0 * static_cast<double>(kCopyBytes) / times[times.size() / 2];
  check(cudaFree(from));
  check(cudaFree(to));
}

void Harness::measure(const Entry& entry, const std::function<void()>& run, const std::function<double()>& error, const std::function<void()>& reset) {
  Row row;
  row.entry = entry;
  if (reset) reset();
  run();
  backend_.synchronize();
  row.error = error();
  row.is_right = row.error <= 1.0;  // false for NaN
  if (row.is_right && !options_.check_only) {
    std::vector<double> times;
    for (int i = -3; i < std::max(20, options_.repeats); ++i) {
      if (reset) reset();
      const double taken = seconds(run);
      if (i >= 0) times.push_back(taken);
    }
    std::sort(times.begin(), times.end());
    const auto at = [&](double share) { return times[static_cast<size_t>(share * static_cast<double>(times.size() - 1) + 0.5)]; };
    row.median = at(0.5), row.p10 = at(0.1), row.p90 = at(0.9);
  }
  rows_.push_back(row);
}

void* Harness::allocate(size_t bytes) {
  memory_.push_back(backend_.allocate(bytes));
  return memory_.back();
}

void Harness::clear() {
  for (void* data : memory_) backend_.release(data, 0);
  memory_.clear();
}

int Harness::finish() {
  const plumbline::CudaDevice device = plumbline::probe_cuda();
  std::printf("%s, compute capability %d.%d; device-to-device copy %.0f GB/s (bytes read and written); caches cold; medians of %d\n\n", device.name.c_str(), device.major, device.minor,
              copy_bytes_per_second_ * 1e-9, std::max(20, options_.repeats));
  std::printf("| %-22s | %-34s | %-34s | %9s | %9s | %9s | %6s | %8s | %7s | %5s |\n", "operation", "version", "size", "median us", "p10", "p90", "GB/s", "of copy", "TFLOP/s", "error");
  bool is_good = !rows_.empty();
  for (const Row& row : rows_) {
    is_good = is_good && row.is_right;
    const double rate = row.median > 0 ? row.entry.bytes / row.median : 0;
    char flops[16] = "";  // where they bound the operation
    if (row.entry.flops > 0 && row.median > 0) std::snprintf(flops, sizeof flops, "%.1f", row.entry.flops / row.median * 1e-12);
    std::printf("| %-22s | %-34s | %-34s | %9.2f | %9.2f | %9.2f | %6.0f | %6.1f %% | %7s | %5.2f |%s\n", row.entry.op.c_str(), row.entry.version.c_str(), row.entry.what.c_str(), row.median * 1e6,
                row.p10 * 1e6, row.p90 * 1e6, rate * 1e-9, copy_bytes_per_second_ > 0 ? 100 * rate / copy_bytes_per_second_ : 0.0, flops, row.error, row.is_right ? "" : " WRONG");
  }
  if (!options_.json.empty()) {
    std::FILE* file = std::fopen(options_.json.c_str(), "w");
    if (!file) return std::fprintf(stderr, "cannot write %s\n", options_.json.c_str()), 1;
    std::fprintf(file, "{\"device\": \"%s\", \"capability\": \"%d.%d\", \"copyBytesPerSecond\": %.6g, \"rows\": [", escaped(device.name).c_str(), device.major, device.minor, copy_bytes_per_second_);
    for (size_t i = 0; i < rows_.size(); ++i) {
      const Row& row = rows_[i];
      std::fprintf(file, "%s\n {\"op\": \"%s\", \"version\": \"%s\", \"what\": \"%s\", \"bytes\": %.0f, \"flops\": %.0f, \"seconds\": {\"median\": %.6g, \"p10\": %.6g, \"p90\": %.6g}, \"isRight\": %s}", i ? "," : "",
                   escaped(row.entry.op).c_str(), escaped(row.entry.version).c_str(), escaped(row.entry.what).c_str(), row.entry.bytes, row.entry.flops, row.median, row.p10, row.p90,
                   row.is_right ? "true" : "false");
    }
    std::fprintf(file, "\n]}\n");
    std::fclose(file);
  }
  std::printf("\n%zu versions, %s\n", rows_.size(), is_good ? "all right" : "SOME WRONG");
  return is_good ? 0 : 1;
}

}  // namespace plumbline_bench
