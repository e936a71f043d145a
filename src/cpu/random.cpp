// fill_normal: standard normal numbers by index.   n(key, i): Box-Muller on splitmix64 of a counter
//   out  x (size), f32                         how  double, rounded once; element i depends on (key, i) alone: any tiling, same bits
//   cost 16 Ki elements a tile, about 10 ns each: bound by log and sine
#include <algorithm>
#include <cmath>

#include "../core/mix.h"
#include "cpu_backend.h"

namespace plumbline {
namespace {

constexpr int64_t kTile = int64_t{1} << 14;

struct Polar {
  double radius, angle;
};

Polar polar_at(uint64_t key, int64_t pair) {
  const uint64_t bits = mix(key ^ mix(static_cast<uint64_t>(pair)));
  const double u = (static_cast<double>(bits >> 32) + 0.5) / 4294967296.0;
  const double v = static_cast<double>(bits & 0xffffffffu) / 4294967296.0;
  return {std::sqrt(-2.0 * std::log(u)), 6.283185307179586 * v};
}

// Numbers first .. first + count: those of an even index and the next one share a radius and an angle.
void normals(uint64_t key, int64_t first, int64_t count, float scale, float* x) {
  for (int64_t i = 0; i < count;) {
    const Polar polar = polar_at(key, (first + i) >> 1);
    if (((first + i) & 1) == 0) x[i++] = scale * static_cast<float>(polar.radius * std::cos(polar.angle));
    if (i < count && ((first + i) & 1) != 0) x[i++] = scale * static_cast<float>(polar.radius * std::sin(polar.angle));
  }
}

}  // namespace

void CpuBackend::fill_normal(float* x, int64_t size, int64_t first, uint64_t key, float scale) {
  const uint64_t mixed = mix(key);
  parallel((size + kTile - 1) / kTile, [&](int64_t tile, int32_t) {
    const int64_t start = tile * kTile;
    normals(mixed, first + start, std::min(size - start, kTile), scale, x + start);
  });
}

}  // namespace plumbline
