#include "bind_ops.h"
#include "float_arrays.h"

namespace plumbline {
namespace {

constexpr int64_t kMaxIndex = INT32_MAX;

// Rows of a padded batch [B, S] that hold something, sequence after sequence.
std::vector<int32_t> padded_rows(const std::vector<int64_t>& lengths, int64_t S) {
  std::vector<int32_t> rows;
  for (size_t b = 0; b < lengths.size(); ++b)
    for (int64_t i = 0; i < lengths[b]; ++i) rows.push_back(static_cast<int32_t>(static_cast<int64_t>(b) * S + i));
  return rows;
}

void check_padded(const char* op, int64_t B, int64_t S) {
  require(S == 0 || B <= kMaxIndex / S, "ERR_RANGE",
          std::string("[") + op + "] Expected at most " + std::to_string(kMaxIndex) + " padded rows but received " + std::to_string(B) + " x " + std::to_string(S));
}

Napi::Value pack_ragged(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Arguments arguments("packRagged", info);
    FloatInput padded(arguments.at(0, "padded"));
    const std::vector<int32_t> given = arguments.at(1, "lengths").i32();
    const int64_t C = arguments.at(2, "width").integer(1, kMaxIndex), B = static_cast<int64_t>(given.size());
    require(B > 0 || padded.size() == 0, "ERR_SHAPE", "[packRagged] Expected no padded elements without lengths but received " + std::to_string(padded.size()));
    const int64_t S = B == 0 ? 0 : rows_of("packRagged", "padded", count(padded.size()), B * C);
    check_padded("packRagged", B, S);
    for (size_t b = 0; b < given.size(); ++b)
      require(given[b] >= 0 && given[b] <= S, "ERR_RANGE",
              "[packRagged] Expected lengths in 0.." + std::to_string(S) + " but received " + std::to_string(given[b]) + " at " + std::to_string(b));
    std::vector<int32_t> rows = padded_rows(std::vector<int64_t>(given.begin(), given.end()), S);
    FloatResults results("packRagged");
    results.add(arguments.at(3, "into"), "packed", static_cast<int64_t>(rows.size()) * C);
    results.keep_apart_from(padded);
    DeviceWork work = [=, padded = std::move(padded), rows = std::move(rows), results = std::move(results)](Backend& backend, const CancelFlag&) mutable {
      backend.copy_rows(Weight{padded.at(backend), DType::f32, B * S, C}, rows.data(), results.at("packed", backend), nullptr, static_cast<int64_t>(rows.size()));
      return results.reply();
    };
    return submit_op(info, arguments.at(4, "token"), std::move(work));
  });
}

Napi::Value unpack_ragged(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Arguments arguments("unpackRagged", info);
    const int64_t C = arguments.at(2, "width").integer(1, kMaxIndex), S = arguments.at(3, "length").integer(0, kMaxIndex);
    const float fill = static_cast<float>(arguments.at(4, "fill").real());
    FloatInput packed(arguments.at(0, "packed"));
    const std::vector<int32_t> cu = arguments.at(1, "cuSeqlens").i32();
    const int64_t T = rows_of("unpackRagged", "packed", count(packed.size()), C), B = check_offsets("unpackRagged", "cuSeqlens", cu, T);
    check_padded("unpackRagged", B, S);
    std::vector<int64_t> lengths;
    for (size_t b = 0; b < count(B); ++b) {
      lengths.push_back(cu[b + 1] - cu[b]);
      require(lengths[b] <= S, "ERR_RANGE",
              "[unpackRagged] Expected length to be at least the " + std::to_string(lengths[b]) + " rows of sequence " + std::to_string(b) + " but received " + std::to_string(S));
    }
    std::vector<int32_t> rows = padded_rows(lengths, S);
    FloatResults results("unpackRagged");
    results.add(arguments.at(5, "into"), "padded", B * S * C);
    results.keep_apart_from(packed);
    DeviceWork work = [=, packed = std::move(packed), rows = std::move(rows), results = std::move(results)](Backend& backend, const CancelFlag&) mutable {
      float* padded = results.at("padded", backend);
      if (T < B * S) backend.fill(padded, fill, B * S * C);
      backend.copy_rows(Weight{packed.at(backend), DType::f32, T, C}, nullptr, padded, rows.data(), T);
      return results.reply();
    };
    return submit_op(info, arguments.at(6, "token"), std::move(work));
  });
}

}  // namespace

void export_ragged_ops(Napi::Env env, Napi::Object ops) {
  ops.Set("packRagged", Napi::Function::New<pack_ragged>(env, "packRagged"));
  ops.Set("unpackRagged", Napi::Function::New<unpack_ragged>(env, "unpackRagged"));
}

}  // namespace plumbline
