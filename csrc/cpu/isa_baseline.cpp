// The kernels for any processor: vectors of four floats, whatever the compiler makes of them.
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>

#include "core/gru_cell.h"
#include "core/lstm_cell.h"
#include "cpu/schedule.h"
#include "cpu/scratch.h"
#include "cpu/team.h"

#define FRD_ISA baseline
#define FRD_ISA_NAME "baseline"
#define FRD_LANES 4
#include "cpu/kernels.h"

const frd::cpu::Kernels* frd::cpu::baseline_kernels() { return &baseline::table; }
