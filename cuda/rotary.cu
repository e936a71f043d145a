// rotary: turns each pair (j, j + d/2) of each head by its row's angle, in place.   y_j = x_j cos - x_{j+d/2} sin
//         y_{j+d/2} = x_{j+d/2} cos + x_j sin                                        (arXiv 2104.09864, eq. 34)
// rotate_store: the same for the queries and keys of qkv rows; keys and values go on into their pages, last queries to last_q.
//   in   x rows (strided), heads of d floats; cos, sin (T, d/2)       out  x; the last element of an odd head stays as it is
//   how  f32, every pair on its own. inverse turns back, which is the gradient
//   cost one launch. A thread keeps the cosines and sines of a run of pairs and goes through the heads, 4 in flight; few rows are spread
//        over more blocks by heads. 8 bytes an element and the tables once; bound by memory. 16-byte accesses where d % 8 == 0 and the
//        addresses allow it
//   limits: checked by the caller: the pages hold the rows
#include "floats.cuh"
#include "pages.cuh"

namespace plumbline {
namespace {

constexpr int kThreads = 256, kInFlight = 4;
constexpr int64_t kWantedBlocks = 132;  // one for each multiprocessor of an H100: the tables are read once per spread of the heads

struct Turn {
  float* x;
  int64_t row_stride, T;
  int32_t turned, heads, d;  // heads turned, heads in all (the rest: values)
  const float *cos_Th, *sin_Th;
  float sign;
};
struct Stored {              // of rotate_store
  DevicePages pages;
  int32_t H, Hkv;
  float* last_q_BHd;
};

// Where a head's run goes besides x: its page (keys, values) or last_q; or nowhere.
PLUMBLINE_DEVICE float* second_place(const Stored& stored, const PageCursor& cursor, int64_t t, int32_t head, int32_t d) {
  if (head >= stored.H + stored.Hkv) return cursor.v(head - stored.H - stored.Hkv);
  if (head >= stored.H) return cursor.k(head - stored.H);
  if (!stored.last_q_BHd || !cursor.is_last(t)) return nullptr;
  return stored.last_q_BHd + (static_cast<int64_t>(cursor.sequence()) * stored.H + head) * d;
}

// The run j of kWidth pairs of row t, in the heads of this block. second(head): see above.
template <int kWidth, typename Second>
PLUMBLINE_DEVICE void turn_heads(const Turn& turn, int64_t t, int32_t j, const Second& second) {
  const int32_t half = turn.d / 2;
  const Floats<kWidth> c = load<kWidth>(turn.cos_Th + t * half + j);
  Floats<kWidth> s = load<kWidth>(turn.sin_Th + t * half + j);
#pragma unroll
  for (int k = 0; k < kWidth; ++k) s.at[k] *= turn.sign;
  float* row = turn.x + t * turn.row_stride + j;
  const int32_t step = static_cast<int32_t>(gridDim.y);
  for (int32_t first = static_cast<int32_t>(blockIdx.y); first < turn.heads; first += kInFlight * step) {
    Floats<kWidth> low[kInFlight], high[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int32_t head = first + i * step;
      if (head >= turn.heads) break;
      const float* from = row + static_cast<int64_t>(head) * turn.d;
      low[i] = load<kWidth>(from), high[i] = load<kWidth>(from + half);
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int32_t head = first + i * step;
      if (head >= turn.heads) break;
      if (head < turn.turned) {
#pragma unroll
        for (int k = 0; k < kWidth; ++k) {
          const float a = low[i].at[k], b = high[i].at[k];
          low[i].at[k] = fmaf(a, c.at[k], -(b * s.at[k]));
          high[i].at[k] = fmaf(b, c.at[k], a * s.at[k]);
        }
        float* to = row + static_cast<int64_t>(head) * turn.d;
        store(to, low[i]), store(to + half, high[i]);
      }
      if (float* to = second(head)) store(to + j, low[i]), store(to + j + half, high[i]);
    }
  }
}

template <int kWidth, typename Second>
PLUMBLINE_DEVICE void turn_row(const Turn& turn, int64_t t, int32_t first, int32_t step, const Second& second) {
  const int32_t half = turn.d / 2;
  for (int32_t j = first * kWidth; j < half; j += step * kWidth) turn_heads<kWidth>(turn, t, j, second);
  if constexpr (kWidth == 1) {
    if (turn.d % 2 == 0 || first != 0) return;
    for (int32_t head = static_cast<int32_t>(blockIdx.y); head < turn.heads; head += static_cast<int32_t>(gridDim.y))
      if (float* to = second(head)) to[turn.d - 1] = turn.x[t * turn.row_stride + static_cast<int64_t>(head) * turn.d + turn.d - 1];
  }
}

// per_row threads for a row, each a run of pairs.
template <int kWidth, bool kStore>
__global__ void __launch_bounds__(kThreads) rotary_kernel(Turn turn, Stored stored, int32_t per_row) {
  const int32_t rows = kThreads / per_row, row = static_cast<int32_t>(threadIdx.x) / per_row, first = static_cast<int32_t>(threadIdx.x) % per_row;
  const int64_t t = static_cast<int64_t>(blockIdx.x) * rows + row;
  if (row >= rows || t >= turn.T) return;
  if (!kStore || t < stored.pages.cu_q_B1[0]) {
    turn_row<kWidth>(turn, t, first, per_row, [](int32_t) { return static_cast<float*>(nullptr); });
  } else {
    const PageCursor cursor(stored.pages, t);
    turn_row<kWidth>(turn, t, first, per_row, [&](int32_t head) { return second_place(stored, cursor, t, head, turn.d); });
  }
}

template <bool kStore>
cudaError_t launch_rotary(const Turn& turn, const Stored& stored, bool is_wide, cudaStream_t stream) {
  const int32_t runs = std::max(1, turn.d / 2 / (is_wide ? 4 : 1)), per_row = std::min(runs, kThreads);
  const unsigned blocks = blocks_of(turn.T, kThreads / per_row);
  if (blocks == 0 || turn.heads == 0) return cudaSuccess;
  const unsigned spread = blocks_of(turn.heads, kInFlight, std::max<int64_t>(1, std::min<int64_t>(kWantedBlocks / blocks, 65535)));
  return launch(is_wide ? rotary_kernel<4, kStore> : rotary_kernel<1, kStore>, dim3(blocks, spread), dim3(kThreads), 0, stream, turn, stored, per_row);
}

bool can_be_wide(const Turn& turn) {
  return turn.d % 8 == 0 && turn.row_stride % 4 == 0 && is_aligned_16(turn.x) && is_aligned_16(turn.cos_Th) && is_aligned_16(turn.sin_Th);
}

}  // namespace

void CudaBackend::rotary(float* x, int64_t row_stride, int32_t heads, int32_t d, const float* cos_Th, const float* sin_Th, int64_t T, bool inverse) {
  poll();
  const Turn turn = {x, row_stride, T, heads, heads, d, cos_Th, sin_Th, inverse ? -1.0f : 1.0f};
  check(launch_rotary<false>(turn, Stored{}, can_be_wide(turn), stream()), "rotary");
}

void CudaBackend::rotate_store(const AttentionShape& shape, float* qkv, const float* cos_Th, const float* sin_Th, const int32_t* first_row_B, const KeyValuePages& pages, float* last_q_BHd) {
  poll();
  const int64_t T = shape.cu_q_B1[shape.B];
  if (T == 0) return;
  const Turn turn = {qkv, shape.q_row_stride, T, shape.H + shape.Hkv, shape.H + 2 * shape.Hkv, shape.d, cos_Th, sin_Th, 1.0f};
  const PageUpload up(*this, "rotate_store", shape, first_row_B, pages);
  const bool is_wide = can_be_wide(turn) && is_aligned_16(last_q_BHd) && up.is_aligned_16();
  check(launch_rotary<true>(turn, Stored{up.pages(), shape.H, shape.Hkv, last_q_BHd}, is_wide, stream()), "rotate_store");
}

}  // namespace plumbline
