#include "gradient_spectra.h"

#include <algorithm>
#include <cmath>

#include "../core/error.h"

namespace plumbline {
namespace {

constexpr int64_t kGramValues = int64_t{8} << 20;  // Gram matrices of a batch: 64 MiB, or one matrix

struct Batch {
  std::vector<const void*> data;
  std::vector<int32_t> rows, cols, sizes;
  int64_t gram_values = 0, values = 0;
};

void append_figures(const double* eigenvalues, int32_t count, std::vector<double>* figures) {
  double nuclear = 0, square = 0, spectral = 0;
  for (int32_t i = 0; i < count; ++i) {
    const double value = eigenvalues[i] < 0 ? 0 : eigenvalues[i];  // rounding; NaN stays
    const double s = std::sqrt(value);
    if (i == 0) spectral = s;
    nuclear += s, square += value;
  }
  figures->insert(figures->end(), {nuclear, spectral, square == 0 ? 0 : nuclear * nuclear / square, spectral == 0 ? 0 : nuclear / spectral});
}

void run(Backend& backend, Batch& batch, std::vector<double>* figures) {
  const int32_t count = static_cast<int32_t>(batch.sizes.size());
  if (count == 0) return;
  backend.poll();
  const Block gram(backend, static_cast<size_t>(batch.gram_values) * sizeof(double)), eigenvalues(backend, static_cast<size_t>(batch.values) * sizeof(double));
  backend.gram({DType::f32, count, batch.data.data(), batch.rows.data(), batch.cols.data()}, static_cast<double*>(gram.data()));
  backend.symmetric_eigenvalues(count, batch.sizes.data(), static_cast<double*>(gram.data()), static_cast<double*>(eigenvalues.data()));
  std::vector<double> fetched(static_cast<size_t>(batch.values));
  backend.download(fetched.data(), eigenvalues.data(), fetched.size() * sizeof(double));
  const double* next = fetched.data();
  for (int32_t size : batch.sizes) {
    append_figures(next, size, figures);
    next += size;
  }
  batch = Batch{};
}

}  // namespace

std::vector<double> gradient_spectra(Model& model, const std::vector<std::string>& names) {
  require(model.parameters.training(), "ERR_ARGUMENT", "[gradientSpectra] Expected training to be enabled before gradients are used");
  std::vector<double> figures;
  Batch batch;
  for (const std::string& name : names) {
    const Parameter& p = model.parameters.find(name);
    const float* gradient = model.parameters.gradient(name);
    require(gradient && p.trainable && p.shape.size() >= 2, "ERR_ARGUMENT", "[gradientSpectra] Expected a matrix that is trained but received '" + name + "'");
    const int64_t rows = p.shape[0], cols = p.size / rows, size = std::min(rows, cols);
    if (batch.gram_values + size * size > kGramValues) run(*model.backend, batch, &figures);
    batch.data.push_back(gradient);
    batch.rows.push_back(static_cast<int32_t>(rows)), batch.cols.push_back(static_cast<int32_t>(cols)), batch.sizes.push_back(static_cast<int32_t>(size));
    batch.gram_values += size * size, batch.values += size;
  }
  run(*model.backend, batch, &figures);
  return figures;
}

}  // namespace plumbline
