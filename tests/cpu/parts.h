// What the tests of parts.cpp share: checks, random numbers and sizes, and a weight under weight dropout.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <type_traits>
#include <vector>

#include "core/counters.h"
#include "core/flags.h"
#include "cpu/layer.h"
#include "cpu/numbers.h"
#include "cpu/pack.h"

namespace frd::cpu::FRD_ISA {
namespace {

int failures = 0;
#define EXPECT(condition, ...)                                                                                         \
  do {                                                                                                                 \
    if (!(condition) && ++failures <= 5) {                                                                             \
      std::printf("%s:%d: %s: ", __FILE__, __LINE__, #condition);                                                      \
      std::printf(__VA_ARGS__);                                                                                        \
      std::printf("\n");                                                                                               \
    }                                                                                                                  \
  } while (0)

std::mt19937_64 generator(1);
int64_t between(int64_t least, int64_t most) {
  return least + static_cast<int64_t>(generator() % static_cast<uint64_t>(most - least + 1));
}
template <class T>
std::vector<T> numbers(int64_t n) {
  std::vector<T> found(static_cast<size_t>(n));
  for (T& x : found) x = T(static_cast<Arithmetic<T>>(between(-1000, 1000)) / 512);
  return found;
}
// Small sizes, and those around whole registers; more than a block of masks among them.
int64_t size() { return generator() % 2 ? between(1, 5) : between(1, 10) * LANES + between(-1, 1); }

template <class T>
bool close(T got, double want, double size) {
  const double rounding = std::is_same_v<T, BFloat16> ? std::fabs(want) / 256 : 0;  // of the result; sums are in float
  return std::fabs(static_cast<double>(got) - want) <= rounding + size * (sizeof(Arithmetic<T>) == 4 ? 1e-6 : 1e-14);
}

// Number i of a term, the first of which is 0.
template <class T>
T in_term(const Term<T>& term, int64_t i) {
  T found;
  std::memcpy(&found, reinterpret_cast<const char*>(&term) + i * sizeof(T), sizeof found);
  return found;
}

// Two threads' worth of chunks, one after the other, the last first.
const Parallel PARALLEL{2, [](int64_t n, void* context, void (*body)(void*, int64_t, int64_t)) {
                          body(context, n / 2, n);
                          body(context, 0, n / 2);
                        }};

Masks masks_of(uint32_t flags, uint64_t threshold) {
  Masks masks{};
  masks.flags = flags;
  masks.layer = 3, masks.direction = 1, masks.step_offset = 40;
  for (uint32_t group = 0; group < NUM_GROUPS; ++group) masks.keys[group] = {2 * group + 1, 2 * group + 2};
  for (uint64_t& p : masks.thresholds) p = threshold;
  return masks;
}

// A weight and what weight dropout leaves of it, an element at a time.
template <class T>
struct Weight {
  int64_t rows, columns;
  Masks masks;
  std::vector<T> given, masked;
  std::vector<Arithmetic<T>> factors;

  Weight(int64_t rows, int64_t columns, uint32_t flags)
      : rows(rows),
        columns(columns),
        masks(masks_of(flags, 0)),
        given(numbers<T>(rows * columns)),
        factors(given.size(), 1) {
    const bool on = (flags & FLAG_MASKS_ON) && (flags & FLAG_WEIGHT_HH), by_row = flags & FLAG_WEIGHT_ROW;
    const uint32_t kind = by_row ? KIND_WEIGHT_HH_ROWS : KIND_WEIGHT_HH;
    const uint32_t stream = stream_of(kind, masks.layer, masks.direction);
    // The number of some element, so that fields meet the threshold's upper half.
    const uint32_t met = static_cast<uint32_t>(between(0, (by_row ? rows : columns) - 1));
    const uint64_t p = number_of(met, 0, SEQ, stream, masks.keys[GROUP_WEIGHT]);
    masks.thresholds[SITE_WEIGHT_DROPOUT] = p;
    masked = given;
    for (uint32_t row = 0; on && row < rows; ++row)
      for (uint32_t column = 0; column < columns; ++column) {
        const uint32_t i = by_row ? row : column, b = by_row ? 0 : row;
        const bool drop = number_of(i, b, SEQ, stream, masks.keys[GROUP_WEIGHT]) < p;
        factors[row * columns + column] = static_cast<Arithmetic<T>>(drop ? 0 : keep_scale(p));
        masked[row * columns + column] = T(factors[row * columns + column] * given[row * columns + column]);
      }
  }
  MaskedWeight<T> weight() const {
    return {PARALLEL, given.data(), rows, columns, FLAG_WEIGHT_HH, KIND_WEIGHT_HH, masks};
  }
  T at(int64_t row, int64_t column) const { return masked[row * columns + column]; }
};
constexpr uint32_t WEIGHT_FLAGS[] = {0, FLAG_MASKS_ON | FLAG_WEIGHT_HH,
                                     FLAG_MASKS_ON | FLAG_WEIGHT_HH | FLAG_WEIGHT_ROW, FLAG_WEIGHT_HH};

}  // namespace
}  // namespace frd::cpu::FRD_ISA
