#include "key_value_cache.h"

#include "../core/error.h"

namespace plumbline {

KeyValueCache::KeyValueCache(Backend& backend, int64_t layers, int64_t kv_heads, int64_t head_dim, bool with_gradients)
    : backend_(backend), kv_heads_(kv_heads), d_(head_dim),
      page_bytes_(static_cast<size_t>(layers * 2 * kv_heads * kPageRows * head_dim) * sizeof(float)), with_gradients_(with_gradients) {}

void KeyValueCache::add(int32_t sequence) { sequences_.emplace(sequence, Sequence{}); }

void KeyValueCache::fork(int32_t sequence, int32_t to) {
  Sequence copy = sequences_.at(sequence);
  copy.pages.resize(static_cast<size_t>((copy.length + kPageRows - 1) / kPageRows));  // not those that a failed pass had reserved
  for (int32_t page : copy.pages) ++pages_[static_cast<size_t>(page)].references;
  sequences_.emplace(to, copy);
}

void KeyValueCache::free(int32_t sequence) {
  for (int32_t page : sequences_.at(sequence).pages) drop_page(page);
  sequences_.erase(sequence);
}

void KeyValueCache::clear() {
  for (auto& entry : sequences_)
    for (int32_t page : entry.second.pages) drop_page(page);
  sequences_.clear();
}

int32_t KeyValueCache::take_page() {
  if (free_pages_.empty()) {
    Page page;
    page.value = std::make_unique<Block>(backend_, page_bytes_);
    if (with_gradients_) page.gradient = std::make_unique<Block>(backend_, page_bytes_);
    pages_.push_back(std::move(page));
    free_pages_.push_back(static_cast<int32_t>(pages_.size()) - 1);
  }
  const int32_t page = free_pages_.back();
  free_pages_.pop_back();
  pages_[static_cast<size_t>(page)].references = 1;
  return page;
}

void KeyValueCache::drop_page(int32_t page) {
  if (--pages_[static_cast<size_t>(page)].references == 0) free_pages_.push_back(page);
}

void KeyValueCache::reserve(int32_t sequence, int64_t rows) {
  Sequence& s = sequences_.at(sequence);
  const size_t first = static_cast<size_t>(s.length / kPageRows);
  if (rows > 0 && first < s.pages.size() && pages_[static_cast<size_t>(s.pages[first])].references > 1) {
    const int32_t shared = s.pages[first], own = take_page();
    try {
      backend_.copy(pages_[static_cast<size_t>(own)].value->data(), pages_[static_cast<size_t>(shared)].value->data(), page_bytes_);
    } catch (...) {  // cancelled
      drop_page(own);
      throw;
    }
    s.pages[first] = own;
    drop_page(shared);
  }
  const size_t wanted = static_cast<size_t>((s.length + rows + kPageRows - 1) / kPageRows);
  while (s.pages.size() < wanted) s.pages.push_back(take_page());
}

void KeyValueCache::zero_gradients() {
  for (Page& page : pages_)
    if (page.references > 0 && page.gradient) backend_.fill(page.gradient->floats(), 0.0f, static_cast<int64_t>(page_bytes_ / sizeof(float)));
}

void KeyValueCache::table(const std::vector<int32_t>& sequences, const std::vector<int32_t>& kv_len, int64_t layer, PageTable* table) const {
  const int64_t half = kv_heads_ * kPageRows * d_, offset = layer * 2 * half;
  table->k.clear(), table->v.clear(), table->dk.clear(), table->dv.clear();
  table->page_start_B1.assign(1, 0);
  for (size_t b = 0; b < sequences.size(); ++b) {
    const Sequence& s = sequences_.at(sequences[b]);
    const size_t count = static_cast<size_t>((kv_len[b] + kPageRows - 1) / kPageRows);
    for (size_t i = 0; i < count; ++i) {
      const Page& page = pages_[static_cast<size_t>(s.pages[i])];
      table->k.push_back(page.value->floats() + offset);
      table->v.push_back(page.value->floats() + offset + half);
      if (!page.gradient) continue;
      table->dk.push_back(page.gradient->floats() + offset);
      table->dv.push_back(page.gradient->floats() + offset + half);
    }
    table->page_start_B1.push_back(static_cast<int32_t>(table->k.size()));
  }
}

KeyValuePages KeyValueCache::view(const PageTable& table) const {
  return KeyValuePages{table.k.data(), table.v.data(), table.page_start_B1.data(), kPageRows * d_, d_, kPageRows};
}

}  // namespace plumbline
