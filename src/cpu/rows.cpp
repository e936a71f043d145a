// copy_rows, add_rows: gather and scatter of rows.   to[to_row[i]] = from[from_row[i]],  to[to_row[i]] += from[from_row[i]]
// weighted_rows: out[r] = sum_i weight[i] from[from_row[i]];   dweight[i] = <dout[r], from[from_row[i]]>, dfrom[from_row[i]] += weight[i] dout[r]
//   in   from (rows, C) f32 or bf16 (copy_rows), row lists of n or null        out  to (rows, C), f32
//   how  rows that share a destination are served by one thread in the order of i: the list is split by destination, each thread
//        reads all of it and takes its part. Without a destination list the rows are cut. bf16 widens exactly
//   cost each source row is read once and each destination row written once; bound by memory
#include "cpu_backend.h"
#include "tiles.h"

#define PLUMBLINE_INL "rows_inl.h"
#include "foreach_isa.h"

namespace plumbline {
namespace {

int64_t at(const int32_t* list, int64_t i) { return list ? list[i] : i; }

// No result depends on the split, so that it may follow the number of threads.
class Shares {
 public:
  Shares(const int32_t* to_row, int64_t n, int64_t C, int32_t threads)
      : to_row_(to_row), tiles_(tile_rows(n, C)), count_(to_row ? std::min<int64_t>(tiles_.count, 2 * int64_t{threads}) : tiles_.count) {}
  int64_t count() const { return count_; }
  template <typename Row>
  void each(int64_t share, const Row& row) const {
    const bool all = !to_row_ || count_ == 1;
    const int64_t first = to_row_ ? 0 : tiles_.begin(share), end = to_row_ ? tiles_.total : tiles_.end(share);
    for (int64_t i = first; i < end; ++i)
      if (all || to_row_[i] % count_ == share) row(i);
  }

 private:
  const int32_t* to_row_;
  Tiles tiles_;
  int64_t count_;
};

}  // namespace

void CpuBackend::copy_rows(const Weight& from, const int32_t* from_row, float* to_TC, const int32_t* to_row, int64_t n) {
  const int64_t C = from.cols;
  const auto widen = PLUMBLINE_PICK(isa_, widen_row);
  const Shares shares(to_row, n, C, threads());
  parallel(shares.count(), [&](int64_t share, int32_t) {
    shares.each(share, [&](int64_t i) {
      const int64_t source = at(from_row, i) * C;
      float* to = to_TC + at(to_row, i) * C;
      if (from.dtype == DType::bf16)
        widen(static_cast<const uint16_t*>(from.data) + source, to, C);
      else
        std::memcpy(to, static_cast<const float*>(from.data) + source, static_cast<size_t>(C) * sizeof(float));
    });
  });
}

void CpuBackend::add_rows(const float* from_TC, const int32_t* from_row, float* to, const int32_t* to_row, int64_t n, int64_t C) {
  const auto add_row_into = PLUMBLINE_PICK(isa_, add_row);
  const Shares shares(to_row, n, C, threads());
  parallel(shares.count(), [&](int64_t share, int32_t) {
    shares.each(share, [&](int64_t i) { add_row_into(from_TC + at(from_row, i) * C, to + at(to_row, i) * C, C); });
  });
}

void CpuBackend::weighted_rows(const float* from, const int32_t* from_row, const float* weight, const int32_t* cu_R1, float* out_RC, int64_t R,
                               int64_t C) {
  if (R == 0) return;
  const auto kernel = PLUMBLINE_PICK(isa_, weigh_row);
  const Tiles tiles = tile_rows(R, C * (1 + cu_R1[R] / R));
  parallel(tiles.count, [&](int64_t tile, int32_t) {
    for (int64_t r = tiles.begin(tile); r < tiles.end(tile); ++r) {
      float* out = out_RC + r * C;
      std::fill_n(out, C, 0.0f);
      for (int64_t i = cu_R1[r]; i < cu_R1[r + 1]; ++i) kernel(weight[i], from + from_row[i] * C, out, C);
    }
  });
}

void CpuBackend::weighted_rows_grad(const float* from, const int32_t* from_row, const float* weight, const int32_t* cu_R1,
                                    const float* dout_RC, float* dweight, float* dfrom, int64_t R, int64_t C) {
  if (R == 0) return;
  const int64_t n = cu_R1[R];
  if (dweight) {
    const auto dot = PLUMBLINE_PICK(isa_, dot_row);
    const Tiles tiles = tile_rows(R, C * (1 + n / R));
    parallel(tiles.count, [&](int64_t tile, int32_t) {
      for (int64_t r = tiles.begin(tile); r < tiles.end(tile); ++r)
        for (int64_t i = cu_R1[r]; i < cu_R1[r + 1]; ++i) dweight[i] = dot(dout_RC + r * C, from + from_row[i] * C, C);
    });
  }
  if (!dfrom) return;
  const auto kernel = PLUMBLINE_PICK(isa_, weigh_row);
  const Shares shares(from_row, n, C, threads());
  parallel(shares.count(), [&](int64_t share, int32_t) {
    int64_t r = 0;
    shares.each(share, [&](int64_t i) {
      while (cu_R1[r + 1] <= i) ++r;
      kernel(weight[i], dout_RC + r * C, dfrom + from_row[i] * C, C);
    });
  });
}

}  // namespace plumbline
