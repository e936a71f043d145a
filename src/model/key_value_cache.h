#pragma once
// Paged keys and values of many sequences. A page holds kPageRows rows of all layers: [layers][k, v][kv head][row][d]. Sequences
// list their pages; a fork shares them until one side writes (copy on write). While training each page has a twin for gradients.
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "memory.h"
#include "spec.h"

namespace plumbline {

// Page pointers of the sequences of one pass, for one layer.
struct PageTable {
  std::vector<float*> k, v, dk, dv;
  std::vector<int32_t> page_start_B1;
};

class KeyValueCache {
 public:
  static constexpr int32_t kPageRows = 64;

  KeyValueCache(Backend& backend, int64_t layers, int64_t kv_heads, int64_t head_dim, bool with_gradients);

  // The caller gives out the ids.
  void add(int32_t sequence);
  void fork(int32_t sequence, int32_t to);
  void free(int32_t sequence);
  void clear();
  bool has(int32_t sequence) const { return sequences_.count(sequence) != 0; }
  int64_t length(int32_t sequence) const { return sequences_.at(sequence).length; }
  // Makes room for `rows` more rows and makes the pages they fall into this sequence's own. The length stays.
  void reserve(int32_t sequence, int64_t rows);
  void advance(int32_t sequence, int64_t rows) { sequences_.at(sequence).length += rows; }
  void zero_gradients();

  // Pages of each sequence that hold its first `kv_len` rows.
  void table(const std::vector<int32_t>& sequences, const std::vector<int32_t>& kv_len, int64_t layer, PageTable* table) const;
  int64_t layer_stride() const { return 2 * kv_heads_ * kPageRows * d_; }  // floats between the keys of one layer and of the next in a page
  KeyValuePages view(const PageTable& table) const;
  size_t bytes() const { return pages_.size() * page_bytes_ * (with_gradients_ ? 2 : 1); }

 private:
  struct Sequence {
    int64_t length = 0;
    std::vector<int32_t> pages;
  };
  struct Page {
    std::unique_ptr<Block> value, gradient;
    int32_t references = 0;
  };
  int32_t take_page();
  void drop_page(int32_t page);

  Backend& backend_;
  int64_t kv_heads_, d_;
  size_t page_bytes_;
  bool with_gradients_;
  std::unordered_map<int32_t, Sequence> sequences_;
  std::vector<Page> pages_;
  std::vector<int32_t> free_pages_;
};

}  // namespace plumbline
