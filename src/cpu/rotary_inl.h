// Kernel of rotary.cpp, compiled once per instruction set.

// Rows [0, T) in place; sign -1 turns back.
static void rotary_rows(float* x, int64_t row_stride, int64_t heads, int64_t d, const float* cos_Th, const float* sin_Th, int64_t T,
                        float sign) {
  const int64_t half = d / 2;
  for (int64_t t = 0; t < T; ++t) {
    const float *cosine = cos_Th + t * half, *sine = sin_Th + t * half;
    for (int64_t head = 0; head < heads; ++head) {
      float* low = x + t * row_stride + head * d;
      float* high = low + half;
      int64_t j = 0;
      for (; j + kLanes <= half; j += kLanes) {
        const vec a = load(low + j), b = load(high + j), c = load(cosine + j), s = load(sine + j) * sign;
        store(low + j, fma(a, c, -(b * s)));
        store(high + j, fma(b, c, a * s));
      }
      for (; j < half; ++j) {
        const float a = low[j], b = high[j], c = cosine[j], s = sine[j] * sign;
        low[j] = a * c - b * s;
        high[j] = b * c + a * s;
      }
    }
  }
}
