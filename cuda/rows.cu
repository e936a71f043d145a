// copy_rows, add_rows: gather and scatter of rows.   to[to_row[i]] = from[from_row[i]],  to[to_row[i]] += from[from_row[i]]
//   in   from (rows, C) f32 or bf16 (copy_rows), row lists of n or null        out  to (rows, C), f32
//   how  one writer for each destination row. Where a list repeats rows the host groups it: a copy takes the last of a group, a sum adds
//        the group's rows in the order of i. bf16 widens exactly, 8 bytes at a time
//   cost one launch; a row is shared by up to 128 threads, 4 accesses of 16 bytes in flight in each. Reads and writes every row once, bound by
//        memory; a group's rows are read 8 at a time, its sum stays in registers
//   limits: none; what is not aligned takes 4-byte (bf16: 2-byte) accesses
#include <algorithm>
#include <numeric>

#include "cuda_backend.h"
#include "dtype.cuh"
#include "floats.cuh"

namespace plumbline {
namespace {

constexpr int kThreads = 128, kInFlight = 4, kAhead = 8;

// n rows, or n groups of them: group g is order[start[g]] .. order[start[g + 1]] of the lists.
struct RowLists {
  const int32_t *from_row, *to_row;
  const int32_t *order, *start;  // null: each row for itself
  int64_t n, C;
  int per_row;                   // threads of a row: a power of two, at most kThreads
};

PLUMBLINE_DEVICE int64_t at(const int32_t* list, int64_t i) { return list ? list[i] : i; }

PLUMBLINE_DEVICE void widen(const Floats<1>* from, Floats<1>& to) { to = *from; }
PLUMBLINE_DEVICE void widen(const Floats<4>* from, Floats<4>& to) { to = *from; }
template <int kWidth>
struct alignas(2 * kWidth) Bfloats {
  bf16 at[kWidth];
};
template <int kWidth>
PLUMBLINE_DEVICE void widen(const Bfloats<kWidth>* from, Floats<kWidth>& to) {
  const Bfloats<kWidth> narrow = *from;
#pragma unroll
  for (int k = 0; k < kWidth; ++k) to.at[k] = to_float(narrow.at[k]);
}

// Source: kWidth elements side by side.
template <typename Source, int kWidth>
__global__ void __launch_bounds__(kThreads) copy_rows_kernel(const Source* from, float* to, RowLists rows) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * (kThreads / rows.per_row) + threadIdx.x / rows.per_row, packets = rows.C / kWidth;
  if (i >= rows.n) return;
  const int first = static_cast<int>(threadIdx.x) & (rows.per_row - 1);
  const int64_t which = rows.order ? rows.order[rows.start[i + 1] - 1] : i;
  const Source* source = from + at(rows.from_row, which) * packets;
  float* target = to + at(rows.to_row, which) * rows.C;
  for (int64_t p = first; p < packets; p += kInFlight * rows.per_row) {
    Floats<kWidth> values[kInFlight];
#pragma unroll
    for (int k = 0; k < kInFlight; ++k)
      if (p + k * rows.per_row < packets) widen(source + p + k * rows.per_row, values[k]);
#pragma unroll
    for (int k = 0; k < kInFlight; ++k)
      if (p + k * rows.per_row < packets) store(target + (p + k * rows.per_row) * kWidth, values[k]);
  }
}

// A thread has one run of columns of one group.
template <int kWidth>
__global__ void __launch_bounds__(kThreads) add_rows_kernel(const float* from, float* to, RowLists rows, int64_t blocks_per_group) {
  const int64_t g = blockIdx.x / blocks_per_group * (kThreads / rows.per_row) + threadIdx.x / rows.per_row;
  const int64_t c = (blockIdx.x % blocks_per_group * rows.per_row + (threadIdx.x & (rows.per_row - 1))) * kWidth;
  if (g >= rows.n || c >= rows.C) return;
  const int64_t begin = rows.start ? rows.start[g] : g, end = rows.start ? rows.start[g + 1] : g + 1;
  float* target = to + at(rows.to_row, at(rows.order, begin)) * rows.C + c;
  Floats<kWidth> sum = load<kWidth>(target);
  for (int64_t i = begin; i < end; i += kAhead) {
    Floats<kWidth> next[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k)
      if (i + k < end) next[k] = load<kWidth>(from + at(rows.from_row, at(rows.order, i + k)) * rows.C + c);
#pragma unroll
    for (int k = 0; k < kAhead; ++k)
      if (i + k < end)
        for (int e = 0; e < kWidth; ++e) sum.at[e] += next[k].at[e];
  }
  store(target, sum);
}

// The places of the list, those of equal rows together and in order; start: where each group begins, and the end. Empty when no row repeats.
struct Groups {
  std::vector<int32_t> order, start;
  Groups(const int32_t* to_row, int64_t n) {
    bool ascends = true;
    for (int64_t i = 1; to_row && ascends && i < n; ++i) ascends = to_row[i - 1] < to_row[i];
    if (!to_row || ascends) return;
    order.resize(static_cast<size_t>(n));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return to_row[a] < to_row[b]; });
    for (int64_t i = 0; i < n; ++i)
      if (i == 0 || to_row[order[static_cast<size_t>(i)]] != to_row[order[static_cast<size_t>(i - 1)]]) start.push_back(static_cast<int32_t>(i));
    start.push_back(static_cast<int32_t>(n));
    if (static_cast<int64_t>(start.size()) == n + 1) order.clear(), start.clear();
  }
  int64_t count(int64_t n) const { return start.empty() ? n : static_cast<int64_t>(start.size()) - 1; }
};

// Threads of a row: as many as have a packet, and a fair share of the block.
int threads_of(int64_t packets) {
  int threads = 1;
  while (threads < kThreads && threads < packets) threads *= 2;
  return threads;
}

template <typename Launch>
void with_lists(CudaBackend& backend, const char* op, const int32_t* from_row, const int32_t* to_row, int64_t n, int64_t C, const Launch& start) {
  const Groups groups(to_row, n);
  CudaBackend::Upload up(backend, op);
  const auto from = up.add(from_row, n), to = up.add(to_row, n);
  const auto order = up.add(groups.order.empty() ? nullptr : groups.order.data(), static_cast<int64_t>(groups.order.size()));
  const auto starts = up.add(groups.start.empty() ? nullptr : groups.start.data(), static_cast<int64_t>(groups.start.size()));
  up.send();
  backend.check(start(RowLists{up[from], up[to], up[order], up[starts], groups.count(n), C, 1}), op);
}

template <typename Source, int kWidth>
cudaError_t launch_copy(const void* from, float* to, RowLists rows, cudaStream_t stream) {
  rows.per_row = threads_of((rows.C + kWidth - 1) / kWidth);
  return launch(copy_rows_kernel<Source, kWidth>, dim3(blocks_of(rows.n, kThreads / rows.per_row)), dim3(kThreads), 0, stream, static_cast<const Source*>(from), to, rows);
}

template <int kWidth>
cudaError_t launch_add(const float* from, float* to, RowLists rows, cudaStream_t stream) {
  rows.per_row = threads_of((rows.C + kWidth - 1) / kWidth);
  const int64_t per_group = blocks_of(rows.C, int64_t{rows.per_row} * kWidth);
  return launch(add_rows_kernel<kWidth>, dim3(blocks_of(per_group * blocks_of(rows.n, kThreads / rows.per_row), 1)), dim3(kThreads), 0, stream, from, to, rows, per_group);
}

}  // namespace

void CudaBackend::copy_rows(const Weight& from, const int32_t* from_row, float* to_TC, const int32_t* to_row, int64_t n) {
  poll();
  const int64_t C = from.cols;
  if (n == 0 || C == 0) return;
  const bool is_wide = C % 4 == 0 && is_aligned_16(from.data) && is_aligned_16(to_TC);
  with_lists(*this, "copy_rows", from_row, to_row, n, C, [&](const RowLists& rows) {
    if (from.dtype == DType::bf16) return is_wide ? launch_copy<Bfloats<4>, 4>(from.data, to_TC, rows, stream()) : launch_copy<Bfloats<1>, 1>(from.data, to_TC, rows, stream());
    return is_wide ? launch_copy<Floats<4>, 4>(from.data, to_TC, rows, stream()) : launch_copy<Floats<1>, 1>(from.data, to_TC, rows, stream());
  });
}

void CudaBackend::add_rows(const float* from_TC, const int32_t* from_row, float* to, const int32_t* to_row, int64_t n, int64_t C) {
  poll();
  if (n == 0 || C == 0) return;
  const bool is_wide = is_aligned_16(from_TC) && is_aligned_16(to) && C % 4 == 0;
  with_lists(*this, "add_rows", from_row, to_row, n, C,
             [&](const RowLists& rows) { return is_wide ? launch_add<4>(from_TC, to, rows, stream()) : launch_add<1>(from_TC, to, rows, stream()); });
}

}  // namespace plumbline
