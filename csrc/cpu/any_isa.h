// All that the kernels use and that is compiled once, for any processor. isa_*.cpp include it before they choose their
// instruction set: a function of these headers that is not inlined is merged with its copies of the other files, and
// must run where none of that set's instructions are.
#pragma once

#include <atomic>
#include <bit>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <thread>
#include <type_traits>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "core/cells.h"
#include "core/counters.h"
#include "core/flags.h"
#include "core/outer_sites.h"
#include "core/philox.h"
#include "core/rows.h"
#include "cpu/chunks.h"
#include "cpu/layer.h"
#include "cpu/numbers.h"
#include "cpu/profile.h"
#include "cpu/scratch.h"
#include "cpu/team.h"
