// ragged_attention: attention over packed sequences, without a cache: attention() over pages that are views of k and v.
//   in   q (T, H, d), k and v (S, Hkv, d): f32, f16 or bf16   out  out (T, H, d) in the same type, lse (T, H) f32
//        grad: dq, dk, dv overwritten, in the same type
//   how  16-bit inputs are widened, which is exact; everything in between is f32 as in attention(); results are rounded to nearest even
//   cost that of attention(), and for 16-bit types once more over all inputs and outputs
//   limits: those of attention
#include "../core/packed_pages.h"
#include "cpu_backend.h"
#include "workspace.h"

namespace plumbline {
namespace {

constexpr int64_t kStretch = 1 << 15;  // elements that a thread converts at once

class Converter {
 public:
  Converter(CpuBackend& backend, const CancelFlag* cancel, DType dtype) : backend_(backend), cancel_(cancel), dtype_(dtype) {}
  const float* widen(const void* from, float* to, int64_t size) const {
    const uint16_t* bits = static_cast<const uint16_t*>(from);
    if (dtype_ == DType::f16) run(size, [=](int64_t i) { to[i] = half_to_float(bits[i]); });
    else run(size, [=](int64_t i) { to[i] = bf16_to_float(bits[i]); });
    return to;
  }
  void narrow(const float* from, void* to, int64_t size) const {
    uint16_t* bits = static_cast<uint16_t*>(to);
    if (dtype_ == DType::f16) run(size, [=](int64_t i) { bits[i] = float_to_half(from[i]); });
    else run(size, [=](int64_t i) { bits[i] = float_to_bf16(from[i]); });
  }

 private:
  template <typename Body>
  void run(int64_t size, const Body& body) const {
    backend_.pool().parallel_for((size + kStretch - 1) / kStretch, cancel_, [&](int64_t stretch, int32_t) {
      const int64_t end = std::min(size, (stretch + 1) * kStretch);
      for (int64_t i = stretch * kStretch; i < end; ++i) body(i);
    });
  }
  CpuBackend& backend_;
  const CancelFlag* cancel_;
  DType dtype_;
};

}  // namespace

void CpuBackend::ragged_attention(const RaggedAttention& shape, const void* q, const void* k, const void* v, void* out, float* lse_TH) {
  const PackedPages packed(shape);
  const auto run = [&](const float* q_rows, const float* k_rows, const float* v_rows, float* out_rows) {
    const std::vector<float*> k_pages = packed.pages_of(k_rows), v_pages = packed.pages_of(v_rows);
    attention(packed.attention(), q_rows, packed.view(k_pages, v_pages), out_rows, lse_TH);
  };
  if (shape.dtype == DType::f32) return run(static_cast<const float*>(q), static_cast<const float*>(k), static_cast<const float*>(v), static_cast<float*>(out));
  const int64_t queries = query_size(shape), keys = key_size(shape);
  const Workspace memory(*this, static_cast<size_t>(2 * queries + 2 * keys) * sizeof(float));
  float *wide_q = memory.as<float>(), *wide_out = wide_q + queries, *wide_k = wide_out + queries, *wide_v = wide_k + keys;
  const Converter converter(*this, cancel_, shape.dtype);
  run(converter.widen(q, wide_q, queries), converter.widen(k, wide_k, keys), converter.widen(v, wide_v, keys), wide_out);
  converter.narrow(wide_out, out, queries);
}

void CpuBackend::ragged_attention_grad(const RaggedAttention& shape, const void* q, const void* k, const void* v, const void* out, const float* lse_TH,
                                       const void* dout, void* dq, void* dk, void* dv) {
  const PackedPages packed(shape);
  const int64_t queries = query_size(shape), keys = key_size(shape);
  const auto run = [&](const float* q_rows, const float* k_rows, const float* v_rows, const float* out_rows, const float* dout_rows, float* dq_rows, float* dk_rows,
                       float* dv_rows) {
    fill(dk_rows, 0.0f, keys);
    fill(dv_rows, 0.0f, keys);
    const std::vector<float*> k_pages = packed.pages_of(k_rows), v_pages = packed.pages_of(v_rows);
    const std::vector<float*> dk_pages = packed.pages_of(dk_rows), dv_pages = packed.pages_of(dv_rows);
    attention_grad(packed.attention(), q_rows, packed.view(k_pages, v_pages), out_rows, lse_TH, dout_rows, dq_rows, dk_pages.data(), dv_pages.data());
  };
  if (shape.dtype == DType::f32)
    return run(static_cast<const float*>(q), static_cast<const float*>(k), static_cast<const float*>(v), static_cast<const float*>(out), static_cast<const float*>(dout),
               static_cast<float*>(dq), static_cast<float*>(dk), static_cast<float*>(dv));
  const Workspace memory(*this, static_cast<size_t>(4 * queries + 4 * keys) * sizeof(float));
  float* at = memory.as<float>();
  const auto carve = [&](int64_t size) { return (at += size) - size; };
  float *wide_q = carve(queries), *wide_out = carve(queries), *wide_dout = carve(queries), *wide_dq = carve(queries);
  float *wide_k = carve(keys), *wide_v = carve(keys), *wide_dk = carve(keys), *wide_dv = carve(keys);
  const Converter converter(*this, cancel_, shape.dtype);
  run(converter.widen(q, wide_q, queries), converter.widen(k, wide_k, keys), converter.widen(v, wide_v, keys), converter.widen(out, wide_out, queries),
      converter.widen(dout, wide_dout, queries), wide_dq, wide_dk, wide_dv);
  converter.narrow(wide_dq, dq, queries);
  converter.narrow(wide_dk, dk, keys);
  converter.narrow(wide_dv, dv, keys);
}

}  // namespace plumbline
