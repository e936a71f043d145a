#pragma once
// Checked readers of JavaScript values. Everything is copied out at the moment it is read, so a getter or a transfer that comes
// later cannot pull memory away. Message: [op] Expected NAME to be X but received Y.
#include <napi.h>

#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "../core/error.h"

namespace plumbline {

constexpr int64_t kAnyCount = -1;
constexpr int64_t kMaxSafeInteger = (int64_t{1} << 53) - 1;

std::string describe(Napi::Value value);  // "an Int32Array", "undefined", "7.5", "\"text\""

class Argument {
 public:
  Argument(const char* op, std::string name, Napi::Value value) : op_(op), name_(std::move(name)), value_(value) {}

  bool absent() const { return value_.IsUndefined() || value_.IsNull(); }
  bool is_array_of(napi_typedarray_type type) const;
  const char* op() const { return op_; }
  Napi::Value value() const { return value_; }

  // Typed arrays of exactly this element type; of exactly `count` elements unless kAnyCount.
  std::vector<float> f32(int64_t count = kAnyCount) const { return copy<float>(napi_float32_array, count); }
  std::vector<int32_t> i32(int64_t count = kAnyCount) const { return copy<int32_t>(napi_int32_array, count); }
  std::vector<uint16_t> u16(int64_t count = kAnyCount) const { return copy<uint16_t>(napi_uint16_array, count); }
  std::vector<uint8_t> u8(int64_t count = kAnyCount) const { return copy<uint8_t>(napi_uint8_array, count); }

  int64_t integer(int64_t min, int64_t max) const;
  double number(double min, double max) const;  // finite, within [min, max]
  double real() const;                          // any number, NaN and infinity too
  bool boolean() const;
  std::string string() const;
  size_t choice(std::initializer_list<const char*> choices) const;  // index of the word received
  Argument field(const char* name) const;                           // of an object
  std::vector<Argument> elements(uint32_t max_count) const;         // of an Array

  [[noreturn]] void reject(const char* code, const std::string& expected) const;  // "... but received <this value>"
  void expect_count(int64_t expected, int64_t received) const;                    // ERR_SHAPE; kAnyCount accepts all

 private:
  template <typename T>
  std::vector<T> copy(napi_typedarray_type type, int64_t count) const;
  const char* op_;
  std::string name_;
  Napi::Value value_;
};

// The arguments of one call.
class Arguments {
 public:
  Arguments(const char* op, const Napi::CallbackInfo& info) : op_(op), info_(info) {}
  Argument at(size_t index, const char* name) const { return Argument(op_, name, info_[index]); }

 private:
  const char* op_;
  const Napi::CallbackInfo& info_;
};

// int32 offsets of packed rows: start at 0, never fall, end at `rows`. Throws ERR_SHAPE or ERR_RANGE. Returns the segments.
int64_t check_offsets(const char* op, const char* name, const std::vector<int32_t>& offsets, int64_t rows);

// Results. Made through the JavaScript constructors, which throw where V8's own allocation would end the process.
Napi::Value to_array(Napi::Env env, const std::vector<float>& values);
Napi::Value to_array(Napi::Env env, const std::vector<double>& values);
Napi::Value to_array(Napi::Env env, const std::vector<int32_t>& values);
Napi::Value to_array(Napi::Env env, const std::vector<uint16_t>& values);
Napi::Value to_array(Napi::Env env, const std::vector<uint8_t>& values);

}  // namespace plumbline
