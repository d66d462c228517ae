// Operators without a recurrence: dropout of inputs and outputs, the numbers of masks, the choice of instruction set.
#include <chrono>

#include "bind/tensors.h"
#include "cpu/numbers.h"
#include "cpu/profile.h"

namespace frd::bind {
namespace {

template <class T>
Tensor dropout_of(const Tensor& x, const MaybeTensor& batch_sizes, cpu::RowMask mask, const MaybeTensor& ids) {
  const Batch batch(x, batch_sizes, -1, false);
  const Tensor source = dense(x, scalar_type<T>);
  std::vector<int64_t> example_ids;
  if (ids) example_ids = Random::check_examples(*ids, batch.sequence.batch);
  Tensor target = empty(batch.shape(x.size(-1)), scalar_type<T>);
  mask.width = x.size(-1);
  mask.step_offset = check_steps(mask.step_offset, batch.sequence.steps);
  mask.example_ids = ids ? example_ids.data() : nullptr;
  typed_kernels<T>().drop_rows({.parallel = parallel(),
                                .source = read<T>(source),
                                .target = data<T>(target),
                                .sequence = batch.sequence,
                                .mask = mask});
  return in_type(target, x.scalar_type());
}

Tensor dropout(const Tensor& x, const Tensor& rng, const Tensor& thresholds, const MaybeTensor& batch_sizes,
               const MaybeTensor& example_ids, int64_t site, int64_t stream, bool per_step, bool batch_shared,
               int64_t step_offset) {
  check_floating("x", x);
  check_stream(stream);
  check_site(site);
  uint64_t all[NUM_SITES];
  Random::read_thresholds(thresholds, all);
  check_steps(step_offset, 1);
  cpu::RowMask mask;
  mask.on = true;
  mask.per_step = per_step;
  mask.batch_shared = batch_shared;
  mask.threshold = all[site];
  mask.stream = static_cast<uint32_t>(stream);
  mask.key = Random::key(rng);
  mask.step_offset = static_cast<uint32_t>(step_offset);
  if (x.scalar_type() == ScalarType::Double) return dropout_of<double>(x, batch_sizes, mask, example_ids);
  if (x.scalar_type() == ScalarType::BFloat16 && bf16() != cpu::Bf16::EXACT)
    return dropout_of<cpu::BFloat16>(x, batch_sizes, mask, example_ids);
  return dropout_of<float>(x, batch_sizes, mask, example_ids);
}

Tensor words(const Tensor& rng, const Tensor& row, const Tensor& step, int64_t n, int64_t stream) {
  const std::vector<int64_t> rows = integers("row", row, -1), steps = integers("step", step, -1);
  for (const auto& values : {rows, steps})
    for (const int64_t value : values)
      STD_TORCH_CHECK(value >= 0 && value <= int64_t{SEQ}, "counter values must be in [0, 2^32), got ", value);
  check_stream(stream);
  check_elements(n);
  Tensor target = empty(words_shape(step, row, n), ScalarType::Long);
  kernels().read_words({.key = Random::key(rng),
                        .stream = static_cast<uint32_t>(stream),
                        .row = rows.data(),
                        .step = steps.data(),
                        .rows = row.numel(),
                        .steps = step.numel(),
                        .n = n,
                        .target = data<int64_t>(target)});
  return target;
}

// The same values, never an alias, and never computed again by a compiler.
Tensor snapshot(const Tensor& x) { return torch::stable::clone(x); }

// Chooses an instruction set (-1: none, only asks); returns the one in use, then those that can run here.
std::vector<int64_t> cpu_isa(int64_t choice) {
  if (choice != -1) {
    const bool chosen = choice >= 0 && choice < cpu::NUM_ISAS && cpu::use_isa(static_cast<int>(choice));
    STD_TORCH_CHECK(chosen, "instruction set ", choice, " cannot run here");
  }
  kernels();  // raises where the environment asked for one that is not there
  std::vector<int64_t> found{cpu::isa_in_use()};
  for (int isa = 0; isa < cpu::NUM_ISAS; ++isa)
    if (cpu::kernels_of(isa)) found.push_back(isa);
  return found;
}

// How layers with results in bfloat16 run: the number of a cpu::Bf16.
int64_t cpu_bf16() { return static_cast<int64_t>(bf16()); }

template <class T>
std::vector<int64_t> multiply_adds_of(int64_t rounds) {
  T factors[cpu::PEAK_NUMBERS] = {};
  const auto begin = std::chrono::steady_clock::now();
  const int64_t operations = typed_kernels<T>().multiply_adds(rounds, factors);
  return {operations, std::chrono::nanoseconds(std::chrono::steady_clock::now() - begin).count()};
}

// Floating-point operations of `rounds` of multiply-adds in registers on the calling thread, and their nanoseconds.
std::vector<int64_t> cpu_multiply_adds(ScalarType dtype, int64_t rounds) {
  STD_TORCH_CHECK(rounds > 0, "rounds must be at least 1, got ", rounds);
  if (dtype == ScalarType::Float) return multiply_adds_of<float>(rounds);
  STD_TORCH_CHECK(dtype == ScalarType::BFloat16 && bf16() != cpu::Bf16::EXACT,
                  "dtype must be float32 or, where the kernels multiply in it, bfloat16");
  return multiply_adds_of<cpu::BFloat16>(rounds);
}

// Nanoseconds spent in each phase (cpu/profile.h) since the last call; from now on they are counted if `on`.
std::vector<int64_t> cpu_profile(bool on) {
  std::vector<int64_t> found;
  for (std::atomic<int64_t>& phase : cpu::phase_ns) found.push_back(phase.exchange(0));
  cpu::profiling = on;
  return found;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fused_rnn_dropout, CPU, m) {
  m.impl("dropout", TORCH_BOX(&dropout));
  m.impl("words", TORCH_BOX(&words));
}
STABLE_TORCH_LIBRARY_IMPL(fused_rnn_dropout, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&cpu_isa));
  m.impl("cpu_bf16", TORCH_BOX(&cpu_bf16));
  m.impl("cpu_multiply_adds", TORCH_BOX(&cpu_multiply_adds));
  m.impl("cpu_profile", TORCH_BOX(&cpu_profile));
  m.impl("snapshot", TORCH_BOX(&snapshot));
}

}  // namespace frd::bind
