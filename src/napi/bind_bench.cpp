// Timing loops for `npm run bench`, on the job thread, so that Node's overhead does not enter. Each returns seconds per repeat;
// fma_peak returns GFLOP/s per repeat, gemm_time the backend's counters, the row operations see bench_loops.h.
#include "bench_loops.h"
#include "bind_ops.h"
#include "contiguous_pages.h"

namespace plumbline {
namespace {

constexpr int64_t kMaxSize = int64_t{1} << 40, kMaxRepeats = 1000000;
constexpr int64_t kChains = 12;
constexpr int64_t kFmaRounds = 4'000'000;  // about 10 ms per thread: long beside waking a thread

std::vector<double> bench_linear(CpuBackend& backend, const Sizes& s, int64_t repeats, const CancelFlag& flag, bool is_gradient) {
  const int64_t M = s[0], N = s[1], K = s[2];
  const std::vector<float> x = noise(M * K), w = noise(N * K);
  std::vector<uint16_t> bits;
  if (s[3]) for (float value : w) bits.push_back(float_to_bf16(value));
  const Weight weight{s[3] ? static_cast<const void*>(bits.data()) : w.data(), s[3] ? DType::bf16 : DType::f32, N, K};
  std::vector<float> y = noise(M * N), dx(is_gradient ? x.size() : 0), dw(is_gradient ? w.size() : 0);
  return repeat(repeats, flag, [&] {
    if (!is_gradient) return backend.linear(x.data(), weight, nullptr, y.data(), M, false);
    backend.linear_grad_input(y.data(), weight, dx.data(), M, false);
    backend.linear_grad_weight(y.data(), x.data(), dw.data(), nullptr, M, N, K);
  });
}

// One sequence of S keys whose last n_new rows are queries.
std::vector<double> bench_attention(CpuBackend& backend, const Sizes& s, int64_t repeats, const CancelFlag& flag, bool is_gradient) {
  const int64_t S = s[0], H = s[1], Hkv = s[2], d = s[3], rows = s[4];
  require(H % Hkv == 0 && rows <= S && S < (int64_t{1} << 31), "ERR_SHAPE", "[bench] Expected heads to be a multiple of kvHeads and new rows not to exceed the keys but received " + std::to_string(H) + ", " + std::to_string(Hkv) + " and " +
              std::to_string(rows) + " of " + std::to_string(S));
  const std::vector<float> q = noise(rows * H * d), k = noise(S * Hkv * d), v = noise(S * Hkv * d);
  std::vector<float> out(q.size()), lse(count(rows * H)), dq(q.size()), dk(k.size()), dv(v.size());
  const std::vector<int32_t> cu_q{0, static_cast<int32_t>(rows)}, cu_k{0, static_cast<int32_t>(S)};
  const int32_t kv_len = static_cast<int32_t>(S);
  const ContiguousPages pages(cu_k, Hkv, d, k.data(), v.data()), gradients(cu_k, Hkv, d, dk.data(), dv.data());
  const AttentionShape shape{1, cu_q.data(), &kv_len, static_cast<int32_t>(H), static_cast<int32_t>(Hkv), static_cast<int32_t>(d), 0.125f, true, H * d};
  backend.attention(shape, q.data(), pages.pages(), out.data(), lse.data());
  return repeat(repeats, flag, [&] {
    if (!is_gradient) return backend.attention(shape, q.data(), pages.pages(), out.data(), lse.data());
    backend.attention_grad(shape, q.data(), pages.pages(), out.data(), lse.data(), out.data(), dq.data(), gradients.k(), gradients.v());
  });
}

// Twelve independent chains of multiply-adds in registers: more than the eight that fill two units of latency four.
// They start apart and away from the fixed point 1: the compiler computes equal chains once, and a constant one never.
#define PLUMBLINE_FMA_LOOP(lanes)                                                       \
  typedef float wide __attribute__((vector_size(4 * lanes)));                           \
  wide sum[kChains];                                                                    \
  for (int64_t chain = 0; chain < kChains; ++chain) sum[chain] = wide{} + static_cast<float>(chain + 2); \
  const wide a = wide{} + 0.999f, b = wide{} + 0.001f;                                  \
  for (int64_t i = 0; i < rounds; ++i)                                                  \
    for (wide& part : sum) part = part * a + b;                                         \
  float total = 0;                                                                      \
  for (const wide& part : sum) total += part[0];                                        \
  return total

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC optimize("fp-contract=fast")
__attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,fma,prefer-vector-width=512"))) float fma_avx512(int64_t rounds) { PLUMBLINE_FMA_LOOP(16); }
__attribute__((target("avx2,fma"))) float fma_avx2(int64_t rounds) { PLUMBLINE_FMA_LOOP(8); }
#pragma GCC pop_options
#endif
float fma_baseline(int64_t rounds) { PLUMBLINE_FMA_LOOP(4); }

std::vector<double> bench_fma(CpuBackend& backend, int64_t repeats, const CancelFlag& flag) {
  float (*loop)(int64_t) = fma_baseline;
  int64_t lanes = 4;
#if defined(__x86_64__)
  if (backend.isa() == Isa::avx512) loop = fma_avx512, lanes = 16;
  if (backend.isa() == Isa::avx2) loop = fma_avx2, lanes = 8;
#endif
  const int32_t threads = backend.threads();
  std::vector<float> sinks(count(threads));
  std::vector<double> rates = repeat(repeats, flag, [&] {
    backend.pool().parallel_for(threads, &flag, [&](int64_t index, int32_t) { sinks[count(index)] = loop(kFmaRounds); });
  });
  for (double& rate : rates) rate = 2.0 * static_cast<double>(threads * kFmaRounds * kChains * lanes) / rate * 1e-9;
  return rates;
}

struct Kind {
  const char* name;
  size_t sizes;
};
constexpr Kind kKinds[] = {{"linear", 4},     {"linear_grad", 4}, {"attention", 5}, {"attention_grad", 5}, {"read_bandwidth", 1},  {"fma_peak", 0},      {"gemm_time", 0},         {"rms_norm", 2},
                           {"layer_norm", 2}, {"rms_norm_grad", 3}, {"grad_norm", 4}, {"sum_squares", 3},    {"gather_rms_norm", 3}, {"gated_scatter", 3}, {"attention_saliency", 5}};
constexpr RowKernel kRowKernels[] = {RowKernel::rms_norm,    RowKernel::layer_norm,      RowKernel::rms_norm_grad, RowKernel::grad_norm,
                                     RowKernel::sum_squares, RowKernel::gather_rms_norm, RowKernel::gated_scatter, RowKernel::attention_saliency};
constexpr size_t kFirstRowKernel = 7;

// bf16 weights; whether norms, which dtype, whether statistics.
bool is_choice(size_t kind, size_t i) { return (kind < 2 && i == 3) || (kind >= 9 && kind <= 11 && i >= 2); }

// What the loops would read outside of, or divide by.
void check_sizes(size_t kind, const Sizes& s) {
  if (kind == 12 || kind == 13) require(s[1] <= s[0], "ERR_SHAPE", "[bench] Expected taken rows not to exceed rows but received " + std::to_string(s[1]) + " of " + std::to_string(s[0]));
  if (kind == 14)
    require(s[1] % s[2] == 0 && s[4] <= s[0], "ERR_SHAPE",
            "[bench] Expected heads to be a multiple of kvHeads and columns not to exceed the keys but received " + std::to_string(s[1]) + ", " + std::to_string(s[2]) + " and " + std::to_string(s[4]) +
                " of " + std::to_string(s[0]));
}

std::vector<double> run(size_t kind, CpuBackend& backend, const Sizes& sizes, int64_t repeats, const CancelFlag& flag) {
  switch (kind) {
    case 0: return bench_linear(backend, sizes, repeats, flag, false);
    case 1: return bench_linear(backend, sizes, repeats, flag, true);
    case 2: return bench_attention(backend, sizes, repeats, flag, false);
    case 3: return bench_attention(backend, sizes, repeats, flag, true);
    case 4: return bench_read(backend, sizes, repeats, flag);
    case 5: return bench_fma(backend, repeats, flag);
    case 6: return {backend.gemm_seconds(), backend.gemm_flops()};
    default: return bench_rows(kRowKernels[kind - kFirstRowKernel], backend, sizes, repeats, flag);
  }
}

}  // namespace

Napi::Value bench(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Arguments arguments("bench", info);
    const size_t kind = arguments.at(0, "name").choice({"linear", "linear_grad", "attention", "attention_grad", "read_bandwidth", "fma_peak", "gemm_time", "rms_norm", "layer_norm",
                                                         "rms_norm_grad", "grad_norm", "sum_squares", "gather_rms_norm", "gated_scatter", "attention_saliency"});
    Sizes sizes;
    const std::vector<Argument> given = arguments.at(1, "sizes").elements(8);
    require(given.size() == kKinds[kind].sizes, "ERR_SHAPE",
            std::string("[bench] Expected sizes of ") + kKinds[kind].name + " to have " + std::to_string(kKinds[kind].sizes) + " elements but received " + std::to_string(given.size()));
    const bool is_bytes = kind == 4;
    for (size_t i = 0; i < given.size(); ++i) sizes.push_back(given[i].integer(is_choice(kind, i) ? 0 : 1, is_bytes ? kMaxSize : int64_t{1} << 20));
    check_sizes(kind, sizes);
    const int64_t repeats = arguments.at(2, "repeats").integer(1, kMaxRepeats);
    const auto environment = Environment::of(info.Env());
    const std::shared_ptr<CpuBackend> cpu = environment->cpu();
    return environment->submit(info.Env(), read_token(arguments.at(3, "token")), nullptr, cpu,
                               [cpu, kind, sizes, repeats](Backend&, const CancelFlag& flag) { return reply_array(run(kind, *cpu, sizes, repeats, flag)); });
  });
}

}  // namespace plumbline
