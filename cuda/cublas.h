#pragma once
// cuBLAS, where this machine has it: opened at run time, so that the addon neither links it nor needs its headers. Without it, and in
// the host emulation, load() answers nullptr and the kernels of gemm.cu do the work.
#include <memory>
#include <string>

#include "product.h"

namespace plumbline {

class Cublas {
 public:
  // A handle on the stream, or nullptr where the library is not there or does not start. Calls on it come from one thread.
  static std::unique_ptr<Cublas> load(cudaStream_t stream);
  ~Cublas();
  Cublas(const Cublas&) = delete;
  Cublas& operator=(const Cublas&) = delete;
  // Sizes and leading dimensions are int there; both operands must be f32 with one unit stride.
  static bool takes(const Product& p);
  // c = a b, or c += a b. In f32 throughout: no TF32, no reduced-precision sums. The bias is the caller's. False: cuBLAS refused.
  bool multiply(const Product& p, bool add);
  const std::string& version() const { return version_; }  // "13.0.2"

 private:
  struct Library;
  Cublas() = default;
  std::unique_ptr<Library> library_;
  void* handle_ = nullptr;
  std::string version_;
};

}  // namespace plumbline
