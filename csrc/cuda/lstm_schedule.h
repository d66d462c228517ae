// The alternating schedule of an LSTM layer in one direction.
#pragma once

#include "cuda/schedule.h"

namespace frd::cuda {

template <class D>
struct LstmForward {
  using S = State<D>;
  Sequence sequence;
  Random random;
  int64_t inputs, units, projected;  // I; H; P, or H where there is no projection
  const D* x;                        // [rows, I]
  Weight w_ih, w_hh, w_hr;           // [4H, I], [4H, P], [P, H] or none
  const S* b_ih;                     // [4H], or null
  const S* b_hh;                     // [4H], or null
  const S* h0;                       // [batch, P]
  const S* c0;                       // [batch, H]
  D* gates;                          // [rows, 4H], activated, or null where they are not kept
  S* cells;                          // [rows, H], or null where nothing is kept
  D* states;                         // [rows, P], or null where `out` holds the same or nothing is kept
  D* out;                            // [rows, P]
  D* h_n;                            // [batch, P]
  D* c_n;                            // [batch, H]
};
template <class D>
void run(const LstmForward<D>& p, const Surroundings& around);

template <class D>
struct LstmBackward {
  using S = State<D>;
  Sequence sequence;
  Random random;
  int64_t inputs, units, projected;
  const D* x;               // [rows, I]
  Weight w_ih, w_hh, w_hr;  // [4H, I], [4H, P], [P, H] or none
  const S* b_ih;            // [4H], or null
  const S* b_hh;            // [4H], or null
  const S* h0;              // [batch, P]
  const S* c0;              // [batch, H]
  const D* gates;           // [rows, 4H], activated, or null: they are computed again
  const S* cells;           // [rows, H]
  const D* states;          // [rows, P]
  const D* dout;            // [rows, P], or null
  const D* dh_n;            // [batch, P], or null
  const D* dc_n;            // [batch, H], or null
  D* dx;                    // [rows, I], or null where nobody asks, as each of the next four
  Gradient dw_ih, dw_hh, dw_hr;
  S* db;   // [4H], of each bias
  S* dh0;  // [batch, P]
  S* dc0;  // [batch, H]
};
template <class D>
void run(const LstmBackward<D>& p, const Surroundings& around);

}  // namespace frd::cuda
