#pragma once
// Runs a test body once per instruction set that this machine has, with one and with two threads, and with the emulated kernels; keeps
// outputs between guards.
#include <algorithm>
#include <string>
#include <vector>

#include "../../cuda/cuda_backend.h"
#include "../../src/cpu/cpu_backend.h"
#include "check.h"

namespace plumbline_test {

constexpr double kUnit = 0x1p-24;                       // half a unit in the last place of 1 in f32: the error of one rounding
constexpr double kTiny = 0x1p-126;                      // smallest normal f32: results below may be flushed
constexpr int64_t kSizes[] = {1, 31, 32, 33, 127, 128, 129, 1000, 1536, 3584};

struct Variant {
  plumbline::Isa isa;
  int32_t threads;
  std::string name() const {
    static const char* const names[] = {"baseline", "avx2", "avx512"};
    return std::string(names[static_cast<int>(isa)]) + ", " + std::to_string(threads) + " threads";
  }
};

template <typename Body>
void for_each_variant(const Body& body) {
  if (kEmulatedOnly) return;
  for (const plumbline::Isa isa : {plumbline::Isa::baseline, plumbline::Isa::avx2, plumbline::Isa::avx512}) {
    if (isa > plumbline::best_isa()) continue;  // counted by finish_variants
    for (const int32_t threads : {1, 2}) {
      plumbline::CpuBackend backend(threads);
      backend.set_isa(isa);
      body(backend, Variant{isa, threads}.name().c_str());
    }
  }
}

// The same, then the CUDA backend whose kernels the host compiler built: device memory is host memory there. Slow: keep shapes small
// where is_emulated().
template <typename Body>
void for_each_backend(const Body& body) {
  for_each_variant([&](plumbline::CpuBackend& backend, const char* name) { body(static_cast<plumbline::Backend&>(backend), name); });
  plumbline::CudaBackend emulated;
  body(static_cast<plumbline::Backend&>(emulated), "emulated cuda");
}

inline bool is_emulated(const plumbline::Backend& backend) { return std::string(backend.name()) == "cuda"; }

inline int finish_variants() {
  if (kEmulatedOnly) return finish();
  if (plumbline::best_isa() < plumbline::Isa::avx2) skip("avx2: not on this machine");
  if (plumbline::best_isa() < plumbline::Isa::avx512) skip("avx512: not on this machine");
  return finish();
}

// `size` elements of which every byte is 0xff (a NaN in f32), between two guards of the byte 0xa5.
template <typename T>
class Guarded {
 public:
  explicit Guarded(int64_t size) : size_(size), bytes_(2 * kGuard + static_cast<size_t>(size) * sizeof(T), 0xff) {
    std::fill_n(bytes_.begin(), kGuard, uint8_t{0xa5});
    std::fill_n(bytes_.end() - kGuard, kGuard, uint8_t{0xa5});
  }
  Guarded(int64_t size, const std::vector<T>& from) : Guarded(size) { std::copy(from.begin(), from.end(), data()); }
  T* data() { return reinterpret_cast<T*>(bytes_.data() + kGuard); }
  T operator[](int64_t i) { return data()[i]; }
  int64_t size() const { return size_; }
  bool intact() const {
    const auto is_guard = [](uint8_t byte) { return byte == 0xa5; };
    return std::all_of(bytes_.begin(), bytes_.begin() + kGuard, is_guard) && std::all_of(bytes_.end() - kGuard, bytes_.end(), is_guard);
  }
  bool operator==(const Guarded& other) const { return bytes_ == other.bytes_; }

 private:
  static constexpr int kGuard = 64;
  int64_t size_;
  std::vector<uint8_t> bytes_;
};

inline std::vector<float> noise(int64_t size, uint64_t seed, float scale = 1.0f) {
  Noise source(seed);
  std::vector<float> values(static_cast<size_t>(size));
  for (float& value : values) value = scale * source.next();
  return values;
}

}  // namespace plumbline_test

using plumbline_test::finish_variants;
using plumbline_test::for_each_backend;
using plumbline_test::for_each_variant;
using plumbline_test::Guarded;
using plumbline_test::is_emulated;
using plumbline_test::kSizes;
using plumbline_test::kTiny;
using plumbline_test::kUnit;
using plumbline_test::noise;
