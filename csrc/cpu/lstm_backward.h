// LSTM, backward: the mirror image of the forward pass. dW, dU and dx are left to large products over all steps.
// No include guard on purpose: once per isa_*.cpp, inside its namespace.

template <class T, int NV>
class LstmBackwardPass {
  using V = Vec<T>;
  using Math = SimdMath<T>;
  static constexpr int64_t WIDTH = NV * LANES;

 public:
  explicit LstmBackwardPass(const LstmBackward<T>& p)
      : p_(p),
        H_(p.units),
        P_(p.projected),
        B_(p.sequence.batch),
        sites_(state_sites<Math>(p.masks.flags, p.masks.thresholds)),
        masks_(p.parallel, p.masks, B_, H_),
        w_hh_(pack_columns<NV>(p.parallel, p.w_hh, 4 * H_, P_)),
        w_hr_(nullptr, nullptr),
        dh_(scratch<T>(B_ * P_)),
        dc_(scratch<T>(B_ * H_)) {
    if (p.w_hr) w_hr_ = pack_columns<1>(p.parallel, p.w_hr, P_, H_);
    fill(dh_.get(), p.dh_n, B_ * P_);
    fill(dc_.get(), p.dc_n, B_ * H_);
  }

  void run() {
    const int64_t T_ = p_.sequence.steps, tiles = tiles_of(P_, WIDTH), phases = p_.w_hr ? 2 : 1;
    const int groups = groups_for(p_.parallel, tiles, 8.0 * B_ * H_ * P_);
    // One step more than the sequence has: from the first step's gates to h_0 and c_0.
    Team(p_.parallel, (T_ + 1) * phases, groups).run([&](int64_t step, int group) {
      const int64_t s = step / phases;
      if (step % phases == 0) {
        for (int64_t tile = share(tiles, group, groups); tile < share(tiles, group + 1, groups); ++tile)
          s < T_ ? hidden(p_.sequence.time(T_ - 1 - s), tile * WIDTH) : leave_h(tile * WIDTH);
      } else {
        const int64_t columns = tiles_of(H_, LANES);
        for (int64_t tile = share(columns, group, groups); tile < share(columns, group + 1, groups); ++tile)
          s < T_ ? projected(p_.sequence.time(T_ - 1 - s), tile * LANES) : leave_c(tile * LANES);
      }
    });
    if (phases == 1)
      for (int64_t u = 0; u < H_; u += LANES) leave_c(u);
  }

 private:
  static void fill(T* to, const T* from, int64_t n) {
    for (int64_t i = 0; i < n; ++i) to[i] = from ? from[i] : T(0);
  }
  const T* dgates(int64_t t, int64_t b) const { return p_.dgates + (p_.sequence.row(t) + b) * 4 * H_; }

  // The gradient that h gets from the step after through U, for rows that have one, added to what is carried.
  void hidden(int64_t t, int64_t u) {
    const int64_t after = p_.sequence.after(t), continued = p_.sequence.continued_by(t);
    product<NV>(
        0, continued, [&](int64_t b) { return dgates(after, b); }, &w_hh_[u * 4 * H_], 4 * H_,
        [&](int64_t b, const V* sums) {
          for (int v = 0; v < NV; ++v) at_h(t, b, u + v * LANES, sums[v]);
        });
    for (int64_t b = continued; b < p_.sequence.active(t); ++b)
      for (int v = 0; v < NV; ++v) at_h(t, b, u + v * LANES, V{});
  }

  // Gradients at LANES units of h_t.
  void at_h(int64_t t, int64_t b, int64_t u, V through_u) {
    if (u >= P_) return;
    const int64_t n = P_ - u, row = p_.sequence.row(t) + b;
    const Drops<Math> drops = masks_.drops(b, u, t);
    const V dout = p_.dout ? load(p_.dout + row * P_ + u, n) : V{};
    T* carried = &dh_[b * P_ + u];
    V dh = load(carried, n) + masks_.hidden(b, u, through_u);
    if (!sites_.unzoned) dh += dout;
    V dh_new = Zone<Math>::to_new(sites_.zone_h, drops.zone_h, dh);
    if (sites_.unzoned) dh_new += dout;
    store(carried, Zone<Math>::to_old(sites_.zone_h, drops.zone_h, dh), n);
    if (p_.w_hr) {
      store(p_.dprojected + row * P_ + u, dh_new, n);
    } else {
      at_gates(t, b, u, drops, dh_new);
    }
  }

  // With a projection: the gradient at LANES units of what it reads.
  void projected(int64_t t, int64_t u) {
    const int64_t row0 = p_.sequence.row(t);
    product<1>(
        0, p_.sequence.active(t), [&](int64_t b) { return p_.dprojected + (row0 + b) * P_; }, &w_hr_[u * P_], P_,
        [&](int64_t b, const V* sums) { at_gates(t, b, u, masks_.drops(b, u, t), sums[0]); });
  }

  void at_gates(int64_t t, int64_t b, int64_t u, const Drops<Math>& drops, V dh_new) {
    const int64_t n = H_ - u, row = p_.sequence.row(t) + b;
    const T* gates = p_.gates + row * 4 * H_ + u;
    LstmGates<Math> g{load(gates, n), load(gates + H_, n), load(gates + 2 * H_, n), load(gates + 3 * H_, n)};
    const V c_prev = cell_before(t, b, u);
    if (p_.w_hr) store(p_.outputs + row * H_ + u, lstm_output<Math>(sites_, drops, g, c_prev), n);
    V dc = load(&dc_[b * H_ + u], n);
    lstm_backward<Math>(sites_, drops, g, c_prev, dh_new, dc);
    store(&dc_[b * H_ + u], dc, n);
    T* to = p_.dgates + row * 4 * H_ + u;
    store(to, g.i, n);
    store(to + H_, g.f, n);
    store(to + 2 * H_, g.g, n);
    store(to + 3 * H_, g.o, n);
  }

  V cell_before(int64_t t, int64_t b, int64_t u) const {
    const int64_t n = H_ - u;
    if (b < p_.sequence.continued_from(t))
      return load(p_.cells + (p_.sequence.row(p_.sequence.before(t)) + b) * H_ + u, n);
    return enter<Math>(masks_.dead_units(), T(1), masks_.dead(b, u), load(p_.c0 + b * H_ + u, n));
  }

  // From the gates of each row's first step to h_0.
  void leave_h(int64_t u) {
    product<NV>(
        0, B_, [&](int64_t b) { return dgates(p_.sequence.first(b), b); }, &w_hh_[u * 4 * H_], 4 * H_,
        [&](int64_t b, const V* sums) {
          for (int v = 0; v < NV && u + v * LANES < P_; ++v) {
            const int64_t at = u + v * LANES, n = P_ - at;
            store(p_.dh0 + b * P_ + at, load(&dh_[b * P_ + at], n) + masks_.hidden(b, at, sums[v]), n);
          }
        });
  }

  void leave_c(int64_t u) {
    for (int64_t b = 0; b < B_; ++b) {
      const V dc = load(&dc_[b * H_ + u], H_ - u);
      store(p_.dc0 + b * H_ + u, enter<Math>(masks_.dead_units(), T(1), masks_.dead(b, u), dc), H_ - u);
    }
  }

  const LstmBackward<T>& p_;
  const int64_t H_, P_, B_;
  const StateSites<Math> sites_;
  const StateMasks<T> masks_;
  Buffer<T> w_hh_, w_hr_;
  Buffer<T> dh_, dc_;  // [B, P], [B, H]: gradients carried from step to step; each unit is touched by its owner alone
};
