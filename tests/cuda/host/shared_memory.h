// A block's shared memory: poisoned, with a guard behind every array.
#pragma once

#include "faults.h"
#include "sanitizers.h"

#include <sys/mman.h>

#include <cstddef>
#include <cstring>
#include <new>
#include <string>
#include <vector>

namespace frd::cuda::host {

inline constexpr int POISON = 0xFF;  // NaN in every format of float, and no index that anybody means
inline constexpr int GUARD = 0xA5;
inline constexpr size_t GUARD_BYTES = 64;
inline constexpr size_t STATIC_SHARED_LIMIT = size_t{48} << 10;  // of one kernel, on every architecture

class SharedMemory {
 public:
  explicit SharedMemory(size_t dynamic_limit)
      : dynamic_limit_(dynamic_limit), capacity_(dynamic_limit + 4 * STATIC_SHARED_LIMIT) {  // with room for guards
    void* memory = mmap(nullptr, capacity_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    memory_ = static_cast<char*>(memory);
  }
  ~SharedMemory() {
    allow(memory_, capacity_);
    munmap(memory_, capacity_);
  }
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  size_t dynamic_limit() const { return dynamic_limit_; }

  // A new block begins, with nothing but its dynamic memory.
  void begin(size_t dynamic_bytes) {
    arrays_.clear();
    used_ = static_bytes_ = 0;
    add(nullptr, "dynamic shared memory", dynamic_bytes);
  }

  void* dynamic() const { return arrays_.front().begin; }

  // The array that a declaration, known by the address `key`, stands for; made by the first thread to come by.
  void* array(const void* key, const char* name, size_t bytes) {
    for (const Array& array : arrays_) {
      if (array.key == key) return array.begin;
    }
    static_bytes_ += bytes;
    if (static_bytes_ > STATIC_SHARED_LIMIT) throw Fault(std::string(name) + " takes static shared memory over 48 KiB");
    return add(key, name, bytes);
  }

  // Throws unless all the bytes are in one array.
  void check(const void* at, size_t bytes, const char* what, const Where& where) const {
    const char* begin = static_cast<const char*>(at);
    for (const Array& array : arrays_) {
      if (begin >= array.begin && begin + bytes <= array.begin + array.bytes) return;
    }
    throw Fault(text(what, where) + ": " + std::to_string(bytes) + " bytes that are not within one shared array");
  }

  // Throws if something was written behind an array. To be called when the block has ended.
  void check_guards() const {
    for (const Array& array : arrays_) {
      allow(array.begin + array.bytes, GUARD_BYTES);
      for (size_t i = 0; i < GUARD_BYTES; ++i) {
        if (static_cast<unsigned char>(array.begin[array.bytes + i]) != GUARD) {
          throw Fault(std::string("written ") + std::to_string(i) + " bytes past the end of shared " + array.name);
        }
      }
    }
  }

 private:
  struct Array {
    const void* key;
    const char* name;
    char* begin;
    size_t bytes;
  };

  void* add(const void* key, const char* name, size_t bytes) {
    const size_t next = used_ + (bytes + GUARD_BYTES + 127) / 128 * 128;
    if (next > capacity_) throw Fault(std::string(name) + ": more shared memory than the shim has");
    char* begin = memory_ + used_;
    used_ = next;
    allow(begin, bytes + GUARD_BYTES);
    std::memset(begin, POISON, bytes);
    std::memset(begin + bytes, GUARD, GUARD_BYTES);
    forbid(begin + bytes, GUARD_BYTES);
    arrays_.push_back({key, name, begin, bytes});
    return begin;
  }

  size_t dynamic_limit_, capacity_, used_ = 0, static_bytes_ = 0;
  char* memory_;
  std::vector<Array> arrays_;
};

}  // namespace frd::cuda::host
