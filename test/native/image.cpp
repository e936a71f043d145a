// resize against a plain integer implementation, exact; patch_rows against the formula. Pillow's own bytes are checked by the goldens.
#include <cmath>
#include <functional>

#include "variants.h"

using plumbline::Backend;
using plumbline::Filter;

namespace {

std::vector<uint8_t> bytes(int64_t size, uint64_t seed) {
  Noise source(seed);
  std::vector<uint8_t> values(static_cast<size_t>(size));
  for (uint8_t& value : values) {  // half of it hard edges: the cubic overshoots and must be clipped
    const uint32_t bits = source.bits();
    value = static_cast<uint8_t>(bits & 1 ? bits >> 8 : bits & 2 ? 255 : 0);
  }
  return values;
}

double bilinear(double x) { return std::fabs(x) < 1 ? 1 - std::fabs(x) : 0; }
double bicubic(double x) {
  x = std::fabs(x);
  return x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
}

// One axis of `from` samples to `to`, each sample a run of `inner` bytes, `outer` times.
std::vector<uint8_t> resample(const std::vector<uint8_t>& image, int64_t outer, int64_t from, int64_t inner, int64_t to, Filter filter) {
  if (from == to) return image;
  const double scale = static_cast<double>(from) / static_cast<double>(to), stretch = std::max(scale, 1.0);
  const double reach = (filter == Filter::bilinear ? 1 : 2) * stretch;
  std::vector<uint8_t> out(static_cast<size_t>(outer * to * inner));
  for (int64_t x = 0; x < to; ++x) {
    const double centre = (static_cast<double>(x) + 0.5) * scale;
    const int64_t first = std::max<int64_t>(0, static_cast<int64_t>(centre - reach + 0.5));
    const int64_t end = std::min(from, static_cast<int64_t>(centre + reach + 0.5));
    std::vector<double> weights;
    double total = 0;
    for (int64_t i = first; i < end; ++i) {
      const double place = (static_cast<double>(i) - centre + 0.5) * (1 / stretch);
      weights.push_back(filter == Filter::bilinear ? bilinear(place) : bicubic(place));
      total += weights.back();
    }
    for (int64_t o = 0; o < outer; ++o)
      for (int64_t b = 0; b < inner; ++b) {
        int64_t sum = int64_t{1} << 21;
        for (int64_t i = first; i < end; ++i) {
          const double weight = weights[static_cast<size_t>(i - first)] / total * 4194304.0;
          sum += image[static_cast<size_t>((o * from + i) * inner + b)] * static_cast<int64_t>(weight < 0 ? weight - 0.5 : weight + 0.5);
        }
        out[static_cast<size_t>((o * to + x) * inner + b)] = static_cast<uint8_t>(std::clamp<int64_t>(sum >> 22, 0, 255));
      }
  }
  return out;
}

struct Size {
  int32_t height, width, to_height, to_width;
};

void test_resize() {
  const std::vector<Size> sizes = {{97, 131, 84, 140}, {20, 300, 28, 280}, {300, 200, 56, 28}, {1, 7, 28, 28},       {84, 84, 84, 84},
                                   {84, 61, 84, 140},  {61, 84, 140, 84},  {1, 1, 33, 31},     {33, 31, 1, 1},       {2, 400, 2, 127},
                                   {129, 1, 32, 1},    {257, 181, 84, 56}, {28, 28, 308, 420}};
  for (const Size& s : sizes)
    for (const int32_t channels : {1, 2, 3, 4})
      for (const Filter filter : {Filter::bilinear, Filter::bicubic}) {
        const std::vector<uint8_t> image = bytes(int64_t{s.height} * s.width * channels, 51);
        const std::vector<uint8_t> wide = resample(image, s.height, s.width, channels, s.to_width, filter);
        const std::vector<uint8_t> want = resample(wide, 1, s.height, int64_t{s.to_width} * channels, s.to_height, filter);
        for_each_backend([&](Backend& backend, const char* name) {
          Guarded<uint8_t> out(static_cast<int64_t>(want.size()));  // the source is bare: the address sanitizer sees a byte read past it
          backend.resize(image.data(), s.height, s.width, channels, out.data(), s.to_height, s.to_width, filter);
          CHECK(out == Guarded<uint8_t>(out.size(), want), "%s %dx%dx%d -> %dx%d filter %d", name, s.height, s.width, channels, s.to_height,
                s.to_width, static_cast<int>(filter));
        });
      }
}

void test_constant() {  // weights sum to 1 in fixed point: a flat picture stays flat
  for_each_backend([](Backend& backend, const char* name) {
    for (const uint8_t value : {0, 1, 127, 254, 255}) {
      const std::vector<uint8_t> image(37 * 53 * 3, value), want(91 * 20 * 3, value);
      Guarded<uint8_t> out(91 * 20 * 3);
      backend.resize(image.data(), 37, 53, 3, out.data(), 91, 20, Filter::bicubic);
      CHECK(out == Guarded<uint8_t>(out.size(), want), "%s flat %d", name, value);
    }
  });
}

struct Frames {
  int32_t count, height, width, patch, merge, temporal;
};

// Written from the output's side: element after element in the order of the reference.
std::vector<double> expected_rows(const Frames& f, const std::vector<uint8_t>& frames, const float* mean, const float* std) {
  std::vector<double> rows;
  for (int32_t start = 0; start < f.count; start += f.temporal)
    for (int32_t by = 0; by < f.height; by += f.patch * f.merge)
      for (int32_t bx = 0; bx < f.width; bx += f.patch * f.merge)
        for (int32_t y = by; y < by + f.patch * f.merge; y += f.patch)
          for (int32_t x = bx; x < bx + f.patch * f.merge; x += f.patch)
            for (int32_t c = 0; c < 3; ++c)
              for (int32_t t = start; t < start + f.temporal; ++t)
                for (int32_t py = y; py < y + f.patch; ++py)
                  for (int32_t px = x; px < x + f.patch; ++px) {
                    const int64_t pixel = (int64_t{std::min(t, f.count - 1)} * f.height + py) * f.width + px;
                    rows.push_back((frames[static_cast<size_t>(pixel * 3 + c)] / 255.0 - mean[c]) / std[c]);
                  }
  return rows;
}

void test_patch_rows() {
  const float mean[3] = {0.48145466f, 0.4578275f, 0.40821073f}, std[3] = {0.26862954f, 0.26130258f, 0.27577711f};
  const std::vector<Frames> cases = {{1, 28, 28, 14, 2, 2}, {1, 84, 140, 14, 2, 2}, {2, 56, 28, 14, 2, 2}, {5, 28, 56, 14, 2, 2},
                                     {1, 12, 24, 4, 3, 1},  {3, 8, 16, 4, 1, 4},    {1, 308, 420, 14, 2, 2}};
  for (const Frames& f : cases) {
    const std::vector<uint8_t> frames = bytes(int64_t{f.count} * f.height * f.width * 3, 52);
    const std::vector<double> want = expected_rows(f, frames, mean, std);
    for_each_backend([&](Backend& backend, const char* name) {
      Guarded<float> rows(static_cast<int64_t>(want.size()));
      backend.patch_rows(frames.data(), f.count, f.height, f.width, f.patch, f.merge, f.temporal, mean, std, rows.data());
      for (int64_t i = 0; i < rows.size(); ++i) {
        const double value = want[static_cast<size_t>(i)];
        CHECK_CLOSE(rows[i], value, kUnit * std::fabs(value), "%s %d frames of %dx%d: element %ld", name, f.count, f.height, f.width, i);
      }
      CHECK(rows.intact(), "%s wrote outside", name);
    });
  }
}

}  // namespace

int main() {
  test_resize();
  test_constant();
  test_patch_rows();
  return finish_variants();
}
