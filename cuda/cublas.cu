// The loader of cuBLAS and its one call. The prototypes and constants below are those of its public C interface, written by hand.
#include "cublas.h"

#include <dlfcn.h>

namespace plumbline {
namespace {

constexpr int kSuccess = 0, kNoTranspose = 0, kTranspose = 1;
constexpr int kPedanticMath = 2;  // f32 products and f32 sums, whatever NVIDIA_TF32_OVERRIDE says
constexpr int kMajor = 0, kMinor = 1, kPatch = 2;
constexpr int64_t kLargest = 0x7fffffff;

}  // namespace

struct Cublas::Library {
  void* file = nullptr;
  int (*create)(void** handle) = nullptr;
  int (*destroy)(void* handle) = nullptr;
  int (*set_stream)(void* handle, cudaStream_t stream) = nullptr;
  int (*set_math_mode)(void* handle, int mode) = nullptr;
  int (*get_property)(int which, int* value) = nullptr;
  int (*sgemm)(void* handle, int transpose_a, int transpose_b, int m, int n, int k, const float* alpha, const float* a, int lda, const float* b, int ldb,
               const float* beta, float* c, int ldc) = nullptr;

  Library() {
    for (const char* name : {"libcublas.so.13", "libcublas.so.12"})
      if (!file) file = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  }
  ~Library() {
    if (file) dlclose(file);
  }
  template <typename Function>
  bool find(Function& function, const char* name) {
    function = reinterpret_cast<Function>(dlsym(file, name));
    return function != nullptr;
  }
  bool is_complete() {
    return file && find(create, "cublasCreate_v2") && find(destroy, "cublasDestroy_v2") && find(set_stream, "cublasSetStream_v2") &&
           find(set_math_mode, "cublasSetMathMode") && find(get_property, "cublasGetProperty") && find(sgemm, "cublasSgemm_v2");
  }
};

std::unique_ptr<Cublas> Cublas::load(cudaStream_t stream) {
  if (kIsEmulated) return nullptr;
  std::unique_ptr<Cublas> blas(new Cublas);
  blas->library_ = std::make_unique<Library>();
  Library& library = *blas->library_;
  if (!library.is_complete() || library.create(&blas->handle_) != kSuccess) return nullptr;
  if (library.set_stream(blas->handle_, stream) != kSuccess || library.set_math_mode(blas->handle_, kPedanticMath) != kSuccess) return nullptr;
  int version[3] = {0, 0, 0};
  for (const int part : {kMajor, kMinor, kPatch}) library.get_property(part, &version[part]);
  blas->version_ = std::to_string(version[0]) + "." + std::to_string(version[1]) + "." + std::to_string(version[2]);
  return blas;
}

Cublas::~Cublas() {
  if (handle_) library_->destroy(handle_);
}

bool Cublas::takes(const Product& p) {
  const bool is_small = p.M <= kLargest && p.N <= kLargest && p.K <= kLargest;  // every leading dimension is one of them
  return is_small && !p.b_is_bf16 && (p.a_row == 1 || p.a_col == 1) && (p.b_row == 1 || p.b_col == 1);
}

// cuBLAS is column-major: row-major c = a b is c^T = b^T a^T there, and a row-major operand is its own transpose.
bool Cublas::multiply(const Product& p, bool add) {
  const float one = 1.0f, beta = add ? 1.0f : 0.0f;
  const bool b_is_rows = p.b_col == 1, a_is_rows = p.a_col == 1;
  const int M = static_cast<int>(p.M), N = static_cast<int>(p.N), K = static_cast<int>(p.K);
  return library_->sgemm(handle_, b_is_rows ? kNoTranspose : kTranspose, a_is_rows ? kNoTranspose : kTranspose, N, M, K, &one,
                         static_cast<const float*>(p.b), b_is_rows ? N : K, p.a, a_is_rows ? K : M, &beta, p.c_MN, N) == kSuccess;
}

}  // namespace plumbline
