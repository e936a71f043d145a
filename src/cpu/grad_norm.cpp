// grad_norm, norm_statistics: L2 norm of each row and statistics of the norms by class.   norm[t] = sqrt(sum_c x[t,c]^2)
//                                                                                (gradient dynamics; arXiv 2604.10500, section 3)
//   in   x (T, C) f32, f16 or bf16; class (T) bytes; or the norms themselves
//   out  norm (T) f32; statistics (classes) brought up to date: count, mean, squared deviations, min, max, histogram, not finite
//   how  sums in f64 over 16 lanes, of f16 and bf16 after two squares met in f32: the same bits under every instruction set. Statistics
//        by slices of rows cut by shape, merged in order: the same bits for any number of threads. NaN and inf are only counted
//   cost one read of x; bound by memory
#include <cmath>
#include <vector>

#include "cpu_backend.h"
#include "tiles.h"

#define PLUMBLINE_INL "squares_inl.h"
#include "foreach_isa.h"

namespace plumbline {
namespace {

void add_norm(NormStatistics& s, float norm) {
  if (!std::isfinite(norm)) {
    ++s.not_finite;
    return;
  }
  s.min = s.count ? std::fmin(s.min, norm) : norm, s.max = s.count ? std::fmax(s.max, norm) : norm;
  ++s.count;
  const double value = static_cast<double>(norm), apart = value - s.mean;
  s.mean += apart / static_cast<double>(s.count);
  s.m2 += apart * (value - s.mean);
  uint32_t bits;
  std::memcpy(&bits, &norm, sizeof(bits));
  ++s.histogram[norm_bin_of_bits(bits)];
}

// Chan, Golub, LeVeque 1979.
void merge(NormStatistics& to, const NormStatistics& from) {
  to.not_finite += from.not_finite;
  if (from.count == 0) return;
  for (int32_t bin = 0; bin < kNormBins; ++bin) to.histogram[bin] += from.histogram[bin];
  to.min = to.count ? std::fmin(to.min, from.min) : from.min, to.max = to.count ? std::fmax(to.max, from.max) : from.max;
  const double before = static_cast<double>(to.count), apart = from.mean - to.mean;
  to.count += from.count;
  const double share = static_cast<double>(from.count) / static_cast<double>(to.count);
  to.mean = before == 0 ? from.mean : to.mean + apart * share;
  to.m2 += from.m2 + apart * apart * before * share;
}

}  // namespace

// norm_of(t) for each row, in slices; statistics per slice and class, then slice by slice into the whole.
template <typename NormOf>
void CpuBackend::each_norm(const NormOf& norm_of, const NormClasses& classes, int64_t T, int64_t C) {
  const Tiles slices = slice_rows(T, C);
  const size_t count = classes.statistics_K ? static_cast<size_t>(classes.count) : 0;
  std::vector<NormStatistics> partial(count * static_cast<size_t>(slices.count));
  parallel(slices.count, [&](int64_t slice, int32_t) {
    NormStatistics* own = partial.data() + static_cast<size_t>(slice) * count;
    for (int64_t t = slices.begin(slice); t < slices.end(slice); ++t) {
      const float norm = norm_of(t);
      if (count > 0) add_norm(own[classes.class_T ? classes.class_T[t] : 0], classes.scale * norm);
    }
  });
  for (size_t i = 0; i < partial.size(); ++i) merge(classes.statistics_K[i % count], partial[i]);
}

void CpuBackend::grad_norm(const void* x_TC, DType dtype, const uint8_t* class_T, int32_t classes, float scale, float* norm_T, NormStatistics* statistics_K, int64_t T,
                           int64_t C) {
  const auto kernel = dtype == DType::f32   ? PLUMBLINE_PICK(isa_, sum_squares_f32)
                      : dtype == DType::f16 ? PLUMBLINE_PICK(isa_, norm_squares_f16)
                                            : PLUMBLINE_PICK(isa_, norm_squares_bf16);
  const int64_t row_bytes = C * static_cast<int64_t>(dtype_bytes(dtype));
  const auto norm_of = [&](int64_t t) {
    const float norm = static_cast<float>(std::sqrt(kernel(static_cast<const char*>(x_TC) + t * row_bytes, C)));
    if (norm_T) norm_T[t] = norm;
    return norm;
  };
  each_norm(norm_of, {statistics_K, class_T, classes, scale}, T, C);
}

void CpuBackend::norm_statistics(const float* norm_T, const uint8_t* class_T, int32_t classes, float scale, NormStatistics* statistics_K, int64_t T) {
  each_norm([&](int64_t t) { return norm_T[t]; }, {statistics_K, class_T, classes, scale}, T, 1);
}

}  // namespace plumbline
