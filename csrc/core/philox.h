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

// So many rounds side by side. With all of them, a GPU's kernel computes the keys of every round beforehand and keeps
// them in registers, of which it then has too few for the rest.
#if defined(__CUDACC__)
#define FRD_HALF_OF_ROUNDS _Pragma("unroll 5")
#define FRD_THIRD_OF_ROUNDS _Pragma("unroll 3")
#else
#define FRD_HALF_OF_ROUNDS
#define FRD_THIRD_OF_ROUNDS
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

// One round of both words, and the key of the next.
FRD_INLINE void philox_round(Words& x, Key& key) {
  const uint64_t p0 = static_cast<uint64_t>(PHILOX_M0) * x.w[0], p1 = static_cast<uint64_t>(PHILOX_M1) * x.w[2];
  x.w[0] = static_cast<uint32_t>(p1 >> 32) ^ x.w[1] ^ key.k0;
  x.w[1] = static_cast<uint32_t>(p1);
  x.w[2] = static_cast<uint32_t>(p0 >> 32) ^ x.w[3] ^ key.k1;
  x.w[3] = static_cast<uint32_t>(p0);
  key.k0 += PHILOX_W0;
  key.k1 += PHILOX_W1;
}

FRD_INLINE Words philox(uint32_t a, uint32_t b, uint32_t c, uint32_t stream, Key key) {
  Words x{{a, b, c, stream}};
  FRD_HALF_OF_ROUNDS
  for (int round = 0; round < PHILOX_ROUNDS; ++round) philox_round(x, key);
  return x;
}

// The same for several streams: what the first round makes of the rest is common to them, since the stream enters it by
// an exclusive or, and of that the product of the third word is common to all that have it.
FRD_INLINE uint64_t philox_product(uint32_t c) { return static_cast<uint64_t>(PHILOX_M1) * c; }
FRD_INLINE Words philox_begin(uint32_t a, uint32_t b, uint64_t product_of_c, Key key) {
  const uint64_t p0 = static_cast<uint64_t>(PHILOX_M0) * a;
  return {{static_cast<uint32_t>(product_of_c >> 32) ^ b ^ key.k0, static_cast<uint32_t>(product_of_c),
           static_cast<uint32_t>(p0 >> 32) ^ key.k1, static_cast<uint32_t>(p0)}};
}
FRD_INLINE Words philox_of_stream(Words begun, uint32_t stream, Key key) {
  begun.w[2] ^= stream;
  key = {key.k0 + PHILOX_W0, key.k1 + PHILOX_W1};
  FRD_THIRD_OF_ROUNDS
  for (int round = 1; round < PHILOX_ROUNDS; ++round) philox_round(begun, key);
  return begun;
}

}  // namespace frd
