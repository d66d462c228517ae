// Device memory that the shim knows the bounds of: what it allocated, with guards around, and what it was told of.
#pragma once

#include "faults.h"
#include "sanitizers.h"
#include "shared_memory.h"

#include <cstdint>
#include <cstring>
#include <map>
#include <new>
#include <string>

namespace frd::cuda::host {

class Memory {
 public:
  // Poisoned, aligned to 256 bytes.
  static void* allocate(size_t bytes) {
    char* const memory = static_cast<char*>(::operator new(bytes + 2 * MARGIN, std::align_val_t{MARGIN}));
    std::memset(memory, GUARD, bytes + 2 * MARGIN);
    std::memset(memory + MARGIN, POISON, bytes);
    forbid(memory, MARGIN);
    forbid(memory + MARGIN + bytes, MARGIN);
    regions()[memory + MARGIN] = {bytes, true};
    return memory + MARGIN;
  }

  // Of what allocate() returned; false for anything else.
  static bool free(void* at) {
    const auto found = regions().find(static_cast<const char*>(at));
    if (found == regions().end() || !found->second.guarded) return false;
    char* const memory = static_cast<char*>(at) - MARGIN;
    allow(memory, found->second.bytes + 2 * MARGIN);
    ::operator delete(memory, std::align_val_t{MARGIN});
    regions().erase(found);
    return true;
  }

  // Memory of others, for as long as it lives: a tensor's, say.
  static void add(const void* at, size_t bytes) { regions()[static_cast<const char*>(at)] = {bytes, false}; }
  static void remove(const void* at) { regions().erase(static_cast<const char*>(at)); }

  // Throws if the bytes begin in a region that is known, or in its guards, and are not all within it.
  static void check(const void* at, size_t bytes, const char* what, const Where& where) {
    const char* const begin = static_cast<const char*>(at);
    auto after = regions().upper_bound(begin + MARGIN);  // the guard before a region is its own
    while (after != regions().begin()) {
      const auto& [start, region] = *--after;
      const size_t margin = region.guarded ? MARGIN : 0;
      if (begin + margin < start) continue;
      if (begin >= start + region.bytes + margin) break;
      if (begin >= start && begin + bytes <= start + region.bytes) return;
      throw Fault(text(what, where) + ": " + std::to_string(bytes) + " bytes at " + std::to_string(begin - start) +
                  " of " + std::to_string(region.bytes));
    }
  }

  // Throws if a guard was written to, and makes it good, so that it is told once.
  static void check_guards() {
    for (const auto& [start, region] : regions()) {
      if (!region.guarded) continue;
      check_guard(start - MARGIN, -static_cast<long long>(MARGIN), region.bytes);
      check_guard(start + region.bytes, static_cast<long long>(region.bytes), region.bytes);
    }
  }

 private:
  static constexpr size_t MARGIN = 256;

  struct Region {
    size_t bytes;
    bool guarded;  // allocated here
  };

  static std::map<const char*, Region>& regions() {
    static std::map<const char*, Region> all;
    return all;
  }

  static void check_guard(const char* guard, long long offset, size_t bytes) {
    allow(guard, MARGIN);
    long long damaged = -1;
    for (size_t i = 0; i < MARGIN && damaged < 0; ++i) {
      if (static_cast<unsigned char>(guard[i]) != GUARD) damaged = static_cast<long long>(i);
    }
    if (damaged >= 0) std::memset(const_cast<char*>(guard), GUARD, MARGIN);
    forbid(guard, MARGIN);
    if (damaged >= 0) {
      throw Fault("written at " + std::to_string(offset + damaged) + " of " + std::to_string(bytes) +
                  " bytes of global memory");
    }
  }
};

}  // namespace frd::cuda::host
