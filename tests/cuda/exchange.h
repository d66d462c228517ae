// A recurrence of integers over csrc/cuda/exchange.h, whose every word depends on every word of the step before: what
// some block read wrongly, or wrote over, changes all that follows.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace frd::cuda::exchange {

// FAULTS, planted in the kernel. Each is a rule of exchange.h that is not kept. A strict ring is right all the same
// where words are passed over, where they are written early, and where block 0 runs ahead as far as the counters let
// it.
enum Fault : int {
  NONE,
  FIRST_VALID,  // one valid word of a vector is taken for all
  PASSED_OVER,  // dropped words are not read
  EARLY,        // kept words are written before the polls
  GROUP_STEPS,  // rows count the group's steps
  FLAG_FIRST,   // the flag is set before the words are written
  TWO_WIDTHS,   // words of 32 bits are written as 64
  ALONE,        // block 0 reads nothing, and its words depend on the step alone
};

struct Call {
  std::string form;  // strict4, strict8, dependence, flags
  std::string word;  // phased, tagged, plain
  int blocks, threads, steps;
  std::vector<int> first, last;  // [rows]: the steps of each row
  int fault = NONE;
  int steps_before = 0;  // of a call before in the same memory, which is not zeroed between
  bool out = true;       // whether there is a result, which takes time to write and to copy
};

// The words of every step, and of every row the sum of the last: [steps + 1, rows, blocks * VECTOR of the word].
// Throws std::invalid_argument for a form or word that there is not, std::runtime_error with CUDA's words for an error.
std::vector<uint64_t> run(const Call& call);

// Of each pattern of a type ("bfloat16", "float16", "float32"): what AtMostOne<D> sends, and what a reader makes of it.
std::vector<uint32_t> round_trip(const std::string& type, const std::vector<uint32_t>& patterns);

}  // namespace frd::cuda::exchange
