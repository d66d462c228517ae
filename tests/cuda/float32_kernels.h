// The kernels and schedules of csrc/cuda in float32, in this translation unit: what a program includes before it may
// change what their functions are.
#pragma once

#include "cuda/kernels.h"

// Nothing else is compiled: the kernels of the persistent schedule are large, and larger still with a sanitizer.
#undef FRD_FOR_EACH_TYPE
#define FRD_FOR_EACH_TYPE(instantiate) instantiate(float)

#include "../../csrc/cuda/activate.cu"
#undef FRD_INSTANTIATE
#include "../../csrc/cuda/backward_step.cu"
#undef FRD_INSTANTIATE
#include "../../csrc/cuda/biases.cu"
#include "../../csrc/cuda/column_sums.cu"
#undef FRD_INSTANTIATE
#include "../../csrc/cuda/dropout.cu"
#undef FRD_INSTANTIATE
#include "../../csrc/cuda/first_words.cu"
#undef FRD_INSTANTIATE
#include "../../csrc/cuda/forward_step.cu"
#undef FRD_INSTANTIATE
#include "../../csrc/cuda/leave.cu"
#undef FRD_INSTANTIATE
#include "../../csrc/cuda/weights.cu"
#undef FRD_INSTANTIATE
#include "../../csrc/cuda/operand.cu"
#undef FRD_INSTANTIATE
#include "../../csrc/cuda/persistent_backward_f32.cu"
#include "../../csrc/cuda/persistent_forward_f32.cu"
#include "../../csrc/cuda/prepare.cu"
#undef FRD_INSTANTIATE
#include "../../csrc/cuda/project_step.cu"
#undef FRD_INSTANTIATE
#include "../../csrc/cuda/schedules/alternating.cpp"
#undef FRD_INSTANTIATE
#include "../../csrc/cuda/schedules/persistent.cpp"
#undef FRD_INSTANTIATE
#include "../../csrc/cuda/sequence_masks.cu"
#undef FRD_INSTANTIATE
#include "../../csrc/cuda/step_offsets.cu"
#include "../../csrc/cuda/unproject_step.cu"
#undef FRD_INSTANTIATE
#include "../../csrc/cuda/written_masks.cu"
