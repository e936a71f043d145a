#pragma once
// Reads tensors out of a safetensors file whose header lib/model has parsed: straight into the weights' own memory where the types
// are the same and the host can reach it, else through 8 MiB. Not through a mapping of the file: that costs the same one copy, was
// slower (2 GB in page cache, 2 threads: 1.24 s against 1.20 s; behind process_vm_readv 1.7 s; plain read into one buffer 1.1 s), and
// a file that is cut short while it is mapped kills the process.
#include <cstdint>
#include <string>
#include <vector>

#include "../core/cancel.h"
#include "../cpu/thread_pool.h"
#include "../model/parameters.h"

namespace plumbline {

struct FileTensor {
  std::string name, kind;  // "F32" | "F16" | "BF16"
  int64_t offset, bytes;   // from the start of the file
  int64_t first = 0;       // element of the parameter where they go
};

// Queue thread. Throws ERR_CHECKPOINT naming the tensor; polls the flag between slices of 512 KiB. Values that are read before it
// throws stay. Several threads read, because the kernel zeroes new pages on the thread that first writes to them.
void load_tensors(const std::string& path, const std::vector<FileTensor>& tensors, Parameters& parameters, ThreadPool& pool, const CancelFlag& flag);

}  // namespace plumbline
