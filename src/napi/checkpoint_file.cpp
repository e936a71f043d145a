#include "checkpoint_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "../core/error.h"

namespace plumbline {
namespace {

constexpr int64_t kPiece = int64_t{8} << 20;   // read, then checked while the last cache still holds it
constexpr int64_t kSlice = int64_t{512} << 10;  // of a piece: what one thread reads at a time

std::string text(int64_t value) { return std::to_string(value); }

class SourceFile {
 public:
  explicit SourceFile(const std::string& path) : path_(path) {
    // Not blocking: a named pipe that took the file's place would wait for a writer for ever.
    file_ = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat status{};
    if (file_ >= 0 && fstat(file_, &status) == 0 && S_ISREG(status.st_mode)) size_ = status.st_size;
    else close_file();
    require(size_ >= 0, "ERR_CHECKPOINT", "[loadFile] Expected a readable file but received " + path);
  }
  ~SourceFile() { close_file(); }
  SourceFile(const SourceFile&) = delete;
  SourceFile& operator=(const SourceFile&) = delete;
  int64_t size() const { return size_; }
  const std::string& path() const { return path_; }

  void read(const std::string& tensor, int64_t offset, int64_t bytes, char* to) const {
    while (bytes > 0) {
      const ssize_t got = pread(file_, to, static_cast<size_t>(bytes), static_cast<off_t>(offset));
      if (got < 0 && errno == EINTR) continue;
      require(got > 0, "ERR_CHECKPOINT", "[loadFile] Expected to read '" + tensor + "' from " + path_ + " but received " +
                                             (got == 0 ? std::string("its end: it was cut short meanwhile") : std::string(std::strerror(errno))) + "; load it again");
      offset += got, bytes -= got, to += got;
    }
  }

 private:
  void close_file() {
    if (file_ >= 0) close(file_);
    file_ = -1;
  }
  std::string path_;
  int file_ = -1;
  int64_t size_ = -1;
};

void read_tensor(const SourceFile& file, const FileTensor& tensor, ThreadPool& pool, const CancelFlag& flag, Parameters& parameters) {
  const Parameter& parameter = parameters.find(tensor.name);
  const int64_t width = tensor.kind == "F32" ? 4 : 2;
  std::vector<char> staged;
  for (int64_t done = 0; done < tensor.bytes; done += kPiece) {
    const int64_t piece = std::min(kPiece, tensor.bytes - done);
    char* to = static_cast<char*>(parameters.place(parameter, tensor.kind, tensor.first + done / width));
    if (to == nullptr) {
      staged.resize(static_cast<size_t>(std::min(kPiece, tensor.bytes)));
      to = staged.data();
    }
    pool.parallel_for((piece + kSlice - 1) / kSlice, &flag, [&](int64_t slice, int32_t) {
      const int64_t start = slice * kSlice;
      file.read(tensor.name, tensor.offset + done + start, std::min(kSlice, piece - start), to + start);
    });
    parameters.write_raw(parameter, tensor.kind, tensor.first + done / width, piece / width, to);
  }
}

}  // namespace

void load_tensors(const std::string& path, const std::vector<FileTensor>& tensors, Parameters& parameters, ThreadPool& pool, const CancelFlag& flag) {
  const SourceFile file(path);
  for (const FileTensor& tensor : tensors) {
    if (flag.is_set()) throw Cancelled{};
    require(tensor.offset <= file.size() && tensor.bytes <= file.size() - tensor.offset, "ERR_CHECKPOINT",
            "[loadFile] Expected '" + tensor.name + "' at bytes " + text(tensor.offset) + " to " + text(tensor.offset + tensor.bytes) + " but received a file of " +
                text(file.size()) + " bytes: " + path + " is truncated, fetch it again");
    read_tensor(file, tensor, pool, flag, parameters);
  }
}

}  // namespace plumbline
