#pragma once
// Low-rank adapters on linear layers: y = W x + b + s B A drop(x), s = alpha / rank (LoRA, arXiv 2106.09685; PEFT's format). Their matrices
// are parameters `lora.<target>.A` [rank, in] and `.B` [out, rank]; the target is a parameter's name without `.weight`.
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "parameters.h"

namespace plumbline {

class Adapters {
 public:
  Adapters(Backend& backend, Parameters& parameters, const std::vector<AdapterSpec>& specs);
  bool active() const { return merged_ < specs_.size(); }
  // How many are part of their weights now.
  size_t merged() const { return merged_; }
  // The adapter that works beside a weight, or null.
  const AdapterSpec* find(const std::string& target) const;
  static std::string name_of_a(const std::string& target) { return "lora." + target + ".A"; }
  static std::string name_of_b(const std::string& target) { return "lora." + target + ".B"; }

  // W + s B A of a parameter, as f32; its plain value where no adapter applies, or where it is in already.
  std::vector<float> merged_value(const Parameter& p) const;
  // W <- W + s B A. keep_base: a copy of the bits is kept, so that unmerge() brings them back (masters of weights that are trained too are
  // then those bits). Where it fails half-way, say for memory, some are merged and the others still work beside their weights: the model
  // computes the same, and merge() may go on.
  void merge(bool keep_base);
  void unmerge();
  size_t bytes() const;

 private:
  Backend& backend_;
  Parameters& parameters_;
  struct One {
    AdapterSpec spec;
    bool is_merged = false;
    std::unique_ptr<Block> base;  // bits of the weight before, where they are kept
  };
  std::vector<One> specs_;
  std::unordered_map<std::string, size_t> index_;
  size_t merged_ = 0;
};

}  // namespace plumbline
