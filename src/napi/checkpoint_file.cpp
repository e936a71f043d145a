#include "checkpoint_file.h"

#include <algorithm>
#include <fstream>

#include "../core/error.h"

namespace plumbline {
namespace {

constexpr int64_t kPiece = int64_t{16} << 20;

void read_tensor(std::ifstream& file, const std::string& path, const FileTensor& tensor, const CancelFlag& flag, Parameters& parameters) {
  const int64_t width = tensor.kind == "F32" ? 4 : 2;
  std::vector<char> bytes(static_cast<size_t>(std::min(kPiece, tensor.bytes)));
  file.seekg(tensor.offset);
  for (int64_t done = 0; done < tensor.bytes; done += kPiece) {
    if (flag.is_set()) throw Cancelled{};
    const int64_t piece = std::min(kPiece, tensor.bytes - done);
    file.read(bytes.data(), piece);
    require(file.gcount() == piece, "ERR_CHECKPOINT", "[loadFile] Expected to read '" + tensor.name + "' from " + path + " but received an error of the file system");
    parameters.write_raw(parameters.find(tensor.name), tensor.kind, done / width, piece / width, bytes.data());
  }
}

}  // namespace

void load_tensors(const std::string& path, const std::vector<FileTensor>& tensors, Parameters& parameters, const CancelFlag& flag) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  const int64_t size = file ? static_cast<int64_t>(file.tellg()) : -1;
  require(size >= 0, "ERR_CHECKPOINT", "[loadFile] Expected a readable file but received " + path);
  for (const FileTensor& tensor : tensors) {
    if (flag.is_set()) throw Cancelled{};
    require(tensor.offset <= size && tensor.bytes <= size - tensor.offset, "ERR_CHECKPOINT",
            "[loadFile] Expected '" + tensor.name + "' at bytes " + std::to_string(tensor.offset) + " to " + std::to_string(tensor.offset + tensor.bytes) + " but received a file of " +
                std::to_string(size) + " bytes: " + path + " is truncated, fetch it again");
    read_tensor(file, path, tensor, flag, parameters);
  }
}

}  // namespace plumbline
