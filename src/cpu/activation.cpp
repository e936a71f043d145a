// activate, swiglu: element-wise.   silu = x s(x), quick_gelu = x s(1.702 x), erf_gelu = x Phi(x), swiglu = silu(gate) up,
//        relu = max(x, 0)
//   in   x, f32, any size; swiglu gate_up (T, 2I)   out  same size; (T, I)
//   how  each element by itself, in vectors, tails included: the result does not depend on its place. Within 6e-7 relative of the
//        exact value (absolute 1e-7 where the function crosses 0). NaN stays NaN; silu(-1e4) = -0; -inf gives NaN, as -inf * 0 does
//   cost one read and one write per element; the exponential hides behind memory beyond the caches
#include "cpu_backend.h"
#include "tiles.h"

#define PLUMBLINE_INL "activation_inl.h"
#include "foreach_isa.h"

namespace plumbline {

void CpuBackend::swiglu(const float* gate_up_T2I, float* out_TI, int64_t T, int64_t I) {
  const auto kernel = PLUMBLINE_PICK(isa_, swiglu_rows);
  const Tiles tiles = tile_rows(T, I);
  parallel(tiles.count, [&](int64_t tile, int32_t) {
    const int64_t t = tiles.begin(tile);
    kernel(gate_up_T2I + t * 2 * I, out_TI + t * I, tiles.end(tile) - t, I);
  });
}

void CpuBackend::swiglu_grad(const float* gate_up_T2I, const float* dout_TI, float* dgate_up_T2I, int64_t T, int64_t I) {
  const auto kernel = PLUMBLINE_PICK(isa_, swiglu_grad_rows);
  const Tiles tiles = tile_rows(T, I);
  parallel(tiles.count, [&](int64_t tile, int32_t) {
    const int64_t t = tiles.begin(tile);
    kernel(gate_up_T2I + t * 2 * I, dout_TI + t * I, dgate_up_T2I + t * 2 * I, tiles.end(tile) - t, I);
  });
}

void CpuBackend::activate(Activation kind, const float* x, float* y, int64_t size) {
  const auto kernel = PLUMBLINE_PICK(isa_, activate_range);
  const Tiles tiles = tile_elements(size);
  parallel(tiles.count, [&](int64_t tile, int32_t) {
    const int64_t i = tiles.begin(tile);
    kernel(kind, x + i, y + i, tiles.end(tile) - i);
  });
}

void CpuBackend::activate_grad(Activation kind, const float* x, const float* dy, float* dx, int64_t size) {
  const auto kernel = PLUMBLINE_PICK(isa_, activate_grad_range);
  const Tiles tiles = tile_elements(size);
  parallel(tiles.count, [&](int64_t tile, int32_t) {
    const int64_t i = tiles.begin(tile);
    kernel(kind, x + i, dy + i, dx + i, tiles.end(tile) - i);
  });
}

}  // namespace plumbline
