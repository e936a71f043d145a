#pragma once
// The weights of Pillow's 8-bit resampling along one axis: f64, then 22-bit fixed point.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "backend.h"

namespace plumbline {

constexpr int kPrecisionBits = 32 - 8 - 2;

// Output x is the sum over k < count[x] of input first[x] + k times weight[x * stride + k].
struct Taps {
  int64_t size, stride;
  const int32_t* first;
  const int32_t* count;
  const int32_t* weight;
};

class TapTable {
 public:
  TapTable(int64_t from, int64_t to, Filter filter)
      : scale_(static_cast<double>(from) / static_cast<double>(to)),
        stretch_(std::max(scale_, 1.0)),
        reach_((filter == Filter::bilinear ? 1.0 : 2.0) * stretch_),
        stride_(static_cast<int64_t>(std::ceil(reach_)) * 2 + 1),
        weights_(static_cast<size_t>(stride_)),
        table_(static_cast<size_t>(to * (stride_ + 2))),
        taps({to, stride_, table_.data(), table_.data() + to, table_.data() + 2 * to}) {
    for (int64_t x = 0; x < to; ++x) fill(x, from, filter == Filter::bilinear ? triangle : cubic);
  }
  TapTable(const TapTable&) = delete;
  TapTable& operator=(const TapTable&) = delete;
  const std::vector<int32_t>& table() const { return table_; }  // first, count and weight, one after another

 private:
  static double triangle(double x) { return std::max(0.0, 1.0 - std::fabs(x)); }
  static double cubic(double x) {  // Keys' kernel, a = -1/2
    constexpr double a = -0.5;
    x = std::fabs(x);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
    if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * a;
    return 0.0;
  }
  // The order of these operations is the bits of the result: Pillow's.
  void fill(int64_t x, int64_t from, double (*kernel)(double)) {
    const double centre = (static_cast<double>(x) + 0.5) * scale_, inverse = 1.0 / stretch_;
    const int64_t first = std::max<int64_t>(0, static_cast<int64_t>(centre - reach_ + 0.5));
    const int64_t end = std::min(from, static_cast<int64_t>(centre + reach_ + 0.5));
    double total = 0;
    for (int64_t i = first; i < end; ++i) {
      weights_[static_cast<size_t>(i - first)] = kernel((static_cast<double>(i) - centre + 0.5) * inverse);
      total += weights_[static_cast<size_t>(i - first)];
    }
    int32_t* row = table_.data() + 2 * taps.size + x * stride_;
    table_[static_cast<size_t>(x)] = static_cast<int32_t>(first);
    table_[static_cast<size_t>(taps.size + x)] = static_cast<int32_t>(end - first);
    for (int64_t k = 0; k < end - first; ++k) {
      const double weight = weights_[static_cast<size_t>(k)], w = (total != 0 ? weight / total : weight) * (1 << kPrecisionBits);
      row[k] = static_cast<int32_t>(w < 0 ? w - 0.5 : w + 0.5);
    }
  }
  double scale_, stretch_, reach_;
  int64_t stride_;
  std::vector<double> weights_;
  std::vector<int32_t> table_;

 public:
  const Taps taps;
};

}  // namespace plumbline
