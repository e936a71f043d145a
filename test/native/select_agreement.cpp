// The CPU and the emulated kernels choose the same patches for 100,000 adversarial rows (2,000 with a sanitizer) of scores: ties, NaN, infinities, zeros of both
// signs, denormals, neighbours that only the last bit tells apart, scores that were rounded to bf16.
#include <limits>

#include "../../src/core/replay.h"
#include "variants.h"

using namespace plumbline;

namespace {

constexpr int64_t kBatch = kEmulatedOnly ? 40 : 1000;

float rounded(float x) { return bf16_to_float(float_to_bf16(x)); }

float adversarial(Noise& noise, int64_t kind) {
  constexpr float kInf = std::numeric_limits<float>::infinity(), kNaN = std::numeric_limits<float>::quiet_NaN();
  switch (kind) {
    case 0: return 0.25f;
    case 1: return noise.below(2) ? 0.0f : -0.0f;
    case 2: return rounded(1e-2f * noise.next());
    case 3: {
      const float odd[] = {kNaN, -kNaN, kInf, -kInf, 0.0f, -0.0f, 1e-45f, -1e-45f, 0.5f, -0.5f, 3.4e38f, -3.4e38f};
      return odd[noise.below(12)];
    }
    case 4: return std::nextafter(0.125f, noise.below(2) ? 1.0f : 0.0f);
    case 5: return noise.below(5) ? 1.0f : kNaN;
    case 6: return static_cast<float>(noise.below(6)) * 1e-40f;
    default: return std::fabs(noise.next()) * 1e-3f;
  }
}

struct Batch {
  ReplayRule rule;
  std::vector<int32_t> cu_tokens{0}, cu_pictures{0}, grid, cu_selected{0};
  std::vector<float> saliency;
  std::vector<uint8_t> used;
  ReplayLayout layout() const { return {static_cast<int32_t>(cu_tokens.size()) - 1, cu_tokens.data(), cu_pictures.data(), grid.data(), cu_selected.data()}; }

  // most: candidates of a row.
  Batch(Noise& noise, int64_t rows, int64_t most) {
    rule = {static_cast<int32_t>(1 + noise.below(most)), static_cast<int32_t>(1 + noise.below(4)), 0, noise.below(2) ? ReplayWeights::softmax : ReplayWeights::mean_preserving,
            false, noise.below(3) == 0, noise.below(3) == 0};
    for (int64_t b = 0; b < rows; ++b) {
      const int32_t high = static_cast<int32_t>(1 + noise.below(4)), wide = static_cast<int32_t>(noise.below(most / high + 1)), tokens = high * wide;
      if (wide > 0) grid.insert(grid.end(), {high, wide});
      int32_t marked = 0;
      const int64_t kind = noise.below(9), used_of_8 = noise.below(4) ? 0 : noise.below(9);
      for (int32_t i = 0; i < tokens; ++i) {
        saliency.push_back(adversarial(noise, kind));
        used.push_back(noise.below(8) < used_of_8);
        marked += used.back();
      }
      cu_tokens.push_back(cu_tokens.back() + tokens);
      cu_pictures.push_back(cu_pictures.back() + (wide > 0));
      cu_selected.push_back(cu_selected.back() + replay_count(rule, tokens, marked));
    }
  }
};

struct Answer {
  std::vector<uint8_t> used;
  std::vector<int32_t> selected, window;
  std::vector<float> weight;
};

Answer run(Backend& backend, const Batch& batch) {
  const size_t K = static_cast<size_t>(batch.cu_selected.back()), B = batch.cu_tokens.size() - 1;
  Answer a{batch.used, std::vector<int32_t>(K, -1), std::vector<int32_t>(6 * B, -1), std::vector<float>(K, -1.0f)};
  backend.select_patches(batch.rule, batch.layout(), batch.saliency.data(), a.used.data(), a.selected.data(), a.weight.data(), a.window.data(), nullptr);
  return a;
}

void compare(CpuBackend& cpu, CudaBackend& emulated, Noise& noise, int64_t rows, int64_t most, int64_t number) {
  const Batch batch(noise, rows, most);
  const Answer want = run(cpu, batch), got = run(emulated, batch);
  CHECK(got.selected == want.selected, "batch %ld: other patches", number);
  CHECK(got.used == want.used, "batch %ld: other marks", number);
  CHECK(got.window == want.window, "batch %ld: other windows", number);
  for (size_t i = 0; i < want.weight.size(); ++i)
    CHECK_CLOSE(got.weight[i], want.weight[i], 2 * kUnit * std::fabs(static_cast<double>(want.weight[i])) + kTiny, "batch %ld weight %zu", number, i);
}

}  // namespace

int main() {
  CpuBackend cpu(kTwoThreads);
  CudaBackend emulated;
  Noise noise(11);
  for (int64_t number = 0; number < (kEmulatedOnly ? 48 : 99); ++number) compare(cpu, emulated, noise, kBatch, 1 + number % 48, number);  // a warp a row
  for (int64_t number = 0; number < (kEmulatedOnly ? 4 : 10); ++number) compare(cpu, emulated, noise, kEmulatedOnly ? 10 : 94, 250, number);                  // a block a row
  for (int64_t number = 0; number < (kEmulatedOnly ? 4 : 10); ++number) compare(cpu, emulated, noise, 6, 1500, number);                  // digits searched
  return finish();
}
