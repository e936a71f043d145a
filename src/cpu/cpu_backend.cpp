#include "cpu_backend.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "../core/error.h"
#include "onednn.h"

namespace plumbline {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kHugePage = size_t{2} << 20;
constexpr int32_t kMaxThreads = 1024;
constexpr int64_t kCopyChunk = 1 << 20;  // bytes per tile of a copy: about 0.1 ms

// Large blocks start on a huge page and ask for such pages: a weight streamed by gemv_dot reads up to 15 % faster than with
// 4 KB pages (Zen 3, 8960 x 1536 bf16).
void* aligned_memory(size_t bytes) {
  const size_t alignment = bytes >= 2 * kHugePage ? kHugePage : kAlignment;
  void* data = nullptr;
  if (bytes <= SIZE_MAX - alignment) {
    const size_t rounded = (std::max<size_t>(bytes, 1) + alignment - 1) / alignment * alignment;
    data = std::aligned_alloc(alignment, rounded);
#if defined(__linux__)
    if (data && alignment == kHugePage) madvise(data, rounded, MADV_HUGEPAGE);  // a hint: it may fail
#endif
  }
  require(data != nullptr, "ERR_OUT_OF_MEMORY", "[allocate] Expected " + std::to_string(bytes) + " bytes of memory but received none");
  return data;
}

int32_t checked_threads(int32_t threads) {
  require(threads >= 0 && threads <= kMaxThreads, "ERR_RANGE",
          "[setThreads] Expected the number of threads to be from 0 to " + std::to_string(kMaxThreads) + " but received " +
              std::to_string(threads));
  return threads == 0 ? std::min(available_cores(), kMaxThreads) : threads;
}

const char* isa_name(Isa isa) { return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "baseline"; }

}  // namespace

// One block per thread of the pool, and one (the last) that an operation shares among its threads.
struct CpuBackend::Scratch {
  struct Block {
    void* data = nullptr;
    size_t bytes = 0;
  };
  std::vector<Block> blocks;
  explicit Scratch(int32_t threads) : blocks(static_cast<size_t>(threads) + 1) {}
  ~Scratch() {
    for (Block& block : blocks) std::free(block.data);
  }
};

CpuBackend::CpuBackend(int32_t threads) : isa_(best_isa()) { set_threads(threads); }

CpuBackend::~CpuBackend() = default;

void CpuBackend::set_threads(int32_t threads) {
  const int32_t count = checked_threads(threads);
  if (pool_ && pool_->size() == count) return;
  auto pool = std::make_unique<ThreadPool>(count);
  scratch_ = std::make_unique<Scratch>(count);
  pool_ = std::move(pool);
}

void CpuBackend::set_gemm(GemmKind kind) {
  require(kind != GemmKind::onednn || onednn_linked(), "ERR_BACKEND_UNAVAILABLE",
          "[setGemm] Expected a build with oneDNN (install libdnnl-dev, then build again) but received one without");
  gemm_kind_ = kind;
}

void CpuBackend::set_isa(Isa isa) {
  require(isa <= best_isa(), "ERR_BACKEND_UNAVAILABLE",
          std::string("[setIsa] Expected an instruction set of this machine, up to ") + isa_name(best_isa()) + ", but received " +
              isa_name(isa));
  isa_ = isa;
}

std::string CpuBackend::gemm_name() { return onednn_linked() ? "onednn " + onednn_version() : "portable"; }

void* CpuBackend::scratch(int32_t thread, size_t bytes) {
  Scratch::Block& block = scratch_->blocks[static_cast<size_t>(thread)];
  if (bytes > block.bytes) {
    std::free(block.data);
    block = {};
    block.data = aligned_memory(bytes);
    block.bytes = bytes;
  }
  return block.data;
}

void* CpuBackend::allocate(size_t bytes) { return aligned_memory(bytes); }

void* CpuBackend::allocate_zeroed(size_t bytes) {
  void* data = aligned_memory(bytes);
#if defined(__linux__)
  // dropped pages come back as zeros when they are touched: gigabytes of weights cost nothing here
  if (bytes >= 2 * kHugePage && madvise(data, (bytes + kHugePage - 1) / kHugePage * kHugePage, MADV_DONTNEED) == 0) return data;
#endif
  std::memset(data, 0, bytes);
  return data;
}

void CpuBackend::release(void* data, size_t) { std::free(data); }

void CpuBackend::fill(float* data, float value, int64_t size) {
  const int64_t chunk = kCopyChunk / 4;
  parallel((size + chunk - 1) / chunk, [&](int64_t index, int32_t) {
    std::fill(data + index * chunk, data + std::min(size, (index + 1) * chunk), value);
  });
}

void CpuBackend::copy(void* to, const void* from, size_t bytes) {
  const int64_t size = static_cast<int64_t>(bytes);
  parallel((size + kCopyChunk - 1) / kCopyChunk, [&](int64_t index, int32_t) {
    const int64_t start = index * kCopyChunk;
    std::memcpy(static_cast<char*>(to) + start, static_cast<const char*>(from) + start,
                static_cast<size_t>(std::min(size - start, kCopyChunk)));
  });
}

void CpuBackend::upload(void* device, const void* host, size_t bytes) { copy(device, host, bytes); }

void CpuBackend::download(void* host, const void* device, size_t bytes) { copy(host, device, bytes); }

}  // namespace plumbline
