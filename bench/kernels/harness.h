#pragma once
// What the kernel ladders share: device memory, a check before every timing, and the device's own roofs. Built by nvcc, needs no Node:
//   cmake -S . -B .cache/kernels -DPLUMBLINE_BENCH=ON && cmake --build .cache/kernels --target bench_kernels && .cache/kernels/bench_kernels
// A ladder is one file, bench/kernels/<family>.cu, with one function of main.cu's list. Versions run from naive to fast; the last one is
// what cuda/ ships, called through CudaBackend. Each version is compared with a reference in double first; a wrong one is never timed.
// Times: CUDA events around one call, caches full of other, clean lines before it (cold), warm-up, then the median, p10 and p90 of at least 20.
#include <functional>
#include <string>
#include <vector>

#include "../../cuda/cuda_backend.h"

namespace plumbline_bench {

using plumbline::CudaBackend;

struct Entry {
  std::string op;       // "grad_norm"
  std::string version;  // "1 one thread per row", ..., "5 shipped"
  std::string what;     // shape and dtype
  double bytes = 0;     // compulsory traffic: each input read once, each output written once
  double flops = 0;     // for what arithmetic bounds; 0: memory alone
};

class Harness {
 public:
  struct Options {
    bool check_only = false;  // no timing, and small sizes: for an interpreter
    std::string only;         // op names that contain it
    std::string json;         // file
    int repeats = 30;
  };
  explicit Harness(Options options);

  CudaBackend& backend() { return backend_; }
  cudaStream_t stream() const { return backend_.stream(); }
  bool wants(const std::string& op) const { return op.find(options_.only) != std::string::npos; }
  bool check_only() const { return options_.check_only; }

  // `run` queues the work on stream(); `error` fetches the result and gives its largest error as a share of the tolerance (NaN or
  // above 1: wrong). reset (may be empty) restores what run changes in place, before every call, outside the time.
  void measure(const Entry& entry, const std::function<void()>& run, const std::function<double()>& error, const std::function<void()>& reset = {});
  void check(cudaError_t status) { backend_.check(status, "bench"); }

  template <typename T>
  T* upload(const std::vector<T>& values) {
    T* data = static_cast<T*>(allocate(values.size() * sizeof(T)));
    backend_.upload(data, values.data(), values.size() * sizeof(T));
    return data;
  }
  void* allocate(size_t bytes);  // until clear()
  template <typename T>
  std::vector<T> download(const T* device, size_t count) {
    std::vector<T> values(count);
    backend_.download(values.data(), device, count * sizeof(T));
    return values;
  }
  void clear();
  int finish();  // prints the table and writes the JSON; 1 when a version was wrong

 private:
  struct Row {
    Entry entry;
    double median = 0, p10 = 0, p90 = 0, error = 0;
    bool is_right = false;
  };
  void measure_roof();
  double seconds(const std::function<void()>& run);
  Options options_;
  CudaBackend backend_;
  std::vector<void*> memory_;
  std::vector<Row> rows_;
  void* flush_ = nullptr;
  cudaEvent_t start_ = nullptr, stop_ = nullptr;
  double copy_bytes_per_second_ = 0;
};

// Values of a fixed generator: normal-like, mean 0, and the same on every machine.
std::vector<float> noise(size_t size, uint64_t seed, float scale = 1.0f);

}  // namespace plumbline_bench
