#include "bind_ops.h"
#include "gradient_arrays.h"

namespace plumbline {
namespace {

constexpr uint32_t kMaxMatrices = 1 << 20;

struct SpectraInput {
  DType dtype;
  std::vector<GradientInput> matrices;
  std::vector<int32_t> rows, cols, sizes;
  int64_t values = 0, elements = 0;
};

// matrices, shapes [n * 2] rows and columns, dtype.
std::shared_ptr<SpectraInput> read_spectra(const Arguments& arguments) {
  auto input = std::make_shared<SpectraInput>();
  const std::vector<Argument> matrices = arguments.at(0, "matrices").elements(kMaxMatrices);
  const std::vector<int32_t> shapes = arguments.at(1, "shapes").i32(2 * static_cast<int64_t>(matrices.size()));
  input->dtype = read_dtype(arguments.at(2, "dtype"));
  for (size_t b = 0; b < matrices.size(); ++b) {
    const int32_t rows = shapes[2 * b], cols = shapes[2 * b + 1];
    require(rows >= 1 && cols >= 1, "ERR_RANGE",
            "[gradSpectra] Expected matrices of at least 1 x 1 but received " + std::to_string(rows) + " x " + std::to_string(cols) + " of matrix " + std::to_string(b));
    input->matrices.emplace_back(matrices[b], input->dtype, static_cast<int64_t>(rows) * cols);
    input->rows.push_back(rows), input->cols.push_back(cols), input->sizes.push_back(std::min(rows, cols));
    input->values += std::min(rows, cols), input->elements += static_cast<int64_t>(std::min(rows, cols)) * std::min(rows, cols);
  }
  return input;
}

Reply run_spectra(SpectraInput& input, Backend& backend) {
  std::vector<double> values(count(input.values));
  if (values.empty()) return reply_array(std::move(values));
  std::vector<const void*> data;
  for (GradientInput& matrix : input.matrices) data.push_back(matrix.at(backend));
  const Block gram(backend, count(input.elements) * sizeof(double)), found(backend, values.size() * sizeof(double));
  const int32_t matrices = static_cast<int32_t>(data.size());
  backend.gram({input.dtype, matrices, data.data(), input.rows.data(), input.cols.data()}, static_cast<double*>(gram.data()));
  backend.symmetric_eigenvalues(matrices, input.sizes.data(), static_cast<double*>(gram.data()), static_cast<double*>(found.data()));
  backend.download(values.data(), found.data(), values.size() * sizeof(double));
  return reply_array(std::move(values));
}

Napi::Value grad_spectra(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Arguments arguments("gradSpectra", info);
    std::shared_ptr<SpectraInput> input = read_spectra(arguments);
    return submit_op(info, arguments.at(3, "token"), [input](Backend& backend, const CancelFlag&) { return run_spectra(*input, backend); });
  });
}

}  // namespace

void export_spectra_ops(Napi::Env env, Napi::Object ops) { ops.Set("gradSpectra", Napi::Function::New<grad_spectra>(env, "gradSpectra")); }

}  // namespace plumbline
