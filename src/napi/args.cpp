#include "args.h"

#include <cmath>
#include <cstring>

namespace plumbline {
namespace {

constexpr size_t kShownText = 60;

const char* array_name(napi_typedarray_type type) {
  switch (type) {
    case napi_int8_array: return "Int8Array";
    case napi_uint8_array: return "Uint8Array";
    case napi_uint8_clamped_array: return "Uint8ClampedArray";
    case napi_int16_array: return "Int16Array";
    case napi_uint16_array: return "Uint16Array";
    case napi_int32_array: return "Int32Array";
    case napi_uint32_array: return "Uint32Array";
    case napi_float32_array: return "Float32Array";
    case napi_float64_array: return "Float64Array";
    case napi_bigint64_array: return "BigInt64Array";
    case napi_biguint64_array: return "BigUint64Array";
    default: return "typed array of another kind";
  }
}

struct ArrayView {
  napi_typedarray_type type;
  size_t length;
  void* data;
};

ArrayView view(Napi::Value value) {
  ArrayView array{};
  const napi_status status = napi_get_typedarray_info(value.Env(), value, &array.type, &array.length, &array.data, nullptr, nullptr);
  require(status == napi_ok, "ERR_DTYPE", "[native] Expected a readable typed array but received one that Node-API cannot read");
  return array;
}

std::string text_of(double value) {
  char buffer[32];
  std::snprintf(buffer, sizeof(buffer), std::floor(value) == value && std::fabs(value) < 1e15 ? "%.0f" : "%.9g", value);
  return buffer;
}

template <typename T>
Napi::Value make_array(Napi::Env env, const char* constructor, napi_typedarray_type type, const std::vector<T>& values) {
  const Napi::Value made = env.Global().Get(constructor).As<Napi::Function>().New({Napi::Number::New(env, static_cast<double>(values.size()))});
  const ArrayView array = made.IsTypedArray() ? view(made) : ArrayView{};
  require(made.IsTypedArray() && array.type == type && array.length == values.size(), "ERR_INTERNAL",
          std::string("[native] Expected the global ") + constructor + " to be JavaScript's own but received another");
  if (!values.empty()) std::memcpy(array.data, values.data(), values.size() * sizeof(T));
  return made;
}

}  // namespace

std::string describe(Napi::Value value) {
  if (value.IsEmpty() || value.IsUndefined()) return "undefined";
  if (value.IsNull()) return "null";
  if (value.IsBoolean()) return value.As<Napi::Boolean>().Value() ? "true" : "false";
  if (value.IsNumber()) return value.ToString().Utf8Value();
  if (value.IsString()) {
    const std::string text = value.As<Napi::String>().Utf8Value();
    return text.size() <= kShownText ? "\"" + text + "\"" : "a string of " + std::to_string(text.size()) + " bytes";
  }
  if (value.IsBigInt()) return "a bigint";
  if (value.IsSymbol()) return "a symbol";
  if (value.IsFunction()) return "a function";
  if (value.IsTypedArray()) {
    const std::string name = array_name(view(value).type);
    return (name[0] == 'I' ? "an " : "a ") + name;
  }
  if (value.IsArray()) return "an Array";
  return "an object";
}

void Argument::reject(const char* code, const std::string& expected) const {
  fail(code, std::string("[") + op_ + "] Expected " + name_ + " to be " + expected + " but received " + describe(value_));
}

void Argument::expect_count(int64_t expected, int64_t received) const {
  require(expected == kAnyCount || expected == received, "ERR_SHAPE",
          std::string("[") + op_ + "] Expected " + name_ + " to have " + std::to_string(expected) + " elements but received " + std::to_string(received));
}

bool Argument::is_array_of(napi_typedarray_type type) const { return value_.IsTypedArray() && view(value_).type == type; }

template <typename T>
std::vector<T> Argument::copy(napi_typedarray_type type, int64_t count) const {
  if (!is_array_of(type)) reject("ERR_DTYPE", std::string(array_name(type)[0] == 'I' ? "an " : "a ") + array_name(type));
  const ArrayView array = view(value_);
  expect_count(count, static_cast<int64_t>(array.length));
  std::vector<T> values(array.length);
  if (array.length > 0) std::memcpy(values.data(), array.data, array.length * sizeof(T));
  return values;
}

template std::vector<float> Argument::copy<float>(napi_typedarray_type, int64_t) const;
template std::vector<int32_t> Argument::copy<int32_t>(napi_typedarray_type, int64_t) const;
template std::vector<uint16_t> Argument::copy<uint16_t>(napi_typedarray_type, int64_t) const;
template std::vector<uint8_t> Argument::copy<uint8_t>(napi_typedarray_type, int64_t) const;

int64_t Argument::integer(int64_t min, int64_t max) const {
  const std::string expected = "an integer from " + std::to_string(min) + " to " + std::to_string(max);
  if (!value_.IsNumber()) reject("ERR_ARGUMENT", expected);
  const double value = value_.As<Napi::Number>().DoubleValue();
  if (!(std::floor(value) == value && value >= static_cast<double>(min) && value <= static_cast<double>(max))) reject("ERR_RANGE", expected);
  return static_cast<int64_t>(value);
}

double Argument::number(double min, double max) const {
  const std::string expected = "a finite number from " + text_of(min) + " to " + text_of(max);
  if (!value_.IsNumber()) reject("ERR_ARGUMENT", expected);
  const double value = value_.As<Napi::Number>().DoubleValue();
  if (!(std::isfinite(value) && value >= min && value <= max)) reject("ERR_RANGE", expected);
  return value;
}

double Argument::real() const {
  if (!value_.IsNumber()) reject("ERR_ARGUMENT", "a number");
  return value_.As<Napi::Number>().DoubleValue();
}

bool Argument::boolean() const {
  if (!value_.IsBoolean()) reject("ERR_ARGUMENT", "a boolean");
  return value_.As<Napi::Boolean>().Value();
}

std::string Argument::string() const {
  if (!value_.IsString()) reject("ERR_ARGUMENT", "a string");
  return value_.As<Napi::String>().Utf8Value();
}

size_t Argument::choice(std::initializer_list<const char*> choices) const {
  std::string list;
  const std::string word = value_.IsString() ? value_.As<Napi::String>().Utf8Value() : std::string();
  size_t index = 0;
  for (const char* choice : choices) {
    if (value_.IsString() && word == choice) return index;
    list += (index++ ? ", '" : "'") + std::string(choice) + "'";
  }
  reject("ERR_ARGUMENT", "one of " + list);
}

Argument Argument::field(const char* name) const {
  if (!value_.IsObject()) reject("ERR_ARGUMENT", "an object");
  return Argument(op_, name_ + "." + name, value_.As<Napi::Object>().Get(name));
}

std::vector<Argument> Argument::elements(uint32_t max_count) const {
  if (!value_.IsArray()) reject("ERR_ARGUMENT", "an Array");
  const Napi::Array array = value_.As<Napi::Array>();
  const uint32_t count = array.Length();
  require(count <= max_count, "ERR_SHAPE", std::string("[") + op_ + "] Expected " + name_ + " to have at most " + std::to_string(max_count) +
                                                " elements but received " + std::to_string(count));
  std::vector<Argument> elements;
  for (uint32_t i = 0; i < count; ++i) elements.emplace_back(op_, name_ + "[" + std::to_string(i) + "]", array.Get(i));
  return elements;
}

int64_t check_offsets(const char* op, const char* name, const std::vector<int32_t>& offsets, int64_t rows) {
  const std::string start = std::string("[") + op + "] Expected " + name + " to ";
  require(!offsets.empty(), "ERR_SHAPE", start + "have at least 1 element but received 0");
  require(offsets.front() == 0, "ERR_RANGE", start + "start at 0 but received " + std::to_string(offsets.front()));
  for (size_t i = 1; i < offsets.size(); ++i)
    require(offsets[i] >= offsets[i - 1], "ERR_RANGE",
            start + "never fall but received " + std::to_string(offsets[i - 1]) + " then " + std::to_string(offsets[i]) + " at " + std::to_string(i));
  require(offsets.back() == rows, "ERR_RANGE", start + "end at " + std::to_string(rows) + " but received " + std::to_string(offsets.back()));
  return static_cast<int64_t>(offsets.size()) - 1;
}

Napi::Value to_array(Napi::Env env, const std::vector<float>& values) { return make_array(env, "Float32Array", napi_float32_array, values); }
Napi::Value to_array(Napi::Env env, const std::vector<double>& values) { return make_array(env, "Float64Array", napi_float64_array, values); }
Napi::Value to_array(Napi::Env env, const std::vector<int32_t>& values) { return make_array(env, "Int32Array", napi_int32_array, values); }
Napi::Value to_array(Napi::Env env, const std::vector<uint16_t>& values) { return make_array(env, "Uint16Array", napi_uint16_array, values); }
Napi::Value to_array(Napi::Env env, const std::vector<uint8_t>& values) { return make_array(env, "Uint8Array", napi_uint8_array, values); }

}  // namespace plumbline
