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
  bool active() const { return !specs_.empty() && !merged_; }
  bool merged() const { return merged_; }
  // The adapter of a weight, or null.
  const AdapterSpec* find(const std::string& target) const;
  static std::string name_of_a(const std::string& target) { return "lora." + target + ".A"; }
  static std::string name_of_b(const std::string& target) { return "lora." + target + ".B"; }

  // W + s B A of a parameter, as f32; its plain value where no adapter applies, or where it is in already.
  std::vector<float> merged_value(const Parameter& p) const;
  // W <- W + s B A. keep_base: a copy of the bits is kept, so that unmerge() brings them back; else the adapters are worth 0 from now on.
  void merge(bool keep_base);
  void unmerge();
  size_t bytes() const;

 private:
  Backend& backend_;
  Parameters& parameters_;
  std::vector<AdapterSpec> specs_;
  std::unordered_map<std::string, size_t> index_;
  std::vector<std::pair<std::string, std::unique_ptr<Block>>> base_;  // of merged weights
  bool merged_ = false;
};

}  // namespace plumbline
