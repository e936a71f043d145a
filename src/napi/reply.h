#pragma once
// The usual answers of a job.
#include <utility>
#include <vector>

#include "args.h"
#include "job_queue.h"

namespace plumbline {

inline Reply reply_nothing() {
  return [](Napi::Env env) { return env.Undefined(); };
}

inline Reply reply_number(double value) {
  return [value](Napi::Env env) { return Napi::Number::New(env, value); };
}

template <typename T>
Reply reply_array(std::vector<T> values) {
  return [values = std::move(values)](Napi::Env env) { return to_array(env, values); };
}

// An object of named arrays.
template <typename... Values>
Reply reply_arrays(std::pair<const char*, std::vector<Values>>... named) {
  return [named...](Napi::Env env) -> Napi::Value {
    Napi::Object object = Napi::Object::New(env);
    (object.Set(named.first, to_array(env, named.second)), ...);
    return object;
  };
}

}  // namespace plumbline
