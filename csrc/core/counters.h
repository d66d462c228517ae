// What a mask bit is a function of: the table of kinds of fused_rnn_dropout/sites.py and the rule, for host and device.
// A test compares every constant below with that file.
//
// A mask is rows of elements. Element i of a row is decided by field i % 8 of the call with the counter
// (i / 8, row, step, stream), and at a tie by the same field of the call whose stream has STREAM_LOW.
#pragma once

#include <cstdint>

#include "core/philox.h"

namespace frd {

inline constexpr uint32_t SEQ = 0xFFFFFFFFu;  // step of a mask per sequence, example of a mask that the batch shares
inline constexpr uint32_t RNG_DOMAIN = 0x46524431u;  // separates the key derivation from every other use of Philox

// Low byte of the stream: what the elements, rows and steps of a mask are.
inline constexpr uint32_t KIND_ZONEOUT_C = 0;  // unit, example, step or SEQ; so are the next three
inline constexpr uint32_t KIND_ZONEOUT_H = 1;
inline constexpr uint32_t KIND_UPDATE = 2;
inline constexpr uint32_t KIND_CELL = 3;
inline constexpr uint32_t KIND_HIDDEN = 4;  // unit, example, SEQ
inline constexpr uint32_t KIND_INPUT = 5;   // feature, example, step or SEQ; so are the next two
inline constexpr uint32_t KIND_INTER_LAYER = 6;
inline constexpr uint32_t KIND_OUTPUT = 7;
inline constexpr uint32_t KIND_WEIGHT_HH = 8;  // column, row of the matrix, SEQ; so are the next two
inline constexpr uint32_t KIND_WEIGHT_IH = 9;
inline constexpr uint32_t KIND_WEIGHT_HR = 10;
inline constexpr uint32_t KIND_WEIGHT_HH_ROWS = 11;  // row of the matrix, 0, SEQ; so are the next two
inline constexpr uint32_t KIND_WEIGHT_IH_ROWS = 12;
inline constexpr uint32_t KIND_WEIGHT_HR_ROWS = 13;
inline constexpr uint32_t KIND_EMBEDDING = 14;  // word, 0 or example, SEQ or step
inline constexpr uint32_t KIND_WORD = 15;       // 0, example, step; so is the next one
inline constexpr uint32_t KIND_NOISING = 16;
inline constexpr uint32_t NUM_KINDS = 17;

inline constexpr uint32_t STREAM_LOW = 1u << 15;  // of the second call

FRD_INLINE uint32_t stream_of(uint32_t kind, uint32_t layer, uint32_t direction) {
  return kind | direction << 8 | layer << 16;
}
// The kind of masks by row, from that of masks by element of the same matrix.
FRD_INLINE uint32_t by_rows(uint32_t kind) { return kind - KIND_WEIGHT_HH + KIND_WEIGHT_HH_ROWS; }

// The key of a call, from its pair of 64-bit numbers.
FRD_INLINE Key derive_key(int64_t r0, int64_t r1) {
  const uint64_t k = static_cast<uint64_t>(r0), c = static_cast<uint64_t>(r1);
  const Words words = philox(static_cast<uint32_t>(c), static_cast<uint32_t>(c >> 32), RNG_DOMAIN, 0,
                             {static_cast<uint32_t>(k), static_cast<uint32_t>(k >> 32)});
  return {words.w[0], words.w[1]};
}

inline constexpr int FIELDS = 8;  // of a call, and so the neighbouring elements that it serves

// Field f of a call: word f / 2, its low half where f is even.
// The word is chosen, not indexed: words at a place that the compiler does not know lie in memory.
FRD_INLINE uint32_t field_of(const Words& words, int f) {
  const uint32_t word = f < 4 ? (f < 2 ? words.w[0] : words.w[1]) : (f < 6 ? words.w[2] : words.w[3]);
  return word >> (f % 2 * 16) & 0xFFFF;
}

// Which of its eight elements a call drops, bit f for field f; for zoneout, which keep their old value. The threshold
// is P = round(p * 2^32), and p = 1 is 2^32: everything. Element f is dropped iff (field << 16 | g) < P, where g is the
// same field of the second call, which is needed only where the field equals the upper half of P. `words_of` makes the
// words of a call from its stream.
template <class WordsOf>
FRD_INLINE uint32_t dropped_of_words(const WordsOf& words_of, uint32_t stream, uint32_t upper, uint32_t lower) {
  const Words words = words_of(stream);
  uint32_t found = 0, ties = 0;
  FRD_UNROLL
  for (int f = 0; f < FIELDS; ++f) {
    found |= uint32_t{field_of(words, f) < upper} << f;
    ties |= uint32_t{field_of(words, f) == upper} << f;
  }
  if (lower && ties) {  // one call in about 8,000
    const Words second = words_of(stream | STREAM_LOW);
    FRD_UNROLL
    for (int f = 0; f < FIELDS; ++f) found |= (ties >> f & uint32_t{field_of(second, f) < lower}) << f;
  }
  return found;
}

FRD_INLINE uint32_t upper_of(uint64_t threshold) { return static_cast<uint32_t>(threshold >> 16); }
FRD_INLINE uint32_t lower_of(uint64_t threshold) { return static_cast<uint32_t>(threshold) & 0xFFFF; }

FRD_INLINE uint32_t dropped_of_call(uint32_t call, uint32_t row, uint32_t step, uint32_t stream, Key key,
                                    uint64_t threshold) {
  if (threshold >> 32) return 0xFF;
  const auto words_of = [&](uint32_t of) { return philox(call, row, step, of, key); };
  return dropped_of_words(words_of, stream, upper_of(threshold), lower_of(threshold));
}

// Whether element i of a row is dropped.
FRD_INLINE bool dropped(uint32_t i, uint32_t row, uint32_t step, uint32_t stream, Key key, uint64_t threshold) {
  return dropped_of_call(i / FIELDS, row, step, stream, key, threshold) >> i % FIELDS & 1;
}

// The 32-bit number that element i is decided by: dropped iff it is below the threshold.
FRD_INLINE uint32_t number_of(uint32_t i, uint32_t row, uint32_t step, uint32_t stream, Key key) {
  const int f = static_cast<int>(i % FIELDS);
  const uint32_t field = field_of(philox(i / FIELDS, row, step, stream, key), f);
  return field << 16 | field_of(philox(i / FIELDS, row, step, stream | STREAM_LOW, key), f);
}

// 1 / (1 - p) from the threshold, in double; 0 where everything is dropped, so that nothing is ever infinite.
FRD_INLINE double keep_scale(uint64_t threshold) {
  const uint64_t one = uint64_t{1} << 32;
  return threshold < one ? static_cast<double>(one) / static_cast<double>(one - threshold) : 0.0;
}

FRD_INLINE double keep_rate(uint64_t threshold) {
  return static_cast<double>((uint64_t{1} << 32) - threshold) / 4294967296.0;
}

}  // namespace frd
