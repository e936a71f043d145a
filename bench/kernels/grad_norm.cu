// Gradient norms, from naive to what ships: a thread per row, a warp per row, then 16-byte loads; statistics in a second pass over the norms
// and in the same launch; the global norm tensor by tensor and in one go; Gram matrices from global memory and from tiles; eigenvalues.
#include <algorithm>
#include <cmath>

#include "../../cuda/reduce.cuh"
#include "harness.h"

namespace plumbline_bench {
namespace {

using plumbline::blocks_of;
using plumbline::DType;
using plumbline::FloatSpan;
using plumbline::launch;
using plumbline::MatrixBatch;
using plumbline::NormStatistics;

constexpr int kThreads = 256;

// 1: neighbouring threads read memory a row apart.
__global__ void thread_per_row_kernel(const float* x_TC, float* norm_T, int64_t T, int64_t C) {
  const int64_t t = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (t >= T) return;
  float sum = 0;
  for (int64_t c = 0; c < C; ++c) sum += x_TC[t * C + c] * x_TC[t * C + c];
  norm_T[t] = sqrtf(sum);
}

// 2: coalesced, 4 bytes a load, each waiting for the one before.
__global__ void warp_per_row_kernel(const float* x_TC, float* norm_T, int64_t T, int64_t C) {
  const int64_t t = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (t >= T) return;
  float sum = 0;
  for (int64_t c = threadIdx.x % 32; c < C; c += 32) sum = fmaf(x_TC[t * C + c], x_TC[t * C + c], sum);
  sum = plumbline::warp_sum(sum);
  if (threadIdx.x % 32 == 0) norm_T[t] = sqrtf(sum);
}

// 3: 16 bytes a load, four independent sums.
__global__ void vector_loads_kernel(const float* x_TC, float* norm_T, int64_t T, int64_t C) {
  const int64_t t = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (t >= T) return;
  const float4* row = reinterpret_cast<const float4*>(x_TC + t * C);
  float4 sum = {0, 0, 0, 0};
  for (int64_t i = threadIdx.x % 32; i < C / 4; i += 32) {
    const float4 v = row[i];
    sum.x = fmaf(v.x, v.x, sum.x), sum.y = fmaf(v.y, v.y, sum.y), sum.z = fmaf(v.z, v.z, sum.z), sum.w = fmaf(v.w, v.w, sum.w);
  }
  const float total = plumbline::warp_sum((sum.x + sum.y) + (sum.z + sum.w));
  if (threadIdx.x % 32 == 0) norm_T[t] = sqrtf(total);
}

// A block per matrix, every product from global memory.
__global__ void naive_gram_kernel(const float* m, int64_t r, int64_t depth, double* gram) {
  const float* matrix = m + blockIdx.x * r * depth;
  for (int64_t at = threadIdx.x; at < r * r; at += kThreads) {
    double sum = 0;
    for (int64_t k = 0; k < depth; ++k) sum = fma(static_cast<double>(matrix[at / r * depth + k]), static_cast<double>(matrix[at % r * depth + k]), sum);
    gram[blockIdx.x * r * r + at] = sum;
  }
}

std::vector<uint8_t> classes_of(int64_t T, int32_t classes) {
  std::vector<uint8_t> all(static_cast<size_t>(T));
  for (size_t t = 0; t < all.size(); ++t) all[t] = static_cast<uint8_t>(t / 37 % static_cast<size_t>(classes));
  return all;
}

std::string size_text(int64_t T, int64_t C, const char* type) { return std::to_string(T) + " x " + std::to_string(C) + " " + type; }

template <typename T>
std::vector<T> narrowed(const std::vector<float>& x, DType dtype, std::vector<double>* exact) {
  std::vector<T> out;
  for (const float value : x) {
    const uint16_t bits = dtype == DType::f16 ? plumbline::float_to_half(value) : plumbline::float_to_bf16(value);
    out.push_back(static_cast<T>(bits));
    exact->push_back(dtype == DType::f16 ? plumbline::half_to_float(bits) : plumbline::bf16_to_float(bits));
  }
  return out;
}

// Largest error as a share of (C / 32 + 6) units in the last place.
double norm_error(const std::vector<float>& got, const std::vector<double>& x, int64_t C) {
  double worst = 0;
  for (size_t t = 0; t < got.size(); ++t) {
    double sum = 0;
    for (size_t c = 0; c < static_cast<size_t>(C); ++c) sum += x[t * static_cast<size_t>(C) + c] * x[t * static_cast<size_t>(C) + c];
    worst = std::max(worst, std::fabs(static_cast<double>(got[t]) / std::sqrt(sum) - 1) / ((static_cast<double>(C) / 32 + 6) * 0x1p-24));
  }
  return worst;
}

void bench_rows(Harness& h, int64_t T, int64_t C) {
  const std::vector<float> x = noise(static_cast<size_t>(T * C), 1);
  const std::vector<double> exact(x.begin(), x.end());
  const float* x_TC = h.upload(x);
  float* norm_T = static_cast<float*>(h.allocate(static_cast<size_t>(T) * sizeof(float)));
  NormStatistics* statistics = static_cast<NormStatistics*>(h.allocate(6 * sizeof(NormStatistics)));
  const std::vector<uint8_t> classes = classes_of(T, 6);
  const auto error = [&] { return norm_error(h.download(norm_T, static_cast<size_t>(T)), exact, C); };
  const auto clear = [&] { h.check(cudaMemsetAsync(statistics, 0, 6 * sizeof(NormStatistics), h.stream())); };
  const auto counted = [&] {
    double wrong = 0;
    const std::vector<NormStatistics> got = h.download(statistics, 6);
    for (size_t k = 0; k < 6; ++k) wrong += got[k].count != std::count(classes.begin(), classes.end(), static_cast<uint8_t>(k));
    return std::max(error(), 2 * wrong);
  };
  const auto entry = [&](const char* version) { return Entry{"grad_norm", version, size_text(T, C, "f32"), static_cast<double>(T * C + T) * 4, 0}; };
  const dim3 threads(kThreads), warps(blocks_of(T, kThreads / 32));
  h.measure(entry("1 thread per row"), [&] { h.check(launch(thread_per_row_kernel, dim3(blocks_of(T, kThreads)), threads, 0, h.stream(), x_TC, norm_T, T, C)); }, error);
  h.measure(entry("2 warp per row"), [&] { h.check(launch(warp_per_row_kernel, warps, threads, 0, h.stream(), x_TC, norm_T, T, C)); }, error);
  h.measure(entry("3 16-byte loads"), [&] { h.check(launch(vector_loads_kernel, warps, threads, 0, h.stream(), x_TC, norm_T, T, C)); }, error);
  h.measure(entry("4 and statistics, second launch"), [&] {
    h.check(launch(vector_loads_kernel, warps, threads, 0, h.stream(), x_TC, norm_T, T, C));
    h.backend().norm_statistics(norm_T, classes.data(), 6, 1.0f, statistics, T);
  }, counted, clear);
  h.measure(entry("5 shipped, statistics in one"), [&] { h.backend().grad_norm(x_TC, DType::f32, classes.data(), 6, 1.0f, norm_T, statistics, T, C); }, counted, clear);
  for (const DType dtype : {DType::f16, DType::bf16}) {
    std::vector<double> rounded;
    const uint16_t* halves = h.upload(narrowed<uint16_t>(x, dtype, &rounded));
    h.measure({"grad_norm", "5 shipped, statistics in one", size_text(T, C, dtype == DType::f16 ? "f16" : "bf16"), static_cast<double>(T * C * 2 + T * 4), 0},
              [&] { h.backend().grad_norm(halves, dtype, classes.data(), 6, 1.0f, norm_T, statistics, T, C); },
              [&] { return norm_error(h.download(norm_T, static_cast<size_t>(T)), rounded, C); }, clear);
  }
  h.clear();
}

void bench_global(Harness& h, int64_t tensors, int64_t size) {
  std::vector<FloatSpan> spans;
  double want = 0, got = 0;
  for (int64_t n = 0; n < tensors; ++n) {
    const std::vector<float> x = noise(static_cast<size_t>(n % 3 == 0 ? size / 100 + 1 : size), 3 + static_cast<uint64_t>(n));
    for (const float value : x) want += static_cast<double>(value) * value;
    spans.push_back({h.upload(x), static_cast<int64_t>(x.size())});
  }
  double elements = 0;
  for (const FloatSpan& span : spans) elements += static_cast<double>(span.size);
  const auto error = [&] { return std::fabs(got / want - 1) / (1e-15 * std::sqrt(elements)); };
  const auto entry = [&](const char* version) { return Entry{"sum_squares", version, std::to_string(tensors) + " tensors, " + std::to_string(static_cast<int64_t>(elements)) + " f32", elements * 4, 0}; };
  h.measure(entry("1 tensor by tensor"), [&] {
    got = 0;
    for (const FloatSpan& span : spans) got += h.backend().sum_squares(&span, 1, DType::f32);
  }, error);
  h.measure(entry("2 shipped, one chunk table"), [&] { got = h.backend().sum_squares(spans.data(), tensors, DType::f32); }, error);
  h.clear();
}

void bench_spectra(Harness& h, int32_t count, int32_t r, int32_t depth) {
  const size_t each = static_cast<size_t>(r) * static_cast<size_t>(depth), square = static_cast<size_t>(r) * static_cast<size_t>(r);
  const std::vector<float> m = noise(each * static_cast<size_t>(count), 5);
  const float* device = h.upload(m);
  double* gram = static_cast<double*>(h.allocate(static_cast<size_t>(count) * square * sizeof(double)));
  double* values = static_cast<double*>(h.allocate(static_cast<size_t>(count * r) * sizeof(double)));
  std::vector<const void*> data;
  for (int32_t b = 0; b < count; ++b) data.push_back(device + static_cast<size_t>(b) * each);
  const std::vector<int32_t> rows(static_cast<size_t>(count), r), cols(static_cast<size_t>(count), depth);
  const MatrixBatch batch = {DType::f32, count, data.data(), rows.data(), cols.data()};
  const std::string what = std::to_string(count) + " of " + std::to_string(r) + " x " + std::to_string(depth) + " f32";
  const auto last = [&] {  // of the last matrix: its last row of products
    const std::vector<double> got = h.download(gram + static_cast<size_t>(count - 1) * square, square);
    const float* x = m.data() + static_cast<size_t>(count - 1) * each;
    double worst = 0;
    for (int32_t j = 0; j < r; ++j) {
      double sum = 0, size = 0;
      for (int32_t k = 0; k < depth; ++k) sum += static_cast<double>(x[(r - 1) * depth + k]) * x[j * depth + k], size += std::fabs(static_cast<double>(x[(r - 1) * depth + k]) * x[j * depth + k]);
      worst = std::max(worst, std::fabs(got[static_cast<size_t>((r - 1) * r + j)] - sum) / (size * depth * 0x1p-52));
    }
    return worst;
  };
  const double bytes = static_cast<double>(count) * (static_cast<double>(each) * 4 + static_cast<double>(square) * 8), flops = static_cast<double>(count) * r * r * depth;
  h.measure({"gram", "1 from global memory", what, bytes, flops}, [&] { h.check(launch(naive_gram_kernel, dim3(static_cast<unsigned>(count)), dim3(kThreads), 0, h.stream(), device, static_cast<int64_t>(r), static_cast<int64_t>(depth), gram)); }, last);
  h.measure({"gram", "2 shipped, f64 tensor cores", what, bytes, flops}, [&] { h.backend().gram(batch, gram); }, last);
  // Sum and sum of squares of the values are trace and squared norm of the matrix. A sweep turns each diagonal element r - 1 times with two
  // roundings, eight sweeps: 16 r units of the sum, twice that of the squares.
  const auto moments = [&] {
    const std::vector<double> got = h.download(values + static_cast<size_t>((count - 1) * r), static_cast<size_t>(r));
    h.backend().gram(batch, gram);
    const std::vector<double> matrix = h.download(gram + static_cast<size_t>(count - 1) * square, square);
    long double sum = 0, squares = 0, trace = 0, norm = 0;
    for (const double value : got) sum += value, squares += static_cast<long double>(value) * value;
    for (size_t i = 0; i < static_cast<size_t>(r); ++i) trace += matrix[i * static_cast<size_t>(r) + i];
    for (const double value : matrix) norm += static_cast<long double>(value) * value;
    const double worst = static_cast<double>(std::max(std::fabs(sum / trace - 1), std::fabs(squares / norm - 1) / 2)) / (16 * r * 0x1p-53);
    return std::is_sorted(got.rbegin(), got.rend()) ? worst : NAN;
  };
  h.measure({"symmetric_eigenvalues", "1 shipped, parallel Jacobi", std::to_string(count) + " of " + std::to_string(r) + " x " + std::to_string(r), static_cast<double>(count) * (static_cast<double>(square) + r) * 8, 0},
            [&] { h.backend().symmetric_eigenvalues(count, rows.data(), gram, values); }, moments, [&] { h.backend().gram(batch, gram); });
  h.clear();
}

}  // namespace

void bench_grad_norm(Harness& h) {
  const bool small = h.check_only();
  if (h.wants("grad_norm")) {
    bench_rows(h, small ? 300 : 16384, 1536);
    bench_rows(h, small ? 60 : 4096, 8960);
  }
  if (h.wants("sum_squares")) bench_global(h, small ? 7 : 338, small ? 40000 : 1 << 20);
  if (h.wants("gram") || h.wants("symmetric_eigenvalues")) {
    bench_spectra(h, small ? 3 : 224, 16, small ? 300 : 1536);
    bench_spectra(h, small ? 2 : 132, small ? 66 : 128, small ? 200 : 1536);
  }
}

}  // namespace plumbline_bench
