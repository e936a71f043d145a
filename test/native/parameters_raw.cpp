// Values of a file on their way into parameters, on every backend: straight, widened, rounded, refused.
#include <cmath>
#include <limits>

#include "../../src/core/error.h"
#include "../../src/model/parameters.h"
#include "variants.h"

using plumbline::Backend;
using plumbline::DType;
using plumbline::Parameters;

namespace {

constexpr int64_t kRows = 1100, kWidth = 1000;  // 1.1 million values: more than are converted at once

plumbline::ModelSpec small_model(DType dtype) {
  plumbline::ModelSpec spec{};
  spec.text.hidden = kWidth, spec.text.vocab = kRows, spec.text.heads = 1, spec.text.kv_heads = 1, spec.text.head_dim = 8, spec.text.intermediate = 8;
  spec.text.tied = true;
  spec.vision.width = 8, spec.vision.out_width = kWidth, spec.vision.channels = 3, spec.vision.patch = 1, spec.vision.merge = 1, spec.vision.temporal = 1, spec.vision.mlp_width = 8;
  spec.dtype = dtype;
  return spec;
}

std::vector<uint16_t> bf16_values() {
  std::vector<uint16_t> bits(kRows * kWidth);
  for (size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<uint16_t>(0x3c00 + i % 777);
  return bits;
}

std::vector<float> read(Parameters& parameters, const char* name) {
  const plumbline::Parameter& p = parameters.find(name);
  std::vector<float> values(static_cast<size_t>(p.size));
  parameters.read(p, plumbline::Slot::value, values.data());
  return values;
}

std::string refused(Parameters& parameters, const char* kind, int64_t start, const void* bytes, int64_t count) {
  try {
    parameters.write_raw(parameters.find("model.embed_tokens.weight"), kind, start, count, bytes);
    return "";
  } catch (const plumbline::Error& error) {
    return std::string(error.code()) + " " + error.what();
  }
}

void test_kinds() {
  const std::vector<uint16_t> bits = bf16_values();
  std::vector<float> wide(bits.size());
  for (size_t i = 0; i < bits.size(); ++i) wide[i] = plumbline::bf16_to_float(bits[i]);
  for_each_backend([&](Backend& backend, const char* name) {
    for (DType dtype : {DType::f32, DType::bf16}) {
      Parameters parameters(backend, small_model(dtype));
      const plumbline::Parameter& table = parameters.find("model.embed_tokens.weight");
      parameters.write_raw(table, "BF16", 0, table.size, bits.data());
      CHECK(read(parameters, "model.embed_tokens.weight") == wide, "%s: bf16", name);
      std::vector<float> negative(wide);
      for (float& value : negative) value = -value;
      parameters.write_raw(table, "F32", 1000, 1050000, negative.data() + 1000);  // a part: what lies around it stays
      std::vector<float> expected(wide);
      std::copy(negative.begin() + 1000, negative.begin() + 1051000, expected.begin() + 1000);
      CHECK(read(parameters, "model.embed_tokens.weight") == expected, "%s: part of f32", name);
      const std::vector<uint16_t> halves{0x3c00, 0xc000, 0x0001};
      parameters.write_raw(table, "F16", 5, 3, halves.data());
      expected[5] = 1, expected[6] = -2, expected[7] = std::ldexp(1.0f, -24);
      CHECK(read(parameters, "model.embed_tokens.weight") == expected, "%s: f16", name);
    }
  });
}

void test_place() {
  for_each_backend([&](Backend& backend, const char* name) {
    Parameters parameters(backend, small_model(DType::bf16));
    const plumbline::Parameter &table = parameters.find("model.embed_tokens.weight"), &norm = parameters.find("model.norm.weight");
    CHECK(parameters.place(table, "F32", 0) == nullptr && parameters.place(table, "F16", 0) == nullptr && parameters.place(norm, "BF16", 0) == nullptr, "%s: converted", name);
    CHECK((parameters.place(table, "BF16", 0) != nullptr) == backend.has_host_memory() && (parameters.place(norm, "F32", 0) != nullptr) == backend.has_host_memory(), "%s: straight", name);
    if (!backend.has_host_memory()) return;
    const std::vector<uint16_t> bits(7, 0x3f80);
    void* const place = parameters.place(table, "BF16", 33);
    std::copy(bits.begin(), bits.end(), static_cast<uint16_t*>(place));
    parameters.write_raw(table, "BF16", 33, 7, place);
    const std::vector<float> values = read(parameters, "model.embed_tokens.weight");
    CHECK(values[32] == 0 && values[33] == 1 && values[39] == 1 && values[40] == 0, "%s: values that lie in their place", name);
  });
}

void test_refused() {
  for_each_backend([&](Backend& backend, const char* name) {
    Parameters narrow(backend, small_model(DType::bf16)), wide(backend, small_model(DType::f32));
    std::vector<uint16_t> bits(20, 0x3f80);
    bits[11] = 0x7f80;
    const std::string finite = "ERR_CHECKPOINT [Model.load] Expected the values of 'model.embed_tokens.weight' to be finite but element 111 is NaN or infinite; the checkpoint is damaged or its training diverged";
    CHECK(refused(narrow, "BF16", 100, bits.data(), 20) == finite && refused(wide, "BF16", 100, bits.data(), 20) == finite, "%s: infinity", name);
    bits[11] = 0x7e01;
    CHECK(refused(narrow, "F16", 100, bits.data(), 20) == finite && refused(wide, "F16", 100, bits.data(), 20) == finite, "%s: NaN of f16", name);
    std::vector<float> values(20, 1.0f);
    values[11] = std::numeric_limits<float>::quiet_NaN();
    CHECK(refused(narrow, "F32", 100, values.data(), 20) == finite && refused(wide, "F32", 100, values.data(), 20) == finite, "%s: NaN", name);
    values[11] = -0x1.ffp127f;
    CHECK(refused(narrow, "F32", 100, values.data(), 20) ==
              "ERR_CHECKPOINT [Model.load] Expected the values of 'model.embed_tokens.weight' to be below 2^128 in bf16 but element 111 is not; load with dtype 'f32'",
          "%s: too large for bf16", name);
    CHECK(refused(wide, "F32", 100, values.data(), 20).empty(), "%s: f32 holds it", name);
    values[11] = -std::nextafter(0x1.ffp127f, 0.0f);
    CHECK(refused(narrow, "F32", 100, values.data(), 20).empty() && read(narrow, "model.embed_tokens.weight")[111] == -0x1.fep127f, "%s: the largest that bf16 holds", name);
    CHECK(refused(narrow, "I32", 0, values.data(), 1) == "ERR_DTYPE [Model.load] Expected 'model.embed_tokens.weight' to be stored as F32, F16 or BF16 but received I32", "%s: integers", name);
  });
}

}  // namespace

int main() {
  test_kinds();
  test_place();
  test_refused();
  return finish_variants();
}
