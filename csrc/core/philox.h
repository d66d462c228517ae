// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), for host and device.
#pragma once

#include <cstdint>

#if defined(__clang__) || defined(__CUDACC__)
#define FRD_UNROLL _Pragma("unroll")
#else
#define FRD_UNROLL _Pragma("GCC unroll 16")
#endif
#if defined(__CUDACC__)
#define FRD_INLINE __host__ __device__ __forceinline__ static
#else
// Forced inlining keeps one instruction set's copy from being linked into another's.
#define FRD_INLINE __attribute__((always_inline)) static inline
#define FRD_MEMBER __attribute__((always_inline)) inline
#endif

// Five rounds side by side, twice. With all ten, a GPU's kernel computes the keys of every round beforehand and keeps
// them in registers, of which it then has too few for the rest.
#if defined(__CUDACC__)
#define FRD_HALF_OF_ROUNDS _Pragma("unroll 5")
#else
#define FRD_HALF_OF_ROUNDS
#endif

namespace frd {

inline constexpr uint32_t PHILOX_M0 = 0xD2511F53u, PHILOX_M1 = 0xCD9E8D57u;  // multipliers
inline constexpr uint32_t PHILOX_W0 = 0x9E3779B9u, PHILOX_W1 = 0xBB67AE85u;  // Weyl increments of the key
inline constexpr int PHILOX_ROUNDS = 10;

struct Key {
  uint32_t k0, k1;
};

struct Words {
  uint32_t w[4];
};

FRD_INLINE Words philox(uint32_t a, uint32_t b, uint32_t c, uint32_t stream, Key key) {
  uint32_t x0 = a, x1 = b, x2 = c, x3 = stream;
  FRD_HALF_OF_ROUNDS
  for (int round = 0; round < PHILOX_ROUNDS; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(PHILOX_M0) * x0, p1 = static_cast<uint64_t>(PHILOX_M1) * x2;
    x0 = static_cast<uint32_t>(p1 >> 32) ^ x1 ^ key.k0;
    x1 = static_cast<uint32_t>(p1);
    x2 = static_cast<uint32_t>(p0 >> 32) ^ x3 ^ key.k1;
    x3 = static_cast<uint32_t>(p0);
    key.k0 += PHILOX_W0;
    key.k1 += PHILOX_W1;
  }
  return {{x0, x1, x2, x3}};
}

}  // namespace frd
