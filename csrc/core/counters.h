// What a mask bit is a function of: the counter table of fused_rnn_dropout/sites.py, for host and device.
// A test compares every constant below with that file.
#pragma once

#include <cstdint>

#include "core/philox.h"

namespace frd {

inline constexpr uint32_t SEQ = 0xFFFFFFFFu;  // step of a mask per sequence, example of a mask that the batch shares
inline constexpr uint32_t RNG_DOMAIN = 0x46524431u;  // separates the key derivation from every other use of Philox

// Low byte of the stream.
inline constexpr uint32_t KIND_STATE = 0;           // (unit, example, step)
inline constexpr uint32_t KIND_STATE_SEQUENCE = 1;  // (unit, example, SEQ)
inline constexpr uint32_t KIND_HIDDEN = 2;          // (unit, example, SEQ)
inline constexpr uint32_t KIND_INPUT = 3;           // (unit/4, example, step or SEQ)
inline constexpr uint32_t KIND_INTER_LAYER = 4;     // (unit/4, example, step or SEQ)
inline constexpr uint32_t KIND_OUTPUT = 5;          // (unit/4, example, step or SEQ)
inline constexpr uint32_t KIND_INPUT_UNTIED = 6;    // (unit, example, SEQ)
inline constexpr uint32_t KIND_WEIGHT_HH = 7;       // (column/4, row, SEQ)
inline constexpr uint32_t KIND_WEIGHT_IH = 8;       // (column/4, row, SEQ)
inline constexpr uint32_t KIND_WEIGHT_HR = 9;       // (column/4, row, SEQ)
inline constexpr uint32_t KIND_WEIGHT_ROW = 10;     // (row/4, 0 W_hh | 1 W_ih | 2 W_hr, SEQ)
inline constexpr uint32_t KIND_EMBEDDING = 11;      // (word/4, 0 or example, SEQ)
inline constexpr uint32_t KIND_WORD = 12;           // (0, example, step)
inline constexpr uint32_t KIND_NOISING = 13;        // (0, example, step)

// Which of the four words of a STATE or STATE_SEQUENCE call serves which site.
inline constexpr int WORD_ZONEOUT_C = 0, WORD_ZONEOUT_H = 1, WORD_UPDATE = 2, WORD_CELL = 3;

FRD_INLINE uint32_t stream_of(uint32_t kind, uint32_t layer, uint32_t direction) {
  return kind | direction << 8 | layer << 16;
}

// The key of a call, from its pair of 64-bit numbers.
FRD_INLINE Key derive_key(int64_t r0, int64_t r1) {
  const uint64_t k = static_cast<uint64_t>(r0), c = static_cast<uint64_t>(r1);
  const Words words = philox(static_cast<uint32_t>(c), static_cast<uint32_t>(c >> 32), RNG_DOMAIN, 0,
                             {static_cast<uint32_t>(k), static_cast<uint32_t>(k >> 32)});
  return {words.w[0], words.w[1]};
}

// Whether a word drops its element; for zoneout, whether the old value is kept. P = round(p * 2^32), so p = 1 is 2^32.
FRD_INLINE bool dropped(uint32_t word, uint64_t threshold) { return word < threshold; }

// 1 / (1 - p) from the threshold, in double; 0 where everything is dropped, so that nothing is ever infinite.
FRD_INLINE double keep_scale(uint64_t threshold) {
  const uint64_t one = uint64_t{1} << 32;
  return threshold < one ? static_cast<double>(one) / static_cast<double>(one - threshold) : 0.0;
}

FRD_INLINE double keep_rate(uint64_t threshold) {
  return static_cast<double>((uint64_t{1} << 32) - threshold) / 4294967296.0;
}

}  // namespace frd
