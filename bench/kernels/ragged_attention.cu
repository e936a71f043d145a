// Ragged causal attention, from naive to what ships, forward and backward.
//   ragged_attention       1 a block per row and head   2 tiles in shared memory   3 tensor cores, no pipelining   4 shipped (f32: of tiles)
//   ragged_attention_grad  1 a block per row, then per key   2 shipped
// Flops: 4 d for each (row, head, key) that meet, 10 d backward (its two products that are computed again are not counted).
#include "../../cuda/attention_delta.cuh"
#include "../../src/core/packed_pages.h"
#include "ragged_attention_reference.h"
#include "ragged_attention_versions.cuh"

namespace plumbline_bench {
namespace {

template <typename T>
class AttentionLadder {
 public:
  AttentionLadder(Harness& h, const AttentionProblem& p) : h_(h), p_(p) {
    const PackedPages packed(shape_);
    arguments_ = {h.upload(p.cu_q), h.upload(p.cu_k), p.H, p.Hkv, kD, p.scale, true, true};
    in_ = {upload(p.q), upload(p.k), upload(p.v), h.upload(p.sequence_T), room(p.row_size()), static_cast<float*>(h.allocate(static_cast<size_t>(p.row_heads()) * sizeof(float))), nullptr, nullptr, nullptr, nullptr, nullptr};
    for (const int32_t key : p.cu_k) longest_ = std::max(longest_, key - last_), last_ = key;
    for (const int32_t rows : {FloatTiles::kRows, HalfTiles::kRows}) {
      const std::vector<TileWork> works = row_works(packed.attention(), rows);
      works_.push_back(h.upload(works)), blocks_.push_back(static_cast<unsigned>(works.size()) * static_cast<unsigned>(p.Hkv));
    }
  }

  void forward(bool naive) {
    const auto entry = [&](const char* version) { return Entry{"ragged_attention", version, p_.name, p_.bytes(2, 2), 4 * kD * p_.meetings()}; };
    const auto error = [&] { return p_.forward_error(fetch(in_.out, p_.row_size()), h_.download(in_.lse, static_cast<size_t>(p_.row_heads())), step(p_.row_heads(), 100)); };
    const auto run = [&](auto kernel, unsigned blocks, size_t shared, auto... more) { h_.check(launch(kernel, dim3(blocks), dim3(kTileThreads), shared, h_.stream(), arguments_, in_, more...)); };
    if (naive) {
      h_.measure(entry("1 a block per row and head"), [&] { run(row_attention_kernel<T>, static_cast<unsigned>(p_.row_heads()), static_cast<size_t>(longest_) * sizeof(float)); }, error);
      h_.measure(entry("2 tiles in shared memory"), [&] { run(tile_attention_kernel<T>, blocks_[0], FloatTiles::kBytes, works_[0]); }, error);
    }
    if constexpr (sizeof(T) == 2) h_.measure(entry("3 tensor cores, no pipelining"), [&] { run(mma_attention_kernel<T>, blocks_[1], HalfTiles::kBytes, works_[1]); }, error);
    h_.measure(entry(sizeof(T) == 2 ? "4 shipped" : "4 shipped, f32 tiles"), [&] { shipped(); }, error);
  }

  void backward(bool naive) {
    shipped();
    in_.dout = upload(p_.dout), in_.dq = room(p_.row_size()), in_.dk = room(p_.key_size()), in_.dv = room(p_.key_size());
    float* delta = static_cast<float*>(h_.allocate(static_cast<size_t>(p_.row_heads()) * sizeof(float)));
    in_.delta = delta;
    const int32_t* sequence_S = h_.upload(p_.sequence_S);
    const Elements out = fetch(in_.out, p_.row_size());
    const std::vector<float> lse = h_.download(in_.lse, static_cast<size_t>(p_.row_heads()));
    const auto entry = [&](const char* version) { return Entry{"ragged_attention_grad", version, p_.name, p_.bytes(4, 4), 10 * kD * p_.meetings()}; };
    const auto error = [&] {
      return p_.grad_error(out, lse, fetch(in_.dq, p_.row_size()), fetch(in_.dk, p_.key_size()), fetch(in_.dv, p_.key_size()), step(p_.row_heads(), 100), step(p_.key_heads(), 20));
    };
    const auto run = [&](auto kernel, int64_t blocks, size_t shared, auto... more) { h_.check(launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kRowThreads), shared, h_.stream(), arguments_, in_, more...)); };
    if (naive)
      h_.measure(entry("1 a block per row, then per key"), [&] {
        h_.check(launch_delta(in_.dout, static_cast<const T*>(in_.out), delta, p_.row_heads(), kD, true, h_.stream()));
        run(row_grad_kernel<T>, p_.row_heads(), static_cast<size_t>(longest_) * sizeof(float));
        run(key_grad_kernel<T>, p_.key_heads(), 0, sequence_S);
      }, error);
    h_.measure(entry("2 shipped"), [&] { h_.backend().ragged_attention_grad(shape_, in_.q, in_.k, in_.v, in_.out, in_.lse, in_.dout, in_.dq, in_.dk, in_.dv); }, error);
  }

 private:
  T* room(int64_t size) { return static_cast<T*>(h_.allocate(static_cast<size_t>(size) * sizeof(T))); }
  T* upload(const Elements& all) { return reinterpret_cast<T*>(h_.upload(all.bytes)); }
  Elements fetch(const T* from, int64_t size) { return {p_.dtype, h_.download(reinterpret_cast<const uint8_t*>(from), static_cast<size_t>(size) * sizeof(T))}; }
  // All in small sizes; else about `samples` of them, and no multiple of the number of heads apart.
  int64_t step(int64_t size, int64_t samples) const { return h_.check_only() ? 1 : size / samples / 84 * 84 + 1; }
  void shipped() { h_.backend().ragged_attention(shape_, in_.q, in_.k, in_.v, in_.out, in_.lse); }

  Harness& h_;
  const AttentionProblem& p_;
  const RaggedAttention shape_ = p_.shape();
  PackedAttention arguments_;
  AttentionRows<T> in_;
  int32_t longest_ = 0, last_ = 0;
  std::vector<TileWork*> works_;
  std::vector<unsigned> blocks_;
};

void bench_problem(Harness& h, const AttentionProblem& p, bool naive) {
  plumbline::dispatch(p.dtype, [&](auto zero) {
    AttentionLadder<decltype(zero)> ladder(h, p);
    if (h.wants("ragged_attention")) ladder.forward(naive);
    if (h.wants("ragged_attention_grad")) ladder.backward(naive && p.dtype == DType::bf16);
  });
  h.clear();
}

}  // namespace

void bench_ragged_attention(Harness& h) {
  if (!h.wants("ragged_attention") && !h.wants("ragged_attention_grad")) return;
  using Lengths = std::vector<std::pair<int32_t, int32_t>>;
  const bool small = h.check_only();
  Lengths ragged(small ? 3 : 63, small ? std::pair{5, 5} : std::pair{32, 32}), even(small ? 2 : 8, small ? std::pair{33, 33} : std::pair{1024, 1024}), decode;
  ragged.insert(ragged.begin() + 1, small ? std::pair{70, 70} : std::pair{4096, 4096});
  for (int32_t b = 0; b < (small ? 2 : 64); ++b) decode.push_back(small ? std::pair{3, 40 + 30 * b} : std::pair{33, 1024 + 48 * b});
  const std::pair<const char*, Lengths> batches[] = {{small ? "70 among 3 of 5" : "4096 among 63 of 32", ragged}, {small ? "2 x 33" : "8 x 1024", even}, {small ? "2 x 3 on 40, 70 keys" : "64 x 33 on 1k-4k keys", decode}};
  for (const auto& [name, lengths] : batches)
    for (const DType dtype : {DType::bf16, DType::f16, DType::f32})
      for (const auto& [H, Hkv] : {std::pair{12, 2}, std::pair{28, 4}}) bench_problem(h, AttentionProblem(dtype, H, Hkv, name, lengths), H == 12 && dtype != DType::f16);
}

}  // namespace plumbline_bench
