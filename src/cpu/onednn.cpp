#include "onednn.h"

#include <algorithm>

#include "../core/error.h"

#if defined(PLUMBLINE_ONEDNN)
#include <dnnl.h>

// Debian's oneDNN runs on OpenMP, whose idle threads would spin beside ours. Weak: another build of oneDNN has no OpenMP.
extern "C" void omp_set_num_threads(int) __attribute__((weak));
#endif

namespace plumbline {

#if defined(PLUMBLINE_ONEDNN)

bool onednn_linked() { return true; }

std::string onednn_version() {
  const dnnl_version_t* const version = dnnl_version();
  return std::to_string(version->major) + "." + std::to_string(version->minor) + "." + std::to_string(version->patch);
}

void onednn_tile(const GemmCall& tile) {
  thread_local bool one_thread = false;  // the setting of OpenMP is per calling thread
  if (!one_thread) {
    if (omp_set_num_threads) omp_set_num_threads(1);
    one_thread = true;
  }
  const bool add = start_with_bias(tile);
  if (tile.K == 0) return;
  const bool transpose_a = tile.a_col != 1, transpose_b = tile.b_col != 1;
  // A matrix of one row may come with any stride; oneDNN wants one that would do for more.
  const dnnl_dim_t lda = std::max(transpose_a ? tile.a_col : tile.a_row, transpose_a ? tile.M : tile.K);
  const dnnl_dim_t ldb = std::max(transpose_b ? tile.b_col : tile.b_row, transpose_b ? tile.K : tile.N);
  const dnnl_status_t status = dnnl_sgemm(transpose_a ? 'T' : 'N', transpose_b ? 'T' : 'N', tile.M, tile.N, tile.K, 1.0f, tile.a, lda,
                                          static_cast<const float*>(tile.b), ldb, add ? 1.0f : 0.0f, tile.c, tile.ldc);
  if (status == dnnl_success) return;
  const std::string size = std::to_string(tile.M) + " x " + std::to_string(tile.N) + " x " + std::to_string(tile.K);
  fail(status == dnnl_out_of_memory ? "ERR_OUT_OF_MEMORY" : "ERR_UNSUPPORTED",
       "[gemm] Expected oneDNN to multiply " + size + " but received status " + std::to_string(static_cast<int>(status)));
}

#else

bool onednn_linked() { return false; }
std::string onednn_version() { return ""; }
void onednn_tile(const GemmCall&) {
  fail("ERR_BACKEND_UNAVAILABLE", "[gemm] Expected a build with oneDNN but received one without");
}

#endif

// Speed of oneDNN 2.6.3 over ours, one thread of a Zen 3 core with AVX2, medians of 5 to 15 runs in turn, CPU time of the thread
// (the machine was busy: +-5 %); M N K of the layer:
//                    linear  grad_input  grad_weight
//   5000  128  128     1.09        1.05         1.17
//   5000  768  128     1.16        1.10         1.07
//   2000  256  256     1.02        1.07         1.12
//   1500  256 1176     1.05        1.09         1.13
//   2000 1024  256     1.11        1.04         0.52
//    512 4096 1536     1.06        1.14         0.54
//    128 1024  256     1.07        1.09         0.66
//   2000 1536 1536     1.07        0.97         0.86
// Its packing of a transposed A suffers from rows whole pages apart; ours copies them in order. Not measured with AVX-512.
bool onednn_is_faster(const GemmCall& call) {
  constexpr int64_t kPage = 1024;  // floats
  return call.a_col == 1 || call.a_col % kPage != 0;
}

}  // namespace plumbline
