// A block of a persistent launch: where it stands, its shared memory, and how it publishes.
//
// A thread has whole clusters of units, EACH of them at most: what they carry from step to step is in its registers.
#pragma once

#include "cuda/cells.h"
#include "cuda/persistent.h"
#include "cuda/persistent_launch.h"

namespace frd::cuda {

// MOST_UNITS: that a block may have by its tiles. Parameters: PersistentForward<D> or PersistentBackward<D>.
template <class D, class Word, class Tiles, int MOST_UNITS>
class PersistentBlock {
 protected:
  using Words = OperandWords<D, Word>;
  using Bits = typename Word::Bits;
  static constexpr int V = Words::VALUES, MOST_CLUSTERS = (MOST_UNITS + V - 1) / V;
  static constexpr int EACH = (MOST_CLUSTERS * Tiles::N * TILE_ROWS + PERSISTENT_THREADS - 1) / PERSISTENT_THREADS;

  // A thread may have fewer clusters than others.
  struct Place {
    bool mine;
    int row, cluster;  // of the block
  };

  // `descending`: of each direction, whether the launch goes through it from the last step of time to the first.
  template <class Parameters>
  __device__ __forceinline__ PersistentBlock(const Parameters& p, unsigned char* shared, bool first_descends,
                                             bool second_descends)
      : s_(p.shape), place_(BlockPlace::of(p.shape)) {
    const SharedLayout layout = SharedLayout::of(s_, Tiles::HELD, Words::TILES, Tiles::BUFFERS);
    u_ = reinterpret_cast<uint4*>(shared);
    sums_ = reinterpret_cast<float*>(shared + layout.u);
    drawn_ = reinterpret_cast<Drawn*>(shared + layout.u + layout.sums);
    steps_.first = reinterpret_cast<int*>(shared + layout.u + layout.sums + layout.drawn);
    steps_.last = steps_.first + s_.batch_tiles * TILE_ROWS;
    order_ = {p.offsets, s_.steps, s_.batch, place_.direction ? second_descends : first_descends};
    group_ = place_.direction * s_.batch_groups + place_.group;
    ring_ = static_cast<Bits*>(p.ring) + int64_t{group_} * PersistentForm::SLOTS * slot_size(s_);
  }

  __device__ __forceinline__ PersistentForm exchange(uint32_t* signals, int64_t steps, uint32_t zero) const {
    return PersistentForm(Group{signals + group_ * PersistentForm::signals(steps, s_.unit_groups),
                                static_cast<unsigned>(place_.unit_group), static_cast<unsigned>(s_.unit_groups), zero});
  }

  __device__ __forceinline__ Place cluster(int e) const {
    const int i = static_cast<int>(threadIdx.x) + e * PERSISTENT_THREADS, row = i / s_.clusters;
    return {row < place_.rows, row, i % s_.clusters};
  }
  // Unit v of a cluster, which the last block, and the last cluster of any, may not have.
  __device__ __forceinline__ bool has(const Place& c, int v) const {
    return c.mine && c.cluster * V + v < place_.units;
  }
  __device__ __forceinline__ int64_t unit_of(const Place& c, int v) const {
    return place_.first_unit + c.cluster * V + v;
  }
  __device__ __forceinline__ int64_t batch_row(const Place& c) const { return place_.first_row + c.row; }
  __device__ __forceinline__ bool active(const Place& c, int step) const {
    return c.mine && steps_.active(c.row, step);
  }

  // Those of the unit whose values are in slot `slot` of the operand: its number, and which of the items; -1 for none.
  struct Slot {
    int64_t unit;
    int item;
  };
  __device__ __forceinline__ Slot slot(int number) const {
    const int word = number / V, of_block = word % words_of_block(s_), block = word / words_of_block(s_);
    const int within = of_block / s_.items * V + number % V;
    const int64_t unit = int64_t{block} * s_.units + within;
    const bool there = block < s_.unit_groups && within < s_.units && unit < s_.hidden;
    return {there ? unit : -1, of_block % s_.items};
  }

  __device__ __forceinline__ Drawn* drawn_of(int step) const { return drawn_ + step % 2 * drawn_size(s_); }
  __device__ __forceinline__ float* sums_of(int step) const { return sums_ + step % Tiles::BUFFERS * sums_size(s_); }
  // By all threads, when they have read the sums of a step: where there is one buffer it is written again next.
  __device__ __forceinline__ void leave_sums() const {
    if (Tiles::BUFFERS == 1) __syncthreads();
  }

  // Word `item` of a cluster.
  __device__ __forceinline__ void publish(const PersistentForm& x, const Place& c, int item, int step,
                                          const D (&values)[V], uint32_t seen) const {
    write(x, c.row, (place_.unit_group * s_.clusters + c.cluster) * s_.items + item, step, Words::pack(values, true),
          seen);
  }
  // The words behind the last unit's, up to a whole chunk, which are read as all others are.
  __device__ __forceinline__ void fill(const PersistentForm& x, int step, uint32_t seen) const {
    if (place_.unit_group + 1 != s_.unit_groups) return;
    const int first = s_.unit_groups * words_of_block(s_), count = s_.chunks * CHUNK_WORDS - first;
    for (int i = static_cast<int>(threadIdx.x); i < count * place_.rows; i += PERSISTENT_THREADS) {
      const int row = i / count;
      if (steps_.active(row, step)) write(x, row, first + i % count, step, Bits{0}, seen);
    }
  }

  const PersistentShape& s_;
  const BlockPlace place_;
  uint4* u_;
  float* sums_;
  Drawn* drawn_;
  RowSteps steps_;
  TimeOrder order_;
  int group_;  // of all directions
  Bits* ring_;

 private:
  __device__ __forceinline__ void write(const PersistentForm& x, int row, int word, int step, Bits data,
                                        uint32_t seen) const {
    const int64_t own = step - steps_.first[row] + 1;
    Bits* const of_step = ring_ + RingSteps<PersistentForm::SLOTS>::slot(own) * slot_size(s_);
    x.template write<Word>(of_step + Words::place(s_.chunks, row, word), own, data, seen);
  }
};

}  // namespace frd::cuda
