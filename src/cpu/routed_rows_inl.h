// Row kernels of routed_rows.cpp. `step` null counts as zeros.
#include "rms_inl.h"
#include "slices_inl.h"

// x = h + step. next: a row that comes later, fetched line by line beside this one: the hardware does not follow rows at uneven distances.
PLUMBLINE_INLINE void gather_row(const float* h, const float* step, const float* next, float* x, int64_t C) {
  int64_t i = 0;
  for (; i + 16 <= C; i += 16) {
    __builtin_prefetch(next + i);
    for (int64_t j = i; j < i + 16; j += kLanes) store(x + j, step ? load(h + j) + load(step + j) : load(h + j));
  }
  for (; i < C; ++i) x[i] = step ? h[i] + step[i] : h[i];
}

// To memory past the caches: the line is not read first. p is aligned to the vector.
PLUMBLINE_INLINE void stream(float* p, vec v) {
#if PLUMBLINE_LANES == 16
  _mm512_stream_ps(p, (__m512)v);
#elif PLUMBLINE_LANES == 8
  _mm256_stream_ps(p, (__m256)v);
#elif defined(__x86_64__)
  _mm_stream_ps(p, (__m128)v);
#else
  store(p, v);
#endif
}

static void gather_norm_row(const float* h, const float* step, const float* next, const float* w, float eps, float* x, float* y, float* rstd, int64_t C) {
  gather_row(h, step, next, x, C);
  rms_norm_rows(x, w, eps, y, rstd, 1, C);
}

// The same bits for rows of whole cache lines that will have left the caches before they are used. `row`: C floats of working memory.
static void gather_norm_row_streamed(const float* h, const float* step, const float* next, const float* w, float eps, float* x, float* y, float* rstd, int64_t C,
                                     float* row) {
  gather_row(h, step, next, row, C);
  *rstd = inverse_root(sum_squares_row(row, 0.0f, C), C, eps);
  const vec r = splat(*rstd);
  for (int64_t i = 0; i < C; i += kLanes) {
    const vec value = load(row + i);
    stream(x + i, value);
    stream(y + i, value * r * load(w + i));
  }
}
static void end_streaming() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// h becomes h + g (y - h), h + g y or h + g y (1 + step).
template <Fusion kFusion>
PLUMBLINE_INLINE vec fuse(vec g, vec y, vec h, vec step) {
  if (kFusion == Fusion::interpolate) return fma(g, y - h, h);
  if (kFusion == Fusion::plain) return fma(g, y, h);
  return fma(g, fma(y, step, y), h);
}
template <Fusion kFusion>
static void scatter_row(const float* y, float gate, const float* step, float* h, int64_t C) {
  const vec g = splat(gate);
  int64_t i = 0;
  for (; i + kLanes <= C; i += kLanes)
    store(h + i, fuse<kFusion>(g, load(y + i), load(h + i), kFusion == Fusion::scaled ? load(step + i) : vec{}));
  if (i == C) return;
  const int64_t n = C - i;
  const vec last = kFusion == Fusion::scaled ? load_partial(step + i, n, 0.0f) : vec{};
  store_partial(h + i, fuse<kFusion>(g, load_partial(y + i, n, 0.0f), load_partial(h + i, n, 0.0f), last), n);
}
static void gated_scatter_row(Fusion fusion, const float* y, float gate, const float* step, float* h, int64_t C) {
  if (fusion == Fusion::interpolate) return scatter_row<Fusion::interpolate>(y, gate, step, h, C);
  if (fusion == Fusion::scaled && step) return scatter_row<Fusion::scaled>(y, gate, step, h, C);
  scatter_row<Fusion::plain>(y, gate, step, h, C);
}

// One vector of channels of the backward pass: dy and dh are results, `product` is its share of dgate, `dstep` of dstep.
struct FusionGradient {
  vec dy, dh, product, dstep;
};
template <Fusion kFusion>
PLUMBLINE_INLINE FusionGradient gradient_of(vec g, vec dh, vec y, vec other) {  // other: base (interpolate) or step (scaled)
  const vec dy = g * dh;
  if (kFusion == Fusion::interpolate) return {dy, dh - dy, dh * (y - other), vec{}};
  if (kFusion == Fusion::plain) return {dy, dh, dh * y, vec{}};
  return {fma(dy, other, dy), dh, dh * fma(y, other, y), dy * y};
}

// Returns dgate. dstep may be null.
template <Fusion kFusion>
static float scatter_grad_row(const float* y, const float* other, float gate, float* dh, float* dy, float* dstep, int64_t C) {
  const vec g = splat(gate);
  vec sum = {};
  for (int64_t i = 0; i < C; i += kLanes) {
    const int64_t n = C - i;
    const bool whole = n >= kLanes;
    const vec d = whole ? load(dh + i) : load_partial(dh + i, n, 0.0f), value = whole ? load(y + i) : load_partial(y + i, n, 0.0f);
    const vec also = kFusion == Fusion::plain ? vec{} : whole ? load(other + i) : load_partial(other + i, n, 0.0f);
    const FusionGradient result = gradient_of<kFusion>(g, d, value, also);
    sum += result.product;
    if (whole) {
      store(dy + i, result.dy);
      if (kFusion == Fusion::interpolate) store(dh + i, result.dh);
      if (dstep) store(dstep + i, load(dstep + i) + result.dstep);
    } else {
      store_partial(dy + i, result.dy, n);
      if (kFusion == Fusion::interpolate) store_partial(dh + i, result.dh, n);
      if (dstep) store_partial(dstep + i, load_partial(dstep + i, n, 0.0f) + result.dstep, n);
    }
  }
  return sum_lanes(sum);
}
static float gated_scatter_grad_row(Fusion fusion, const float* y, const float* base, const float* step, float gate, float* dh, float* dy,
                                    float* dstep, int64_t C) {
  if (fusion == Fusion::interpolate) return scatter_grad_row<Fusion::interpolate>(y, base, gate, dh, dy, nullptr, C);
  if (fusion == Fusion::scaled) return scatter_grad_row<Fusion::scaled>(y, step, gate, dh, dy, dstep, C);
  return scatter_grad_row<Fusion::plain>(y, nullptr, gate, dh, dy, nullptr, C);
}
