// The RMS norm of rows: shared by norm.cpp and routed_rows.cpp, so that both give the same bits.
PLUMBLINE_INLINE float fold(vec a, vec b, vec c, vec d) { return sum_lanes((a + b) + (c + d)); }

// Sum of (x - centre)^2.
PLUMBLINE_INLINE float sum_squares_row(const float* x, float centre, int64_t C) {
  const vec m = splat(centre);
  vec a = {}, b = {}, c = {}, d = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= C; i += 4 * kLanes) {
    const vec p = load(x + i) - m, q = load(x + i + kLanes) - m;
    const vec r = load(x + i + 2 * kLanes) - m, s = load(x + i + 3 * kLanes) - m;
    a = fma(p, p, a);
    b = fma(q, q, b);
    c = fma(r, r, c);
    d = fma(s, s, d);
  }
  for (; i + kLanes <= C; i += kLanes) {
    const vec p = load(x + i) - m;
    a = fma(p, p, a);
  }
  if (i < C) {  // the padding is the centre itself and adds 0
    const vec p = load_partial(x + i, C - i, centre) - m;
    b = fma(p, p, b);
  }
  return fold(a, b, c, d);
}

PLUMBLINE_INLINE float inverse_root(float sum, int64_t C, float eps) { return 1.0f / __builtin_sqrtf(sum / (float)C + eps); }

static void rms_norm_rows(const float* x, const float* w, float eps, float* y, float* rstd, int64_t rows, int64_t C) {
  for (int64_t t = 0; t < rows; ++t, x += C, y += C) {
    rstd[t] = inverse_root(sum_squares_row(x, 0.0f, C), C, eps);
    const vec r = splat(rstd[t]);
    int64_t i = 0;
    for (; i + kLanes <= C; i += kLanes) store(y + i, load(x + i) * r * load(w + i));
    if (i < C) store_partial(y + i, load_partial(x + i, C - i, 0.0f) * r * load_partial(w + i, C - i, 0.0f), C - i);
  }
}
