#pragma once
#include "../model/spec.h"
#include "args.h"

namespace plumbline {

// NativeModelSpec (lib/native.ts). Every bound keeps sizes, offsets and strides inside their types.
ModelSpec read_model_spec(const Argument& spec);

}  // namespace plumbline
