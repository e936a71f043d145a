// fill_normal: standard normal numbers by index.   n(key, i): Box-Muller on splitmix64 of a counter
//   out  x (size), f32                         how  double, rounded once; element i depends on (key, i) alone: any tiling, same bits
//   cost 16 Ki elements a tile, about 10 ns each: bound by log and sine
#include <algorithm>
#include <cmath>

#include "cpu_backend.h"

namespace plumbline {
namespace {

constexpr int64_t kTile = int64_t{1} << 14;

uint64_t mix(uint64_t x) {  // splitmix64's finaliser
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

float normal_at(uint64_t key, int64_t index) {  // two neighbours share a radius and an angle
  const uint64_t bits = mix(key ^ mix(static_cast<uint64_t>(index >> 1)));
  const double u = (static_cast<double>(bits >> 32) + 0.5) / 4294967296.0;
  const double v = static_cast<double>(bits & 0xffffffffu) / 4294967296.0;
  const double radius = std::sqrt(-2.0 * std::log(u)), angle = 6.283185307179586 * v;
  return static_cast<float>(radius * (index & 1 ? std::sin(angle) : std::cos(angle)));
}

}  // namespace

void CpuBackend::fill_normal(float* x, int64_t size, int64_t first, uint64_t key, float scale) {
  const uint64_t mixed = mix(key);
  parallel((size + kTile - 1) / kTile, [&](int64_t tile, int32_t) {
    for (int64_t i = tile * kTile; i < std::min(size, (tile + 1) * kTile); ++i) x[i] = scale * normal_at(mixed, first + i);
  });
}

}  // namespace plumbline
