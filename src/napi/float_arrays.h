#pragma once
// What an operation of `plumbline/kernels` reads and writes: arrays, or Tensors whose memory the job shares.
#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "bind_tensor.h"
#include "reply.h"
#include "staged.h"

namespace plumbline {

// An array that was copied, or the memory of a Tensor.
class FloatInput {
 public:
  FloatInput() = default;  // absent: data() is null
  explicit FloatInput(const Argument& from, int64_t count = kAnyCount) {
    if (TensorBinding::is_tensor(from.value())) {
      tensor_ = TensorBinding::memory_of(from);
      from.expect_count(count, tensor_->size);
    } else {
      if (!from.is_array_of(napi_float32_array)) from.reject("ERR_DTYPE", "a Float32Array or a Tensor");
      values_ = from.f32(count);
    }
    is_absent_ = false;
  }
  static FloatInput optional(const Argument& from, int64_t count) { return from.absent() ? FloatInput() : FloatInput(from, count); }

  bool absent() const { return is_absent_; }
  int64_t size() const { return tensor_ ? tensor_->size : static_cast<int64_t>(values_.size()); }
  // Job thread: null when absent. A Tensor must be the backend's own.
  const float* at(Backend& backend) {
    if (is_absent_) return nullptr;
    if (tensor_) return tensor_->floats(backend);
    if (!staged_) staged_ = std::make_shared<Staged<float>>(backend, values_);
    return staged_->data();
  }
  const TensorMemory* tensor() const { return tensor_.get(); }

 private:
  std::shared_ptr<TensorMemory> tensor_;
  std::vector<float> values_;
  std::shared_ptr<Staged<float>> staged_;  // shared: jobs are kept in std::function, which copies
  bool is_absent_ = true;
};

// Float results of a job by name: arrays that the answer carries, or Tensors that the caller made (fields of `into`).
class FloatResults {
 public:
  explicit FloatResults(const char* op) : op_(op) {}

  // JS thread. Results are neither inputs nor each other: a job must not read what it writes.
  void add(const Argument& into, const char* name, int64_t size) {
    Result result{name, size, nullptr, nullptr};
    if (!into.absent()) {
      const Argument field = into.field(name);
      result.tensor = TensorBinding::memory_of(field);
      field.expect_count(size, result.tensor->size);
      for (const Result& other : results_) keep_apart(result, other.tensor.get());
    }
    results_.push_back(std::move(result));
  }
  void keep_apart_from(const FloatInput& input) const {
    for (const Result& result : results_) keep_apart(result, input.tensor());
  }

  // Job thread. An array starts as zeros, a Tensor as it is.
  float* at(const char* name, Backend& backend) {
    for (Result& result : results_) {
      if (std::strcmp(result.name, name) != 0) continue;
      if (result.tensor) return result.tensor->floats(backend);
      if (!result.made) result.made = std::make_shared<Made>(backend, static_cast<size_t>(result.size));
      return result.made->data();
    }
    fail("ERR_INTERNAL", std::string("[") + op_ + "] Expected a result of this operation but received " + name);
  }
  float* zeroed(const char* name, Backend& backend) {
    float* data = at(name, backend);
    for (const Result& result : results_)
      if (result.tensor && std::strcmp(result.name, name) == 0) backend.fill(data, 0.0f, result.size);
    return data;
  }
  // An object of the arrays and of `named`; what went into Tensors is there already.
  template <typename... Values>
  Reply reply(std::pair<const char*, std::vector<Values>>... named) {
    std::vector<std::pair<const char*, std::vector<float>>> arrays;
    for (Result& result : results_) {
      if (result.tensor) continue;
      arrays.emplace_back(result.name, result.made ? result.made->take() : std::vector<float>(static_cast<size_t>(result.size)));
    }
    return [arrays = std::move(arrays), named...](Napi::Env env) -> Napi::Value {
      Napi::Object object = Napi::Object::New(env);
      for (const auto& array : arrays) object.Set(array.first, to_array(env, array.second));
      (object.Set(named.first, to_array(env, named.second)), ...);
      return object;
    };
  }

 private:
  struct Result {
    const char* name;
    int64_t size;
    std::shared_ptr<TensorMemory> tensor;  // null: an array
    std::shared_ptr<Made> made;
  };
  void keep_apart(const Result& result, const TensorMemory* other) const {
    require(other == nullptr || result.tensor.get() != other, "ERR_ARGUMENT",
            std::string("[") + op_ + "] Expected into." + result.name + " to be a Tensor of its own but received one that the operation uses already");
  }

  const char* op_;
  std::vector<Result> results_;
};

}  // namespace plumbline
