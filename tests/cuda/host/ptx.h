// The functions of csrc/cuda/ptx.h on the host, exact: see there for what they do.
#pragma once

#include "collectives.h"
#include "memory.h"
#include "numbers.h"

#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace frd::cuda::host {

inline void check_shared(const void* at, size_t bytes, const char* what, const Where& where) {
  Unchecked own;
  if (reinterpret_cast<uintptr_t>(at) % 16 != 0)
    throw Fault(text(what, where) + ": a shared address not a multiple of 16");
  Scheduler::current().block->resources->shared.check(at, bytes, what, where);
}

// A collective of a whole warp.
template <class Record>
void meet_warp(const char* what, const Where& where, Record& record, Meeting::Answer answer) {
  Scheduler::running().meet(FULL_MASK, what, where, false, &record, answer);
}

inline void check_whole(unsigned lanes, const char* what) {
  if (lanes != FULL_MASK) throw Fault(std::string(what) + " by a warp that has not all its lanes");
}

// ---- ldmatrix

struct Tiles {
  alignas(16) uint16_t row[8];  // that this lane's address points to
  uint32_t r[4];
};

template <int COUNT, bool TRANSPOSED>
void ldmatrix(uint32_t (&r)[COUNT], const void* row, const char* what, const Where& where) {
  Tiles record{};
  if (lane() < 8 * COUNT) {  // the other lanes' addresses are not used
    check_shared(row, 16, what, where);
    std::memcpy(record.row, row, 16);  // by the lane that names it: a race is then its own
  }
  meet_warp(what, where, record, [](const std::array<void*, WARP>& records, unsigned lanes) {
    check_whole(lanes, "ldmatrix");
    const auto value = [&](unsigned tile, unsigned i, unsigned j) -> uint32_t {
      const unsigned row = TRANSPOSED ? j : i, column = TRANSPOSED ? i : j;
      return static_cast<const Tiles*>(records[8 * tile + row])->row[column];
    };
    for (unsigned lane = 0; lane < WARP; ++lane) {
      for (unsigned tile = 0; tile < COUNT; ++tile) {
        const unsigned g = lane / 4, q = lane % 4;
        static_cast<Tiles*>(records[lane])->r[tile] = value(tile, g, 2 * q) | value(tile, g, 2 * q + 1) << 16;
      }
    }
  });
  std::memcpy(r, record.r, sizeof(r));
}

// ---- Products

struct Fragments {
  uint32_t a[4], b[2];
  float d[4];
};

struct Tf32 {};

// D += A B for A [16, K] and B [K, 8]. Products are exact, sums are made in double and rounded once: at least as good
// as hardware, whose order and rounding are not documented.
template <class T>
void answer_product(const std::array<void*, WARP>& records, unsigned lanes) {
  check_whole(lanes, "mma");
  constexpr bool TF32 = std::is_same_v<T, Tf32>;
  constexpr unsigned K = TF32 ? 8 : 16;
  const auto fragments = [&](unsigned lane) -> Fragments& { return *static_cast<Fragments*>(records[lane]); };
  const auto number = [](uint32_t bits, unsigned half) -> double {
    if constexpr (TF32) {
      return std::bit_cast<float>(bits & 0xFFFFE000u);  // what is not rounded to tf32 is cut off
    } else {
      return std::is_same_v<T, __half> ? Half::value(static_cast<uint16_t>(bits >> 16 * half))
                                       : BFloat16::value(static_cast<uint16_t>(bits >> 16 * half));
    }
  };
  double A[16][K], B[K][8];
  for (unsigned k = 0; k < K; ++k) {
    const unsigned q = TF32 ? k % 4 : k % 8 / 2, upper = TF32 ? k / 4 : k / 8;
    for (unsigned i = 0; i < 16; ++i) A[i][k] = number(fragments(i % 8 * 4 + q).a[i / 8 + 2 * upper], k % 2);
    for (unsigned j = 0; j < 8; ++j) B[k][j] = number(fragments(j * 4 + q).b[upper], k % 2);
  }
  for (unsigned lane = 0; lane < WARP; ++lane) {
    for (unsigned n = 0; n < 4; ++n) {
      const unsigned i = lane / 4 + n / 2 * 8, j = lane % 4 * 2 + n % 2;
      double sum = fragments(lane).d[n];
      for (unsigned k = 0; k < K; ++k) sum += A[i][k] * B[k][j];
      fragments(lane).d[n] = static_cast<float>(sum);
    }
  }
}

template <class T>
void product(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const char* what, const Where& where) {
  Fragments record{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}, {d[0], d[1], d[2], d[3]}};
  meet_warp(what, where, record, answer_product<T>);
  std::memcpy(d, record.d, sizeof(d));
}

}  // namespace frd::cuda::host

namespace frd::cuda {

inline void cp_async16(void* shared, const void* global, int bytes = 16, FRD_WHERE) {
  using namespace host;
  if (bytes < 0 || bytes > 16) throw Fault(text("cp_async16", where) + ": " + std::to_string(bytes) + " bytes");
  if (reinterpret_cast<uintptr_t>(global) % 16 != 0) {
    throw Fault(text("cp_async16", where) + ": a global address not a multiple of 16");
  }
  check_shared(shared, 16, "cp_async16", where);
  Memory::check(global, static_cast<size_t>(bytes), "cp_async16", where);
  Scheduler::current().copies.start(shared, global, static_cast<size_t>(bytes));
}

inline void cp_async_commit() { host::Scheduler::current().copies.commit(); }

template <int N>
inline void cp_async_wait() {
  host::Scheduler::current().copies.wait(N);
}

inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, FRD_WHERE) {
  host::ldmatrix<4, false>(r, row, "ldmatrix_x4", where);
}
inline void ldmatrix_x2(uint32_t (&r)[2], const void* row, FRD_WHERE) {
  host::ldmatrix<2, false>(r, row, "ldmatrix_x2", where);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, FRD_WHERE) {
  host::ldmatrix<4, true>(r, row, "ldmatrix_x4_trans", where);
}
inline void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row, FRD_WHERE) {
  host::ldmatrix<2, true>(r, row, "ldmatrix_x2_trans", where);
}

template <class T>
inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], FRD_WHERE) {
  static_assert(std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>);
  host::product<T>(d, a, b, "mma_m16n8k16", where);
}

inline void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], FRD_WHERE) {
  host::product<host::Tf32>(d, a, b, "mma_m16n8k8_tf32", where);
}

inline uint32_t to_tf32(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7F800000u) == 0x7F800000u) return x != x ? 0x7FFFE000u : bits;  // NaN and infinity do not round
  return (bits + 0x1000u) & 0xFFFFE000u;
}

inline void barrier_sync(int id, int threads, FRD_WHERE) { host::barrier(id, threads, true, "barrier_sync", where); }
inline void barrier_arrive(int id, int threads, FRD_WHERE) {
  host::barrier(id, threads, false, "barrier_arrive", where);
}
inline void grid_sync(FRD_WHERE) { host::Scheduler::running().arrive_at_grid_barrier(where); }

}  // namespace frd::cuda
