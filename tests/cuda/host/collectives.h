// CUDA's functions by which threads of a block and lanes of a warp meet: barriers, shuffles, votes, matches.
#pragma once

#include "scheduler.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <type_traits>

namespace frd::cuda::host {

inline unsigned lane() { return Scheduler::current().lane; }

// ---- Shuffles

template <class T>
struct Shuffled {
  T value;
  unsigned source;
  T result;
};

// A lane that is not there gives poison: CUDA leaves its value undefined.
template <class T>
T shuffle(unsigned mask, T value, unsigned source, const char* what, const Where& where) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8, "CUDA shuffles no other types");
  Shuffled<T> record{value, source, value};
  const auto answer = [](const std::array<void*, WARP>& records, unsigned lanes) {
    for (unsigned i = 0; i < WARP; ++i) {
      if (!(lanes >> i & 1)) continue;
      auto& to = *static_cast<Shuffled<T>*>(records[i]);
      if (lanes >> to.source & 1) {
        to.result = static_cast<const Shuffled<T>*>(records[to.source])->value;
      } else {
        std::memset(static_cast<void*>(&to.result), POISON, sizeof(T));
      }
    }
  };
  Scheduler::running().meet(mask, what, where, false, &record, answer);
  return record.result;
}

// The lanes of a segment of `width` around lane `i`.
inline unsigned first_lane(unsigned i, int width) { return i & ~(static_cast<unsigned>(width) - 1); }
inline unsigned last_lane(unsigned i, int width) { return i | (static_cast<unsigned>(width) - 1); }

inline void check_width(int width, const char* what, const Where& where) {
  if (width < 1 || width > static_cast<int>(WARP) || (width & (width - 1)) != 0) {
    throw Fault(text(what, where) + ": a width of " + std::to_string(width));
  }
}

// ---- Votes: every lane gets the same function of all lanes' values

template <class T>
struct Vote {
  T value;
  T result;
};

// combine(T, T) over the lanes of `mask`.
template <class T, class Combine>
T vote(unsigned mask, T value, Combine, const char* what, const Where& where) {
  Vote<T> record{value, value};
  const auto answer = [](const std::array<void*, WARP>& records, unsigned lanes) {
    T all{};
    bool any = false;
    for (unsigned i = 0; i < WARP; ++i) {
      if (!(lanes >> i & 1)) continue;
      const T value = static_cast<const Vote<T>*>(records[i])->value;
      all = any ? Combine{}(all, value) : value;
      any = true;
    }
    for (unsigned i = 0; i < WARP; ++i) {
      if (lanes >> i & 1) static_cast<Vote<T>*>(records[i])->result = all;
    }
  };
  Scheduler::running().meet(mask, what, where, false, &record, answer);
  return record.result;
}

struct Sum {
  template <class T>
  T operator()(T x, T y) const {
    return static_cast<T>(static_cast<unsigned>(x) + static_cast<unsigned>(y));  // wraps
  }
};
struct Least {
  template <class T>
  T operator()(T x, T y) const {
    return std::min(x, y);
  }
};
struct Greatest {
  template <class T>
  T operator()(T x, T y) const {
    return std::max(x, y);
  }
};
struct Or {
  unsigned operator()(unsigned x, unsigned y) const { return x | y; }
};
struct And {
  unsigned operator()(unsigned x, unsigned y) const { return x & y; }
};
struct Xor {
  unsigned operator()(unsigned x, unsigned y) const { return x ^ y; }
};

template <class T>
struct Match {
  T value;
  unsigned lanes;
};

inline void barrier(int id, int threads, bool waits, const char* what, const Where& where) {
  const dim3 block = Scheduler::running().launch().block;
  const auto all = static_cast<int>(block.x * block.y * block.z);
  if (id < 1 || id >= BARRIERS) throw Fault(text(what, where) + ": barrier " + std::to_string(id));
  if (threads < 1 || threads % static_cast<int>(WARP) != 0 || threads > (all + 31) / 32 * 32) {
    throw Fault(text(what, where) + ": a barrier of " + std::to_string(threads) + " threads");
  }
  Scheduler::running().arrive(id, static_cast<unsigned>(threads), waits, what, where);
}

}  // namespace frd::cuda::host

inline void __syncthreads(FRD_WHERE) {
  frd::cuda::host::Scheduler::running().arrive(0, 0, true, "__syncthreads", where);
}

inline void __syncwarp(unsigned mask = frd::cuda::host::FULL_MASK, FRD_WHERE) {
  const auto answer = [](const std::array<void*, frd::cuda::host::WARP>&, unsigned) {};
  frd::cuda::host::Scheduler::running().meet(mask, "__syncwarp", where, true, nullptr, answer);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, FRD_WHERE) {
  using namespace frd::cuda::host;
  check_width(width, "__shfl_sync", where);
  const unsigned within = static_cast<unsigned>(source) & (static_cast<unsigned>(width) - 1);
  return shuffle(mask, value, first_lane(lane(), width) + within, "__shfl_sync", where);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, FRD_WHERE) {
  using namespace frd::cuda::host;
  check_width(width, "__shfl_up_sync", where);
  const unsigned me = lane(), by = delta % WARP;
  return shuffle(mask, value, me >= first_lane(me, width) + by ? me - by : me, "__shfl_up_sync", where);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, FRD_WHERE) {
  using namespace frd::cuda::host;
  check_width(width, "__shfl_down_sync", where);
  const unsigned me = lane(), by = delta % WARP;
  return shuffle(mask, value, me + by <= last_lane(me, width) ? me + by : me, "__shfl_down_sync", where);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, FRD_WHERE) {
  using namespace frd::cuda::host;
  check_width(width, "__shfl_xor_sync", where);
  const unsigned me = lane(), other = me ^ (static_cast<unsigned>(lanes) % WARP);
  // As on hardware, an earlier segment can be read and a later one cannot.
  return shuffle(mask, value, other <= last_lane(me, width) ? other : me, "__shfl_xor_sync", where);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, FRD_WHERE) {
  using namespace frd::cuda::host;
  return vote(mask, predicate ? 1u << lane() : 0u, Or{}, "__ballot_sync", where);
}

inline int __any_sync(unsigned mask, int predicate, FRD_WHERE) {
  using namespace frd::cuda::host;
  return static_cast<int>(vote(mask, predicate ? 1u : 0u, Or{}, "__any_sync", where));
}

inline int __all_sync(unsigned mask, int predicate, FRD_WHERE) {
  using namespace frd::cuda::host;
  return static_cast<int>(vote(mask, predicate ? 1u : 0u, And{}, "__all_sync", where));
}

// Lanes of the warp that have not returned. On a GPU it may be fewer: those that happen to run together.
inline unsigned __activemask() { return frd::cuda::host::Scheduler::current().warp->live; }

template <class T>
unsigned __match_any_sync(unsigned mask, T value, FRD_WHERE) {
  using namespace frd::cuda::host;
  Match<T> record{value, 0};
  const auto answer = [](const std::array<void*, WARP>& records, unsigned lanes) {
    for (unsigned i = 0; i < WARP * WARP; ++i) {
      if (!(lanes >> (i / WARP) & 1) || !(lanes >> (i % WARP) & 1)) continue;
      auto& one = *static_cast<Match<T>*>(records[i / WARP]);
      const auto& other = *static_cast<const Match<T>*>(records[i % WARP]);
      if (std::memcmp(&one.value, &other.value, sizeof(T)) == 0) one.lanes |= 1u << (i % WARP);  // bits, as hardware
    }
  };
  Scheduler::running().meet(mask, "__match_any_sync", where, false, &record, answer);
  return record.lanes;
}

#define FRD_REDUCE(name, Combine, Type)                                                                                \
  inline Type name(unsigned mask, Type value, FRD_WHERE) {                                                             \
    return frd::cuda::host::vote(mask, value, frd::cuda::host::Combine{}, #name, where);                               \
  }
FRD_REDUCE(__reduce_add_sync, Sum, unsigned)
FRD_REDUCE(__reduce_add_sync, Sum, int)
FRD_REDUCE(__reduce_min_sync, Least, unsigned)
FRD_REDUCE(__reduce_min_sync, Least, int)
FRD_REDUCE(__reduce_max_sync, Greatest, unsigned)
FRD_REDUCE(__reduce_max_sync, Greatest, int)
FRD_REDUCE(__reduce_and_sync, And, unsigned)
FRD_REDUCE(__reduce_or_sync, Or, unsigned)
FRD_REDUCE(__reduce_xor_sync, Xor, unsigned)
#undef FRD_REDUCE
