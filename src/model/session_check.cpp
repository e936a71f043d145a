// What a pass must be before anything of it runs.
#include <algorithm>

#include "../core/error.h"
#include "session_impl.h"

namespace plumbline {
namespace {

std::string text(int64_t value) { return std::to_string(value); }

}  // namespace

void Session::Impl::check(const PassInput& input) {
  const size_t B = input.sequences.size(), T = input.kind.size();
  require(T > 0 && input.index.size() == T && input.positions.size() == 3 * T, "ERR_SHAPE",
          "[extend] Expected at least one row, with kind [T], index [T] and positions [3, T], but received " + text(static_cast<int64_t>(T)) + ", " +
              text(static_cast<int64_t>(input.index.size())) + " and " + text(static_cast<int64_t>(input.positions.size())) + " values");
  require(T < (size_t{1} << 30), "ERR_RANGE", "[extend] Expected fewer than 2^30 rows in one pass but received " + text(static_cast<int64_t>(T)));
  require(input.cu_seqlens.size() == B + 1 && input.cu_seqlens.front() == 0 && input.cu_seqlens.back() == static_cast<int32_t>(T) &&
              std::is_sorted(input.cu_seqlens.begin(), input.cu_seqlens.end()),
          "ERR_SHAPE", "[extend] Expected cuSeqlens to rise from 0 to the number of rows, " + text(static_cast<int64_t>(T)) + ", over " + text(static_cast<int64_t>(B)) + " sequences");
  std::vector<int32_t> sorted = input.sequences;
  std::sort(sorted.begin(), sorted.end());
  for (size_t b = 0; b < B; ++b) {
    require(sequences.count(sorted[b]) != 0, "ERR_ARGUMENT", "[extend] Expected a live sequence of this session but received id " + text(sorted[b]));
    require(b == 0 || sorted[b] != sorted[b - 1], "ERR_ARGUMENT", "[extend] Expected each sequence once in a pass but received id " + text(sorted[b]) + " twice");
  }
  check_rows(input);
  check_saliency(input);
  router.check(input.forced_routes, static_cast<int64_t>(T));
  for (const auto* rows : {&input.logit_rows, &input.hidden_rows})
    for (int32_t row : *rows)
      require(row >= 0 && static_cast<size_t>(row) < T, "ERR_RANGE", "[extend] Expected asked rows in 0.." + text(static_cast<int64_t>(T) - 1) + " but received " + text(row));
}

void Session::Impl::check_rows(const PassInput& input) const {
  const int64_t D = model->spec.text.hidden, given = static_cast<int64_t>(input.embeddings.size()) / D;
  require(static_cast<int64_t>(input.embeddings.size()) == given * D, "ERR_SHAPE",
          "[extend] Expected embeddings to be [n, " + text(D) + "] but received " + text(static_cast<int64_t>(input.embeddings.size())) + " values");
  for (size_t b = 0; b + 1 < input.cu_seqlens.size(); ++b)
    for (int32_t row = input.cu_seqlens[b]; row < input.cu_seqlens[b + 1]; ++row) {
      const size_t t = static_cast<size_t>(row);
      const RowKind kind = static_cast<RowKind>(input.kind[t]);
      require(input.kind[t] < kRowKinds, "ERR_ARGUMENT", "[extend] Expected row kinds 0..4 but received " + text(input.kind[t]) + " at row " + text(row));
      if (kind == RowKind::latent) {
        require(sequences.at(input.sequences[b]).has_hidden, "ERR_ARGUMENT",
                "[extend] Expected a latent row to follow an earlier pass of its sequence, whose last hidden state it takes, but sequence " + text(input.sequences[b]) + " has no rows yet");
        continue;
      }
      const int64_t limits[] = {model->spec.text.vocab, visual_rows, 0, given, stored_rows};
      constexpr const char* names[] = {"token ids", "visual rows", "", "embedding rows", "stored rows"};
      const int64_t limit = limits[input.kind[t]];
      const char* what = names[input.kind[t]];
      require(input.index[t] >= 0 && input.index[t] < limit, "ERR_RANGE",
              std::string("[extend] Expected ") + what + " in 0.." + text(limit - 1) + " but received " + text(input.index[t]) + " at row " + text(row));
    }
  for (int32_t position : input.positions)
    require(position >= 0 && position < (1 << 24), "ERR_RANGE", "[extend] Expected positions in 0..2^24-1 but received " + text(position));
}

void Session::Impl::check_saliency(const PassInput& input) {
  require(input.saliency.empty() || input.saliency.size() == input.sequences.size(), "ERR_SHAPE",
          "[extend] Expected saliency to have a value for each of " + text(static_cast<int64_t>(input.sequences.size())) + " sequences but received " +
              text(static_cast<int64_t>(input.saliency.size())));
  for (size_t b = 0; b < input.sequences.size(); ++b) {
    const SequenceState& sequence = sequences.at(input.sequences[b]);
    const int64_t before = caches.keys_values.length(sequence.cache), rows = input.cu_seqlens[b + 1] - input.cu_seqlens[b];
    require(!options.routing.looks_ahead() || before == 0 || rows == 0, "ERR_UNSUPPORTED",
            "[extend] Expected a sequence without earlier rows, because rule 'topk' and gate 'softmax-sequence' look ahead and cannot be cached, but received id " +
                text(input.sequences[b]) + " with " + text(before) + " rows; restart it and run the whole sequence");
    if (input.saliency.empty() || !input.saliency[b]) continue;
    require(sequence.pictures != nullptr && rows > 0, "ERR_ARGUMENT",
            "[extend] Expected saliency of a sequence with pictures and with rows in this pass but received id " + text(input.sequences[b]));
    for (int32_t column : sequence.pictures->columns)
      require(column < before + rows, "ERR_RANGE", "[extend] Expected the image tokens of sequence " + text(input.sequences[b]) + " to be among its " + text(before + rows) + " rows but received row " + text(column));
  }
}

}  // namespace plumbline
