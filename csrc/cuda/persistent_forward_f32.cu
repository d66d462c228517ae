// The kernels of persistent_forward.h for float: a file for each type, so that they are compiled side by side.
#include "cuda/persistent_forward.h"

namespace frd::cuda {

template cudaError_t persistent_forward(Cell, const PersistentPlan&, const PersistentForward<float>&, cudaStream_t);

}  // namespace frd::cuda
