// symmetric_eigenvalues: eigenvalues of a ragged batch of symmetric matrices, largest first. Two-sided Jacobi, n/2 rotations at a time.
//     J^T A J, t = sign(d) / (|d| + sqrt(d^2 + 1)), d = (a_qq - a_pp) / (2 a_pq)      (Golub and Van Loan, Matrix Computations, section 8.5)
//   in   matrices [n, n] f64, packed; n from 1 to 128, host memory. Their upper triangle is read     out  values, n each, packed
//   how  f64. A round pairs all indices (round robin), n - 1 rounds are a sweep; done when a sweep rotates nothing: every |a_pq| is at most
//        2^-53 sqrt(a_pp a_qq), or 2^-62 of the largest element; at most 30 sweeps. NaN where a matrix is not finite
//   cost one block per matrix, 64 threads up to n = 32, else 256; half the matrix in shared memory (66 KB for n = 128); about
//        8 sweeps of n^3 multiply-adds at two barriers a round. Bound by shared memory
//   limits n <= 128: ERR_UNSUPPORTED above
#include <algorithm>
#include <vector>

#include "cuda_backend.h"
#include "reduce.cuh"

namespace plumbline {
namespace {

constexpr int kMaxSize = 128;
constexpr int kMaxSweeps = 30;
constexpr int kSmall = 32;

// Element (i, j), i != j, of a symmetric matrix with N rows (even) lies at row i, place (j - i) mod (N + 1) - 1, or the other way round:
// the one of the two that is below N/2. Runs along i and along j then have strides width - 1 and 1, both odd: conflicts are left only where
// a run goes round or over the fold, 1.4 wavefronts for each at n = 128. A multiple of 4: the pairs' own elements have stride width - 2.
struct Folded {
  double* off;
  int N, width;
  PLUMBLINE_DEVICE double& at(int i, int j) const {
    const int ahead = j > i ? j - i : j - i + N + 1;
    return ahead <= N / 2 ? off[i * width + ahead - 1] : off[j * width + N - ahead];
  }
};
__host__ PLUMBLINE_DEVICE int folded_width(int N) { return (N / 2 + 3) / 4 * 4; }

struct Rotation {
  double c, s;
};

// Pair k of round r among N players: the last one stays, the others go round.
PLUMBLINE_DEVICE int2 pair_of(int k, int r, int N) {
  const int around = N - 1;
  if (k == 0) return make_int2(around, r);
  const int p = r + k, q = r - k;
  return make_int2(p < around ? p : p - around, q >= 0 ? q : q + around);
}

// Turns indices p and q so that a_pq becomes 0; false when it is 0 to working precision.
PLUMBLINE_DEVICE bool rotate_pair(const Folded& a, double* diagonal, int2 pair, double least, Rotation* out) {
  double& apq = a.at(pair.x, pair.y);
  const double app = diagonal[pair.x], aqq = diagonal[pair.y], size = fabs(apq);
  *out = {1, 0};
  if (size <= least || size <= 0x1p-53 * sqrt(fabs(app) * fabs(aqq))) return false;
  const double d = (aqq - app) / (2 * apq), t = copysign(1 / (fabs(d) + sqrt(fma(d, d, 1.0))), d), c = 1 / sqrt(fma(t, t, 1.0));
  *out = {c, t * c};
  diagonal[pair.x] = app - t * apq, diagonal[pair.y] = aqq + t * apq;
  apq = 0;
  return true;
}

// The four elements between two pairs.
PLUMBLINE_DEVICE void rotate_block(const Folded& a, int2 k, int2 l, Rotation left, Rotation right) {
  double &pp = a.at(k.x, l.x), &pq = a.at(k.x, l.y), &qp = a.at(k.y, l.x), &qq = a.at(k.y, l.y);
  const double x = pp, y = pq, z = qp, w = qq;
  const double u = left.c * x - left.s * z, v = left.c * y - left.s * w, m = left.s * x + left.c * z, n = left.s * y + left.c * w;
  pp = right.c * u - right.s * v, pq = right.s * u + right.c * v;
  qp = right.c * m - right.s * n, qq = right.s * m + right.c * n;
}

// Loads the upper triangle; the largest magnitude, NaN where something is not finite.
template <int kThreads>
PLUMBLINE_DEVICE double load_matrix(const double* matrix, int n, const Folded& a, double* diagonal, double* room) {
  double largest = 0, bad = 0;
  for (int at = threadIdx.x; at < a.N * a.N; at += kThreads) {
    const int i = at / a.N, j = at % a.N;
    if (i > j) continue;
    const double value = j < n ? matrix[i * n + j] : 0.0;  // an odd n gets a row of zeros
    (i == j ? diagonal[i] : a.at(i, j)) = value;
    largest = fmax(largest, fabs(value)), bad += value - value;
  }
  largest = block_reduce<kThreads>(largest, room, 0.0, [](double x, double y) { return fmax(x, y); });
  return largest + block_sum<kThreads>(bad, room);
}

template <int kThreads>
PLUMBLINE_DEVICE void diagonalise(const Folded& a, double* diagonal, Rotation* rotations, int2* pairs, double least) {
  __shared__ int sweeps_rotated[kMaxSweeps];
  const int half = a.N / 2, others = half / 2;
  for (int sweep = threadIdx.x; sweep < kMaxSweeps; sweep += kThreads) sweeps_rotated[sweep] = 0;
  __syncthreads();
  for (int sweep = 0; sweep < kMaxSweeps; ++sweep) {
    for (int r = 0; r < a.N - 1; ++r) {
      for (int k = threadIdx.x; k < half; k += kThreads) {
        pairs[k] = pair_of(k, r, a.N);
        if (rotate_pair(a, diagonal, pairs[k], least, rotations + k)) atomicMax(sweeps_rotated + sweep, 1);
      }
      __syncthreads();
      for (int at = threadIdx.x; at < half * others; at += kThreads) {
        const int k = at / others, ahead = at % others + 1, l = k + ahead < half ? k + ahead : k + ahead - half;
        if (2 * ahead == half && k >= others) continue;  // half way round: the other one has it
        const Rotation left = rotations[k], right = rotations[l];
        if (left.s != 0 || right.s != 0) rotate_block(a, pairs[k], pairs[l], left, right);
      }
      __syncthreads();
    }
    if (sweeps_rotated[sweep] == 0) return;
  }
}

template <int kThreads>
__global__ void __launch_bounds__(kThreads) jacobi_kernel(const int32_t* size_B, const int64_t* matrix_B, const int64_t* value_B, const double* matrices, double* values) {
  PLUMBLINE_SHARED(double, shared);
  __shared__ double room[kThreads / 32], diagonal[kMaxSize];
  __shared__ Rotation rotations[kMaxSize / 2];
  __shared__ int2 pairs[kMaxSize / 2];
  const int n = size_B[blockIdx.x], N = n + n % 2;
  double* out = values + value_B[blockIdx.x];
  const Folded a = {shared, N, folded_width(N)};
  const double largest = load_matrix<kThreads>(matrices + matrix_B[blockIdx.x], n, a, diagonal, room);
  const bool is_finite = largest == largest;
  __syncthreads();
  if (is_finite) diagonalise<kThreads>(a, diagonal, rotations, pairs, 0x1p-62 * largest);
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += kThreads) {
    int rank = 0;
    for (int j = 0; j < n; ++j) rank += diagonal[j] > diagonal[i] || (diagonal[j] == diagonal[i] && j < i);
    out[is_finite ? rank : i] = is_finite ? diagonal[i] : NAN;
  }
}

}  // namespace

void CudaBackend::symmetric_eigenvalues(int32_t count, const int32_t* size_B, double* matrices, double* values) {
  poll();
  std::vector<int64_t> matrix_B, value_B;
  std::vector<int32_t> sizes;
  int64_t matrix = 0, value = 0;
  int32_t largest = 0;
  for (int32_t b = 0; b < count; ++b) {
    const int32_t n = size_B[b];
    require(n <= kMaxSize, "ERR_UNSUPPORTED",
            "[symmetric_eigenvalues] Expected sizes up to " + std::to_string(kMaxSize) + " on CUDA but received " + std::to_string(n) + "; use device 'cpu'");
    if (n > 0) sizes.push_back(n), matrix_B.push_back(matrix), value_B.push_back(value);
    matrix += static_cast<int64_t>(n) * n, value += n, largest = std::max(largest, n);
  }
  Upload up(*this, "symmetric_eigenvalues");
  const int64_t blocks = static_cast<int64_t>(sizes.size());
  const auto n = up.add(sizes.data(), blocks);
  const auto matrix_at = up.add(matrix_B.data(), blocks), value_at = up.add(value_B.data(), blocks);
  up.send();
  const int32_t N = largest + largest % 2;
  const size_t shared = static_cast<size_t>(N) * static_cast<size_t>(folded_width(N)) * sizeof(double);
  const auto kernel = largest <= kSmall ? jacobi_kernel<64> : jacobi_kernel<256>;
  check(launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(largest <= kSmall ? 64 : 256), shared, stream(), up[n], up[matrix_at], up[value_at],
               static_cast<const double*>(matrices), values), "symmetric_eigenvalues");
}

}  // namespace plumbline
