#pragma once
// oneDNN, when the build found it (PLUMBLINE_ONEDNN): its v2 and v3 C interfaces have the same sgemm. One call here is one tile
// on one thread of our pool; oneDNN's own threads stay off.
#include <string>

#include "gemm.h"

namespace plumbline {

bool onednn_linked();
std::string onednn_version();              // "2.6.3", of the library that runs
void onednn_tile(const GemmCall& tile);    // f32 only; throws when oneDNN reports a failure
bool onednn_is_faster(const GemmCall& call);  // the rule of GemmKind::automatic

}  // namespace plumbline
