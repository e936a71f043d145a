// crop_patches: the steps one by one for Pillow's way; for the truncated way the formula in f64.
#include <cmath>

#include "variants.h"

using namespace plumbline;

namespace {

const float kMean[3] = {0.48145466f, 0.4578275f, 0.40821073f}, kStd[3] = {0.26862954f, 0.26130258f, 0.27577711f};

struct Case {
  int32_t height, width, x1, y1, x2, y2, to_height, to_width, patch, merge, temporal;
};

const Case kCases[] = {
    {40, 50, 3, 7, 33, 21, 28, 56, 14, 1, 2}, {40, 50, 0, 0, 50, 40, 56, 28, 14, 2, 2}, {9, 5, 4, 8, 5, 9, 28, 28, 7, 2, 1},
    {64, 33, 1, 0, 29, 28, 28, 28, 14, 2, 2}, {300, 420, 10, 20, 400, 280, 56, 84, 14, 2, 2}, {8, 8, 2, 3, 4, 8, 24, 20, 2, 2, 3},
};

std::vector<uint8_t> picture(const Case& c, uint64_t seed, int64_t limit) {
  Noise source(seed);
  std::vector<uint8_t> pixels(static_cast<size_t>(c.height * c.width * 3));
  for (uint8_t& p : pixels) p = static_cast<uint8_t>(source.below(limit));
  return pixels;
}

CropPatches request(const Case& c, const std::vector<uint8_t>& image, bool truncated) {
  return {image.data(), c.height, c.width, c.x1, c.y1, c.x2, c.y2, c.to_height, c.to_width, c.patch, c.merge, c.temporal, kMean, kStd, truncated};
}

int64_t row_floats(const Case& c) { return int64_t{c.to_height} * c.to_width * 3 * c.temporal; }

std::vector<uint8_t> cut(const Case& c, const std::vector<uint8_t>& image) {
  std::vector<uint8_t> box;
  for (int32_t y = c.y1; y < c.y2; ++y)
    for (int32_t i = c.x1 * 3; i < c.x2 * 3; ++i) box.push_back(image[y * c.width * 3 + i]);
  return box;
}

// Bilinear of one sample, pixel centres aligned, in f64.
double interpolated(const Case& c, const std::vector<uint8_t>& box, int32_t y, int32_t x, int32_t channel) {
  const int32_t high = c.y2 - c.y1, wide = c.x2 - c.x1;
  const auto place = [](int32_t to, int32_t from_size, int32_t to_size) {
    return std::max(0.0, (to + 0.5) * from_size / static_cast<double>(to_size) - 0.5);
  };
  const double at_y = place(y, high, c.to_height), at_x = place(x, wide, c.to_width);
  const int32_t y0 = std::min(static_cast<int32_t>(at_y), high - 1), x0 = std::min(static_cast<int32_t>(at_x), wide - 1);
  const int32_t y1 = std::min(y0 + 1, high - 1), x1 = std::min(x0 + 1, wide - 1);
  const auto sample = [&](int32_t r, int32_t s) { return static_cast<double>(box[(r * wide + s) * 3 + channel]); };
  const double fy = std::min(at_y - y0, 1.0), fx = std::min(at_x - x0, 1.0);
  return (sample(y0, x0) * (1 - fx) + sample(y0, x1) * fx) * (1 - fy) + (sample(y1, x0) * (1 - fx) + sample(y1, x1) * fx) * fy;
}

void check_case(Backend& backend, const char* name, const Case& c, bool truncated, int64_t limit) {
  const std::vector<uint8_t> image = picture(c, 3, limit), box = cut(c, image);
  const int64_t size = int64_t{c.to_height} * c.to_width * 3;
  Guarded<float> rows(row_floats(c)), alone(row_floats(c)), want(row_floats(c));
  Guarded<uint8_t> pixels(size);
  backend.crop_patches(request(c, image, truncated), rows.data(), pixels.data());
  backend.crop_patches(request(c, image, truncated), alone.data(), nullptr);
  CHECK(rows == alone, "%s rows depend on whether the pixels are wanted", name);
  if (truncated) {
    const double factor = limit > 2 ? 1.0 : 255.0;  // a crop of zeros and ones is taken as it is, then times 255
    for (int64_t i = 0; i < size; ++i) {
      const int32_t pixel = static_cast<int32_t>(i / 3), channel = static_cast<int32_t>(i % 3);
      const double exact = factor * interpolated(c, box, pixel / c.to_width, pixel % c.to_width, channel);
      CHECK(pixels[i] <= exact + 1e-2 && pixels[i] > exact - 1 - 1e-2, "%s pixel %ld is %d, exact %g", name, i, pixels[i], exact);
    }
  } else {
    std::vector<uint8_t> resized(static_cast<size_t>(size));
    backend.resize(box.data(), c.y2 - c.y1, c.x2 - c.x1, 3, resized.data(), c.to_height, c.to_width, Filter::bilinear);
    CHECK(std::equal(resized.begin(), resized.end(), pixels.data()), "%s pixels", name);
  }
  backend.patch_rows(pixels.data(), 1, c.to_height, c.to_width, c.patch, c.merge, c.temporal, kMean, kStd, want.data());
  CHECK(rows == want, "%s rows", name);
  if (is_emulated(backend)) {
    CpuBackend cpu(1);
    Guarded<float> cpu_rows(row_floats(c));
    Guarded<uint8_t> cpu_pixels(size);
    cpu.crop_patches(request(c, image, truncated), cpu_rows.data(), cpu_pixels.data());
    CHECK(rows == cpu_rows && pixels == cpu_pixels, "%s: other bits than the CPU's", name);
  }
  CHECK(rows.intact() && pixels.intact(), "%s wrote outside", name);
}

// Values of torch 2 for interpolate(bilinear, align_corners = false) of a 2 x 2 crop to 4 x 4, which are exact in f32 times 255.
void test_known() {
  const Case c{2, 2, 0, 0, 2, 2, 4, 4, 2, 2, 1};
  std::vector<uint8_t> image;
  for (const uint8_t value : {0, 64, 128, 192}) image.insert(image.end(), 3, value);
  CpuBackend backend(1);
  Guarded<float> rows(row_floats(c));
  Guarded<uint8_t> pixels(48);
  backend.crop_patches(request(c, image, true), rows.data(), pixels.data());
  const int want[16] = {0, 16, 48, 64, 32, 48, 80, 96, 96, 112, 144, 160, 128, 144, 176, 192};
  for (int i = 0; i < 16; ++i) CHECK(std::abs(pixels[3 * i] - want[i]) <= 1, "pixel %d is %d, want %d", i, pixels[3 * i], want[i]);
}

void test_threads() {
  const Case c{700, 900, 10, 20, 890, 690, 560, 700, 14, 2, 2};
  const std::vector<uint8_t> image = picture(c, 4, 256);
  for (const bool truncated : {false, true}) {
    CpuBackend one(1), two(kTwoThreads);
    Guarded<float> a(row_floats(c)), b(row_floats(c));
    one.crop_patches(request(c, image, truncated), a.data(), nullptr);
    two.crop_patches(request(c, image, truncated), b.data(), nullptr);
    CHECK(a == b, "threads change bits");
  }
}

}  // namespace

int main() {
  for_each_backend([](Backend& backend, const char* name) {
    for (const Case& c : kCases)
      for (const bool truncated : {false, true})
        for (const int64_t limit : {2, 256}) check_case(backend, name, c, truncated, limit);
  });
  test_known();
  test_threads();
  return finish_variants();
}
