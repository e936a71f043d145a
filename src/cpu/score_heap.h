#pragma once
// The best `count` of a stream of scores by (score descending, index ascending): NaN is the lowest score, -0 equals 0.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

namespace plumbline {

// Ascends with the score.
inline uint32_t score_order(float score) {
  if (score != score) return 0;
  const float value = score + 0.0f;  // -0 becomes 0
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return (bits >> 31) ? ~bits : bits | 0x80000000u;
}

class ScoreHeap {
 public:
  void start(int64_t count) {
    wanted_ = static_cast<size_t>(count);
    heap_.clear();
    heap_.reserve(wanted_);
  }
  void offer(float score, int64_t index) {
    const uint64_t key = static_cast<uint64_t>(score_order(score)) << 32 | (0xffffffffu - static_cast<uint32_t>(index));
    if (heap_.size() < wanted_) {
      heap_.push_back(key);
      if (heap_.size() == wanted_) std::make_heap(heap_.begin(), heap_.end(), std::greater<>());
    } else if (wanted_ > 0 && key > heap_.front()) {
      std::pop_heap(heap_.begin(), heap_.end(), std::greater<>());
      heap_.back() = key;
      std::push_heap(heap_.begin(), heap_.end(), std::greater<>());
    }
  }
  void sort() { std::sort(heap_.begin(), heap_.end(), std::greater<>()); }  // best first; no offers after it
  int64_t size() const { return static_cast<int64_t>(heap_.size()); }
  int32_t index(int64_t i) const { return static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(heap_[static_cast<size_t>(i)])); }
  bool same_score(int64_t i, int64_t j) const { return heap_[static_cast<size_t>(i)] >> 32 == heap_[static_cast<size_t>(j)] >> 32; }

 private:
  size_t wanted_ = 0;
  std::vector<uint64_t> heap_;  // the worst on top
};

}  // namespace plumbline
