// copy_rows and add_rows: exact.
#include <cstring>

#include "../../src/core/dtype.h"
#include "variants.h"

using plumbline::Backend;
using plumbline::DType;
using plumbline::Weight;

namespace {

constexpr int64_t kRows = 130;

// Some rows twice, in no order; the same list serves as source and destination.
std::vector<int32_t> row_list(int64_t n, uint64_t seed) {
  Noise source(seed);
  std::vector<int32_t> rows(static_cast<size_t>(n));
  for (int32_t& row : rows) row = static_cast<int32_t>(source.below(kRows));
  return rows;
}

struct Lists {
  std::vector<int32_t> from, to;
  bool has_from, has_to;
  const int32_t* from_row() const { return has_from ? from.data() : nullptr; }
  const int32_t* to_row() const { return has_to ? to.data() : nullptr; }
  int64_t source(int64_t i) const { return has_from ? from[static_cast<size_t>(i)] : i; }
  int64_t target(int64_t i) const { return has_to ? to[static_cast<size_t>(i)] : i; }
};

void check_case(Backend& backend, const char* name, const Lists& lists, int64_t n, int64_t C) {
  const std::vector<float> from = noise(kRows * C, 21), before = noise(kRows * C, 22);
  std::vector<uint16_t> narrow(from.size());
  for (size_t i = 0; i < from.size(); ++i) narrow[i] = plumbline::float_to_bf16(from[i]);
  std::vector<float> want = before, want_narrow = before, want_sum = before;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t c = 0; c < C; ++c) {
      const size_t source = static_cast<size_t>(lists.source(i) * C + c), target = static_cast<size_t>(lists.target(i) * C + c);
      want[target] = from[source];
      want_narrow[target] = plumbline::bf16_to_float(narrow[source]);
      want_sum[target] += from[source];
    }
  Guarded<float> copied(kRows * C, before), widened(kRows * C, before), added(kRows * C, before);
  backend.copy_rows(Weight{from.data(), DType::f32, kRows, C}, lists.from_row(), copied.data(), lists.to_row(), n);
  backend.copy_rows(Weight{narrow.data(), DType::bf16, kRows, C}, lists.from_row(), widened.data(), lists.to_row(), n);
  backend.add_rows(from.data(), lists.from_row(), added.data(), lists.to_row(), n, C);
  CHECK(copied == Guarded<float>(kRows * C, want), "%s f32 n %ld C %ld", name, n, C);
  CHECK(widened == Guarded<float>(kRows * C, want_narrow), "%s bf16 n %ld C %ld", name, n, C);
  CHECK(added == Guarded<float>(kRows * C, want_sum), "%s add n %ld C %ld", name, n, C);
}

void test_special_bits() {  // widening keeps NaN, infinities, subnormals and the sign of zero
  const std::vector<uint16_t> bits = {0x7fc0, 0xffc1, 0x7f80, 0xff80, 0x0001, 0x8001, 0x8000, 0x3f80};
  for_each_backend([&](Backend& backend, const char* name) {
    for (const int64_t C : {int64_t{8}, int64_t{32}, int64_t{37}}) {
      std::vector<uint16_t> row(static_cast<size_t>(C));
      for (size_t i = 0; i < row.size(); ++i) row[i] = bits[i % bits.size()];
      Guarded<float> out(C);
      backend.copy_rows(Weight{row.data(), DType::bf16, 1, C}, nullptr, out.data(), nullptr, 1);
      for (int64_t i = 0; i < C; ++i) {
        uint32_t got;
        std::memcpy(&got, out.data() + i, 4);
        CHECK(got == static_cast<uint32_t>(row[static_cast<size_t>(i)]) << 16, "%s bits at %ld", name, i);
      }
    }
  });
}

}  // namespace

int main() {
  for_each_backend([](Backend& backend, const char* name) {
    for (const int64_t C : kSizes)
      for (const int64_t n : {int64_t{0}, int64_t{1}, int64_t{33}, kRows})
        for (int form = 0; form < 4; ++form)
          check_case(backend, name, Lists{row_list(n, 23), row_list(n, 24), (form & 1) != 0, (form & 2) != 0}, n, C);
  });
  test_special_bits();
  return finish_variants();
}
