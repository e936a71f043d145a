#pragma once
// One method per operation. Pointers are device pointers of the backend (host memory on the CPU), f32 unless said
// otherwise; index arrays (`int32_t`), page tables and structs are host memory. Arguments are already checked: a backend
// validates nothing but what it cannot support. Every method is deterministic for a given thread count: no result may
// depend on which thread ran which tile. Methods throw Error or Cancelled, never abort.
//
// Dimensions: T packed rows of a pass, B sequences, C channels, D hidden, M N K of a GEMM, H query heads, Hkv key/value
// heads, d head size, I intermediate, V vocabulary. A suffix gives the shape: x_TC is [T, C], row-major.
#include <cstddef>
#include <cstdint>

#include "cancel.h"
#include "dtype.h"

namespace plumbline {

struct Weight {  // a matrix parameter, [rows, cols] row-major
  const void* data;
  DType dtype;  // f32 | bf16
  int64_t rows, cols;
};

enum class Activation { quick_gelu, erf_gelu, silu, relu };
enum class Filter { bilinear, bicubic };

// Where the keys and values of each sequence lie. Key row r of sequence b, kv head h, is in page
// p = page_start[b] + r / page_rows at k[p] + h * head_stride + (r % page_rows) * row_stride, d contiguous floats.
struct KeyValuePages {
  float* const* k;
  float* const* v;
  const int32_t* page_start_B1;
  int64_t head_stride, row_stride;
  int32_t page_rows;
};

struct AttentionShape {
  int32_t B;
  const int32_t* cu_q_B1;    // query rows of sequence b: cu_q[b] .. cu_q[b+1]; may be empty
  const int32_t* kv_len_B;   // keys of sequence b; when causal, its last query row sees all of them, the one before one less, ...
  int32_t H, Hkv, d;
  float scale;
  bool causal;
  int64_t q_row_stride;      // query row t, head h at q + t * q_row_stride + h * d
};

// Packed sequences without a cache (plumbline/kernels): q [T, H, d], k and v [S, Hkv, d], side by side. When causal, the last query
// row of a sequence sees all its keys.
struct RaggedAttention {
  DType dtype;               // f32 | f16 | bf16 of q, k, v, out; sums are f32
  int32_t B;
  const int32_t* cu_q_B1;
  const int32_t* cu_k_B1;
  int32_t H, Hkv, d;
  float scale;
  bool causal;
};

// Tables of the rotary angles for some rows of a pass, gathered with them.
struct RotaryRows {
  const float* cos_Th;
  const float* sin_Th;
  float* cos_nh;
  float* sin_nh;
  int64_t half;              // d/2
};

// The last query rows of the sequences in every layer of a pass. Layer l, sequence b: the turned row at q_L[l] + q_row_B[b] *
// q_row_stride, [H * d], its log-sum-exp at lse_L[l] + lse_row_B[b] * H. Negative rows: the sequence is passed over.
struct LastQueries {
  int32_t layers;
  const float* const* q_L;
  const float* const* lse_L;
  const int32_t* q_row_B;
  const int32_t* lse_row_B;
  int64_t q_row_stride;
  int64_t page_layer_stride; // floats between a page's keys of one layer and those of the next
};

// Image tokens of the sequences of a pass, as key rows of their sequence: columns_N[cu_columns[b] .. cu_columns[b+1]).
struct SaliencyColumns {
  const int32_t* cu_columns_B1;
  const int32_t* columns_N;
};

// Visual replay (algorithms, section 3). How patches are chosen and weighted.
enum class ReplayWeights { softmax, mean_preserving };
struct ReplayRule {
  int32_t patches;        // K: at most so many a step
  int32_t window;         // W: side of the coherent window, in merged patches
  int32_t grid;           // side of a fixed square grid for the window (official); 0: each picture's own
  ReplayWeights weights;  // mean_preserving: w_i = rows a_i / sum a; softmax: of the raw probabilities
  bool mix;               // one row, the weighted sum: mean-preserving weights then sum to 1
  bool reselect_used;     // official: used tokens stay in the running with score -inf and weight 0, and K >= N takes N - 1
  bool topk_order;        // official: rows ascending by index, the lowest score last; else best first
};
struct ReplayLayout {
  int32_t B;
  const int32_t* cu_tokens_B1;    // candidates (image tokens) of sequence b
  const int32_t* cu_pictures_B1;
  const int32_t* grid_P2;         // rows and columns of each picture's merged grid; they fill the candidates in order
  const int32_t* cu_selected_B1;  // places in the selection, as replay_count() of core/replay.h says: the host knows them
};

// Where a step's replayed rows come from and go to: candidate i is from[row_N[i]]. cu_rows: rows of each sequence's block, one for
// each selected token (or one in all, `mix`).
struct ReplayRows {
  const float* from;
  const int32_t* row_N;
  const int32_t* cu_rows_B1;
  float* out_RC;
  int64_t C;
};

// Crop + 8-bit bilinear resize + normalise + patchify of one RGB picture.
struct CropPatches {
  const uint8_t* image;           // [height, width, 3]
  int32_t height, width;
  int32_t x1, y1, x2, y2;         // box in pixels, the ends outside
  int32_t to_height, to_width;    // multiples of patch * merge
  int32_t patch, merge, temporal;
  const float* mean_3;
  const float* std_3;
  bool truncated;                 // official: float bilinear without antialiasing, truncated to 8 bits
};

// Routing depth scaling (algorithms, section 4).
enum class RouteRule { threshold, prefix_topk, topk };
enum class RouteGate { sigmoid, raw, softmax_sequence };
enum class Fusion { interpolate, plain, scaled };  // h + g (y - h) | h + g y | h + g y (1 + step)
struct RouteTokens {
  RouteRule rule;
  int32_t B;
  const int32_t* cu_B1;     // candidates of sequence b
  const float* threshold;   // rule threshold: device, one value: routed where score > threshold
  int32_t alpha;            // the other rules
  float* const* best_B;     // prefix_topk: the alpha best scores of each sequence so far, best first, and their number; brought up
  int32_t* best_count_B;    // to date. Null for the other rules
};

// Gradient-norm profiling (algorithms, section 7).
constexpr int32_t kNormBins = 256;  // bin of a norm: 4 per octave, bits of the float: see norm_bin()
struct NormStatistics {      // of the finite norms of one class; all bytes zero: none yet
  double mean, m2;           // m2: sum of squared deviations (Welford; sets merged by Chan's formula, in order of rows)
  float min, max;            // meaningless while count is 0
  int64_t count, not_finite; // NaN and infinite norms are counted there alone
  int32_t histogram[kNormBins];
};
// Bin of a finite norm >= 0: four to an octave, from 2^-40 (and below) to 2^24 (and above).
inline int32_t norm_bin_of_bits(uint32_t bits) {
  const int32_t bin = static_cast<int32_t>(bits >> 21) - ((127 - 40) << 2);
  return bin < 0 ? 0 : bin >= kNormBins ? kNormBins - 1 : bin;
}

struct FloatSpan {           // a tensor, or part of one
  const void* data;
  int64_t size;
};
struct MatrixBatch {         // row-major matrices of one dtype
  DType dtype;               // f32 | f16 | bf16
  int32_t count;
  const void* const* data;   // host array of device pointers
  const int32_t* rows;
  const int32_t* cols;
};

struct AdamWUpdate {         // one parameter tensor
  float* master;             // f32 weight that is updated
  uint16_t* working;         // bf16 copy written after the update, or null
  const float* gradient;
  float* first;
  float* second;
  int64_t size;
  double learning_rate, beta1, beta2, epsilon, weight_decay;  // doubles: 1 - 0.999f is off by 1e-5
  float clip_factor;         // gradient is multiplied by this
  int64_t step;              // counts from 1
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual const char* name() const = 0;
  virtual bool has_host_memory() const { return false; }  // device pointers are host pointers
  void set_cancel(const CancelFlag* flag) { cancel_ = flag; }  // flag of the running job, or null
  void poll() const {                                          // for loops outside the operations
    if (cancel_ && cancel_->is_set()) throw Cancelled{};
  }

  // Memory: 64-byte aligned, contents undefined. Throws ERR_OUT_OF_MEMORY naming the size.
  virtual void* allocate(size_t bytes) = 0;
  virtual void* allocate_zeroed(size_t bytes) = 0;  // large blocks are zero without being touched
  virtual void release(void* data, size_t bytes) = 0;
  virtual void fill(float* data, float value, int64_t size) = 0;
  virtual void upload(void* device, const void* host, size_t bytes) = 0;
  virtual void download(void* host, const void* device, size_t bytes) = 0;
  virtual void copy(void* to, const void* from, size_t bytes) = 0;

  // y[M,N] (+)= x[M,K] w[N,K]^T + bias[N].   bias may be null. accumulate: y is added to.
  virtual void linear(const float* x_MK, const Weight& w_NK, const float* bias_N, float* y_MN, int64_t M, bool accumulate) = 0;
  // dx[M,K] (+)= dy[M,N] w[N,K]
  virtual void linear_grad_input(const float* dy_MN, const Weight& w_NK, float* dx_MK, int64_t M, bool accumulate) = 0;
  // dw[N,K] += dy[M,N]^T x[M,K];  db[N] += column sums of dy (db may be null)
  virtual void linear_grad_weight(const float* dy_MN, const float* x_MK, float* dw_NK, float* db_N, int64_t M, int64_t N, int64_t K) = 0;

  // y = w * x * rstd, rstd[t] = 1/sqrt(mean_c x^2 + eps), kept for the backward pass
  virtual void rms_norm(const float* x_TC, const float* w_C, float eps, float* y_TC, float* rstd_T, int64_t T, int64_t C) = 0;
  // dx (+)= ..., dw += ... (dw may be null).
  // dx_norm (may be null): L2 norm of each row of dx as written, at no second reading of it.
  virtual void rms_norm_grad(const float* dy_TC, const float* x_TC, const float* w_C, const float* rstd_T, float* dx_TC, float* dw_C,
                             float* dx_norm_T, int64_t T, int64_t C, bool accumulate_dx) = 0;
  virtual void layer_norm(const float* x_TC, const float* w_C, const float* b_C, float eps, float* y_TC, float* mean_T, float* rstd_T,
                          int64_t T, int64_t C) = 0;
  virtual void layer_norm_grad(const float* dy_TC, const float* x_TC, const float* w_C, const float* mean_T, const float* rstd_T,
                               float* dx_TC, float* dw_C, float* db_C, int64_t T, int64_t C, bool accumulate_dx) = 0;

  // out[t,i] = silu(gate_up[t,i]) * gate_up[t,I+i]
  virtual void swiglu(const float* gate_up_T2I, float* out_TI, int64_t T, int64_t I) = 0;
  virtual void swiglu_grad(const float* gate_up_T2I, const float* dout_TI, float* dgate_up_T2I, int64_t T, int64_t I) = 0;
  virtual void activate(Activation kind, const float* x, float* y, int64_t size) = 0;                      // y may be x
  virtual void activate_grad(Activation kind, const float* x, const float* dy, float* dx, int64_t size) = 0;  // dx may be dy

  // Rotate-half convention in place: pair (j, j + d/2) of each head turns by the angle with cos/sin [T, d/2].
  // inverse: turns back (which is the backward pass). Row t, head h at x + t * row_stride + h * d.
  virtual void rotary(float* x, int64_t row_stride, int32_t heads, int32_t d, const float* cos_Th, const float* sin_Th, int64_t T,
                      bool inverse) = 0;

  // rotary() of the queries and keys that lie side by side in qkv rows (q_row_stride), then the keys and values into their pages.
  // last_q (may be null) receives the turned last query row of each sequence that has rows.
  virtual void rotate_store(const AttentionShape& shape, float* qkv, const float* cos_Th, const float* sin_Th, const int32_t* first_row_B,
                            const KeyValuePages& pages, float* last_q_BHd) = 0;
  // Softmax attention; out[T, H*d] contiguous; lse[T,H] natural log-sum-exp of the scaled scores. Group = H / Hkv, any size.
  virtual void attention(const AttentionShape& shape, const float* q, const KeyValuePages& pages, float* out_THd, float* lse_TH) = 0;
  // dq is overwritten (same strides as q); dk, dv are pages of the same geometry and are added to.
  virtual void attention_grad(const AttentionShape& shape, const float* q, const KeyValuePages& pages, const float* out_THd,
                              const float* lse_TH, const float* dout_THd, float* dq, float* const* dk, float* const* dv) = 0;
  // Rows of packed source (row t, kv head h at src + t * src_row_stride + h * d) into / out of pages. Row i of sequence b is key
  // row first_row[b] + i. gather overwrites the rows of `rows`.
  virtual void scatter_to_pages(const AttentionShape& shape, const int32_t* first_row_B, const float* k_rows, const float* v_rows,
                                int64_t src_row_stride, const KeyValuePages& pages) = 0;
  virtual void gather_from_pages(const AttentionShape& shape, const int32_t* first_row_B, float* k_rows, float* v_rows,
                                 int64_t row_stride, const KeyValuePages& pages) = 0;

  // Packed attention on f32, f16 or bf16; lse as above. grad overwrites dq, dk, dv.
  virtual void ragged_attention(const RaggedAttention& shape, const void* q, const void* k, const void* v, void* out, float* lse_TH) = 0;
  virtual void ragged_attention_grad(const RaggedAttention& shape, const void* q, const void* k, const void* v, const void* out, const float* lse_TH,
                                     const void* dout, void* dq, void* dk, void* dv) = 0;

  // a[i] += scale * sum over layers and heads of e^(s - lse) for the last query row of each sequence and its columns i; lse as
  // attention wrote it. shape: B, kv_len, H, Hkv, d and scale count. pages: of the first layer. Sequences without a row or columns
  // are passed over. Fixed order: layers, then heads, ascending.                        (arXiv 2604.10500, SCF-VR saliency)
  virtual void attention_saliency(const AttentionShape& shape, const LastQueries& queries, const KeyValuePages& pages, const SaliencyColumns& columns,
                                  float scale, float* saliency_N) = 0;
  // Of one layer. Adds what dsaliency [N] sends into the last rows' queries (dq, strides of q) and into all keys they see (dk pages).
  virtual void attention_saliency_grad(const AttentionShape& shape, const float* q, const KeyValuePages& pages, const float* lse_TH,
                                       const SaliencyColumns& columns, float scale, const float* dsaliency_N, float* dq, float* const* dk) = 0;

  // One replay step of all sequences: top-K by (score descending, index ascending, NaN last) among the unused, weights, and the
  // window with most selected tokens (first maximum over pictures, rows, columns; a grid smaller than W uses its whole side).
  // used_N is brought up to date. selected: index among the sequence's candidates, in block order. window_B6: picture, row, column,
  // height, width, count. Weights are never NaN: equal where the sum is 0 or not finite, 0 where all are used up. used, selected and
  // window are host memory. rows (may be null): the blocks w_i from[row_i] (mix: their sum) are gathered in the same go.
  virtual void select_patches(const ReplayRule& rule, const ReplayLayout& layout, const float* saliency_N, uint8_t* used_N, int32_t* selected,
                              float* weight, int32_t* window_B6, const ReplayRows* rows) = 0;
  // dsaliency_N += the weights' gradient. weight, selected as select_patches gave them.
  virtual void select_patches_grad(const ReplayRule& rule, const ReplayLayout& layout, const float* saliency_N, const int32_t* selected,
                                   const float* weight, const float* dweight, float* dsaliency_N) = 0;
  // out[r] = sum over i in [cu[r], cu[r+1]) of weight[i] * from[from_row[i]], in order.
  virtual void weighted_rows(const float* from, const int32_t* from_row, const float* weight, const int32_t* cu_R1, float* out_RC, int64_t R,
                             int64_t C) = 0;
  // dweight[i] = <dout[r], from[from_row[i]]> (overwritten), dfrom[from_row[i]] += weight[i] dout[r]; either may be null.
  virtual void weighted_rows_grad(const float* from, const int32_t* from_row, const float* weight, const int32_t* cu_R1, const float* dout_RC,
                                  float* dweight, float* dfrom, int64_t R, int64_t C) = 0;
  // rows as patch_rows gives them; pixels [to_height, to_width, 3], when not null, receives the resized crop.
  virtual void crop_patches(const CropPatches& crop, float* rows, uint8_t* pixels) = 0;

  // Which candidates take another pass: their indices, ascending, packed (stable compaction), and cu_routed. order, when not null
  // (rule topk): the same indices, those of each sequence best first. NaN counts as the lowest score. gates_T (may be null): those of all
  // candidates, as route_gates gives them.
  virtual void route_tokens(const RouteTokens& route, const float* scores_T, int32_t* rows, int32_t* cu_routed_B1, int32_t* order, RouteGate gate,
                            float* gates_T) = 0;
  virtual void route_gates(RouteGate kind, int32_t B, const int32_t* cu_B1, const float* scores_T, float* gates_T) = 0;
  // dscores is overwritten.
  virtual void route_gates_grad(RouteGate kind, int32_t B, const int32_t* cu_B1, const float* gates_T, const float* dgates_T, float* dscores_T) = 0;
  // x[i] = h[row[i]] + step (step may be null), y = w x rstd as rms_norm. rotary (may be null): its rows are gathered too.
  virtual void gather_rms_norm(const float* h_TC, const int32_t* row_n, const float* step_C, const float* w_C, float eps, float* x_nC, float* y_nC,
                               float* rstd_n, int64_t n, int64_t C, const RotaryRows* rotary) = 0;
  // h[row[i]] takes y[i] in with gate[at[i]], rows distinct. step: of Fusion::scaled, may be null (then 0).
  virtual void gated_scatter(Fusion fusion, const float* y_nC, const float* gate, const int32_t* at_n, const float* step_C, float* h_TC,
                             const int32_t* row_n, int64_t n, int64_t C) = 0;
  // dh: gradient of h after, becomes that of h before. base[at[i]] is h[row[i]] before (interpolate only). dy [n, C] and dgate[at[i]] are
  // overwritten, dstep (may be null) is added to.
  virtual void gated_scatter_grad(Fusion fusion, const float* y_nC, const float* base, const float* gate, const int32_t* at_n,
                                  const float* step_C, float* dh_TC, const int32_t* row_n, float* dy_nC, float* dgate, float* dstep_C, int64_t n,
                                  int64_t C) = 0;

  // to[to_row[i]] = from[from_row[i]] for i < n. A null row list means 0..n-1.
  virtual void copy_rows(const Weight& from, const int32_t* from_row, float* to_TC, const int32_t* to_row, int64_t n) = 0;
  // to[to_row[i]] += from[from_row[i]], in the order of i for equal rows (deterministic). A null row list means 0..n-1.
  virtual void add_rows(const float* from_TC, const int32_t* from_row, float* to, const int32_t* to_row, int64_t n, int64_t C) = 0;

  // to[t * to_stride + c] (+)= scale * from[t * from_stride + c] for c < C: columns of wider rows. to may be from unless accumulate.
  virtual void scale_columns(const float* from, int64_t from_stride, float scale, float* to, int64_t to_stride, int64_t T, int64_t C, bool accumulate) = 0;
  // y[i] (+)= x[i] / (1 - rate) where element i is kept, 0 where it is dropped: with probability rate, as (key, i) alone say. y may be x
  // unless accumulate.                                                                                        (Srivastava et al. 2014)
  virtual void dropout(const float* x, float rate, uint64_t key, float* y, int64_t size, bool accumulate) = 0;

  // Per row: loss = logsumexp(logits) - logits[target]; argmax (lowest index wins). When dlogits is not null (it may be logits):
  // dlogits = (softmax - onehot) * scale. target -100: loss 0, gradient 0.
  virtual void cross_entropy(const float* logits_RV, const int32_t* targets_R, float scale, float* loss_R, int32_t* argmax_R,
                             float* dlogits_RV, int64_t R, int64_t V) = 0;

  // loss[r] = mean over c of (a - b)^2
  virtual void square_loss(const float* a_RC, const float* b_RC, float* loss_R, int64_t R, int64_t C) = 0;
  // da += scale[r] * 2 (a - b) / C; db (may be null) is overwritten with the negative of what da received.
  virtual void square_loss_grad(const float* a_RC, const float* b_RC, const float* scale_R, float* da_RC, float* db_RC, int64_t R, int64_t C) = 0;

  // norm[t] = sqrt(sum_c x[t,c]^2) of f32, f16 or bf16 rows (norm_T may be null); scale * norm enters the statistics of the row's class
  // (class_T: host, < classes, null: all 0; statistics_K: device, may be null).          (arXiv 2604.10500, gradient dynamics; algorithms 7)
  virtual void grad_norm(const void* x_TC, DType dtype, const uint8_t* class_T, int32_t classes, float scale, float* norm_T,
                         NormStatistics* statistics_K, int64_t T, int64_t C) = 0;
  // The same statistics of norms at hand.
  virtual void norm_statistics(const float* norm_T, const uint8_t* class_T, int32_t classes, float scale, NormStatistics* statistics_K, int64_t T) = 0;
  // Gram matrix of the shorter side of each matrix, m m^T or m^T m, [r, r], packed one after another; sums in f64.
  virtual void gram(const MatrixBatch& matrices, double* gram) = 0;
  // Eigenvalues, largest first, of packed symmetric matrices [size_b, size_b], which are destroyed; sizes are host memory. NaN where a
  // matrix is not finite. Jacobi.
  virtual void symmetric_eigenvalues(int32_t count, const int32_t* size_B, double* matrices, double* values) = 0;
  // Sum of the squares of all spans (f32, f16 or bf16), in order, in f64.
  virtual double sum_squares(const FloatSpan* spans, int64_t count, DType dtype) = 0;
  virtual void adamw(const AdamWUpdate& update) = 0;
  // x[i] = scale * n(key, first + i), n standard normal: each value depends on the key and its own index alone.
  virtual void fill_normal(float* x, int64_t size, int64_t first, uint64_t key, float scale) = 0;
  // Index of the first NaN or infinity, or -1. x is host memory: values on their way in.
  virtual int64_t first_non_finite(const void* x, DType dtype, int64_t size) = 0;

  // uint8 frames [frames, height, width, 3] -> normalised patch rows (order of the reference: frame pair, merge blocks
  // row-major, the patches of a block), the last frame repeated to fill a temporal patch. frames, mean and std: host memory.
  virtual void patch_rows(const uint8_t* frames, int32_t num_frames, int32_t height, int32_t width, int32_t patch, int32_t merge,
                          int32_t temporal, const float* mean_3, const float* std_3, float* rows) = 0;
  // Pillow's 8-bit separable resampling, bit for bit. Interleaved channels. from and to: host memory.
  virtual void resize(const uint8_t* from, int32_t height, int32_t width, int32_t channels, uint8_t* to, int32_t to_height,
                      int32_t to_width, Filter filter) = 0;

 protected:
  const CancelFlag* cancel_ = nullptr;
};

}  // namespace plumbline
