#include <algorithm>

#include "bind_ops.h"
#include "staged.h"

namespace plumbline {
namespace {

constexpr int64_t kRow = 4096;  // the backend wants gate and up of a row side by side; a row this long keeps the pool busy

// gate and up in rows [gate | up] of kRow, the last row shorter.
std::vector<float> join(const std::vector<float>& gate, const std::vector<float>& up) {
  std::vector<float> joined(2 * gate.size());
  for (int64_t begin = 0, n = size_of(gate); begin < n; begin += kRow) {
    const int64_t width = std::min(kRow, n - begin);
    std::copy_n(gate.data() + begin, width, joined.data() + 2 * begin);
    std::copy_n(up.data() + begin, width, joined.data() + 2 * begin + width);
  }
  return joined;
}

// Calls body(first element, rows, row length) for the whole rows and for the rest.
template <typename Body>
void for_rows(int64_t n, const Body& body) {
  const int64_t whole = n / kRow * kRow;
  if (whole > 0) body(int64_t{0}, whole / kRow, kRow);
  if (n > whole) body(whole, int64_t{1}, n - whole);
}

Napi::Value swiglu(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Arguments arguments("swiglu", info);
    std::vector<float> gate = arguments.at(0, "gate").f32();
    std::vector<float> up = arguments.at(1, "up").f32(size_of(gate));
    return submit_op(info, arguments.at(2, "token"), [gate = std::move(gate), up = std::move(up)](Backend& backend, const CancelFlag&) {
      const std::vector<float> together = join(gate, up);
      const Staged<float> joined(backend, together);
      Made out(backend, gate.size());
      for_rows(size_of(gate), [&](int64_t first, int64_t rows, int64_t width) { backend.swiglu(joined.data() + 2 * first, out.data() + first, rows, width); });
      return reply_array(out.take());
    });
  });
}

Napi::Value swiglu_grad(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Arguments arguments("swigluGrad", info);
    std::vector<float> gate = arguments.at(0, "gate").f32();
    std::vector<float> up = arguments.at(1, "up").f32(size_of(gate));
    std::vector<float> dout = arguments.at(2, "dout").f32(size_of(gate));
    return submit_op(info, arguments.at(3, "token"), [gate = std::move(gate), up = std::move(up), dout = std::move(dout)](Backend& backend, const CancelFlag&) {
      const std::vector<float> together = join(gate, up);
      const Staged<float> joined(backend, together), dresult(backend, dout);
      Made made(backend, together.size());
      for_rows(size_of(gate), [&](int64_t first, int64_t rows, int64_t width) {
        backend.swiglu_grad(joined.data() + 2 * first, dresult.data() + first, made.data() + 2 * first, rows, width);
      });
      const std::vector<float> djoined = made.take();
      std::vector<float> dgate(gate.size()), dup(gate.size());
      for_rows(size_of(gate), [&](int64_t first, int64_t rows, int64_t width) {
        for (int64_t row = 0; row < rows; ++row) {
          const float* from = djoined.data() + 2 * (first + row * width);
          std::copy_n(from, width, dgate.data() + first + row * width);
          std::copy_n(from + width, width, dup.data() + first + row * width);
        }
      });
      return reply_arrays(std::make_pair("dgate", std::move(dgate)), std::make_pair("dup", std::move(dup)));
    });
  });
}

Activation read_kind(const Argument& argument) {
  constexpr Activation kinds[] = {Activation::quick_gelu, Activation::erf_gelu, Activation::silu};
  return kinds[argument.choice({"quick_gelu", "gelu", "silu"})];
}

Napi::Value activation(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Arguments arguments("activation", info);
    const Activation kind = read_kind(arguments.at(0, "kind"));
    std::vector<float> x = arguments.at(1, "x").f32();
    return submit_op(info, arguments.at(2, "token"), [kind, x = std::move(x)](Backend& backend, const CancelFlag&) {
      const Staged<float> in(backend, x);
      Made y(backend, x.size());
      backend.activate(kind, in.data(), y.data(), size_of(x));
      return reply_array(y.take());
    });
  });
}

Napi::Value activation_grad(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Arguments arguments("activationGrad", info);
    const Activation kind = read_kind(arguments.at(0, "kind"));
    std::vector<float> x = arguments.at(1, "x").f32();
    std::vector<float> dout = arguments.at(2, "dout").f32(size_of(x));
    return submit_op(info, arguments.at(3, "token"), [kind, x = std::move(x), dout = std::move(dout)](Backend& backend, const CancelFlag&) {
      const Staged<float> in(backend, x), dresult(backend, dout);
      Made dx(backend, x.size());
      backend.activate_grad(kind, in.data(), dresult.data(), dx.data(), size_of(x));
      return reply_array(dx.take());
    });
  });
}

}  // namespace

void export_activation_ops(Napi::Env env, Napi::Object ops) {
  ops.Set("swiglu", Napi::Function::New<swiglu>(env, "swiglu"));
  ops.Set("swigluGrad", Napi::Function::New<swiglu_grad>(env, "swigluGrad"));
  ops.Set("activation", Napi::Function::New<activation>(env, "activation"));
  ops.Set("activationGrad", Napi::Function::New<activation_grad>(env, "activationGrad"));
}

}  // namespace plumbline
