#pragma once
// One exception type for everything that can go wrong below Node-API. It is caught in two places only: the Node-API
// trampoline (synchronous calls) and the job loop (promises). Nothing else may escape, and nothing may abort.
#include <stdexcept>
#include <string>
#include <utility>

namespace plumbline {

class Error : public std::runtime_error {
 public:
  Error(const char* code, const std::string& message) : std::runtime_error(message), code_(code) {}
  const char* code() const { return code_; }  // a literal: "ERR_SHAPE", "ERR_RANGE", "ERR_OUT_OF_MEMORY", ...

 private:
  const char* code_;
};

[[noreturn]] inline void fail(const char* code, const std::string& message) { throw Error(code, message); }

inline void require(bool condition, const char* code, const std::string& message) {
  if (!condition) throw Error(code, message);
}

}  // namespace plumbline
