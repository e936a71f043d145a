// rotary against the formula in f64; turning back; odd sizes and gaps between rows.
#include <vector>

#include "variants.h"

using plumbline::Backend;

namespace {

constexpr float kSentinel = -12345.5f;

void check_rotary(Backend& backend, int64_t T, int32_t heads, int32_t d) {
  const int64_t stride = heads * d + (heads == 4 ? 4 : 3), half = d / 2;
  Noise noise(T + heads * 31 + d);
  std::vector<float> cosine(T * half), sine(T * half), x(T * stride, kSentinel);
  for (int64_t i = 0; i < T * half; ++i) {
    const double angle = 1000.0 * noise.next();
    cosine[i] = static_cast<float>(std::cos(angle));
    sine[i] = static_cast<float>(std::sin(angle));
  }
  for (int64_t t = 0; t < T; ++t)
    for (int64_t i = 0; i < heads * d; ++i) x[t * stride + i] = noise.next();
  std::vector<float> turned = x;
  backend.rotary(turned.data(), stride, heads, d, cosine.data(), sine.data(), T, false);
  for (int64_t t = 0; t < T; ++t)
    for (int64_t i = 0; i < stride; ++i) {
      const int64_t at = t * stride + i, j = i % d;
      double want = x[at];
      if (i < heads * d && j < 2 * half) {
        const double c = cosine[t * half + j % half], s = sine[t * half + j % half];
        want = j < half ? x[at] * c - x[at + half] * s : x[at] * c + x[at - half] * s;
      }
      CHECK_CLOSE(turned[at], want, i < heads * d ? 1.8e-7 : 0.0, "T %d heads %d d %d row %d column %d", (int)T, heads, d, (int)t, (int)i);
    }
  std::vector<float> back = turned;
  backend.rotary(back.data(), stride, heads, d, cosine.data(), sine.data(), T, true);
  // Two turns of values up to 1.5, and c^2 + s^2 off by 2.4e-7 because c and s are rounded.
  for (size_t i = 0; i < x.size(); ++i) CHECK_CLOSE(back[i], x[i], x[i] == kSentinel ? 0.0 : 6e-7, "turned back, T %d d %d", (int)T, d);
  std::vector<float> again = x;
  backend.rotary(again.data(), stride, heads, d, cosine.data(), sine.data(), T, false);
  CHECK(again == turned, "a second run differs, T %d heads %d d %d", (int)T, heads, d);
}

}  // namespace

int main() {
  for_each_backend([](Backend& backend, const char*) {
    for (int32_t d : {1, 2, 5, 6, 16, 20, 32, 40, 80, 128}) {
      check_rotary(backend, 7, 3, d);
      check_rotary(backend, 7, 4, d);  // rows of whole 16 bytes for some d
    }
    check_rotary(backend, 0, 2, 16);
    check_rotary(backend, 1, 1, 128);
    check_rotary(backend, is_emulated(backend) ? 100 : 1000, 4, 32);
  });
  return finish_variants();
}
