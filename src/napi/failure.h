#pragma once
// What a C++ exception becomes on its way to JavaScript: a stable code and one sentence.
#include <napi.h>

#include <string>
#include <system_error>

#include "../core/cancel.h"
#include "../core/error.h"

namespace plumbline {

struct Failure {
  std::string code, message;
};

// Of the exception that is being handled. Any thread.
inline Failure current_failure() {
  try {
    throw;
  } catch (const Cancelled&) {
    return {"ABORTED", "The operation was aborted"};
  } catch (const Error& error) {
    return {error.code(), error.what()};
  } catch (const std::bad_alloc&) {
    return {"ERR_OUT_OF_MEMORY", "[native] Expected enough memory for this operation but received none; use smaller sizes"};
  } catch (const std::length_error&) {
    return {"ERR_OUT_OF_MEMORY", "[native] Expected a size that memory can hold but received a larger one"};
  } catch (const std::system_error& error) {  // of std::thread and std::mutex: the machine is out of threads
    return {"ERR_OUT_OF_MEMORY", std::string("[native] Expected to start a thread but received \"") + error.what() + "\""};
  } catch (const std::exception& error) {
    return {"ERR_INTERNAL", std::string("[native] Expected no internal error but received \"") + error.what() + "\"; please report it"};
  } catch (...) {
    return {"ERR_INTERNAL", "[native] Expected no internal error but received an unknown exception; please report it"};
  }
}

inline Napi::Error make_error(Napi::Env env, const Failure& failure) {
  Napi::Error error = Napi::Error::New(env, failure.message);
  error.Set("code", Napi::String::New(env, failure.code));
  return error;
}

// Body of a synchronous function: every C++ exception leaves as a JavaScript one.
template <typename Body>
auto guarded(Napi::Env env, const Body& body) -> decltype(body()) {
  try {
    return body();
  } catch (const Napi::Error&) {
    throw;
  } catch (...) {
    throw make_error(env, current_failure());
  }
}

// Body of a function that returns a promise: every exception, also of a getter of the caller's, rejects it.
template <typename Body>
Napi::Value promised(Napi::Env env, const Body& body) {
  const auto rejected = [&](Napi::Value reason) {
    auto deferred = Napi::Promise::Deferred::New(env);
    deferred.Reject(reason);
    return deferred.Promise();
  };
  try {
    return body();
  } catch (const Napi::Error& error) {
    return rejected(error.Value());
  } catch (...) {
    return rejected(make_error(env, current_failure()).Value());
  }
}

}  // namespace plumbline
