#pragma once
// Reads tensors out of a safetensors file whose header lib/model has parsed.
#include <cstdint>
#include <string>
#include <vector>

#include "../core/cancel.h"
#include "../model/parameters.h"

namespace plumbline {

struct FileTensor {
  std::string name, kind;  // "F32" | "F16" | "BF16"
  int64_t offset, bytes;   // from the start of the file
};

// Queue thread. Throws ERR_CHECKPOINT naming the tensor; polls the flag between pieces of 16 MiB.
void load_tensors(const std::string& path, const std::vector<FileTensor>& tensors, Parameters& parameters, const CancelFlag& flag);

}  // namespace plumbline
