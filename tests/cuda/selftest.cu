// See selftest.h. Every kernel has the same parameters: words in, words out, and a variant.
// FAULT marks a variant that is wrong on purpose, for tests that must see it caught.
#include "selftest.h"

#include "cuda/ptx.h"

#include <stdexcept>

namespace frd::cuda::selftest {

#define KERNEL(name)                                                                                                   \
  __global__ void name([[maybe_unused]] const uint32_t* in, [[maybe_unused]] uint32_t* out,                            \
                       [[maybe_unused]] int variant)

__device__ __forceinline__ unsigned thread_number() {  // in the block
  return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
}
__device__ __forceinline__ unsigned block_number() {
  return blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
}

// ---- Indices, shared memory, conversions

KERNEL(indices) {  // out [threads of the grid, 12]
  uint32_t* row = out + 12 * (block_number() * blockDim.x * blockDim.y * blockDim.z + thread_number());
  const uint32_t values[12] = {threadIdx.x, threadIdx.y, threadIdx.z, blockIdx.x, blockIdx.y, blockIdx.z,
                               blockDim.x,  blockDim.y,  blockDim.z,  gridDim.x,  gridDim.y,  gridDim.z};
  for (int i = 0; i < 12; ++i) row[i] = values[i];
}

KERNEL(uninitialised) {  // out [blocks, 2]; one thread a block. Writes afterwards what a later block must not see.
  FRD_SHARED(uint32_t, own, 4);
  FRD_DYNAMIC_SHARED(uint32_t, dynamic);
  out[2 * blockIdx.x] = own[3];
  out[2 * blockIdx.x + 1] = dynamic[3];
  own[3] = dynamic[3] = 7;
}

KERNEL(convert) {  // floats -> bf16 and fp16 bits, and back: out [n, 4]
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  const float x = __uint_as_float(in[i]);
  const __nv_bfloat16 b = __float2bfloat16(x);
  const __half h = __float2half(x);
  out[4 * i] = __bfloat16_as_ushort(b);
  out[4 * i + 1] = __half_as_ushort(h);
  out[4 * i + 2] = __float_as_uint(__bfloat162float(b));
  out[4 * i + 3] = __float_as_uint(__half2float(h));
}

KERNEL(tf32) { out[threadIdx.x] = to_tf32(__uint_as_float(in[threadIdx.x])); }

KERNEL(integers) {  // in [n, 2], out [n, 7]
  const uint32_t x = in[2 * threadIdx.x], y = in[2 * threadIdx.x + 1];
  uint32_t* row = out + 7 * threadIdx.x;
  row[0] = __umulhi(x, y);
  row[1] = __popc(x);
  row[2] = __clz(static_cast<int>(x));
  row[3] = __ffs(static_cast<int>(x));
  row[4] = __brev(x);
  row[5] = __funnelshift_l(x, y, y);
  row[6] = min(x, y) ^ max(x, y);
}

// ---- Warps

KERNEL(shuffle) {  // in: kind, operand, width, mask, then 32 values; variant 1: doubles made of two equal words
  const uint32_t kind = in[0], operand = in[1], mask = in[3];
  const int width = static_cast<int>(in[2]);
  const unsigned lane = threadIdx.x;
  if (!(mask >> lane & 1)) return;
  const auto exchange = [&](auto value) {
    switch (kind) {
    case 0:
      return __shfl_sync(mask, value, static_cast<int>(operand), width);
    case 1:
      return __shfl_up_sync(mask, value, operand, width);
    case 2:
      return __shfl_down_sync(mask, value, operand, width);
    default:
      return __shfl_xor_sync(mask, value, static_cast<int>(operand), width);
    }
  };
  const uint32_t value = in[4 + lane];
  if (variant == 0) {
    out[lane] = exchange(value);
  } else {
    const long long word = static_cast<long long>(static_cast<uint64_t>(value) << 32 | value);
    const long long got = __double_as_longlong(exchange(__longlong_as_double(word)));
    out[lane] = static_cast<uint32_t>(got) == static_cast<uint32_t>(got >> 32) ? static_cast<uint32_t>(got) : ~value;
  }
}

KERNEL(vote) {  // in: mask, then 32 values; out [32, 10]
  const uint32_t mask = in[0], lane = threadIdx.x, value = in[1 + lane];
  if (!(mask >> lane & 1)) return;
  uint32_t* row = out + 10 * lane;
  row[0] = __ballot_sync(mask, value & 1);
  row[1] = __any_sync(mask, value & 1);
  row[2] = __all_sync(mask, value & 1);
  row[3] = __match_any_sync(mask, value & 3);
  row[4] = __reduce_add_sync(mask, value);
  row[5] = __reduce_min_sync(mask, value);
  row[6] = static_cast<uint32_t>(__reduce_max_sync(mask, static_cast<int>(value)));
  row[7] = __reduce_and_sync(mask, value);
  row[8] = __reduce_or_sync(mask, value);
  row[9] = __reduce_xor_sync(mask, value);
}

KERNEL(halves_of_a_warp) {  // each half sums its lanes' numbers, with its own mask and at its own pace
  const unsigned lane = threadIdx.x, mask = lane < 16 ? 0xFFFFu : 0xFFFF0000u;
  uint32_t sum = lane;
  for (int round = 0; round < (lane < 16 ? 1 : 3); ++round) {
    sum = lane;
    for (int other = 8; other; other /= 2) sum += __shfl_xor_sync(mask, sum, other);
  }
  out[lane] = sum;
}

KERNEL(through_shared_memory) {  // a value to the next lane; variant 1 FAULT: no __syncwarp
  FRD_SHARED(uint32_t, values, 32);
  const unsigned lane = threadIdx.x;
  values[lane] = lane;
  if (variant == 0) __syncwarp();
  out[lane] = values[(lane + 1) % 32];
}

// ---- Blocks

// The sum of a block's words; variants, FAULTs: 1 no __syncthreads, 2 a wrong lane
KERNEL(block_sum) {
  FRD_SHARED(uint32_t, sums, 32);
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  uint32_t sum = in[blockIdx.x * blockDim.x + threadIdx.x];
  for (int other = 16; other; other /= 2) sum += __shfl_xor_sync(~0u, sum, variant == 2 && other == 4 ? 8 : other);
  if (lane == 0) sums[warp] = sum;
  if (variant != 1) __syncthreads();
  if (threadIdx.x == 0) {
    uint32_t total = 0;
    for (unsigned i = 0; i < blockDim.x / 32; ++i) total += sums[i];
    out[blockIdx.x] = total;
  }
}

// Warps 0 and 1 hand 64 words, `variant` times, to warps 2 and 3, through one buffer. Barrier 1: full, 2: empty.
// Variant -1 FAULT: once, and the consumers do not wait until the buffer is full.
KERNEL(hand_over) {
  FRD_SHARED(uint32_t, buffer, 64);
  const unsigned i = threadIdx.x % 64;
  const int rounds = abs(variant);
  if (threadIdx.x < 64) {
    for (int round = 0; round < rounds; ++round) {
      if (round > 0) barrier_sync(2, 128);
      buffer[i] = static_cast<uint32_t>(round) * 1000 + i;
      barrier_arrive(1, 128);
    }
  } else {
    for (int round = 0; round < rounds; ++round) {
      if (variant > 0) {
        barrier_sync(1, 128);
      } else {
        barrier_arrive(1, 128);
      }
      out[64 * static_cast<unsigned>(round) + i] = buffer[63 - i];
      if (round + 1 < rounds) barrier_arrive(2, 128);
    }
  }
}

// 256 words by cp.async, eight a thread, in two groups. Variants: 0 right, 1 right: only the first group is waited for
// and read, 2 FAULT: no wait, 3 FAULT: waits for the wrong group, 4 FAULT: no barrier after the wait, 5 FAULT: copies
// anew, with no barrier, what others may still be reading; 16 + n: only n bytes of every 16
KERNEL(copy) {
  FRD_SHARED(uint32_t, tile, 256);
  const unsigned i = threadIdx.x;
  const int bytes = variant >= 16 ? variant - 16 : 16;
  cp_async16(tile + 4 * i, in + 4 * i, bytes);
  cp_async_commit();
  cp_async16(tile + 128 + 4 * i, in + 128 + 4 * i, bytes);
  cp_async_commit();
  if (variant == 1 || variant == 3) {
    cp_async_wait<1>();
  } else if (variant != 2) {
    cp_async_wait<0>();
  }
  if (variant != 4) __syncthreads();
  for (unsigned n = i; n < (variant == 1 ? 128u : 256u); n += 32) out[n] = tile[n ^ 5];
  if (variant == 5) {
    cp_async16(tile + 4 * i, in + 128 + 4 * i);
    cp_async_commit();
    cp_async_wait<0>();
  }
}

// ---- Tensor cores

KERNEL(load_matrix) {  // in: 4 tiles of 8 x 8 16-bit values; out [32, 4]; variants: 0 x4, 1 x2, 2 x4 trans, 3 x2 trans
  FRD_SHARED(uint32_t, tiles, 128);
  const unsigned lane = threadIdx.x;
  for (unsigned i = lane; i < 128; i += 32) tiles[i] = in[i];
  __syncthreads();
  const uint32_t* row = tiles + 4 * (lane % (variant % 2 ? 16 : 32));
  uint32_t four[4], two[2];
  if (variant == 0) ldmatrix_x4(four, row);
  if (variant == 1) ldmatrix_x2(two, row);
  if (variant == 2) ldmatrix_x4_trans(four, row);
  if (variant == 3) ldmatrix_x2_trans(two, row);
  for (unsigned i = 0; i < (variant % 2 ? 2u : 4u); ++i) out[4 * lane + i] = variant % 2 ? two[i] : four[i];
}

KERNEL(product) {  // in [32, 10]: a, b, d of each lane; out [32, 4]; variants: 0 bf16, 1 fp16, 2 tf32
  const uint32_t* own = in + 10 * threadIdx.x;
  const uint32_t a[4] = {own[0], own[1], own[2], own[3]}, b[2] = {own[4], own[5]};
  float d[4];
  for (int i = 0; i < 4; ++i) d[i] = __uint_as_float(own[6 + i]);
  if (variant == 0) mma_m16n8k16<__nv_bfloat16>(d, a, b);
  if (variant == 1) mma_m16n8k16<__half>(d, a, b);
  if (variant == 2) mma_m16n8k8_tf32(d, a, b);
  for (int i = 0; i < 4; ++i) out[4 * threadIdx.x + i] = __float_as_uint(d[i]);
}

// ---- Grids

// Every block passes a number on to the next, `in[0]` times. Variant 1 FAULT: the grid's barrier is only a block's.
// out [2, blocks], of which out[0] to begin with holds each block's own number.
KERNEL(pass_on) {
  const unsigned blocks = gridDim.x, block = blockIdx.x;
  if (threadIdx.x == 0) out[block] = block;
  for (uint32_t step = 0; step < in[0]; ++step) {
    if (variant == 0) {
      grid_sync();
    } else {
      __syncthreads();
    }
    const uint32_t* from = out + blocks * (step % 2);
    uint32_t* to = out + blocks * (1 - step % 2);
    if (threadIdx.x == step % blockDim.x) to[block] = from[(block + 1) % blocks];
  }
}

// The last block to come adds up what all have written. out [1 + 1 + blocks]: total, counter, parts
// Variant 1 FAULT: no fences.
KERNEL(last_block) {
  FRD_SHARED(uint32_t, last, 1);
  uint32_t *counter = out + 1, *parts = out + 2;
  if (threadIdx.x == 0) {
    parts[blockIdx.x] = in[blockIdx.x];
    if (variant == 0) __threadfence();
    last[0] = atomicAdd(counter, 1u) == gridDim.x - 2;  // it begins at -1
  }
  __syncthreads();
  if (last[0] && threadIdx.x == 0) {
    if (variant == 0) __threadfence();
    uint32_t total = 0;
    for (unsigned i = 0; i < gridDim.x; ++i) total += parts[i];
    out[0] = total;
  }
}

KERNEL(same_word) { *out = blockIdx.x; }  // FAULT: by all blocks

// Every thread of every block changes the same words, set by thread 0 of the grid's first block before the barrier.
KERNEL(atomics) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x, all = gridDim.x * blockDim.x;
  auto* words = reinterpret_cast<int*>(out);                      // 0..9
  auto* floats = reinterpret_cast<float*>(out + 10);              // 10, 11
  auto* longs = reinterpret_cast<unsigned long long*>(out + 12);  // 12..15
  auto* doubles = reinterpret_cast<double*>(out + 16);            // 16, 17
  if (i == 0) {
    for (int word = 0; word < 18; ++word) out[word] = 0;
    out[4] = ~0u;
  }
  grid_sync();
  const int n = static_cast<int>(i);
  atomicAdd(&words[0], n);
  atomicSub(&words[1], n);
  atomicMax(&words[2], n);
  atomicMin(&words[3], -n);
  atomicAnd(&out[4], ~(1u << i % 32));
  atomicOr(&out[5], 1u << i % 32);
  atomicXor(&out[6], i);
  if (atomicExch(&words[7], 1) == 0) atomicAdd(&words[8], 1);   // one thread is the first
  for (int old = atomicAdd(&words[9], 0), seen;; old = seen) {  // added to by compare and swap
    seen = atomicCAS(&words[9], old, old + n);
    if (seen == old) break;
  }
  atomicAdd(&floats[0], 0.5f);
  atomicAdd(&longs[0], 1ull << 32);
  atomicMax(&longs[1], static_cast<unsigned long long>(i) << 32);
  atomicAdd(&doubles[0], 1.0 / all);
}

KERNEL(wait_for_flag) {  // block 0 waits until the last block has set a flag. out [2]: flag, what block 0 then read
  if (blockIdx.x == gridDim.x - 1) {
    out[1] = 5;
    __threadfence();
    atomicExch(&out[0], 1u);
  } else if (blockIdx.x == 0) {
    while (atomicAdd(&out[0], 0u) != 1) __nanosleep(100);
    __threadfence();
    out[1] += 1;
  }
}

// ---- What CUDA leaves undefined or hanging: FAULTs all

KERNEL(stuck) {
  const unsigned i = threadIdx.x;
  switch (variant) {
  case 0:  // one thread waits for others that never come
    if (i == 5) barrier_sync(3, 32);
    __syncthreads();
    break;
  case 1:  // at two barriers at once
    if (i < 7) {
      __syncthreads();
    } else {
      __syncthreads();
    }
    break;
  case 2:  // a lane is named and does not come
    if (i != 3) __syncwarp();
    __syncthreads();
    break;
  case 3:  // lanes in different calls
    out[i] = i < 4 ? static_cast<uint32_t>(__any_sync(~0u, 1)) : __ballot_sync(~0u, 1);
    break;
  case 4:  // a block that has returned does not come
    if (blockIdx.x != 1) grid_sync();
    break;
  case 5:  // a flag that nobody sets
    while (atomicAdd(&out[0], 0u) != 1) __nanosleep(100);
    break;
  case 6:  // not in its own mask
    out[i] = __shfl_sync(0xFFFFu, i, 0);
    break;
  case 7:  // a product by part of a warp
    if (i < 16) {
      float d[4] = {};
      const uint32_t a[4] = {}, b[2] = {};
      mma_m16n8k16<__half>(d, a, b);
    }
    break;
  case 8:  // two ideas of how many come
    barrier_arrive(1, i < 32 ? 64 : 96);
    break;
  default:
    __trap();
  }
}

KERNEL(out_of_bounds) {
  FRD_SHARED(uint32_t, tile, 32);
  FRD_SHARED(uint32_t, other, 32);
  const unsigned i = threadIdx.x;
  uint32_t r[4];
  tile[i] = other[i] = i;
  switch (variant) {
  case 0:
    out[i + 1] = 0;
    break;  // the last thread: past the end
  case 1:
    out[static_cast<int>(i) - 1] = 0;
    break;  // the first: before the beginning
  case 2:
    tile[i + 1] = 0;
    break;  // past the end of a shared array
  case 3:
    cp_async16(tile + 4 * (i % 8), in + 4 * i);
    break;
  case 4:
    cp_async16(tile + 4 * (i % 16), in);
    break;
  case 5:
    cp_async16(tile + i % 4, in);
    break;  // not a multiple of 16
  case 6:
    ldmatrix_x4(r, tile + 4 * (i % 9));
    break;
  default:
    break;
  }
  if (variant > 2) cp_async_commit();
}

#if defined(FRD_CUDA_ON_HOST)
KERNEL(throws) {
  if (threadIdx.x == 9) throw std::out_of_range("thrown in a kernel");
  __syncthreads();
}
#endif

// ---- Running them

using Kernel = void (*)(const uint32_t*, uint32_t*, int);

struct Named {
  const char* name;
  Kernel kernel;
};

#define NAMED(name) {#name, name}
constexpr Named KERNELS[] = {
    NAMED(indices),     NAMED(uninitialised),    NAMED(convert),
    NAMED(tf32),        NAMED(integers),         NAMED(shuffle),
    NAMED(vote),        NAMED(halves_of_a_warp), NAMED(through_shared_memory),
    NAMED(block_sum),   NAMED(hand_over),        NAMED(copy),
    NAMED(load_matrix), NAMED(product),          NAMED(pass_on),
    NAMED(last_block),  NAMED(atomics),          NAMED(wait_for_flag),
    NAMED(stuck),       NAMED(out_of_bounds),    NAMED(same_word),
#if defined(FRD_CUDA_ON_HOST)
    NAMED(throws),
#endif
};

static void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

// Device memory that is freed when it is left.
class Words {
 public:
  explicit Words(size_t count) : bytes_(4 * count) {
    check(cudaMalloc(&words_, bytes_));
    check(cudaMemset(words_, 0xFF, bytes_));
  }
  ~Words() { static_cast<void>(cudaFree(words_)); }
  Words(const Words&) = delete;
  Words& operator=(const Words&) = delete;
  uint32_t* get() const { return words_; }

 private:
  uint32_t* words_ = nullptr;
  size_t bytes_;
};

std::vector<uint32_t> run(const std::string& name, const Shape& shape, const std::vector<uint32_t>& input, size_t words,
                          int variant) {
  Kernel kernel = nullptr;
  for (const Named& named : KERNELS) {
    if (name == named.name) kernel = named.kernel;
  }
  if (!kernel) throw std::invalid_argument("no kernel " + name);
  const Words in(input.size()), out(words);
  check(cudaMemcpy(in.get(), input.data(), 4 * input.size(), cudaMemcpyHostToDevice));
  const uint32_t* from = in.get();
  check(shape.cooperative
            ? FRD_LAUNCH_COOPERATIVE(kernel, shape.grid, shape.block, shape.dynamic_shared, nullptr, from, out.get(),
                                     variant)
            : FRD_LAUNCH(kernel, shape.grid, shape.block, shape.dynamic_shared, nullptr, from, out.get(), variant));
  check(cudaDeviceSynchronize());
  std::vector<uint32_t> result(words);
  check(cudaMemcpy(result.data(), out.get(), 4 * words, cudaMemcpyDeviceToHost));
  return result;
}

KERNEL(set_one) { *out = 1; }
KERNEL(take_over) { *out = *in; }

int two_streams(bool with_event) {
  const Words flag(1), seen(1);
  check(cudaMemset(flag.get(), 0, 4));
  cudaStream_t writer, reader;
  cudaEvent_t written;
  check(cudaStreamCreateWithFlags(&writer, cudaStreamNonBlocking));
  check(cudaStreamCreateWithFlags(&reader, cudaStreamNonBlocking));
  check(cudaEventCreateWithFlags(&written, cudaEventDisableTiming));
  const uint32_t* from = flag.get();
  check(FRD_LAUNCH(set_one, 1, 1, 0, writer, from, flag.get(), 0));
  check(cudaEventRecord(written, writer));
  if (with_event) check(cudaStreamWaitEvent(reader, written, 0));
  check(FRD_LAUNCH(take_over, 1, 1, 0, reader, from, seen.get(), 0));
  check(cudaStreamSynchronize(reader));
  uint32_t result = 0;
  check(cudaMemcpyAsync(&result, seen.get(), 4, cudaMemcpyDeviceToHost, reader));
  check(cudaStreamSynchronize(reader));
  check(cudaEventDestroy(written));
  check(cudaStreamDestroy(writer));
  check(cudaStreamDestroy(reader));
  return static_cast<int>(result);
}

}  // namespace frd::cuda::selftest
