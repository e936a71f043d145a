#include "../core/replay.h"
#include "bind_ops.h"
#include "float_arrays.h"

namespace plumbline {
namespace {

constexpr int64_t kMaxIndex = INT32_MAX, kMaxSide = int64_t{1} << 15;

struct ReplayInput {
  FloatInput scores;
  std::vector<int32_t> cu_tokens, cu_pictures, grids, cu_selected;
  std::vector<uint8_t> used;
  ReplayRule rule;
  int32_t B;
  ReplayLayout layout() const { return ReplayLayout{B, cu_tokens.data(), cu_pictures.data(), grids.data(), cu_selected.data()}; }
};

// The pictures' grids fill each sequence's tokens.
void check_grids(const ReplayInput& input) {
  for (size_t b = 0; b < count(input.B); ++b) {
    int64_t area = 0;
    for (size_t p = count(input.cu_pictures[b]); p < count(input.cu_pictures[b + 1]); ++p) {
      const int64_t rows = input.grids[2 * p], columns = input.grids[2 * p + 1];
      require(rows >= 1 && columns >= 1, "ERR_RANGE",
              "[coherentWindow] Expected grids of at least 1 x 1 but received " + std::to_string(rows) + " x " + std::to_string(columns) + " of picture " + std::to_string(p));
      area = std::min(area + rows * columns, kMaxSafeInteger);  // each product is below 2^62: no overflow
    }
    const int64_t tokens = input.cu_tokens[b + 1] - input.cu_tokens[b];
    require(area == tokens, "ERR_SHAPE",
            "[coherentWindow] Expected the grids of sequence " + std::to_string(b) + " to have " + std::to_string(tokens) + " places in all but received " + std::to_string(area));
  }
}

// Places in the selection: what is left of each sequence's tokens, K at most.
void plan_selection(ReplayInput& input) {
  input.cu_selected.push_back(0);
  for (size_t b = 0; b < count(input.B); ++b) {
    int32_t used = 0;
    for (size_t i = count(input.cu_tokens[b]); i < count(input.cu_tokens[b + 1]); ++i) {
      require(input.used[i] <= 1, "ERR_RANGE",
              "[coherentWindow] Expected used to hold 0 and 1 but received " + std::to_string(input.used[i]) + " at " + std::to_string(i));
      used += input.used[i];
    }
    input.cu_selected.push_back(input.cu_selected.back() + replay_count(input.rule, input.cu_tokens[b + 1] - input.cu_tokens[b], used));
  }
}

ReplayInput read_replay(const Argument& scores, const Argument& from) {
  ReplayInput input{};
  input.scores = FloatInput(scores);
  input.cu_tokens = from.field("cuTokens").i32();
  const int64_t B = check_offsets("coherentWindow", "cuTokens", input.cu_tokens, input.scores.size());
  input.B = static_cast<int32_t>(B);
  input.grids = from.field("grids").i32();
  const int64_t pictures = rows_of("coherentWindow", "grids", input.grids.size(), 2);
  input.cu_pictures = from.field("cuPictures").i32(B + 1);
  check_offsets("coherentWindow", "cuPictures", input.cu_pictures, pictures);
  input.rule.patches = static_cast<int32_t>(from.field("patches").integer(1, kMaxIndex));
  input.rule.window = static_cast<int32_t>(from.field("window").integer(1, kMaxIndex));
  input.rule.weights = from.field("weights").choice({"mean-preserving", "softmax"}) == 0 ? ReplayWeights::mean_preserving : ReplayWeights::softmax;
  input.used = from.field("used").u8(input.scores.size());
  check_grids(input);
  plan_selection(input);
  return input;
}

Napi::Value coherent_window(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Arguments arguments("coherentWindow", info);
    ReplayInput input = read_replay(arguments.at(0, "scores"), arguments.at(1, "options"));
    FloatResults results("coherentWindow");
    results.add(arguments.at(2, "into"), "weights", input.cu_selected.back());
    results.keep_apart_from(input.scores);
    return submit_op(info, arguments.at(3, "token"), [input = std::move(input), results = std::move(results)](Backend& backend, const CancelFlag&) mutable {
      std::vector<int32_t> selected(count(input.cu_selected.back())), windows(6 * count(input.B));
      backend.select_patches(input.rule, input.layout(), input.scores.at(backend), input.used.data(), selected.data(), results.at("weights", backend), windows.data(), nullptr);
      return results.reply(std::make_pair("cuSelected", std::move(input.cu_selected)), std::make_pair("selected", std::move(selected)),
                           std::make_pair("windows", std::move(windows)), std::make_pair("used", std::move(input.used)));
    });
  });
}

// The picture, its box and where it goes to; pointers are set by the job.
CropPatches read_crop(const Argument& from) {
  CropPatches crop{};
  crop.height = static_cast<int32_t>(from.field("height").integer(1, kMaxSide)), crop.width = static_cast<int32_t>(from.field("width").integer(1, kMaxSide));
  const std::vector<int32_t> box = from.field("box").i32(4);
  crop.x1 = box[0], crop.y1 = box[1], crop.x2 = box[2], crop.y2 = box[3];
  const bool is_inside = crop.x1 >= 0 && crop.x1 < crop.x2 && crop.x2 <= crop.width && crop.y1 >= 0 && crop.y1 < crop.y2 && crop.y2 <= crop.height;
  require(is_inside, "ERR_RANGE",
          "[cropPatches] Expected box to lie inside the " + std::to_string(crop.width) + " x " + std::to_string(crop.height) + " picture but received " +
              std::to_string(crop.x1) + ", " + std::to_string(crop.y1) + ", " + std::to_string(crop.x2) + ", " + std::to_string(crop.y2));
  crop.to_height = static_cast<int32_t>(from.field("toHeight").integer(1, kMaxSide));
  crop.to_width = static_cast<int32_t>(from.field("toWidth").integer(1, kMaxSide));
  crop.patch = static_cast<int32_t>(from.field("patch").integer(1, 256)), crop.merge = static_cast<int32_t>(from.field("merge").integer(1, 16));
  crop.temporal = static_cast<int32_t>(from.field("temporal").integer(1, 16));
  const int32_t unit = crop.patch * crop.merge;
  require(crop.to_height % unit == 0 && crop.to_width % unit == 0, "ERR_SHAPE",
          "[cropPatches] Expected toHeight and toWidth to be multiples of patch * merge = " + std::to_string(unit) + " but received " +
              std::to_string(crop.to_height) + " x " + std::to_string(crop.to_width));
  return crop;
}

Napi::Value crop_patches(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Arguments arguments("cropPatches", info);
    const Argument options = arguments.at(1, "options");
    const CropPatches plan = read_crop(options);
    std::vector<uint8_t> image = arguments.at(0, "image").u8(int64_t{plan.height} * plan.width * 3);
    std::vector<float> mean = options.field("mean").f32(3), deviation = options.field("std").f32(3);
    const int64_t pixel_bytes = int64_t{plan.to_height} * plan.to_width * 3;
    FloatResults results("cropPatches");
    results.add(arguments.at(2, "into"), "rows", pixel_bytes * plan.temporal);
    return submit_op(info, arguments.at(3, "token"), [=, image = std::move(image), results = std::move(results)](Backend& backend, const CancelFlag&) mutable {
      CropPatches crop = plan;
      crop.image = image.data(), crop.mean_3 = mean.data(), crop.std_3 = deviation.data();
      std::vector<uint8_t> pixels(count(pixel_bytes));
      backend.crop_patches(crop, results.at("rows", backend), pixels.data());
      return results.reply(std::make_pair("pixels", std::move(pixels)));
    });
  });
}

}  // namespace

void export_replay_ops(Napi::Env env, Napi::Object ops) {
  ops.Set("coherentWindow", Napi::Function::New<coherent_window>(env, "coherentWindow"));
  ops.Set("cropPatches", Napi::Function::New<crop_patches>(env, "cropPatches"));
}

}  // namespace plumbline
