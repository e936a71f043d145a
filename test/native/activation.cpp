// activate, swiglu, add and their gradients against the formulas in f64.
#include <cmath>
#include <cstring>
#include <limits>

#include "variants.h"

using plumbline::Activation;
using plumbline::Backend;
using plumbline::CpuBackend;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
const std::vector<float> kSpecial = {0.0f,   -0.0f,  1e-38f, -1e-38f, 1e-20f, 5.0f,   -5.0f,  13.0f,   -13.0f,  16.5f,  -16.5f, 87.0f,
                                     -87.0f, 88.8f,  -88.8f, 104.0f,  -104.f, 1e4f,   -1e4f,  2.5e38f, -2.5e38f, 3.4e38f, -3.4e38f};

struct Exact {
  double value, slope;
  double value_bound, slope_bound;  // of an f32 evaluation
};

// An exponential below the smallest normal f32 is 0; beyond |x| = 200 it is 0 in f64 terms too.
double flushed(double x) { return kTiny * (2 + 2 * std::min(std::fabs(x), 200.0)); }

// sigmoid to 8 roundings, and its argument a x to two more, which cost |a x| of relative error on the falling side.
Exact exact_sigmoid(double x, double a) {
  const double yes = 1 / (1 + std::exp(-a * x)), no = 1 / (1 + std::exp(a * x)), bend = std::fabs(a * x) * yes * no;
  const double relative = (9 + (a == 1 ? 0 : 2 * std::fabs(a * x) * no)) * kUnit;
  Exact e;
  e.value = x * yes;
  e.slope = yes + a * x * yes * no;
  e.value_bound = std::fabs(e.value) * relative + flushed(x);
  e.slope_bound = (yes + bend) * (12 + (a == 1 ? 0 : 3 * std::fabs(a * x))) * kUnit + flushed(x);
  return e;
}

// exp(-x^2/2): x^2/2 rounds twice. erfc's fit: 5 roundings' worth.
Exact exact_erf(double x) {
  const double below = 0.5 * std::erfc(-x / std::sqrt(2.0)), tail = 0.5 * std::erfc(std::fabs(x) / std::sqrt(2.0));
  const double bell = std::exp(-x * x / 2) / std::sqrt(2 * std::acos(-1.0));
  Exact e;
  e.value = x * below;
  e.slope = below + x * bell;
  e.value_bound = std::fabs(x) * (tail * (12 + x * x) + below * 3) * kUnit + flushed(x);
  e.slope_bound = (tail * (12 + x * x) + below * 3 + std::fabs(x) * bell * (12 + x * x)) * kUnit + flushed(x);
  return e;
}

Exact exact(Activation kind, float x) {
  if (kind == Activation::relu) return {x > 0 ? x : 0.0, x > 0 ? 1.0 : 0.0, 0, 0};
  return kind == Activation::silu ? exact_sigmoid(x, 1) : kind == Activation::quick_gelu ? exact_sigmoid(x, 1.702) : exact_erf(x);
}

std::vector<float> inputs(int64_t size) {
  std::vector<float> x = noise(size, 11, 12.0f);
  for (size_t i = 0; i < x.size(); ++i)
    if (i % 3 == 1) x[i] = kSpecial[(i / 3) % kSpecial.size()];
  return x;
}

constexpr Activation kKinds[] = {Activation::quick_gelu, Activation::erf_gelu, Activation::silu, Activation::relu};

void test_activate() {
  for_each_backend([](Backend& backend, const char* name) {
    for (const Activation kind : kKinds)
      for (const int64_t size : {int64_t{0}, int64_t{1}, int64_t{31}, int64_t{33}, int64_t{129}, int64_t{3584}, int64_t{100003}}) {
        const std::vector<float> x = inputs(size), dy = noise(size, 12);
        Guarded<float> y(size), in_place(size, x), dx(size), dx_in_place(size, dy);
        backend.activate(kind, x.data(), y.data(), size);
        backend.activate(kind, in_place.data(), in_place.data(), size);
        backend.activate_grad(kind, x.data(), dy.data(), dx.data(), size);
        backend.activate_grad(kind, x.data(), dx_in_place.data(), dx_in_place.data(), size);
        for (int64_t i = 0; i < size; ++i) {
          const float v = x[static_cast<size_t>(i)];
          const Exact want = exact(kind, v);
          const double d = dy[static_cast<size_t>(i)];
          CHECK_CLOSE(y[i], want.value, want.value_bound, "%s kind %d at %g", name, static_cast<int>(kind),
                      static_cast<double>(v));
          const double bound = std::fabs(d) * (want.slope_bound + kUnit * std::fabs(want.slope)) + kTiny;
          CHECK_CLOSE(dx[i], d * want.slope, bound, "%s kind %d slope at %g", name, static_cast<int>(kind), static_cast<double>(v));
        }
        CHECK(y == in_place && dx == dx_in_place, "%s in place differs", name);
        CHECK(y.intact() && dx.intact(), "%s wrote outside", name);
      }
  });
}

void test_non_finite() {
  for_each_backend([](Backend& backend, const char* name) {
    for (const Activation kind : kKinds) {
      const float x[3] = {std::nanf(""), kInf, -kInf}, dy[3] = {1, 1, 1};
      float y[3], dx[3];
      backend.activate(kind, x, y, 3);
      backend.activate_grad(kind, x, dy, dx, 3);
      CHECK(std::isnan(y[0]) && (kind == Activation::relu ? dx[0] == 1 : std::isnan(dx[0])), "%s NaN", name);  // relu: as in PyTorch
      const bool low = kind == Activation::relu ? y[2] == 0 && dx[2] == 0 : std::isnan(y[2]);
      CHECK(y[1] == kInf && low, "%s kind %d: inf -> %g, -inf -> %g", name, static_cast<int>(kind), static_cast<double>(y[1]),
            static_cast<double>(y[2]));
    }
  });
}

// What relu stops may be anything.
void test_relu_stops() {
  for_each_backend([](Backend& backend, const char* name) {
    const std::vector<float> x(21, -1.0f), dy(21, kInf), zero(21, 0.0f);
    Guarded<float> dx(21), at_zero(21);
    backend.activate_grad(Activation::relu, x.data(), dy.data(), dx.data(), 21);
    backend.activate_grad(Activation::relu, zero.data(), dy.data(), at_zero.data(), 21);
    for (int i = 0; i < 21; ++i) CHECK(dx[i] == 0 && at_zero[i] == 0, "%s relu passes %g", name, static_cast<double>(dx[i]));
  });
}

// An element's bits do not depend on its place, the tile it fell in, or the threads.
void test_place() {
  const int64_t size = 70001;
  const std::vector<float> x = inputs(size);
  for (const Activation kind : kKinds) {
    CpuBackend one(1), two(kTwoThreads);
    Guarded<float> a(size), b(size), moved(size - 5);
    one.activate(kind, x.data(), a.data(), size);
    two.activate(kind, x.data(), b.data(), size);
    two.activate(kind, x.data() + 5, moved.data(), size - 5);
    plumbline::CudaBackend emulated;
    Guarded<float> c(size), c_moved(size - 5);
    emulated.activate(kind, x.data(), c.data(), size);
    emulated.activate(kind, x.data() + 5, c_moved.data(), size - 5);  // not aligned to 16 bytes
    CHECK(std::memcmp(c.data() + 5, c_moved.data(), static_cast<size_t>(size - 5) * sizeof(float)) == 0, "place changes bits of the emulated kernel");
    CHECK(a == b, "threads change bits");
    CHECK(std::memcmp(a.data() + 5, moved.data(), static_cast<size_t>(size - 5) * sizeof(float)) == 0, "place changes bits");
  }
}

void test_swiglu() {
  for_each_backend([](Backend& backend, const char* name) {
    for (const int64_t I : kSizes)
      for (const int64_t T : {int64_t{0}, int64_t{1}, int64_t{13}}) {
        std::vector<float> gate_up = noise(T * 2 * I, 13, 2.0f);
        const std::vector<float> gate = inputs(T * I), dout = noise(T * I, 14);
        for (int64_t t = 0; t < T; ++t)
          for (int64_t i = 0; i < I; ++i)
            if (const float g = gate[static_cast<size_t>(t * I + i)]; std::fabs(g) < 1e37f) gate_up[static_cast<size_t>(t * 2 * I + i)] = g;
        Guarded<float> out(T * I), d(T * 2 * I);
        backend.swiglu(gate_up.data(), out.data(), T, I);
        backend.swiglu_grad(gate_up.data(), dout.data(), d.data(), T, I);
        for (int64_t t = 0; t < T; ++t)
          for (int64_t i = 0; i < I; ++i) {
            const float g = gate_up[static_cast<size_t>(t * 2 * I + i)], u = gate_up[static_cast<size_t>((t * 2 + 1) * I + i)];
            const double dy = dout[static_cast<size_t>(t * I + i)];
            const Exact e = exact(Activation::silu, g);
            const double value_bound = e.value_bound + 2 * kUnit * std::fabs(e.value);
            const double slope_bound = e.slope_bound + 2 * kUnit * std::fabs(e.slope);
            CHECK_CLOSE(out[t * I + i], e.value * u, std::fabs(u) * value_bound + kTiny, "%s out at %g", name, static_cast<double>(g));
            const double dgate = d[t * 2 * I + i], dup = d[(t * 2 + 1) * I + i];
            CHECK_CLOSE(dgate, dy * u * e.slope, std::fabs(dy * u) * slope_bound + kTiny, "%s dgate at %g", name, static_cast<double>(g));
            CHECK_CLOSE(dup, dy * e.value, std::fabs(dy) * value_bound + kTiny, "%s dup at %g", name, static_cast<double>(g));
          }
        CHECK(out.intact() && d.intact(), "%s wrote outside", name);
      }
  });
}

}  // namespace

int main() {
  test_activate();
  test_non_finite();
  test_relu_stops();
  test_place();
  test_swiglu();
  return finish_variants();
}
