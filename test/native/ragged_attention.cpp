// ragged_attention and ragged_attention_grad in f32, f16 and bf16 against a naive double-precision reference.
#include "attention_reference.h"
#include "variants.h"

using namespace plumbline;

namespace {

struct Problem {
  DType dtype;
  std::vector<int32_t> queries, keys;
  int32_t H, Hkv, d;
  bool causal;
};

float value_of(DType, float x) { return x; }
float value_of(DType dtype, uint16_t bits) { return dtype == DType::f16 ? half_to_float(bits) : bf16_to_float(bits); }
void set_value(DType, float& to, float x) { to = x; }
void set_value(DType dtype, uint16_t& to, float x) { to = dtype == DType::f16 ? float_to_half(x) : float_to_bf16(x); }

// Unit roundoff of the type, and half its smallest subnormal.
double unit_of(DType dtype) { return dtype == DType::f16 ? 0x1p-11 : dtype == DType::bf16 ? 0x1p-8 : 0.0; }
double tiny_of(DType dtype) { return dtype == DType::f16 ? 0x1p-25 : 0.0; }

template <typename T>
struct Results {
  Guarded<T> out, dq, dk, dv;
  Guarded<float> lse;
  bool operator==(const Results& other) const { return out == other.out && dq == other.dq && dk == other.dk && dv == other.dv && lse == other.lse; }
  bool intact() const { return out.intact() && dq.intact() && dk.intact() && dv.intact() && lse.intact(); }
};

template <typename T>
struct Packed {
  Problem p;
  std::vector<int32_t> cu_q{0}, cu_k{0};
  int64_t query_size, key_size;
  std::vector<T> q, k, v, dout;
  RaggedAttention shape;

  Packed(const Problem& problem, uint64_t seed) : p(problem) {
    for (const int32_t n : p.queries) cu_q.push_back(cu_q.back() + n);
    for (const int32_t n : p.keys) cu_k.push_back(cu_k.back() + n);
    query_size = int64_t{cu_q.back()} * p.H * p.d, key_size = int64_t{cu_k.back()} * p.Hkv * p.d;
    shape = {p.dtype, static_cast<int32_t>(p.queries.size()), cu_q.data(), cu_k.data(), p.H, p.Hkv, p.d, 1.0f / std::sqrt(static_cast<float>(p.d)), p.causal};
    q = fill(query_size, seed, 2.0f), k = fill(key_size, seed + 1, 2.0f), v = fill(key_size, seed + 2, 1.0f), dout = fill(query_size, seed + 3, 1.0f);
  }
  Packed(const Packed&) = delete;
  std::vector<T> fill(int64_t size, uint64_t seed, float scale) const {
    const std::vector<float> from = noise(size, seed, scale);
    std::vector<T> to(from.size());
    for (size_t i = 0; i < to.size(); ++i) set_value(p.dtype, to[i], from[i]);
    return to;
  }
  double at(const std::vector<T>& rows, int64_t i) const { return value_of(p.dtype, rows[static_cast<size_t>(i)]); }

  Results<T> run(Backend& backend) const {
    Results<T> r{Guarded<T>(query_size), Guarded<T>(query_size), Guarded<T>(key_size), Guarded<T>(key_size), Guarded<float>(int64_t{cu_q.back()} * p.H)};
    backend.ragged_attention(shape, q.data(), k.data(), v.data(), r.out.data(), r.lse.data());
    backend.ragged_attention_grad(shape, q.data(), k.data(), v.data(), r.out.data(), r.lse.data(), dout.data(), r.dq.data(), r.dk.data(), r.dv.data());
    return r;
  }
  plumbline_test::AttentionReference reference(int32_t b, int32_t head) const {
    plumbline_test::AttentionReference r{};
    r.n = p.queries[b], r.keys = p.keys[b], r.d = p.d, r.causal = p.causal, r.scale = shape.scale, r.half_unit = unit_of(p.dtype), r.half_tiny = tiny_of(p.dtype);
    for (int64_t i = 0; i < r.n * p.d; ++i) {
      const int64_t from = ((cu_q[b] + i / p.d) * p.H + head) * p.d + i % p.d;
      r.q.push_back(at(q, from)), r.dout.push_back(at(dout, from));
    }
    for (int64_t i = 0; i < r.keys * p.d; ++i) {
      const int64_t from = ((cu_k[b] + i / p.d) * p.Hkv + head / (p.H / p.Hkv)) * p.d + i % p.d;
      r.k.push_back(at(k, from)), r.v.push_back(at(v, from));
    }
    r.run();
    return r;
  }
};

template <typename T>
void compare(const Packed<T>& packed, Results<T>& got, const char* what) {
  const Problem& p = packed.p;
  const int32_t group = p.H / p.Hkv;
  const double unit = unit_of(p.dtype), tiny = tiny_of(p.dtype);
  const auto check = [&](T x, double want, double bound, const char* name, int32_t b, int32_t head, int64_t i) {
    CHECK_CLOSE(value_of(p.dtype, x), want, bound + unit * std::fabs(want) + tiny, "%s: %s, sequence %d head %d element %d", what, name, b, head, static_cast<int>(i));
  };
  for (int32_t b = 0; b < packed.shape.B; ++b)
    for (int32_t h = 0; h < p.Hkv; ++h) {
      std::vector<double> dk(p.keys[b] * p.d, 0.0), dv = dk, dk_bound = dk, dv_bound = dk;
      for (int32_t head = h * group; head < (h + 1) * group; ++head) {
        const plumbline_test::AttentionReference r = packed.reference(b, head);
        for (int64_t i = 0; i < r.n * p.d; ++i) {
          const int64_t t = packed.cu_q[b] + i / p.d, at = (t * p.H + head) * p.d + i % p.d;
          check(got.out[at], r.out[i], r.out_bound[i], "out", b, head, i);
          check(got.dq[at], r.dq[i], r.dq_bound[i], "dq", b, head, i);
          if (i % p.d == 0) CHECK_CLOSE(got.lse[t * p.H + head], r.lse[i / p.d], r.lse_bound[i / p.d], "%s: lse, sequence %d head %d row %d", what, b, head, static_cast<int>(i / p.d));
        }
        for (size_t i = 0; i < dk.size(); ++i) dk[i] += r.dk[i], dv[i] += r.dv[i], dk_bound[i] += r.dk_bound[i], dv_bound[i] += r.dv_bound[i];
      }
      for (size_t i = 0; i < dk.size(); ++i) {
        const int64_t at = ((packed.cu_k[b] + static_cast<int64_t>(i) / p.d) * p.Hkv + h) * p.d + static_cast<int64_t>(i) % p.d;
        check(got.dk[at], dk[i], dk_bound[i], "dk", b, h, static_cast<int64_t>(i));
        check(got.dv[at], dv[i], dv_bound[i], "dv", b, h, static_cast<int64_t>(i));
      }
    }
}

template <typename T>
void check_problem(Backend& backend, const Problem& problem, uint64_t seed) {
  const Packed<T> packed(problem, seed);
  char what[80];
  std::snprintf(what, sizeof(what), "%s type %d d %d group %d causal %d", backend.name(), static_cast<int>(problem.dtype), problem.d, problem.H / problem.Hkv, problem.causal);
  Results<T> first = packed.run(backend);
  CHECK(first.intact(), "%s wrote where it should not", what);
  CHECK(kEmulatedOnly || first == packed.run(backend), "%s: second run differs", what);
  compare(packed, first, what);
}

void check_shape(Backend& backend, const Problem& p, uint64_t seed) {
  if (p.dtype == DType::f32) check_problem<float>(backend, p, seed);
  else check_problem<uint16_t>(backend, p, seed);
}

void check_shapes(Backend& backend) {
  // Empty ones, keys without rows, rows without keys, one long among short ones, more keys than rows and fewer.
  const std::vector<int32_t> queries{1, 0, 33, 0, 70, 2, 3, 5}, keys{1, 0, 33, 4, 131, 0, 70, 2};
  for (const DType dtype : {DType::f16, DType::bf16, DType::f32}) {
    for (const bool causal : {true, false}) check_shape(backend, {dtype, queries, keys, 7, 1, 80, causal}, 1);
    check_shape(backend, {dtype, queries, keys, 4, 2, 64, true}, 2);
    check_shape(backend, {dtype, {40, 3}, {70, 35}, 7, 1, 128, true}, 3);
    check_shape(backend, {dtype, {150}, {150}, 1, 1, 33, true}, 4);  // elements that no 16 bytes hold
    check_shape(backend, {dtype, {3, 17, 0}, {65, 17, 1}, 2, 2, 1, true}, 5);
    check_shape(backend, {dtype, {19}, {40}, 3, 1, 96, true}, 6);
    for (const int32_t d : {129, 200, 256}) check_shape(backend, {dtype, {9, 1}, {35, 20}, 2, 1, d, d != 200}, 7);
    check_shape(backend, {dtype, {}, {}, 2, 1, 64, true}, 8);
  }
}

// Each sequence alone gives the bits that it gives in the batch.
template <typename T>
void check_alone(Backend& backend, DType dtype) {
  const Packed<T> batch({dtype, {20, 1, 0, 66}, {30, 270, 9, 66}, 4, 2, 20, true}, 11);
  Results<T> together = batch.run(backend);
  for (int32_t b = 0; b < 4; ++b) {
    const int32_t cu_q[2] = {0, batch.p.queries[b]}, cu_k[2] = {0, batch.p.keys[b]};
    RaggedAttention shape = batch.shape;
    shape.B = 1, shape.cu_q_B1 = cu_q, shape.cu_k_B1 = cu_k;
    const int64_t row = int64_t{batch.p.H} * batch.p.d, key_row = int64_t{batch.p.Hkv} * batch.p.d;
    Guarded<T> out(cu_q[1] * row);
    Guarded<float> lse(int64_t{cu_q[1]} * batch.p.H);
    backend.ragged_attention(shape, batch.q.data() + batch.cu_q[b] * row, batch.k.data() + batch.cu_k[b] * key_row, batch.v.data() + batch.cu_k[b] * key_row, out.data(), lse.data());
    CHECK(std::memcmp(out.data(), together.out.data() + batch.cu_q[b] * row, static_cast<size_t>(out.size()) * sizeof(T)) == 0, "sequence %d alone differs", b);
    CHECK(std::memcmp(lse.data(), together.lse.data() + int64_t{batch.cu_q[b]} * batch.p.H, static_cast<size_t>(lse.size()) * 4) == 0, "lse of sequence %d alone differs", b);
  }
}

template <typename T>
void check_non_finite(Backend& backend, DType dtype) {
  const Problem problem{dtype, {40}, {70}, 2, 1, 64, true};
  Packed<T> packed(problem, 12);
  Results<T> clean = packed.run(backend);
  const int64_t t = 17, at = (t * 2 + 1) * 64;
  for (const float poison : {std::nanf(""), HUGE_VALF, -HUGE_VALF}) {
    Packed<T> bad(problem, 12);
    set_value(dtype, bad.q[static_cast<size_t>(at + 5)], poison);
    Results<T> got = bad.run(backend);
    for (int64_t i = 0; i < bad.query_size; ++i) {
      if (i / 64 == at / 64) CHECK(std::isnan(value_of(dtype, got.out[i])), "element %d of a row of q with %g", static_cast<int>(i), static_cast<double>(poison));
      else CHECK(got.out[i] == clean.out[i], "element %d changed", static_cast<int>(i));
    }
  }
  // A key of -inf along an axis where q is positive: weight 0. All of them: NaN, lse -inf.
  for (int64_t row = 0; row < 80; ++row) set_value(dtype, packed.q[static_cast<size_t>(row * 64)], 1.0f);
  set_value(dtype, packed.k[5 * 64], -HUGE_VALF);
  Results<T> masked = packed.run(backend);
  for (int64_t i = 0; i < packed.query_size; ++i) CHECK(std::isfinite(value_of(dtype, masked.out[i])), "element %d with a key of -inf", static_cast<int>(i));
  for (int64_t key = 0; key < 70; ++key) set_value(dtype, packed.k[static_cast<size_t>(key * 64)], -HUGE_VALF);
  Results<T> none = packed.run(backend);
  CHECK(std::isnan(value_of(dtype, none.out[0])) && none.lse[0] == -HUGE_VALF, "all scores -inf give %g, lse %g", static_cast<double>(value_of(dtype, none.out[0])), static_cast<double>(none.lse[0]));
}

}  // namespace

int main() {
  for_each_backend([](Backend& backend, const char*) {
    check_shapes(backend);
    for (const DType dtype : {DType::f16, DType::bf16}) check_alone<uint16_t>(backend, dtype), check_non_finite<uint16_t>(backend, dtype);
    check_alone<float>(backend, DType::f32);
    check_non_finite<float>(backend, DType::f32);
  });
  return finish_variants();
}
