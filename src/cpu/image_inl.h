// Kernels of image.cpp: weighted sums of 8-bit samples in 22-bit fixed point. int32 holds them: 255 * 2^22 * 1.3 < 2^31, where 1.3 bounds
// the sum of the absolute weights of the cubic.
static constexpr int32_t kRound = 1 << (kPrecisionBits - 1);

PLUMBLINE_INLINE uint8_t to_byte(int32_t sum) {
  const int32_t value = sum >> kPrecisionBits;
  return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
}

typedef int32_t int_quad __attribute__((vector_size(16)));
PLUMBLINE_INLINE int_quad widen_bytes(uint32_t four) {
#if PLUMBLINE_LANES >= 8
  return (int_quad)_mm_cvtepu8_epi32(_mm_cvtsi32_si128((int)four));
#elif defined(__x86_64__)
  const __m128i zero = _mm_setzero_si128();
  return (int_quad)_mm_unpacklo_epi16(_mm_unpacklo_epi8(_mm_cvtsi32_si128((int)four), zero), zero);
#else
  uint8_t byte[4];
  std::memcpy(byte, &four, 4);
  return int_quad{byte[0], byte[1], byte[2], byte[3]};
#endif
}

// Three or four channels at once. With three, the fourth lane holds the next pixel's first channel, which is dropped; the row's
// last pixel has no next one.
template <int channels>
static void resample_pixels(const uint8_t* from, int64_t width, const Taps& taps, uint8_t* to) {
  for (int64_t x = 0; x < taps.size; ++x, to += channels) {
    const int64_t first = taps.first[x], end = first + taps.count[x], safe = channels == 3 && end == width ? end - 1 : end;
    const int32_t* weight = taps.weight + x * taps.stride;
    int_quad sum = {kRound, kRound, kRound, kRound};
    uint32_t four = 0;
    for (int64_t i = first; i < safe; ++i) {
      std::memcpy(&four, from + i * channels, 4);
      sum += widen_bytes(four) * *weight++;
    }
    if (safe < end) {
      four = 0;
      std::memcpy(&four, from + safe * channels, channels);
      sum += widen_bytes(four) * *weight;
    }
    for (int c = 0; c < channels; ++c) to[c] = to_byte(sum[c]);
  }
}

static void resample_row(const uint8_t* from, int64_t width, int32_t channels, const Taps& taps, uint8_t* to) {
  if (channels == 3) return resample_pixels<3>(from, width, taps, to);
  if (channels == 4) return resample_pixels<4>(from, width, taps, to);
  for (int64_t x = 0; x < taps.size; ++x)
    for (int32_t c = 0; c < channels; ++c) {
      const uint8_t* sample = from + taps.first[x] * channels + c;
      const int32_t* weight = taps.weight + x * taps.stride;
      int32_t sum = kRound;
      for (int32_t k = 0; k < taps.count[x]; ++k) sum += sample[(int64_t)k * channels] * weight[k];
      *to++ = to_byte(sum);
    }
}

// One output row: the weighted sum of `count` input rows of `size` bytes, by pieces whose sums stay in the first cache.
static void blend_rows(const uint8_t* from, int64_t size, const int32_t* weight, int32_t count, uint8_t* to) {
  constexpr int64_t kPiece = 1024;
  int32_t sum[kPiece];
  for (int64_t start = 0; start < size; start += kPiece) {
    const int64_t n = size - start < kPiece ? size - start : kPiece;
    for (int64_t i = 0; i < n; ++i) sum[i] = kRound;
    for (int32_t k = 0; k < count; ++k) {
      const uint8_t* __restrict row = from + k * size + start;
      const int32_t w = weight[k];
      for (int64_t i = 0; i < n; ++i) sum[i] += row[i] * w;
    }
    for (int64_t i = 0; i < n; ++i) to[start + i] = to_byte(sum[i]);
  }
}
