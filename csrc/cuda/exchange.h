// How the blocks of one cooperative launch pass values on from step to step, without a barrier of the grid.
//
// Every block of a group publishes words of step t, and every block of the group reads all of them. In two forms a word
// shows itself which step it is of, so that the load that brings it is also what waits for it; in the third a flag of
// each producer says so.
//
//   form               slots   a word     what keeps a word from being overwritten before all have read it
//   Ring<S, true>      S       stamped    a counter for each half round, added to with release, looked at with acquire
//   Ring<2, false>     2       stamped    a word of step t + 1 depends on all words of step t (no thin air)
//   Flags              2       plain      flags of step t + 1, set with release, are acquired before t + 2 is written
//
// Why each is right, rule by rule from PTX's memory model, is in docs/persistent.md. What a kernel must keep:
//  1. Exchanged words are touched through this header alone: relaxed accesses of the device's scope, in assembler that
//     the compiler must keep. A weak load, __ldcg or __ldg in a loop is one load.
//  2. A word has one width, Word::Bits, for all who touch it. 16-bit values are put together first.
//  3. Every word is looked at itself. A valid word says nothing of its neighbours.
//  4. All words of a step are read in every step, dropped units and empty rows too, by the same threads or by threads
//     that a barrier joins: what is dropped is masked after the load.
//  5. What is written in step t + 1 depends on all words of its row that were read of step t. Zoneout chooses between
//     finished values; it never writes early. `seen` puts the dependence where no compiler can take it away.
//  6. Memory is zeroed before each call, on its stream.
//  7. The stamp and the slot of a row count from the row's own first step, which is 1.
//  8. Nothing but the exchanged words may be read by another block in the launch.
//  9. The launch is cooperative, and no two calls share memory.
// A Ring<S, true> is right without 4 and 5, and Flags without 3 to 5, but a kernel keeps all, since it serves all
// forms.
//
// A step t of a kernel, by all threads of a block; threads are numbered by threadIdx.x:
//     x.begin_read(t - 1);   x.read<Word>(...) of all words of t - 1
//     x.begin_write(t);      // thread 0 makes sure that there is room
//     __syncthreads();       // that the kernel has in any case, for its sums
//     x.end_read(t - 1);     // thread 0 says that the block has read them
//     x.write<Word>(...)     of the block's words of t
//     x.end_write(t);
// The steps of begin and end are the group's, those of read and write the row's own.
#pragma once

#include "cuda/numbers.h"
#include "cuda/order.h"
#include "cuda/platform.h"
#include "cuda/ring.h"

namespace frd::cuda {

// --------------------------------------------------------------------------------------------------------------------
// Words
// --------------------------------------------------------------------------------------------------------------------

// A word is data and, in the bits of MASK, a stamp. Data has none of these bits.

// Two values of 16 bits that are at most 1 in magnitude: the highest bit of such an exponent is 0.
struct PhasedPair {
  using Bits = uint32_t;
  static constexpr Bits MASK = 0x40004000u;
  template <int S>
  FRD_INLINE Bits stamp(int64_t step) {
    return RingSteps<S>::phase(step) * MASK;
  }
};

// A float32 of the same kind.
struct PhasedFloat {
  using Bits = uint32_t;
  static constexpr Bits MASK = 0x40000000u;
  template <int S>
  FRD_INLINE Bits stamp(int64_t step) {
    return RingSteps<S>::phase(step) * MASK;
  }
};

// 48 bits of anything, three values of 16 bits or one float32, and the step.
struct Tagged {
  using Bits = uint64_t;
  static constexpr Bits MASK = uint64_t{0xFFFF} << 48;
  template <int S>
  FRD_INLINE Bits stamp(int64_t step) {
    static_assert(S < 0xFFFF);
    return static_cast<uint64_t>(tag(step)) << 48;
  }
};

// What is not stamped, for Flags.
struct Plain {
  using Bits = uint32_t;
  static constexpr Bits MASK = 0;
};

// A value for a phased word. Where a magnitude is over 1 only NaN can be meant, whose patterns have the phase's bit:
// another that no value has stands for it.
template <class D>
struct AtMostOne;

template <>
struct AtMostOne<float> {
  __device__ __forceinline__ static uint32_t bits(float x) {
    const uint32_t all = __float_as_uint(x);
    return (all & 0x7FFFFFFFu) <= 0x3F800000u ? all : 0x3FFFFFFFu;
  }
  __device__ __forceinline__ static float value(uint32_t bits) {
    return __uint_as_float((bits & 0x7FFFFFFFu) <= 0x3F800000u ? bits : 0x7FC00000u);
  }
};

template <>
struct AtMostOne<__nv_bfloat16> {
  __device__ __forceinline__ static uint32_t bits(__nv_bfloat16 x) {
    const uint32_t all = __bfloat16_as_ushort(x);
    return (all & 0x7FFFu) <= 0x3F80u ? all : 0x3FFFu;
  }
  __device__ __forceinline__ static __nv_bfloat16 value(uint32_t bits) {
    return __ushort_as_bfloat16(static_cast<unsigned short>((bits & 0x7FFFu) <= 0x3F80u ? bits : 0x7FC0u));
  }
};

template <>
struct AtMostOne<__half> {
  __device__ __forceinline__ static uint32_t bits(__half x) {
    const uint32_t all = __half_as_ushort(x);
    return (all & 0x7FFFu) <= 0x3C00u ? all : 0x3FFFu;
  }
  __device__ __forceinline__ static __half value(uint32_t bits) {
    return __ushort_as_half(static_cast<unsigned short>((bits & 0x7FFFu) <= 0x3C00u ? bits : 0x7E00u));
  }
};

// --------------------------------------------------------------------------------------------------------------------
// Forms
// --------------------------------------------------------------------------------------------------------------------

// What a group of blocks tells each other beside the words. `signals` and the words are zero before the launch.
struct Group {
  uint32_t* signals;       // [Form::signals(steps, blocks)]
  unsigned block, blocks;  // this one, and how many
  uint32_t zero;           // 0, which comes from outside, so that no compiler knows it
};

// S slots of stamped words. COUNTED: with the handshake; without it the kernel must keep rules 4 and 5.
template <int S, bool COUNTED>
class Ring {
 public:
  using Steps = RingSteps<S>;
  static constexpr int SLOTS = S;

  FRD_INLINE int64_t signals(int64_t steps, unsigned) { return COUNTED ? Steps::counters(steps) : 0; }

  __device__ __forceinline__ explicit Ring(const Group& group) : group_(group) {}

  __device__ __forceinline__ void begin_read(int64_t) const {}

  // `count` of M times N words of the row's step `own`, the N of each m at `at + m * stride`, which N words' size
  // divides. Returns when all are of that step. `seen` gathers what write() makes its words depend on.
  template <class Word, int M, int N>
  __device__ __forceinline__ void read(const typename Word::Bits* at, int64_t stride, int64_t own,
                                       typename Word::Bits (&words)[M][N], uint32_t& seen, int count = M) const {
    const typename Word::Bits stamp = Word::template stamp<S>(own);
    // All loads are on their way before one is looked at; then those that came too early are repeated.
    for (uint32_t missing = (1u << count) - 1; missing;) {
      FRD_UNROLL
      for (int m = 0; m < M; ++m)
        if (missing >> m & 1) load_relaxed(at + m * stride, words[m]);
      FRD_UNROLL
      for (int m = 0; m < M; ++m) {
        bool valid = true;
        FRD_UNROLL
        for (int n = 0; n < N; ++n) valid = valid && (words[m][n] & Word::MASK) == stamp;
        if (valid) missing &= ~(1u << m);
      }
    }
    FRD_UNROLL
    for (int m = 0; m < M; ++m) {
      FRD_UNROLL
      for (int n = 0; n < N; ++n) {
        if (!COUNTED && m < count) seen |= static_cast<uint32_t>(words[m][n]);
        words[m][n] &= ~Word::MASK;
      }
    }
  }

  // After a barrier that all threads of the block have come to with what they read of the group's `step`.
  __device__ __forceinline__ void end_read(int64_t step) const {
    const int64_t k = COUNTED ? Steps::counter_after(step) : 0;
    if (k && threadIdx.x == 0) add_release(group_.signals + k, 1);
  }

  // Before a barrier, after which the words of the group's `step` are written.
  __device__ __forceinline__ void begin_write(int64_t step) const {
    const int64_t k = COUNTED ? Steps::counter_before(step) : 0;
    if (k && threadIdx.x == 0)
      while (load_acquire(group_.signals + k) != group_.blocks) {
      }
  }

  template <class Word>
  __device__ __forceinline__ void write(typename Word::Bits* at, int64_t own, typename Word::Bits data,
                                        uint32_t seen) const {
    if (!COUNTED) data |= seen & group_.zero;
    store_relaxed(at, data | Word::template stamp<S>(own));
  }

  __device__ __forceinline__ void end_write(int64_t) const {}

 private:
  Group group_;
};

// Two slots of plain words, and a flag for each block: the last step that it has published.
class Flags {
 public:
  static constexpr int SLOTS = 2;

  FRD_INLINE int64_t signals(int64_t, unsigned blocks) { return int64_t{blocks} * APART; }

  __device__ __forceinline__ explicit Flags(const Group& group) : group_(group) {}

  // Waits until all blocks have published `step`. A flag is polled with relaxed loads and then acquired once: an
  // acquire in the loop would empty the L1 cache each time. Has a barrier.
  __device__ __forceinline__ void begin_read(int64_t step) const {
    for (unsigned i = threadIdx.x; i < group_.blocks; i += blockDim.x) {
      const uint32_t* const flag = group_.signals + i * APART;
      uint32_t now[1];
      do {
        load_relaxed(flag, now);
      } while (static_cast<int32_t>(now[0] - static_cast<uint32_t>(step)) < 0);
      load_acquire(flag);
    }
    __syncthreads();
  }

  template <class Word, int M, int N>
  __device__ __forceinline__ void read(const typename Word::Bits* at, int64_t stride, int64_t,
                                       typename Word::Bits (&words)[M][N], uint32_t&, int count = M) const {
    FRD_UNROLL
    for (int m = 0; m < M; ++m)
      if (m < count) load_weak(at + m * stride, words[m]);
  }

  __device__ __forceinline__ void end_read(int64_t) const {}

  // The flags of the step before, which begin_read has acquired, were set after that slot was last read.
  __device__ __forceinline__ void begin_write(int64_t) const {}

  template <class Word>
  __device__ __forceinline__ void write(typename Word::Bits* at, int64_t, typename Word::Bits data, uint32_t) const {
    store_weak(at, data);
  }

  // Has a barrier, which together with the release puts the words of all threads before the flag.
  __device__ __forceinline__ void end_write(int64_t step) const {
    __syncthreads();
    if (threadIdx.x == 0) store_release(group_.signals + group_.block * APART, static_cast<uint32_t>(step));
  }

 private:
  static constexpr unsigned APART = 32;  // 128 bytes: flags of two blocks share no cache line
  Group group_;
};

}  // namespace frd::cuda
