// Prints persistent plans. Each line of standard input is a request,
//     MAJOR MINOR MULTIPROCESSORS SHARED  CELL TYPE TF32X3 BATCH UNITS PROJECTED DIRECTIONS FLAGS H0 BACKWARD
// and is answered by a line of "name=value" in the order of PersistentPlan, or "obstacle=SENTENCE".
#include <cstdio>

#include "cuda/schedules/persistent_plan.h"

using namespace frd;
using namespace frd::cuda;

int main() {
  DeviceLimits device{};
  device.registers = 65536;
  PersistentLayer l{};
  int cell = 0, type = 0, tf32x3 = 0, h0 = 0, backward = 0;
  long long batch = 0, units = 0, projected = 0;
  while (std::scanf("%d %d %d %d %d %d %d %lld %lld %lld %d %u %d %d", &device.capability, &device.revision,
                    &device.multiprocessors, &device.shared_memory, &cell, &type, &tf32x3, &batch, &units, &projected,
                    &l.directions, &l.flags, &h0, &backward) == 14) {
    l.cell = static_cast<Cell>(cell), l.type = static_cast<Type>(type), l.tf32x3 = tf32x3 != 0;
    l.batch = batch, l.units = units, l.projected = projected, l.given_h0 = h0 != 0, l.backward = backward != 0;
    const PersistentPlan p = persistent_plan(device, l);
    if (!p.obstacle.empty()) {
      std::printf("obstacle=%s\n", p.obstacle.c_str());
      continue;
    }
    std::printf(
        "batch_groups=%d unit_groups=%d blocks=%d rows=%d units=%d row_tiles=%d batch_tiles=%d k_tiles=%d "
        "tiles_in_registers=%d registers=%d ",
        p.batch_groups, p.unit_groups, p.blocks, p.rows, p.units, p.row_tiles, p.batch_tiles, p.k_tiles,
        p.tiles_in_registers, p.registers);
    std::printf(
        "u_in_registers=%lld u_in_shared=%lld shared=%lld tagged=%d words_read=%lld bytes_read=%lld "
        "bytes_written=%lld workspace=%lld cost=%lld\n",
        static_cast<long long>(p.u_in_registers), static_cast<long long>(p.u_in_shared),
        static_cast<long long>(p.shared), p.words == WordKind::TAGGED, static_cast<long long>(p.words_read),
        static_cast<long long>(p.bytes_read), static_cast<long long>(p.bytes_written),
        static_cast<long long>(p.workspace), static_cast<long long>(p.cost));
  }
  return 0;
}
