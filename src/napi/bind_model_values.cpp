// Values of a model's parameters: read, written, folded together with an adapter.
#include <algorithm>

#include "bind_model.h"
#include "reply.h"

namespace plumbline {
namespace {

constexpr Slot kSlots[] = {Slot::value, Slot::gradient, Slot::first, Slot::second, Slot::master};

Slot read_slot(const Argument& argument) { return kSlots[argument.choice({"value", "gradient", "first", "second", "master"})]; }

}  // namespace

Napi::Value ModelBinding::read_parameter(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Arguments arguments("readParameter", info);
    living("readParameter");
    const std::string name = info_of(arguments.at(0, "name")).name;
    const Slot slot = read_slot(arguments.at(1, "slot"));
    return submit(info.Env(), "readParameter", nullptr, [name, slot](Model& model, const CancelFlag&) {
      const Parameter& parameter = model.parameters.find(name);
      std::vector<float> values(static_cast<size_t>(parameter.size));
      model.parameters.read(parameter, slot, values.data());
      return reply_array(std::move(values));
    });
  });
}

Napi::Value ModelBinding::read_parameter_bf16(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    living("readParameterBf16");
    const std::string name = info_of(Argument("readParameterBf16", "name", info[0])).name;
    return submit(info.Env(), "readParameterBf16", nullptr, [name](Model& model, const CancelFlag&) {
      const Parameter& parameter = model.parameters.find(name);
      std::vector<uint16_t> values(static_cast<size_t>(parameter.size));
      model.parameters.read_raw_bf16(parameter, values.data());
      return reply_array(std::move(values));
    });
  });
}

Napi::Value ModelBinding::read_merged(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Arguments arguments("readMerged", info);
    living("readMerged");
    const std::string name = info_of(arguments.at(0, "name")).name;
    const bool is_bf16 = arguments.at(1, "dtype").choice({"f32", "bf16"}) == 1;
    return submit(info.Env(), "readMerged", nullptr, [name, is_bf16](Model& model, const CancelFlag&) {
      std::vector<float> values = model.adapters.merged_value(model.parameters.find(name));
      if (!is_bf16) return reply_array(std::move(values));
      std::vector<uint16_t> bits(values.size());
      std::transform(values.begin(), values.end(), bits.begin(), float_to_bf16);
      return reply_array(std::move(bits));
    });
  });
}

Napi::Value ModelBinding::merge_adapters(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    living("mergeAdapters");
    const bool keep_base = Argument("mergeAdapters", "keepBase", info[0]).boolean();
    return submit(info.Env(), "mergeAdapters", nullptr, [keep_base](Model& model, const CancelFlag&) {
      model.adapters.merge(keep_base);
      return reply_nothing();
    });
  });
}

Napi::Value ModelBinding::merged_adapters(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    return submit(info.Env(), "mergedAdapters", nullptr, [](Model& model, const CancelFlag&) { return reply_number(static_cast<double>(model.adapters.merged())); });
  });
}

Napi::Value ModelBinding::unmerge_adapters(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    return submit(info.Env(), "unmergeAdapters", nullptr, [](Model& model, const CancelFlag&) {
      model.adapters.unmerge();
      return reply_nothing();
    });
  });
}

Napi::Value ModelBinding::write_parameter(const Napi::CallbackInfo& info) {
  return promised(info.Env(), [&] {
    const Arguments arguments("writeParameter", info);
    living("writeParameter");
    const Info& parameter = info_of(arguments.at(0, "name"));
    const Slot slot = read_slot(arguments.at(1, "slot"));
    std::vector<float> values = arguments.at(2, "data").f32(parameter.size);
    return submit(info.Env(), "writeParameter", nullptr, [name = parameter.name, slot, values = std::move(values)](Model& model, const CancelFlag&) {
      model.parameters.write(model.parameters.find(name), slot, values.data());
      return reply_nothing();
    });
  });
}

}  // namespace plumbline
