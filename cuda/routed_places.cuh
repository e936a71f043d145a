#pragma once
// Row numbers of gather_rms_norm and gated_scatter. Up to 64 are arguments of the kernel, else blocks read theirs from host memory: a copy
// before the kernel would take a tenth of the time of 8192 rows and half of that of 32.
#include <algorithm>

#include "cuda_backend.h"

namespace plumbline {

constexpr int kManyRows = 4;             // rows of a block that share one reading of w and step
constexpr int64_t kEnoughBlocks = 1024;  // several for each multiprocessor of any device: only beyond it do blocks take many rows
constexpr int64_t kFew = 64;             // rows whose numbers fit in a kernel's arguments beside the rest

struct FewPlaces {
  int32_t at[kFew];
};
inline FewPlaces few_places(const int32_t* places, int64_t n) {
  FewPlaces few = {};
  if (places && n <= kFew) std::copy_n(places, n, few.at);
  return few;
}
PLUMBLINE_DEVICE int32_t place_of(const int32_t* places, const FewPlaces& few, int64_t i) { return places ? places[i] : few.at[i]; }

// The bus serves some 10^8 reads a second: blocks may fetch their places over it if they are few or have much else to move.
inline bool reads_over_bus(int64_t n, int64_t rows, int64_t C) { return n <= kManyRows * kEnoughBlocks || rows * C >= kManyRows * 1024; }
inline void upload_places(CudaBackend::Upload& up, int64_t n, int64_t rows, int64_t C) {
  if (reads_over_bus(n, rows, C)) up.stage();
  else up.send();
}

}  // namespace plumbline
