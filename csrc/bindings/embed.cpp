#include "kernels/embed/embed.h"
#include "bindings/arguments.h"

namespace l4k::binding {

Tensor embed(const Tensor& input_ids, const Tensor& weight,
             const std::optional<Tensor>& maybe_image_features,
             const std::optional<Tensor>& maybe_image_rows) {
  const bool wide = input_ids.scalar_type() == ScalarType::Long;
  if (!wide) L4K_CHECK_DTYPE(input_ids, Int);
  L4K_CHECK_SHAPE(input_ids, -1);
  L4K_CHECK_CONTIGUOUS(input_ids);
  L4K_CHECK_BF16_ROWS(weight, -1, -1);
  const int64_t tokens = input_ids.size(0), width = weight.size(1);
  L4K_CHECK_MULTIPLE(width, 8);
  const bool images = maybe_image_features.has_value();
  L4K_REQUIRE(images == maybe_image_rows.has_value(),
              "expected image_features and image_rows together, got one without the other");
  if (images) {
    const Tensor &image_features = *maybe_image_features, &image_rows = *maybe_image_rows;
    L4K_CHECK_BF16_ROWS(image_features, -1, width);
    L4K_CHECK_TABLE(image_rows, Int, tokens);
  }
  Device device(weight);
  Tensor out = empty_like(weight, {tokens, width});
  EmbedParams params{.tokens = tokens,
                     .vocab = weight.size(0),
                     .num_features = images ? maybe_image_features->size(0) : 0,
                     .row_vectors = width / 8,
                     .input_ids = pointer(input_ids),
                     .weight = pointer(weight),
                     .image_features = optional_pointer(maybe_image_features),
                     .image_rows = optional_pointer<int>(maybe_image_rows),
                     .out = pointer(out),
                     .weight_stride = weight.stride(0) / 8,
                     .features_stride = images ? maybe_image_features->stride(0) / 8 : 0,
                     .error = error_word(),
                     .wide_ids = wide};
  L4K_LAUNCH(l4k::embed(params, device.stream()));
  return out;
}

}  // namespace l4k::binding

L4K_REGISTER(m) { L4K_IMPL(m, "embed", embed); }
