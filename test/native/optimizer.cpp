// sum_squares, adamw, first_non_finite.
#include <cmath>
#include <cstring>
#include <limits>

#include "../../src/core/dtype.h"
#include "variants.h"

using plumbline::AdamWUpdate;
using plumbline::Backend;
using plumbline::CpuBackend;
using plumbline::DType;
using plumbline::FloatSpan;

namespace {

constexpr int64_t kLengths[] = {0, 1, 15, 16, 17, 31, 32, 33, 127, 128, 129, 1000, 3584, 32768, 32769, 100003};
constexpr float kInf = std::numeric_limits<float>::infinity();

double sum_squares(Backend& backend, const std::vector<float>& x) {
  const FloatSpan span{x.data(), static_cast<int64_t>(x.size())};
  return backend.sum_squares(&span, 1, DType::f32);
}

void test_sum_squares() {
  for (const int64_t size : kLengths) {
    std::vector<float> x = noise(size, 41);
    for (size_t i = 0; i < x.size(); ++i) x[i] *= i % 7 == 3 ? 1e19f : i % 7 == 4 ? 1e-30f : 1.0f;  // squares beyond f32's range
    double want = 0;
    for (const float value : x) want += static_cast<double>(value) * value;
    double first = -1;
    for_each_backend([&](Backend& backend, const char* name) {
      const double got = sum_squares(backend, x);
      CHECK_CLOSE(got, want, want * static_cast<double>(size) * 0x1p-53, "%s %ld", name, size);
      if (first < 0 || is_emulated(backend)) first = got;
      CHECK(got == first && sum_squares(backend, x) == first, "%s %ld: other bits", name, size);  // instruction sets too
    });
  }
  for_each_backend([](Backend& backend, const char* name) {
    std::vector<float> x = noise(1000, 42);
    x[999] = kInf;
    CHECK(std::isinf(sum_squares(backend, x)), "%s inf", name);
    x[3] = std::nanf("");
    CHECK(std::isnan(sum_squares(backend, x)), "%s NaN", name);
  });
}

// Spans of all lengths, empty ones too, each at another distance from a 16-byte boundary, of each type.
template <typename T, typename Narrow, typename Widen>
void check_spans(DType dtype, const Narrow& narrow, const Widen& widen) {
  std::vector<std::vector<T>> tensors;
  std::vector<FloatSpan> spans;
  double want = 0;
  int64_t total = 0;
  for (size_t n = 0; n < std::size(kLengths); ++n) {
    const std::vector<float> x = noise(kLengths[n], 46 + n);
    tensors.emplace_back(n % 9);
    for (const float value : x) tensors.back().push_back(narrow(value)), want += static_cast<double>(widen(narrow(value))) * static_cast<double>(widen(narrow(value)));
    spans.push_back({tensors.back().data() + n % 9, kLengths[n]}), total += kLengths[n];
  }
  const int64_t count = static_cast<int64_t>(spans.size());
  for_each_backend([&](Backend& backend, const char* name) {
    const double got = backend.sum_squares(spans.data(), count, dtype);
    CHECK_CLOSE(got, want, want * static_cast<double>(total) * 0x1p-53, "%s spans", name);
    CHECK(backend.sum_squares(spans.data(), count, dtype) == got, "%s a second run changes bits", name);
    CHECK(backend.sum_squares(spans.data(), 0, dtype) == 0 && backend.sum_squares(spans.data(), 1, dtype) == 0, "%s nothing", name);
  });
}

void test_spans() {
  check_spans<float>(DType::f32, [](float x) { return x; }, [](float x) { return x; });
  check_spans<uint16_t>(DType::f16, plumbline::float_to_half, plumbline::half_to_float);
  check_spans<uint16_t>(DType::bf16, plumbline::float_to_bf16, plumbline::bf16_to_float);
}

struct State {
  Guarded<float> master, first, second;
  Guarded<uint16_t> working;
  std::vector<float> gradient;
  explicit State(int64_t size)
      : master(size, noise(size, 43)), first(size, noise(size, 44, 0.1f)), second(size), working(size), gradient(noise(size, 45, 2.0f)) {
    for (int64_t i = 0; i < size; ++i) {
      const float g = gradient[static_cast<size_t>(i)];
      second.data()[i] = i % 5 == 0 ? 0.0f : 0.01f + g * g;
    }
  }
  bool operator==(const State& other) const {
    return master == other.master && first == other.first && second == other.second && working == other.working;
  }
};

void step(Backend& backend, State& state, int64_t number, bool working) {
  AdamWUpdate update = {};
  update.master = state.master.data();
  update.working = working ? state.working.data() : nullptr;
  update.gradient = state.gradient.data();
  update.first = state.first.data();
  update.second = state.second.data();
  update.size = state.master.size();
  update.learning_rate = 1e-3;
  update.beta1 = 0.9;
  update.beta2 = 0.999;
  update.epsilon = 1e-8;
  update.weight_decay = 0.05;
  update.clip_factor = 0.75f;
  update.step = number;
  backend.adamw(update);
}

void test_adamw() {
  for_each_backend([](Backend& backend, const char* name) {
    for (const int64_t size : kLengths)
      for (const int64_t number : {1, 5, 100000}) {
        State state(size), before(size), no_copy(size);
        step(backend, state, number, true);
        step(backend, no_copy, number, false);
        for (int64_t i = 0; i < size; ++i) {
          const double g = 0.75 * state.gradient[static_cast<size_t>(i)];
          const double old_m = before.first[i], old_v = before.second[i], old_w = before.master[i];
          const double m = 0.9 * old_m + 0.1 * g, v = 0.999 * old_v + 0.001 * g * g;
          const double rate = 1e-3 / (1 - std::pow(0.9, number)), bottom = std::sqrt(v) / std::sqrt(1 - std::pow(0.999, number)) + 1e-8;
          const double w = old_w * (1 - 1e-3 * 0.05) - rate * m / bottom;
          const double m_bound = 4 * kUnit * (std::fabs(0.9 * old_m) + std::fabs(0.1 * g));
          CHECK_CLOSE(state.first[i], m, m_bound, "%s m %ld", name, i);
          CHECK_CLOSE(state.second[i], v, 6 * kUnit * v + kTiny, "%s v %ld", name, i);
          const double step_bound = rate / bottom * (m_bound + 12 * kUnit * std::fabs(m)) + 4 * kUnit * 5e-5 * std::fabs(old_w);
          const double w_bound = kUnit * std::fabs(w) + step_bound;
          CHECK_CLOSE(state.master[i], w, w_bound, "%s w %ld step %ld", name, i, number);
          CHECK(state.working[i] == plumbline::float_to_bf16(state.master[i]), "%s bf16 %ld", name, i);
        }
        const bool intact = state.master.intact() && state.first.intact() && state.second.intact() && state.working.intact();
        CHECK(intact, "%s wrote outside", name);
        CHECK(no_copy.master == state.master && no_copy.working == Guarded<uint16_t>(size), "%s without a bf16 copy", name);
      }
  });
  State a(100003), b(100003), c(100003);
  CpuBackend one(1), two(kTwoThreads);
  plumbline::CudaBackend emulated;
  step(one, a, 5, true), step(two, b, 5, true), step(emulated, c, 5, true);
  CHECK(a == b, "threads change bits");
  if (plumbline::best_isa() >= plumbline::Isa::avx2) CHECK(a == c, "the emulated kernel gives other bits");  // both fuse
}

// The bf16 copy of numbers half way between two, and of NaN: learning rate 0 leaves finite weights.
void test_rounding() {
  const std::vector<uint32_t> bits = {0x3f808000, 0x3f818000, 0x3f808001, 0x3f807fff, 0xbf818000, 0x7f7fffff, 0xff7fffff, 0x7fc00000, 0x7f800001,
                                      0xffffffff, 0x00000001, 0x00008000, 0x80000000, 0x00000000, 0x3f800000};
  for_each_backend([&](Backend& backend, const char* name) {
    const int64_t size = static_cast<int64_t>(bits.size());
    Guarded<float> weight(size);
    std::memcpy(weight.data(), bits.data(), bits.size() * sizeof(uint32_t));
    std::vector<float> zero(bits.size()), first(bits.size()), second(bits.size());
    Guarded<uint16_t> working(size);
    AdamWUpdate update = {weight.data(), working.data(), zero.data(), first.data(), second.data(), size, 0, 0.9, 0.999, 1e-8, 0, 1, 1};
    backend.adamw(update);
    for (int64_t i = 0; i < size; ++i) {
      float value;
      std::memcpy(&value, &bits[static_cast<size_t>(i)], 4);
      const bool right = std::isnan(value) ? std::isnan(plumbline::bf16_to_float(working[i])) : working[i] == plumbline::float_to_bf16(value);
      CHECK(right, "%s %08x -> %04x", name, bits[static_cast<size_t>(i)], working[i]);
    }
  });
}

template <typename T>
void check_non_finite(Backend& backend, const char* name, DType dtype, const std::vector<T>& bad, T largest) {
  for (const int64_t size : kLengths) {
    std::vector<T> x(static_cast<size_t>(size), largest);
    CHECK(backend.first_non_finite(x.data(), dtype, size) == -1, "%s all finite, %ld", name, size);
    for (const int64_t place : {int64_t{0}, size / 3, size - 1, size - 17}) {
      if (place < 0 || place >= size) continue;
      std::vector<T> broken = x;
      broken[static_cast<size_t>(size - 1)] = bad[0];  // a later one, in another tile, must not win
      broken[static_cast<size_t>(place)] = bad[static_cast<size_t>(place) % bad.size()];
      CHECK(backend.first_non_finite(broken.data(), dtype, size) == place, "%s size %ld place %ld", name, size, place);
    }
  }
}

void test_first_non_finite() {
  for_each_backend([](Backend& backend, const char* name) {
    check_non_finite<float>(backend, name, DType::f32, {kInf, -kInf, std::nanf("")}, std::numeric_limits<float>::max());
    check_non_finite<uint16_t>(backend, name, DType::bf16, {0x7f80, 0xff80, 0x7fc0, 0xff81}, 0xff7f);
    const std::vector<int32_t> integers(5, 0x7f800000);
    CHECK(backend.first_non_finite(integers.data(), DType::i32, 5) == -1, "%s integers are finite", name);
  });
}

}  // namespace

int main() {
  test_sum_squares();
  test_spans();
  test_adamw();
  test_rounding();
  test_first_non_finite();
  return finish_variants();
}
