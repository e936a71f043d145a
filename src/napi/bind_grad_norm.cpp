#include <cmath>

#include "bind_ops.h"
#include "gradient_arrays.h"

namespace plumbline {
namespace {

constexpr int64_t kMaxClasses = 256;  // classes are bytes
constexpr int64_t kMaxChannels = INT32_MAX;
constexpr uint32_t kMaxTensors = 1 << 20;
constexpr size_t kFigures = 6;        // count, mean, squared deviations, min, max, not finite

struct NormInput {
  std::shared_ptr<GradientInput> grad;
  std::vector<uint8_t> classes;
  int64_t T, C;
  int32_t class_count;
  float scale;
  bool has_classes;
};

NormInput read_norms(const Argument& grad, const Argument& from) {
  NormInput input{};
  input.T = from.field("tokens").integer(0, kMaxSafeInteger);
  input.C = from.field("channels").integer(1, kMaxChannels);
  require(input.T <= kMaxSafeInteger / input.C, "ERR_RANGE", "[gradNorm] Expected tokens * channels to be a safe integer but received more");
  input.grad = std::make_shared<GradientInput>(grad, read_dtype(from.field("dtype")), input.T * input.C);
  input.class_count = static_cast<int32_t>(from.field("numClasses").integer(1, kMaxClasses));
  input.scale = static_cast<float>(from.field("scale").number(0, 3e38));
  const Argument classes = from.field("classes");
  input.has_classes = !classes.absent();
  if (!input.has_classes) return input;
  input.classes = classes.u8(input.T);
  for (size_t t = 0; t < input.classes.size(); ++t)
    require(input.classes[t] < input.class_count, "ERR_RANGE",
            "[gradNorm] Expected classes below numClasses = " + std::to_string(input.class_count) + " but received " + std::to_string(input.classes[t]) + " at " + std::to_string(t));
  return input;
}

Reply run_norms(const NormInput& input, Backend& backend) {
  Made norms(backend, count(input.T));
  const size_t bytes = static_cast<size_t>(input.class_count) * sizeof(NormStatistics);
  const Block statistics(backend, bytes, true);
  backend.grad_norm(input.grad->at(backend), input.grad->dtype(), input.has_classes ? input.classes.data() : nullptr, input.class_count, input.scale, norms.data(),
                    static_cast<NormStatistics*>(statistics.data()), input.T, input.C);
  std::vector<NormStatistics> all(static_cast<size_t>(input.class_count));
  backend.download(all.data(), statistics.data(), bytes);
  std::vector<double> figures;
  std::vector<int32_t> histogram;
  for (const NormStatistics& s : all) {
    const double of_class[kFigures] = {static_cast<double>(s.count), s.mean, s.m2, static_cast<double>(s.min), static_cast<double>(s.max), static_cast<double>(s.not_finite)};
    figures.insert(figures.end(), of_class, of_class + kFigures);
    histogram.insert(histogram.end(), s.histogram, s.histogram + kNormBins);
  }
  return [values = norms.take(), figures = std::move(figures), histogram = std::move(histogram)](Napi::Env env) -> Napi::Value {
    Napi::Object object = Napi::Object::New(env);
    object.Set("norms", to_array(env, values));
    object.Set("figures", to_array(env, figures));
    object.Set("histogram", to_array(env, histogram));
    return object;
  };
}

Napi::Value grad_norm(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Arguments arguments("gradNorm", info);
    NormInput input = read_norms(arguments.at(0, "grad"), arguments.at(1, "options"));
    return submit_op(info, arguments.at(2, "token"), [input = std::move(input)](Backend& backend, const CancelFlag&) { return run_norms(input, backend); });
  });
}

// Tensors of two types at most: f32, and the 16-bit type that Uint16Arrays are of.
Napi::Value global_norm(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Arguments arguments("globalNorm", info);
    const DType halves = read_dtype(arguments.at(1, "dtype"));
    auto tensors = std::make_shared<std::vector<GradientInput>>();
    for (const Argument& tensor : arguments.at(0, "tensors").elements(kMaxTensors)) tensors->emplace_back(tensor, tensor.is_array_of(napi_uint16_array) ? halves : DType::f32);
    return submit_op(info, arguments.at(2, "token"), [tensors](Backend& backend, const CancelFlag&) {
      double sum = 0;
      for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
        std::vector<FloatSpan> spans;
        for (GradientInput& tensor : *tensors)
          if (tensor.dtype() == dtype && tensor.size() > 0) spans.push_back({tensor.at(backend), tensor.size()});
        if (!spans.empty()) sum += backend.sum_squares(spans.data(), static_cast<int64_t>(spans.size()), dtype);
      }
      return reply_number(std::sqrt(sum));
    });
  });
}

}  // namespace

void export_grad_norm_ops(Napi::Env env, Napi::Object ops) {
  ops.Set("gradNorm", Napi::Function::New<grad_norm>(env, "gradNorm"));
  ops.Set("globalNorm", Napi::Function::New<global_norm>(env, "globalNorm"));
}

}  // namespace plumbline
