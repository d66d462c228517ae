// The cells: a row for each, with what every schedule and every binding must know of it. What it computes is in
// core/cells/<cell>.h.
#pragma once

#include <cstdint>

#include "core/flags.h"
#include "core/outer_sites.h"

namespace frd {

// What a forward keeps for its backward: all that this reads, or the states alone, from which it computes the rest
// again.
enum Keep : int { KEEP_NOTHING, KEEP_ALL, KEEP_STATES };

// The memory of a cell is what cell dropout and the carry of a step act on: c, or h itself where there is no c. A
// memory that is h is kept unscaled, and whoever reads it, the recurrent product, the output and the caller, sees it
// times read_scale (core/sites.h).
struct CellInfo {
  const char* name;
  int gates;      // of a unit: W and U have gates * H rows, and so many activated gates are kept
  bool has_c;     // the memory is c, of H units; h may then have fewer
  bool projects;  // there may be a W_hr
  bool apart;     // the last gate takes U h + b_hh apart from W x + b_ih, so that the two have gradients of their own
  bool carries;   // a step adds to what the memory was

  // Whether it has a site, a row of the thresholds.
  constexpr bool has_site(int site) const {
    return site == SITE_CELL_DROPOUT ? carries : site == SITE_ZONEOUT_C ? has_c : true;
  }
  // Whether h is the memory, so that it is kept unscaled and seen scaled.
  constexpr bool scaled() const { return !has_c; }
  // Numbers of a unit and a step that backward sends on: the gates' gradients, and that of what the last gate takes
  // apart.
  constexpr int gradients() const { return gates + apart; }
  // Whether a forward keeps [rows, H] beside the gates, or in their place: c after each step, or what the last gate
  // takes apart, which is computed again where the gates are.
  constexpr bool keeps_beside(Keep keep) const {
    return (has_c && keep != KEEP_NOTHING) || (apart && keep == KEEP_ALL);
  }
  // Whether the output is another number than the h that backward reads.
  constexpr bool output_differs(uint32_t flags) const {
    const bool masked = (flags & FLAG_MASKS_ON) && outer_flags(flags, true);
    return masked || (flags & (FLAG_UNZONED | (scaled() ? FLAG_CELL : 0)));
  }
};

enum Cell : int { LSTM, GRU, RNN_TANH, RNN_RELU, NUM_CELLS };
inline constexpr CellInfo CELLS[NUM_CELLS] = {
    {.name = "LSTM", .gates = 4, .has_c = true, .projects = true, .apart = false, .carries = true},
    {.name = "GRU", .gates = 3, .has_c = false, .projects = false, .apart = true, .carries = true},
    {.name = "RNN_TANH", .gates = 1, .has_c = false, .projects = false, .apart = false, .carries = false},
    {.name = "RNN_RELU", .gates = 1, .has_c = false, .projects = false, .apart = false, .carries = false},
};

}  // namespace frd
