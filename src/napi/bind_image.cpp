#include "bind_ops.h"
#include "staged.h"

namespace plumbline {
namespace {

constexpr int64_t kMaxSide = int64_t{1} << 15, kMaxFrames = int64_t{1} << 16;

Napi::Value resize(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Arguments arguments("resize", info);
    const int64_t height = arguments.at(1, "height").integer(1, kMaxSide), width = arguments.at(2, "width").integer(1, kMaxSide);
    const int64_t to_height = arguments.at(3, "toHeight").integer(1, kMaxSide), to_width = arguments.at(4, "toWidth").integer(1, kMaxSide);
    const Filter filter = arguments.at(5, "filter").choice({"bilinear", "bicubic"}) == 0 ? Filter::bilinear : Filter::bicubic;
    std::vector<uint8_t> image = arguments.at(0, "image").u8();
    const int64_t pixels = height * width, channels = static_cast<int64_t>(image.size()) / pixels;
    require(channels >= 1 && channels <= 4 && static_cast<int64_t>(image.size()) == pixels * channels, "ERR_SHAPE",
            "[resize] Expected image to have 1 to 4 times height * width = " + std::to_string(pixels) + " bytes but received " + std::to_string(image.size()));
    return submit_op(info, arguments.at(6, "token"), [=, image = std::move(image)](Backend& backend, const CancelFlag&) {
      std::vector<uint8_t> resized(count(to_height * to_width * channels));
      backend.resize(image.data(), static_cast<int32_t>(height), static_cast<int32_t>(width), static_cast<int32_t>(channels), resized.data(), static_cast<int32_t>(to_height),
                     static_cast<int32_t>(to_width), filter);
      return reply_array(std::move(resized));
    });
  });
}

Napi::Value patch_rows(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Arguments arguments("patchRows", info);
    const int64_t frames = arguments.at(1, "count").integer(1, kMaxFrames);
    const int64_t height = arguments.at(2, "height").integer(1, kMaxSide), width = arguments.at(3, "width").integer(1, kMaxSide);
    const int64_t patch = arguments.at(4, "patch").integer(1, 256), merge = arguments.at(5, "merge").integer(1, 16), temporal = arguments.at(6, "temporal").integer(1, 16);
    require(height % (patch * merge) == 0 && width % (patch * merge) == 0, "ERR_SHAPE",
            "[patchRows] Expected height and width to be multiples of patch * merge = " + std::to_string(patch * merge) + " but received " + std::to_string(height) + " x " + std::to_string(width));
    std::vector<uint8_t> pixels = arguments.at(0, "frames").u8(frames * height * width * 3);
    std::vector<float> mean = arguments.at(7, "mean").f32(3), deviation = arguments.at(8, "std").f32(3);
    return submit_op(info, arguments.at(9, "token"), [=, pixels = std::move(pixels)](Backend& backend, const CancelFlag&) {
      const int64_t groups = (frames + temporal - 1) / temporal;
      Made rows(backend, count(groups * temporal * height * width * 3));
      backend.patch_rows(pixels.data(), static_cast<int32_t>(frames), static_cast<int32_t>(height), static_cast<int32_t>(width), static_cast<int32_t>(patch), static_cast<int32_t>(merge),
                         static_cast<int32_t>(temporal), mean.data(), deviation.data(), rows.data());
      return reply_array(rows.take());
    });
  });
}

}  // namespace

void export_image_ops(Napi::Env env, Napi::Object ops) {
  ops.Set("resize", Napi::Function::New<resize>(env, "resize"));
  ops.Set("patchRows", Napi::Function::New<patch_rows>(env, "patchRows"));
}

}  // namespace plumbline
