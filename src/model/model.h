#pragma once
#include <memory>

#include "parameters.h"
#include "spec.h"

namespace plumbline {

// A model: its dimensions, its parameters, and the backend that computes it. Shared by its sessions.
struct Model {
  Model(std::shared_ptr<Backend> backend, const ModelSpec& spec) : backend(std::move(backend)), spec(spec), parameters(*this->backend, spec) {}
  std::shared_ptr<Backend> backend;
  ModelSpec spec;
  Parameters parameters;
};

}  // namespace plumbline
