// What a persistent launch of a layer would be on the device of a tensor, as a text: for choosing and for explain().
#include <cstring>
#include <string>

#include "bind/cuda_tensors.h"
#include "bind/layer_call.h"
#include "cuda/schedules/persistent_plan.h"

namespace frd::bind {
namespace {

// Numbers as "name=value" with spaces between, or "obstacle=" and a sentence; in bytes, on the CPU.
Tensor persistent_plan(const Tensor& x, int64_t cell, int64_t batch, int64_t units, int64_t projected, ScalarType dtype,
                       int64_t directions, int64_t flags, bool backward) {
  STD_TORCH_CHECK(cell >= 0 && cell < NUM_CELLS, "cell must be in [0, ", static_cast<int>(NUM_CELLS), "), got ", cell);
  STD_TORCH_CHECK(directions > 0 && directions <= (FORWARD | REVERSE), "directions must be 1, 2 or 3, got ",
                  directions);
  check_floating("dtype", dtype);
  check_flags(flags);
  const Device device(x);
  const std::string text = cuda::text_of(
      cuda::persistent_plan(cuda::device_limits(), {.cell = static_cast<Cell>(cell),
                                                    .type = type_of(dtype),
                                                    .batch = batch,
                                                    .units = units,
                                                    .projected = projected,
                                                    .directions = directions == (FORWARD | REVERSE) ? 2 : 1,
                                                    .flags = inner_flags(static_cast<uint32_t>(flags)),
                                                    .given_h0 = true,
                                                    .backward = backward}));
  const Tensor found = torch::stable::empty({static_cast<int64_t>(text.size())}, ScalarType::Byte, std::nullopt,
                                            torch::stable::Device(torch::headeronly::DeviceType::CPU));
  std::memcpy(found.mutable_data_ptr(), text.data(), text.size());
  return found;
}

}  // namespace

FRD_CUDA_LIBRARY_IMPL(m) { m.impl("persistent_plan", TORCH_BOX(&persistent_plan)); }

}  // namespace frd::bind
