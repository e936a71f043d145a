// weighted_rows and its gradient against the formulas in f64.
#include <cmath>

#include "variants.h"

using namespace plumbline;

namespace {

struct WeightedRows {
  std::vector<int32_t> cu, from_row;
  std::vector<float> from, weight, dout;
};

void check_weighted(Backend& backend, const char* name, int64_t R, int64_t C) {
  constexpr int64_t kRows = 40;
  Noise source(static_cast<uint64_t>(R * 7 + C));
  WeightedRows w;
  w.cu = {0};
  for (int64_t r = 0; r < R; ++r) w.cu.push_back(w.cu.back() + static_cast<int32_t>(r % 5 == 1 ? 0 : source.below(9)));
  const int64_t n = w.cu.back();
  for (int64_t i = 0; i < n; ++i) w.from_row.push_back(static_cast<int32_t>(source.below(kRows)));
  w.from = noise(kRows * C, 31), w.weight = noise(n, 32), w.dout = noise(R * C, 33);
  const std::vector<float> zeros(static_cast<size_t>(kRows * C), 0.0f);
  Guarded<float> out(R * C), dweight(n), again(n), dfrom(kRows * C, zeros), only(kRows * C, zeros);
  backend.weighted_rows(w.from.data(), w.from_row.data(), w.weight.data(), w.cu.data(), out.data(), R, C);
  backend.weighted_rows_grad(w.from.data(), w.from_row.data(), w.weight.data(), w.cu.data(), w.dout.data(), dweight.data(), dfrom.data(), R, C);
  backend.weighted_rows_grad(w.from.data(), w.from_row.data(), w.weight.data(), w.cu.data(), w.dout.data(), nullptr, only.data(), R, C);
  backend.weighted_rows_grad(w.from.data(), w.from_row.data(), w.weight.data(), w.cu.data(), w.dout.data(), again.data(), nullptr, R, C);
  CHECK(only == dfrom && again == dweight, "%s R %ld C %ld: one result alone differs", name, R, C);
  std::vector<double> want(static_cast<size_t>(kRows * C), 0.0), size = want;
  for (int64_t r = 0; r < R; ++r) {
    for (int64_t c = 0; c < C; ++c) {
      double sum = 0, absolute = 0;
      for (int32_t i = w.cu[r]; i < w.cu[r + 1]; ++i) {
        const size_t at = static_cast<size_t>(w.from_row[i] * C + c);
        const double term = static_cast<double>(w.weight[i]) * static_cast<double>(w.from[at]);
        const double back = static_cast<double>(w.weight[i]) * static_cast<double>(w.dout[r * C + c]);
        sum += term, absolute += std::fabs(term), want[at] += back, size[at] += std::fabs(back);
      }
      CHECK_CLOSE(out[r * C + c], sum, 10 * kUnit * absolute, "%s R %ld C %ld row %ld", name, R, C, r);
    }
    for (int32_t i = w.cu[r]; i < w.cu[r + 1]; ++i) {
      double sum = 0, absolute = 0;
      for (int64_t c = 0; c < C; ++c) {
        const double term = static_cast<double>(w.dout[r * C + c]) * static_cast<double>(w.from[w.from_row[i] * C + c]);
        sum += term, absolute += std::fabs(term);
      }
      CHECK_CLOSE(dweight[i], sum, (static_cast<double>(C) + 2) * kUnit * absolute, "%s dweight %d", name, i);
    }
  }
  for (int64_t i = 0; i < kRows * C; ++i) CHECK_CLOSE(dfrom[i], want[i], static_cast<double>(n + 2) * kUnit * size[i], "%s dfrom %ld", name, i);
  CHECK(out.intact() && dweight.intact() && dfrom.intact(), "%s R %ld C %ld wrote outside", name, R, C);
}

// Rows that meet in one destination are added in order, whatever the threads.
void test_weighted_threads() {
  const int64_t R = 300, C = 1537;
  std::vector<int32_t> cu, from_row;
  for (int32_t r = 0; r <= R; ++r) cu.push_back(2 * r);
  for (int32_t i = 0; i < 2 * R; ++i) from_row.push_back(i * 7 % 11);
  const std::vector<float> from = noise(11 * C, 41), weight = noise(2 * R, 42), dout = noise(R * C, 43);
  CpuBackend one(1), two(kTwoThreads);
  Guarded<float> a(11 * C, from), b(11 * C, from), out_a(R * C), out_b(R * C);
  one.weighted_rows_grad(from.data(), from_row.data(), weight.data(), cu.data(), dout.data(), nullptr, a.data(), R, C);
  two.weighted_rows_grad(from.data(), from_row.data(), weight.data(), cu.data(), dout.data(), nullptr, b.data(), R, C);
  one.weighted_rows(from.data(), from_row.data(), weight.data(), cu.data(), out_a.data(), R, C);
  two.weighted_rows(from.data(), from_row.data(), weight.data(), cu.data(), out_b.data(), R, C);
  CHECK(a == b && out_a == out_b, "threads change bits");
}

}  // namespace

int main() {
  for_each_backend([](Backend& backend, const char* name) {
    for (const int64_t R : {0, 1, 13})
      for (const int64_t C : {1, 31, 33, 129, 1000, 1028}) check_weighted(backend, name, R, C);
  });
  test_weighted_threads();
  return finish_variants();
}
