// Values of a checkpoint file on their way into parameters.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "../core/error.h"
#include "parameters.h"

namespace plumbline {
namespace {

constexpr int64_t kChunk = int64_t{1} << 20;  // elements converted at once
// The smallest f32 that bf16 rounds to infinity, halfway to 2^128.
constexpr float kBf16Limit = 0x1.ffp127f;

// From bytes of any alignment.
template <typename Stored, typename ToFloat>
void widen(const char* from, int64_t count, float* to, const ToFloat& to_float) {
  for (int64_t i = 0; i < count; ++i) {
    Stored bits;
    std::memcpy(&bits, from + i * static_cast<int64_t>(sizeof(bits)), sizeof(bits));
    to[i] = to_float(bits);
  }
}

}  // namespace

bool Parameters::is_stored_as(const Parameter& p, const std::string& kind) const {
  return p.dtype == DType::f32 ? kind == "F32" : kind == "BF16" && !master_;
}

void* Parameters::place(const Parameter& p, const std::string& kind, int64_t start) const {
  if (!backend_.has_host_memory() || !is_stored_as(p, kind)) return nullptr;
  return static_cast<char*>(value_pointer(p)) + static_cast<size_t>(start) * dtype_bytes(p.dtype);
}

void Parameters::require_finite(const Parameter& p, DType dtype, int64_t start, int64_t count, const void* values) {
  const int64_t bad = backend_.first_non_finite(values, dtype, count);
  require(bad < 0, "ERR_CHECKPOINT", "[Model.load] Expected the values of '" + p.name + "' to be finite but element " + std::to_string(start + bad) +
                                         " is NaN or infinite; the checkpoint is damaged or its training diverged");
}

void Parameters::require_small(const Parameter& p, int64_t start, int64_t count, const float* values) {
  const int64_t bad = std::find_if(values, values + count, [](float value) { return std::abs(value) >= kBf16Limit; }) - values;
  require(bad == count, "ERR_CHECKPOINT", "[Model.load] Expected the values of '" + p.name + "' to be below 2^128 in bf16 but element " + std::to_string(start + bad) +
                                              " is not; load with dtype 'f32'");
}

void Parameters::write_raw(const Parameter& p, const std::string& kind, int64_t start, int64_t count, const void* bytes) {
  const bool is_f32 = kind == "F32", is_bf16 = kind == "BF16";
  require(is_f32 || is_bf16 || kind == "F16", "ERR_DTYPE", "[Model.load] Expected '" + p.name + "' to be stored as F32, F16 or BF16 but received " + kind);
  if (is_stored_as(p, kind)) {
    require_finite(p, p.dtype, start, count, bytes);
    char* const to = static_cast<char*>(value_pointer(p)) + static_cast<size_t>(start) * dtype_bytes(p.dtype);
    if (to != bytes) backend_.upload(to, bytes, static_cast<size_t>(count) * dtype_bytes(p.dtype));
    return;
  }
  std::vector<float> values(static_cast<size_t>(std::min(count, kChunk)));
  for (int64_t done = 0; done < count; done += kChunk) {
    backend_.poll();
    const int64_t n = std::min(kChunk, count - done);
    const char* from = static_cast<const char*>(bytes) + done * (is_f32 ? 4 : 2);
    if (is_f32) widen<float>(from, n, values.data(), [](float value) { return value; });
    else if (is_bf16) widen<uint16_t>(from, n, values.data(), [](uint16_t bits) { return bf16_to_float(bits); });
    else widen<uint16_t>(from, n, values.data(), [](uint16_t bits) { return half_to_float(bits); });
    require_finite(p, DType::f32, start + done, n, values.data());
    if (p.dtype == DType::bf16) require_small(p, start + done, n, values.data());
    write_values(p, start + done, n, values.data());
  }
}

}  // namespace plumbline
