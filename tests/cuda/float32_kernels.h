// The kernels and schedules of csrc/cuda in float32, in this translation unit: what a program includes before it may
// change what their functions are.
#pragma once

#include "cuda/kernels.h"

// Nothing else is compiled: the kernels of the persistent schedule are large, and larger still with a sanitizer.
#undef FRD_FOR_EACH_TYPE
#define FRD_FOR_EACH_TYPE(instantiate) instantiate(float)

#include "../../csrc/cuda/activate.cu"
#include "../../csrc/cuda/backward_step.cu"
#include "../../csrc/cuda/biases.cu"
#include "../../csrc/cuda/column_sums.cu"
#include "../../csrc/cuda/dropout.cu"
#include "../../csrc/cuda/first_words.cu"
#include "../../csrc/cuda/forward_step.cu"
#include "../../csrc/cuda/leave.cu"
#include "../../csrc/cuda/operand.cu"
#include "../../csrc/cuda/persistent_backward_f32.cu"
#include "../../csrc/cuda/persistent_forward_f32.cu"
#include "../../csrc/cuda/prepare.cu"
#include "../../csrc/cuda/project_step.cu"
#include "../../csrc/cuda/schedules/alternating.cpp"
#include "../../csrc/cuda/schedules/persistent.cpp"
#include "../../csrc/cuda/sequence_masks.cu"
#include "../../csrc/cuda/step_offsets.cu"
#include "../../csrc/cuda/unproject_step.cu"
#include "../../csrc/cuda/weights.cu"
#include "../../csrc/cuda/written_masks.cu"
