// The kernels of persistent_forward.h for __nv_bfloat16: a file for each type, so that they are compiled side by side.
#include "cuda/persistent_forward.h"

namespace frd::cuda {

template cudaError_t persistent_forward(Cell, const PersistentPlan&, const PersistentForward<__nv_bfloat16>&,
                                        cudaStream_t);

}  // namespace frd::cuda
