// The alternating schedule of a GRU layer (reset after the recurrent product) in one direction.
#pragma once

#include "cuda/schedule.h"

namespace frd::cuda {

template <class D>
struct GruForward {
  using S = State<D>;
  Sequence sequence;
  Random random;
  int64_t inputs, units;
  const D* x;         // [rows, I]
  Weight w_ih, w_hh;  // [3H, I], [3H, H]
  const S* b_ih;      // [3H], or null
  const S* b_hh;      // [3H], or null
  const S* h0;        // [batch, H]
  D* gates;           // [rows, 3H], activated r, z, n, or null where they are not kept
  D* resets;          // [rows, H], u of each step, or null where gates is
  D* states;          // [rows, H], or null where `out` holds the same or nothing is kept
  D* out;             // [rows, H]
  D* h_n;             // [batch, H]
};
template <class D>
void run(const GruForward<D>& p, const Surroundings& around);

template <class D>
struct GruBackward {
  using S = State<D>;
  Sequence sequence;
  Random random;
  int64_t inputs, units;
  const D* x;         // [rows, I]
  Weight w_ih, w_hh;  // [3H, I], [3H, H]
  const S* b_ih;      // [3H], or null
  const S* b_hh;      // [3H], or null
  const S* h0;        // [batch, H]
  const D* gates;     // [rows, 3H], activated, or null: they are computed again
  const D* resets;    // [rows, H], or null where gates is
  const D* states;    // [rows, H], unscaled
  const D* dout;      // [rows, H], or null
  const D* dh_n;      // [batch, H], or null
  D* dx;              // [rows, I], or null where nobody asks, as each of the next four
  Gradient dw_ih, dw_hh;
  S* db_ih;  // [3H]
  S* db_hh;  // [3H], null where db_ih is
  S* dh0;    // [batch, H]
};
template <class D>
void run(const GruBackward<D>& p, const Surroundings& around);

}  // namespace frd::cuda
