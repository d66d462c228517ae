// The kernels of persistent_backward.h for __half.
#include "cuda/persistent_backward.h"

namespace frd::cuda {

template cudaError_t persistent_backward(Cell, const PersistentPlan&, const PersistentBackward<__half>&, cudaStream_t);

}  // namespace frd::cuda
