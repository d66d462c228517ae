// Prints persistent plans. Each line of standard input is a request,
//     MAJOR MINOR MULTIPROCESSORS SHARED  CELL TYPE BATCH UNITS PROJECTED DIRECTIONS FLAGS H0 BACKWARD
// and is answered by a line, text_of() its plan.
#include <cstdio>

#include "cuda/schedules/persistent_plan.h"

using namespace frd;
using namespace frd::cuda;

int main() {
  DeviceLimits device{};
  PersistentLayer l{};
  int cell = 0, type = 0, h0 = 0, backward = 0;
  long long batch = 0, units = 0, projected = 0;
  while (std::scanf("%d %d %d %d %d %d %lld %lld %lld %d %u %d %d", &device.capability, &device.revision,
                    &device.multiprocessors, &device.shared_memory, &cell, &type, &batch, &units, &projected,
                    &l.directions, &l.flags, &h0, &backward) == 13) {
    l.cell = static_cast<Cell>(cell), l.type = static_cast<Type>(type);
    l.batch = batch, l.units = units, l.projected = projected, l.given_h0 = h0 != 0, l.backward = backward != 0;
    std::printf("%s\n", text_of(persistent_plan(device, l)).c_str());
  }
  return 0;
}
