#pragma once
#include <cstddef>

#include "cpu_backend.h"

namespace plumbline {

class Workspace {  // working memory of one call
 public:
  Workspace(CpuBackend& backend, size_t bytes) : backend_(backend), bytes_(bytes), data_(backend.allocate(bytes)) {}
  ~Workspace() { backend_.release(data_, bytes_); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  template <typename T>
  T* as() const { return static_cast<T*>(data_); }

 private:
  CpuBackend& backend_;
  size_t bytes_;
  void* data_;
};

}  // namespace plumbline
