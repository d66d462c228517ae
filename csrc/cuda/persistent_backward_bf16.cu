// The kernels of persistent_backward.h for __nv_bfloat16.
#include "cuda/persistent_backward.h"

namespace frd::cuda {

template cudaError_t persistent_backward(Cell, const PersistentPlan&, const PersistentBackward<__nv_bfloat16>&,
                                         cudaStream_t);

}  // namespace frd::cuda
