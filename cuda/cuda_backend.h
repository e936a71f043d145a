#pragma once
// The CUDA backend: every operation of Backend, one .cu per family beside this file, on one device and one stream. Calls return when
// their kernels are queued, except where a result is host memory. Index arrays come from the host: an operation sends all of its own
// in one copy (Upload).
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "../src/core/backend.h"
#include "../src/core/cuda.h"
#include "../src/core/error.h"
#include "launch.cuh"

namespace plumbline {

class Cublas;    // cublas.h
struct Product;  // product.h

// Attention keeps a row of a head in registers.
constexpr int32_t kMaxHeadSize = 256;
inline void require_head_size(const char* op, int32_t d) {
  require(d <= kMaxHeadSize, "ERR_UNSUPPORTED",
          std::string("[") + op + "] Expected a head size of at most " + std::to_string(kMaxHeadSize) + " on device 'cuda' but received " + std::to_string(d) + "; use device 'cpu'");
}

class CudaBackend final : public Backend {
 public:
  CudaBackend();  // throws ERR_CUDA
  ~CudaBackend() override;
  const char* name() const override { return "cuda"; }

  cudaStream_t stream() const { return stream_; }
  // Throws ERR_CUDA unless the status is success; `op` names the operation whose launch it was.
  void check(cudaError_t status, const char* op);
  // Device memory for the running operation, 256-byte aligned; the next call of scratch() takes it back.
  void* scratch(size_t bytes);
  int32_t* counter() { return reinterpret_cast<int32_t*>(ring_.device + kSegments * kSegmentBytes); }  // 0; a kernel that counts in it leaves it so
  void synchronize();
  const char* gemm_library();  // what computes large f32 products: "cublas 13.0.2" or "own kernels"
  DeviceCounters counters() const { return {launch_count().load() - launches_before_, downloads_.load()}; }

  // Host arrays on their way to the device in one copy. The memory is valid for kernels of this operation.
  //   Upload up(*this, "rows");
  //   const auto rows = up.add(from_row, n);   // a handle, n elements; a null array gives a null pointer
  //   up.send();
  //   launch(..., up[rows], ...)
  class Upload {
   public:
    template <typename T>
    struct Handle {
      size_t offset;
    };
    Upload(CudaBackend& backend, const char* op) : backend_(backend), op_(op) {}
    ~Upload();
    Upload(const Upload&) = delete;
    Upload& operator=(const Upload&) = delete;
    template <typename T>
    Handle<T> add(const T* host, int64_t count) {
      return Handle<T>{add_bytes(host, host ? static_cast<size_t>(count) * sizeof(T) : 0)};
    }
    void send();
    // Or: kernels read the staging memory itself over the bus, 1 to 2 us a read and no copy before them. For what few blocks read, each
    // once and early; they must be launched before the next Upload.
    void stage();
    template <typename T>
    const T* operator[](Handle<T> handle) const {
      return handle.offset == kNull ? nullptr : reinterpret_cast<const T*>(device_ + handle.offset);
    }

   private:
    static constexpr size_t kNull = SIZE_MAX;
    struct Part {
      const void* host;
      size_t offset, bytes;
    };
    size_t add_bytes(const void* host, size_t bytes);
    size_t fill_staging();  // offset in the ring
    void copy_from_own();   // what is too large for it
    CudaBackend& backend_;
    const char* op_;
    std::vector<Part> parts_;
    size_t bytes_ = 0;
    char* device_ = nullptr;
    bool is_own_ = false;  // too large for the ring: memory of its own
  };

  void* allocate(size_t bytes) override;
  void* allocate_zeroed(size_t bytes) override;
  void release(void* data, size_t bytes) override;
  void fill(float* data, float value, int64_t size) override;
  void upload(void* device, const void* host, size_t bytes) override;
  void download(void* host, const void* device, size_t bytes) override;
  void copy(void* to, const void* from, size_t bytes) override;

  void linear(const float* x_MK, const Weight& w_NK, const float* bias_N, float* y_MN, int64_t M, bool accumulate) override;
  void linear_grad_input(const float* dy_MN, const Weight& w_NK, float* dx_MK, int64_t M, bool accumulate) override;
  void linear_grad_weight(const float* dy_MN, const float* x_MK, float* dw_NK, float* db_N, int64_t M, int64_t N, int64_t K) override;

  void rms_norm(const float* x_TC, const float* w_C, float eps, float* y_TC, float* rstd_T, int64_t T, int64_t C) override;
  void rms_norm_grad(const float* dy_TC, const float* x_TC, const float* w_C, const float* rstd_T, float* dx_TC, float* dw_C,
                     float* dx_norm_T, int64_t T, int64_t C, bool accumulate_dx) override;
  void layer_norm(const float* x_TC, const float* w_C, const float* b_C, float eps, float* y_TC, float* mean_T, float* rstd_T, int64_t T,
                  int64_t C) override;
  void layer_norm_grad(const float* dy_TC, const float* x_TC, const float* w_C, const float* mean_T, const float* rstd_T, float* dx_TC,
                       float* dw_C, float* db_C, int64_t T, int64_t C, bool accumulate_dx) override;
  void swiglu(const float* gate_up_T2I, float* out_TI, int64_t T, int64_t I) override;
  void swiglu_grad(const float* gate_up_T2I, const float* dout_TI, float* dgate_up_T2I, int64_t T, int64_t I) override;
  void activate(Activation kind, const float* x, float* y, int64_t size) override;
  void activate_grad(Activation kind, const float* x, const float* dy, float* dx, int64_t size) override;

  void rotary(float* x, int64_t row_stride, int32_t heads, int32_t d, const float* cos_Th, const float* sin_Th, int64_t T,
              bool inverse) override;
  void rotate_store(const AttentionShape& shape, float* qkv, const float* cos_Th, const float* sin_Th, const int32_t* first_row_B,
                    const KeyValuePages& pages, float* last_q_BHd) override;
  void attention(const AttentionShape& shape, const float* q, const KeyValuePages& pages, float* out_THd, float* lse_TH) override;
  void attention_grad(const AttentionShape& shape, const float* q, const KeyValuePages& pages, const float* out_THd, const float* lse_TH,
                      const float* dout_THd, float* dq, float* const* dk, float* const* dv) override;
  void scatter_to_pages(const AttentionShape& shape, const int32_t* first_row_B, const float* k_rows, const float* v_rows,
                        int64_t src_row_stride, const KeyValuePages& pages) override;
  void gather_from_pages(const AttentionShape& shape, const int32_t* first_row_B, float* k_rows, float* v_rows, int64_t row_stride,
                         const KeyValuePages& pages) override;

  void ragged_attention(const RaggedAttention& shape, const void* q, const void* k, const void* v, void* out, float* lse_TH) override;
  void ragged_attention_grad(const RaggedAttention& shape, const void* q, const void* k, const void* v, const void* out, const float* lse_TH,
                             const void* dout, void* dq, void* dk, void* dv) override;
  void attention_saliency(const AttentionShape& shape, const LastQueries& queries, const KeyValuePages& pages, const SaliencyColumns& columns,
                          float scale, float* saliency_N) override;
  void attention_saliency_grad(const AttentionShape& shape, const float* q, const KeyValuePages& pages, const float* lse_TH,
                               const SaliencyColumns& columns, float scale, const float* dsaliency_N, float* dq, float* const* dk) override;
  void select_patches(const ReplayRule& rule, const ReplayLayout& layout, const float* saliency_N, uint8_t* used_N, int32_t* selected,
                      float* weight, int32_t* window_B6, const ReplayRows* rows) override;
  void select_patches_grad(const ReplayRule& rule, const ReplayLayout& layout, const float* saliency_N, const int32_t* selected,
                           const float* weight, const float* dweight, float* dsaliency_N) override;
  void weighted_rows(const float* from, const int32_t* from_row, const float* weight, const int32_t* cu_R1, float* out_RC, int64_t R,
                     int64_t C) override;
  void weighted_rows_grad(const float* from, const int32_t* from_row, const float* weight, const int32_t* cu_R1, const float* dout_RC,
                          float* dweight, float* dfrom, int64_t R, int64_t C) override;
  void crop_patches(const CropPatches& crop, float* rows, uint8_t* pixels) override;
  void route_tokens(const RouteTokens& route, const float* scores_T, int32_t* rows, int32_t* cu_routed_B1, int32_t* order, RouteGate gate,
                    float* gates_T) override;
  void route_gates(RouteGate kind, int32_t B, const int32_t* cu_B1, const float* scores_T, float* gates_T) override;
  void route_gates_grad(RouteGate kind, int32_t B, const int32_t* cu_B1, const float* gates_T, const float* dgates_T, float* dscores_T) override;
  void gather_rms_norm(const float* h_TC, const int32_t* row_n, const float* step_C, const float* w_C, float eps, float* x_nC, float* y_nC,
                       float* rstd_n, int64_t n, int64_t C, const RotaryRows* rotary) override;
  void gated_scatter(Fusion fusion, const float* y_nC, const float* gate, const int32_t* at_n, const float* step_C, float* h_TC,
                     const int32_t* row_n, int64_t n, int64_t C) override;
  void gated_scatter_grad(Fusion fusion, const float* y_nC, const float* base, const float* gate, const int32_t* at_n, const float* step_C,
                          float* dh_TC, const int32_t* row_n, float* dy_nC, float* dgate, float* dstep_C, int64_t n, int64_t C) override;

  void copy_rows(const Weight& from, const int32_t* from_row, float* to_TC, const int32_t* to_row, int64_t n) override;
  void add_rows(const float* from_TC, const int32_t* from_row, float* to, const int32_t* to_row, int64_t n, int64_t C) override;
  void scale_columns(const float* from, int64_t from_stride, float scale, float* to, int64_t to_stride, int64_t T, int64_t C, bool accumulate) override;
  void dropout(const float* x, float rate, uint64_t key, float* y, int64_t size, bool accumulate) override;
  void cross_entropy(const float* logits_RV, const int32_t* targets_R, float scale, float* loss_R, int32_t* argmax_R, float* dlogits_RV,
                     int64_t R, int64_t V) override;
  void square_loss(const float* a_RC, const float* b_RC, float* loss_R, int64_t R, int64_t C) override;
  void square_loss_grad(const float* a_RC, const float* b_RC, const float* scale_R, float* da_RC, float* db_RC, int64_t R, int64_t C) override;
  void grad_norm(const void* x_TC, DType dtype, const uint8_t* class_T, int32_t classes, float scale, float* norm_T,
                 NormStatistics* statistics_K, int64_t T, int64_t C) override;
  void norm_statistics(const float* norm_T, const uint8_t* class_T, int32_t classes, float scale, NormStatistics* statistics_K, int64_t T) override;
  void gram(const MatrixBatch& matrices, double* gram) override;
  void symmetric_eigenvalues(int32_t count, const int32_t* size_B, double* matrices, double* values) override;
  double sum_squares(const FloatSpan* spans, int64_t count, DType dtype) override;
  void adamw(const AdamWUpdate& update) override;
  void fill_normal(float* x, int64_t size, int64_t first, uint64_t key, float scale) override;
  int64_t first_non_finite(const void* x, DType dtype, int64_t size) override;
  void patch_rows(const uint8_t* frames, int32_t num_frames, int32_t height, int32_t width, int32_t patch, int32_t merge,
                  int32_t temporal, const float* mean_3, const float* std_3, float* rows) override;
  void resize(const uint8_t* from, int32_t height, int32_t width, int32_t channels, uint8_t* to, int32_t to_height, int32_t to_width,
              Filter filter) override;

 private:
  friend class Upload;
  // Staging memory goes round in segments; one is used again when the device has passed its event.
  static constexpr size_t kSegmentBytes = size_t{1} << 20;
  static constexpr int kSegments = 4;
  struct Ring {
    char *host = nullptr, *device = nullptr;
    cudaEvent_t passed[kSegments] = {};
    bool is_used[kSegments] = {};
    int segment = 0;
    size_t at = 0;
  };
  void open();
  void close();
  void* allocate_or_throw(size_t bytes, const char* what);
  size_t take_staging(size_t bytes, const char* op);  // offset in the ring
  Cublas* cublas();     // opened when first asked for; null where it is not there
  void multiply(const Product& product, const char* op);  // linear.cu

  cudaStream_t stream_ = nullptr;
  Ring ring_;
  void* scratch_ = nullptr;
  size_t scratch_bytes_ = 0;
  const int64_t launches_before_ = launch_count().load();
  std::atomic<int64_t> downloads_{0};
  std::unique_ptr<Cublas> cublas_;
  bool cublas_was_tried_ = false;
  std::string gemm_library_ = "own kernels";
  std::atomic<bool> is_lost_{false};
  std::mutex lost_mutex_;
  std::string lost_;        // under the mutex: message of the error after which the device cannot be used. Tensors are made on another thread
};

}  // namespace plumbline
