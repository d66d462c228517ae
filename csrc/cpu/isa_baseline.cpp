// The kernels for any processor: vectors of four floats, whatever the compiler makes of them.
#include "cpu/any_isa.h"

#define FRD_ISA baseline
#define FRD_ISA_NAME "baseline"
#define FRD_LANES 4
#include "cpu/kernels.h"

const frd::cpu::Kernels* frd::cpu::baseline_kernels() { return &baseline::table; }
