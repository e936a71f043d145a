// bench_kernels [--check] [--only TEXT] [--json FILE] [--repeats N]: the ladders, each version checked, then timed against the device's own
// copy bandwidth. --check: small sizes and no timing.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "harness.h"

namespace plumbline_bench {
void bench_grad_norm(Harness& h);
void bench_saliency(Harness& h);
void bench_ragged(Harness& h);
void bench_ragged_attention(Harness& h);
}  // namespace plumbline_bench

int main(int argc, char** argv) {
  using namespace plumbline_bench;
  Harness::Options options;
  for (int i = 1; i < argc; ++i) {
    const bool has_value = i + 1 < argc;
    if (std::strcmp(argv[i], "--check") == 0) options.check_only = true;
    else if (std::strcmp(argv[i], "--only") == 0 && has_value) options.only = argv[++i];
    else if (std::strcmp(argv[i], "--json") == 0 && has_value) options.json = argv[++i];
    else if (std::strcmp(argv[i], "--repeats") == 0 && has_value) options.repeats = std::atoi(argv[++i]);
    else return std::fprintf(stderr, "usage: bench_kernels [--check] [--only TEXT] [--json FILE] [--repeats N]\n"), 2;
  }
  const plumbline::CudaDevice device = plumbline::probe_cuda();
  if (!device.is_usable) return std::fprintf(stderr, "no usable CUDA device: %s\n", device.reason.c_str()), 1;
  try {
    Harness harness(options);
    for (const auto ladder : {bench_grad_norm, bench_saliency, bench_ragged, bench_ragged_attention}) {
      ladder(harness);
      harness.clear();
    }
    return harness.finish();
  } catch (const std::exception& error) {
    return std::fprintf(stderr, "%s\n", error.what()), 1;
  }
}
