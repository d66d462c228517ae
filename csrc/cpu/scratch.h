// Working memory of the passes, which each thread keeps for its next call.
//
// Memory that is new from the system costs a page fault every 4 KiB. A recurrence of a few milliseconds would spend a
// third of them on the scratch that the call before has just given back.
#pragma once

#include <cstddef>

namespace frd::cpu {

// `bytes`, at least one, at the start of a cache line, not initialised. To be given back by the same thread, best in
// the reverse order: what lies before a piece that is still out is not used again before that has come back.
void* take_scratch(size_t bytes);
void give_scratch(void* memory);

}  // namespace frd::cpu
