#include "kernels/embed/embed.h"

#include "bindings/arguments.h"
#include "bindings/registry.h"

namespace l4k::binding {

Tensor embed(const Tensor& input_ids, const Tensor& weight, const OptionalTensor& image_features,
             const OptionalTensor& image_rows) {
  const Call call("embed", {"weight", weight});
  const bool wide = input_ids.scalar_type() == ScalarType::Long;
  const void* ids = nullptr;
  if (wide) ids = check_list<int64_t>(call, {"input_ids", input_ids}, {"T"});
  else ids = check_list<int>(call, {"input_ids", input_ids}, {"T"});
  const Rows table = check_rows(call, {"weight", weight}, ScalarType::BFloat16, {"V", "D"});
  call.require(table.width % 8 == 0,
               "expected the last dimension of weight to be a multiple of 8, got ", weight);
  call.require(image_features.has_value() == image_rows.has_value(),
               "expected image_features and image_rows together, got one without the other");
  const Rows features = check_optional_rows(call, {"image_features", image_features},
                                            ScalarType::BFloat16, {"R", table.width});
  const int64_t tokens = input_ids.size(0);
  const int* rows = check_optional_list<int>(call, {"image_rows", image_rows}, {tokens});
  Tensor out = call.empty({tokens, table.width}, ScalarType::BFloat16);
  const EmbedParams params{.tokens = tokens,
                           .vocab = table.count,
                           .num_features = features.count,
                           .row_vectors = table.width / 8,
                           .input_ids = ids,
                           .weight = table.data,
                           .image_features = features.data,
                           .image_rows = rows,
                           .out = pointer(out),
                           .weight_stride = table.stride / 8,
                           .features_stride = features.stride / 8,
                           .error = error_word(),
                           .wide_ids = wide};
  call.launch(l4k::embed, params);
  return out;
}

}  // namespace l4k::binding

L4K_REGISTER(m) { l4k::bind<l4k::binding::embed>(m, "embed"); }
