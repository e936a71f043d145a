#pragma once
// Readers of what NativeSession's methods take (lib/native.ts). The session checks what depends on its state: sequences, token ids,
// visual and stored rows, earlier passes.
#include "../model/session.h"
#include "args.h"

namespace plumbline {

SessionOptions read_session_options(const Argument& from);
PassInput read_pass(const Argument& from, int64_t hidden);
LossInput read_loss(const Argument& from);
PictureSet read_pictures(const Argument& from, const VisionSpec& vision);
// Pictures of encode(): sizes [n, 3] against the bytes of the frames; keeps every later product inside 64 bits.
void check_pictures(const std::vector<int32_t>& sizes, size_t bytes, const VisionSpec& vision);

}  // namespace plumbline
